"""Processes by pidfd: start, signal, learn of the exit. Does as it is told and decides nothing.

A zygote is exec'd; snapshots and workers are forked by others, who send their pidfds. A number
from /proc is never signalled: pids are used again, pidfds are not.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from qgisd import channel, wire
from qgisd.errors import WireError
from qgisd.worker_settings import NICE

#: Seconds to wait for the forker to tell how its child ended, once the pidfd says that it did.
_OBITUARY_S = 0.05


class Child:
    """A process of the tree. `on_exit(code)` is called once; code is None where nobody knows."""

    def __init__(self, pid: int, pidfd: int, on_exit: Callable[[int | None], None]) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._on_exit = on_exit
        self._code: int | None = None
        self._exited = False
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._readable)

    @property
    def alive(self) -> bool:
        """False once its exit was seen."""
        return not self._exited

    @property
    def buried(self) -> bool:
        """True once its exit was collected, by us or by its forker."""
        return self._ended

    @property
    def pidfd(self) -> int:
        """Valid while `alive`."""
        return self._pidfd

    def kill(self) -> None:
        """SIGKILL; nothing happens if it has ended."""
        if self.alive:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def hurry(self) -> None:
        """Let it have its share of the processors again (fork.in_background)."""
        if self.alive:
            with contextlib.suppress(OSError):  # it has just ended
                usual = os.getpriority(os.PRIO_PROCESS, 0) + NICE
                os.setpriority(os.PRIO_PROCESS, self.pid, usual)

    def obituary(self, code: int) -> None:
        """The forker, its parent, tells how it ended."""
        self._code = code
        if not self.alive:
            self._finish()

    def _readable(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._exited = True
        self._collect()
        if self._code is not None:
            self._finish()
        else:
            self._loop.call_later(_OBITUARY_S, self._finish)

    def _collect(self) -> None:
        """Take its exit code, if it is a child of ours: exec'd, or inherited as subreaper."""
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return  # its forker collects it
        if result is not None:
            killed = result.si_code != os.CLD_EXITED
            self._code = -result.si_status if killed else result.si_status

    def _finish(self) -> None:
        if self._ended:
            return
        self._ended = True
        # Its forker may have died in the same moment, and left it to us.
        self._collect()
        os.close(self._pidfd)
        self._pidfd = -1
        self._on_exit(self._code)


class Control:
    """The daemon's end of a zygote's or snapshot's channel, on the loop."""

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[wire.FromForker, list[int]], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._end = end
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        end.setblocking(False)
        self._loop.add_reader(end, self._readable)

    @property
    def open(self) -> bool:
        """False once either end is closed."""
        return self._end.fileno() >= 0

    def send(self, message: wire.ToForker, descriptors: list[int] | None = None) -> bool:
        """False if the other end is gone, or has not read for so long that the buffer is full."""
        if not self.open:
            return False
        try:
            channel.send(self._end, message, descriptors or [])
        except (channel.ChannelClosed, BlockingIOError):
            return False
        return True

    def close(self) -> None:
        """The process at the other end reads EOF, and ends."""
        if self.open:
            self._loop.remove_reader(self._end)
            self._end.close()

    def _readable(self) -> None:
        while self.open:
            try:
                data, descriptors = channel.receive(self._end)
            except BlockingIOError:
                return
            except (channel.ChannelClosed, WireError):
                self.close()
                self._on_closed()
                return
            try:
                message = wire.decode_from_forker(data)
            except WireError:
                for descriptor in descriptors:
                    os.close(descriptor)
                self.close()
                self._on_closed()
                return
            self._on_message(message, descriptors)


class Lifeline:
    """While this end is open a zygote's process group lives; closed, the kernel kills it.

    It closes by itself when the daemon dies, however it dies (worker/fork.py, bind_lifeline).
    """

    def __init__(self) -> None:
        self._ours, self.theirs = channel.pair()

    def hand_over(self) -> None:
        """After the exec: only the group holds the other end."""
        self.theirs.close()

    def cut(self) -> None:
        """Kill every process of the group, at once."""
        self._ours.close()


def start_zygote(
    make_environment: Callable[[int, int], dict[str, str]],
    control: socket.socket,
    lifeline: Lifeline,
    output: int,
    on_exit: Callable[[int | None], None],
) -> Child:
    """Exec a zygote. It makes itself a process group, out of reach of the terminal's Ctrl-C.

    make_environment(control_fd, lifeline_fd): its whole environment.
    output: descriptor for what it writes.
    """
    descriptors = (control.fileno(), lifeline.theirs.fileno())
    process = subprocess.Popen(
        [sys.executable, "-m", "qgisd.worker.zygote"],
        env=make_environment(*descriptors),
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    child = Child(process.pid, os.pidfd_open(process.pid), on_exit)
    # Its exit is collected by the pidfd; without this, Popen's destructor complains.
    process.returncode = 0
    return child


def orphans(group: int) -> set[int]:
    """Pids of our children in a process group: those that a forker left when it ended, and
    itself until its exit is collected.

    proc(5), /proc/PID/task/TID/children: exact for processes that do not end meanwhile.
    """
    found: set[int] = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread of ours that ended
            found.update(map(int, children.read_text().split()))
    return {pid for pid in found if _group_of(pid) == group}


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def become_subreaper() -> None:
    """Workers whose snapshot has died become our children, so that their exits are collected.

    prctl(2), PR_SET_CHILD_SUBREAPER = 36; Python has no wrapper for it.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(36, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
