"""The loop of a process that serves nothing and is forked: the same in zygote and snapshot.

Waits for ForkSnapshot and ForkWorker on its control channel, forks, hands the child's pidfd to
the daemon, and reports its exit. No Python threads, no ZeroMQ, no event loop (rule 1).
"""

import os
import select
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, Protocol

from qgisd import channel, wire
from qgisd.worker import fork


class Child(Protocol):
    """What runs in a fork; `keep` are the descriptors it needs. It must not return."""

    def __call__(self, message: wire.ToForker, descriptors: list[int]) -> None: ...


class ForkServer:
    """Forks on command until the daemon closes the channel; then this process ends."""

    def __init__(
        self,
        control: socket.socket,
        lifeline: int,
        run_child: Child,
        ready_to_fork: Callable[[], list[fork.Thread]],
    ) -> None:
        self._control = control
        self._lifeline = lifeline
        self._run_child = run_child
        self._ready_to_fork = ready_to_fork
        self._children: dict[int, tuple[str, int]] = {}  # pidfd → token, pid
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> NoReturn:
        """Serve until the daemon is gone. Leaves by os._exit: nothing of QGIS is unwound here."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._control.fileno():
                    self._serve()
                else:
                    self._bury(descriptor)

    def _serve(self) -> None:
        try:
            data, descriptors = channel.receive(self._control)
        except channel.ChannelClosed:
            os._exit(0)
        message = wire.decode_to_forker(data)
        if isinstance(message, wire.ForkSnapshot):
            token = wire.snapshot_token(message.project, message.generation)
        else:
            token = wire.worker_token(message.worker)
        staying = self._ready_to_fork()
        if staying:
            # Appeared after the snapshot was found clean. The daemon starts a new generation.
            names = ", ".join(map(str, staying))
            self._report(wire.Failed(f"cannot fork any more, threads appeared: {names}"))
            os._exit(1)
        self._fork(token, message, descriptors)

    def _fork(self, token: str, message: wire.ToForker, descriptors: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_child(message, descriptors)
        pidfd = os.pidfd_open(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        self._children[pidfd] = (token, pid)
        self._poll.register(pidfd, select.POLLIN)
        self._report(wire.Forked(token, pid), [pidfd])

    def _become_child(self, message: wire.ToForker, descriptors: list[int]) -> NoReturn:
        code = 70  # EX_SOFTWARE, of sysexits.h
        try:
            # What it writes is its own, and the daemon knows whose: see supervisor/hearing.py.
            said = descriptors.pop()
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.close(said)
            repairs = fork.repair_descriptors({self._lifeline, *descriptors})
            for note in repairs.notes:
                print(f"fork {os.getpid()}: {note}", file=sys.stderr)
            self._run_child(message, descriptors)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _bury(self, pidfd: int) -> None:
        token, pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        self._report(wire.Exited(token, pid, os.waitstatus_to_exitcode(status)))

    def _report(self, message: wire.FromForker, descriptors: list[int] | None = None) -> None:
        try:
            channel.send(self._control, message, descriptors or [])
        except channel.ChannelClosed:
            os._exit(0)
