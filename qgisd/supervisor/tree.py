"""The processes of one pool: zygotes, the snapshots forked from them, the workers of those.

Carries out the machine's instructions about processes, and emits events about what became of
them. Decides nothing. A process is named by its token (wire.snapshot_token, wire.worker_token).
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from qgisd import channel, wire
from qgisd.datafiles import Versions
from qgisd.log import redact
from qgisd.supervisor import autopsy
from qgisd.supervisor import events as e
from qgisd.supervisor.hearing import Hearing
from qgisd.supervisor.process import Child, Control, Lifeline, orphans, start_zygote
from qgisd.supervisor.transport import identity_of
from qgisd.words import PluginState, Reason

#: Longest wait for an autopsy; somewhat more than it takes at most.
_AUTOPSY_S = 15.0


class _Group:
    """A zygote, and the process group below it that its lifeline holds."""

    def __init__(self, lifeline: Lifeline) -> None:
        self.lifeline = lifeline
        #: Its number, which is the zygote's pid.
        self.number = 0
        #: Tokens of snapshots and workers that live in it.
        self.members: set[str] = set()
        self.over = False

    def leave(self, token: str) -> None:
        self.members.discard(token)
        self.close_if_empty()

    def close_if_empty(self) -> None:
        if self.over and not self.members:
            self.lifeline.cut()


class _Forker:
    """What zygote and snapshot have in common: a process, a channel, orders under way."""

    child: Child | None = None
    control: Control

    def __init__(self, group: _Group) -> None:
        self.group = group
        #: Its own last words.
        self.message = ""
        #: What it was doing when it was last heard of, as " while …".
        self.doing = ""
        #: Those of its project, as far as it told of them.
        self.layers: list[wire.Layer] = []
        #: Tokens ordered from it whose Forked has not come.
        self.pending: set[str] = set()
        #: Of a snapshot that loads: the data files that it has told of.
        self.data_files: Versions = {}


class Tree:
    """Made on a running loop."""

    def __init__(
        self,
        pool: str,
        endpoint: str,
        home: Path,
        zygote_environment: Callable[[int, int], dict[str, str]],
        emit: Callable[[e.Event], None],
        hearing: Hearing,
        on_autopsy: Callable[[int, str], None],
        native_stacks: bool,
        log: logging.Logger,
    ) -> None:
        self._pool = pool
        self._endpoint = endpoint
        self._home = home
        self._loop = asyncio.get_running_loop()
        self._zygote_environment = zygote_environment
        self._emit = emit
        self._hearing = hearing
        self._on_autopsy = on_autopsy
        self._native_stacks = native_stacks
        self._stack_fds: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = log
        self._zygotes: dict[int, _Forker] = {}
        self._snapshots: dict[str, _Forker] = {}
        self._workers: dict[str, tuple[Child, _Group]] = {}
        #: Killed before they were seen; they die when they show up.
        self._doomed: set[str] = set()
        #: Left by one that ended, and known to nobody: killed, and buried.
        self._strays: dict[int, Child] = {}
        #: What the newest zygote said of itself.
        self.started: wire.ZygoteReady | None = None

    def pids(self) -> dict[str, int]:
        """Token (or "zygote N") → pid of every process."""
        found = {f"zygote {number}": zygote for number, zygote in self._zygotes.items()}
        found |= self._snapshots
        pids = {token: forker.child.pid for token, forker in found.items() if forker.child}
        return pids | {token: child.pid for token, (child, _) in self._workers.items()}

    async def shut_down(self) -> None:
        """Kill everything and wait until it has ended. Emits nothing useful any more."""
        children = [forker.child for forker in self._zygotes.values() if forker.child]
        children += [forker.child for forker in self._snapshots.values() if forker.child]
        children += [child for child, _ in self._workers.values()]
        children += self._strays.values()
        for forker in [*self._zygotes.values(), *self._snapshots.values()]:
            forker.control.close()
            forker.group.lifeline.cut()
        for child in children:
            child.kill()
        while not all(child.buried for child in children):
            await asyncio.sleep(0.005)
        self._hearing.close_all()

    # zygotes

    def start_zygote(self, do: e.StartZygote) -> None:
        ours, theirs = channel.pair()
        zygote = _Forker(_Group(Lifeline()))
        output = self._hearing.open(f"zygote {do.number}")
        try:
            zygote.child = start_zygote(
                self._zygote_environment,
                theirs,
                zygote.group.lifeline,
                output,
                lambda code: self._zygote_exited(do.number, code),
            )
        except OSError as error:
            # No memory, no process: like one that ended at once, or nobody would try again.
            ours.close()
            zygote.group.lifeline.cut()
            self._hearing.close(f"zygote {do.number}")
            self._emit(e.ZygoteDown(do.number, f"it cannot be started: {error}"))
            return
        finally:
            theirs.close()
            os.close(output)
            zygote.group.lifeline.hand_over()
        zygote.control = Control(
            ours,
            lambda message, fds: self._on_zygote_message(do.number, message, fds),
            lambda: None,
        )
        zygote.group.number = zygote.child.pid
        self._zygotes[do.number] = zygote

    def end_zygote(self, do: e.EndZygote) -> None:
        """Only itself: what was forked from it lives on, held by the group's lifeline."""
        zygote = self._zygotes.get(do.number)
        if zygote is not None and zygote.child is not None:
            zygote.message = do.message and do.message + zygote.doing
            zygote.control.close()
            zygote.child.kill()

    def _on_zygote_message(self, number: int, message: wire.FromForker, fds: list[int]) -> None:
        zygote = self._zygotes[number]
        if isinstance(message, wire.ZygoteReady):
            self.started, zygote.doing = message, ""
            for note in message.notes:
                self._log.warning("zygote: %s", note)
            for plugin in message.plugins:
                level = logging.ERROR if plugin.state is PluginState.FAILED else logging.INFO
                words = ": ".join(filter(None, (plugin.state, plugin.error, plugin.note)))
                self._log.log(level, "plugin %s %s", plugin.name, words)
            self._log.info("zygote %d is up: QGIS %s", number, message.qgis)
            self._emit(e.ZygoteUp(number))
        elif isinstance(message, wire.Starting):
            zygote.doing = f" while {message.what}"
        elif isinstance(message, wire.Failed):
            zygote.message = message.message
        else:
            self._on_fork_message(zygote, message, fds)

    def _zygote_exited(self, number: int, code: int | None) -> None:
        zygote = self._zygotes.pop(number)
        self._hearing.close(f"zygote {number}")
        zygote.control.close()
        zygote.group.over = True
        zygote.group.close_if_empty()
        # First that it is gone, then what is lost with it: else it would be ordered there again.
        message = zygote.message or f"it ended{zygote.doing}: {ending(code)}"
        self._emit(e.ZygoteDown(number, message))
        self._lose_orders(zygote)

    # snapshots

    def fork_snapshot(self, do: e.ForkSnapshot) -> None:
        zygote = self._zygotes.get(do.zygote)
        token = wire.snapshot_token(do.project, do.generation)
        if zygote is None:
            self._emit(_never_forked(token))
            return
        try:
            self._order_snapshot(do, zygote, token)
        except OSError as error:
            # Without descriptors. Not as one that was never forked: it would be ordered at once.
            if (forker := self._snapshots.pop(token, None)) is not None:
                forker.control.close()
            self._emit(e.SnapshotDown(do.project, do.generation, f"cannot be forked: {error}"))

    def _order_snapshot(self, do: e.ForkSnapshot, zygote: _Forker, token: str) -> None:
        ours, theirs = channel.pair()
        forker = self._snapshots[token] = _Forker(zygote.group)
        forker.control = Control(
            ours,
            lambda message, fds: self._on_snapshot_message(token, message, fds),
            lambda: None,  # its exit, or that of the zygote, says more
        )
        order = wire.ForkSnapshot(do.project, do.generation, do.path, do.background)
        with theirs:
            self._order(zygote, token, order, [theirs.fileno()])

    def hurry_snapshot(self, do: e.HurrySnapshot) -> None:
        forker = self._snapshots.get(wire.snapshot_token(do.project, do.generation))
        if forker is not None and forker.child is not None:
            forker.child.hurry()

    def end_snapshot(self, do: e.EndSnapshot) -> None:
        token = wire.snapshot_token(do.project, do.generation)
        forker = self._snapshots.get(token)
        if forker is None:
            return
        forker.control.close()
        if forker.child is not None:
            forker.child.kill()
        else:
            self._doomed.add(token)
            self._hearing.close(token)
            del self._snapshots[token]

    def _on_snapshot_message(self, token: str, message: wire.FromForker, fds: list[int]) -> None:
        forker = self._snapshots.get(token)
        if forker is None:
            for descriptor in fds:
                os.close(descriptor)
        elif isinstance(message, wire.Loaded):
            generation, project = wire.parse_snapshot_token(token)
            for note in message.notes:
                self._log.warning("%s: %s", project, note)
            self._emit(
                e.SnapshotLoaded(
                    project,
                    generation,
                    message.mode,
                    redact(message.why),
                    message.layers,
                    [
                        wire.BadLayer(bad.name, bad.provider, redact(bad.message))
                        for bad in message.bad_layers
                    ],
                    message.load_ms,
                    message.warmup,
                    forker.data_files,
                    forker.layers,
                )
            )
        elif isinstance(message, wire.DataFiles):
            forker.data_files |= message.files
        elif isinstance(message, wire.Layers):
            forker.layers += message.layers
        elif isinstance(message, wire.Failed):
            forker.message = redact(message.message)
        else:
            self._on_fork_message(forker, message, fds)

    def _snapshot_exited(self, token: str, code: int | None) -> None:
        forker = self._snapshots.pop(token, None)
        if forker is None:
            return
        self._hearing.close(token)
        forker.control.close()
        self._kill_strays(forker.group)
        forker.group.leave(token)
        generation, project = wire.parse_snapshot_token(token)
        message = forker.message or f"the process that held it ended: {ending(code)}"
        self._emit(e.SnapshotDown(project, generation, message, crashed=not forker.message))
        self._lose_orders(forker)

    # workers

    def fork_worker(self, do: e.ForkWorker) -> None:
        token = wire.worker_token(do.worker)
        forker: _Forker | None
        if do.path is None:
            forker = self._snapshots.get(wire.snapshot_token(do.project, do.generation))
        else:
            forker = self._zygotes.get(do.zygote)
        identity = identity_of(self._pool, do.worker).decode()
        order = wire.ForkWorker(do.worker, self._endpoint, identity, do.path)
        if forker is not None:
            self._order(forker, token, order, [])
        else:
            self._emit(e.WorkerDown(do.worker, "its forker is gone", never_forked=True))

    def kill_worker(self, do: e.KillWorker) -> None:
        token = wire.worker_token(do.worker)
        if token in self._workers:
            child = self._workers[token][0]
            if do.reason in (Reason.DEADLINE, Reason.OPERATOR) and do.worker in self._stack_fds:
                task = self._loop.create_task(self._examine_and_kill(do.worker, child))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                child.kill()
        else:
            self._doomed.add(token)
            self._emit(e.WorkerDown(do.worker, "it never came up"))

    def worker_is_up(self, worker: int, stack_fd: int) -> None:
        """It can be asked for its stack now."""
        self._stack_fds[worker] = stack_fd

    async def _examine_and_kill(self, worker: int, child: Child) -> None:
        """Its request is answered already, so there is time to learn what it was stuck in."""
        try:
            # A descriptor of our own: the child's may be closed by its exit while a thread uses it.
            pidfd = os.dup(child.pidfd)
            examined = self._loop.run_in_executor(
                None,
                autopsy.examine,
                child.pid,
                pidfd,
                self._stack_fds.get(worker, -1),
                self._native_stacks,
            )
            examined.add_done_callback(lambda _: os.close(pidfd))
            # All threads may be waiting for a folder on a network that stalls.
            await asyncio.wait((examined,), timeout=_AUTOPSY_S)
            if examined.done():
                self._on_autopsy(worker, examined.result())
        finally:
            child.kill()

    def _worker_exited(self, token: str, code: int | None) -> None:
        self._hearing.close(token)
        child, group = self._workers.pop(token)
        self._stack_fds.pop(wire.parse_worker_token(token), None)
        self._kill_strays(group)
        group.leave(token)
        own = self._home / wire.WORKER_FOLDERS / str(child.pid)
        if own.exists():
            self._loop.run_in_executor(None, partial(shutil.rmtree, own, ignore_errors=True))
        self._emit(e.WorkerDown(wire.parse_worker_token(token), ending(code)))

    # orders to both forkers, and what they say

    def _order(
        self, forker: _Forker, token: str, order: wire.ToForker, descriptors: list[int]
    ) -> None:
        """A forker that takes no order is dead, or as good as dead; its exit settles the rest."""
        output = self._hearing.open(token)
        forker.pending.add(token)
        sent = forker.control.send(order, [*descriptors, output])
        os.close(output)
        if not sent and forker.child is not None:
            forker.child.kill()

    def _on_fork_message(self, by: _Forker, message: wire.FromForker, fds: list[int]) -> None:
        if isinstance(message, wire.Forked) and fds:
            by.pending.discard(message.token)
            self._adopt(by.group, message.token, message.pid, fds[0])
        elif isinstance(message, wire.Exited):
            forker = self._snapshots.get(message.token)
            worker = self._workers.get(message.token)
            child = forker.child if forker else worker[0] if worker else None
            if child is not None:
                child.obituary(message.code)

    def _adopt(self, group: _Group, token: str, pid: int, pidfd: int) -> None:
        doomed = token in self._doomed
        self._doomed.discard(token)
        forker = self._snapshots.get(token)
        group.members.add(token)
        if token.startswith("worker "):
            child = Child(pid, pidfd, lambda code: self._worker_exited(token, code))
            self._workers[token] = (child, group)
        elif forker is not None:
            child = Child(pid, pidfd, lambda code: self._snapshot_exited(token, code))
            forker.child = child
        else:
            # A rehearsal, which ends by itself; or a snapshot that was given up meanwhile.
            child = Child(pid, pidfd, lambda code: group.leave(token))
            doomed = not wire.is_rehearsal_token(token)
        if doomed:
            child.kill()

    def _lose_orders(self, forker: _Forker) -> None:
        """What was ordered from a forker that has ended will not come."""
        pending, forker.pending = forker.pending, set()
        if pending:
            self._kill_strays(forker.group)
        for token in pending:
            self._doomed.discard(token)
            self._hearing.close(token)
            if token.startswith("worker "):
                worker = wire.parse_worker_token(token)
                self._emit(e.WorkerDown(worker, "its forker ended", never_forked=True))
            elif (lost := self._snapshots.pop(token, None)) is not None:
                lost.control.close()
                self._emit(_never_forked(token))

    def _kill_strays(self, group: _Group) -> None:
        """Who ends between a fork and its report leaves a process that nobody knows, and so does a
        worker that had started a program, as some plugins do. They are our children then."""
        known = {*self.pids().values(), *self._strays}
        for pid in orphans(group.number) - known:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            name = f"stray {pid}"
            group.members.add(name)
            self._strays[pid] = Child(pid, pidfd, partial(self._stray_exited, group, pid))
            self._strays[pid].kill()

    def _stray_exited(self, group: _Group, pid: int, code: int | None) -> None:
        del self._strays[pid]
        group.leave(f"stray {pid}")


def _never_forked(token: str) -> e.SnapshotDown:
    generation, project = wire.parse_snapshot_token(token)
    return e.SnapshotDown(project, generation, "its zygote ended", never_forked=True)


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "nobody knows how"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
