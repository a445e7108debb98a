"""Warming up: a snapshot answers a few requests itself, so that its forks inherit what these open.

Fonts, symbols, coordinate systems, connections and capabilities then exist once, before the
fork. But a request may leave a thread behind, hang or crash, and the snapshot must stay fit to
be forked (fork.py, rule 1). So each request is first tried in a fork, which may be killed, and
the snapshot itself repeats only those that ended well there.
"""

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from qgisd import wire
from qgisd.worker import fork
from qgisd.worker.backend import Backend, WarmStep
from qgisd.worker_settings import ZygoteSettings

#: From nothing to everything: `pool.warmup`.
LEVELS = ("off", "capabilities", "map")
#: Of the time there is: as the snapshot then repeats what was rehearsed.
_SHARE = 0.5
#: Of what the load took: so much time there is at least, as a busy machine is slow with both.
_OF_LOAD = 0.5
_DONE = b"."


@dataclass(frozen=True)
class Warmed:
    """How far a snapshot was warmed up."""

    level: str = "off"
    #: What was done, in words.
    detail: str = ""
    #: What kept it from more of what was asked for; "" if nothing did.
    why: str = ""
    #: The first map that went well: what a fork copies to draw any map, it copies with this one.
    map: wire.Request | None = None


class Ignored:
    """An answer that nobody waits for (backend.Answer)."""

    def __init__(self) -> None:
        self.status = 0

    def begin(self, status: int, headers: wire.Headers) -> None:
        self.status = status

    def write(self, data: bytes) -> None:
        pass

    def finish(self, status: int, headers: wire.Headers, data: bytes) -> None:
        self.status = self.status or status

    def fail(self, message: str) -> None:
        self.status = 500


def warm_up(
    backend: Backend,
    settings: ZygoteSettings,
    project: str,
    load_s: float,
    announce: Callable[[int, int], None],
) -> Warmed:
    """Warm this snapshot up as far as it goes. Call while single-threaded.

    announce(pid, pidfd): tells the daemon of the fork that rehearses, so that it ends with the
    snapshot. Errors in answers are no fault here: they are counted in the detail.
    """
    if settings.warmup == "off":
        return Warmed()
    steps = [
        step
        for step in backend.warm_steps(project)
        if LEVELS.index(step.level) <= LEVELS.index(settings.warmup)
    ]
    if not any(step.requests for step in steps):
        return Warmed()
    started = time.monotonic()
    limit_s = max(settings.warmup_s, load_s * _OF_LOAD)
    count, why = _rehearse(backend, settings, steps, limit_s, announce)
    level, said, errors, first_map = "off", [], 0, None
    for step in steps:
        done = step.requests[: max(0, count)]
        count -= len(step.requests)
        for request in done:
            answer = Ignored()
            backend.handle(request, b"", answer)
            errors += answer.status >= 400
        if done:
            level = step.level
            first_map = done[0] if level == "map" else None
        said.append(f"{step.level} {len(done)} of {len(step.requests)}")
    backend.warmed_up()
    failed = f", {errors} of them with an error" if errors else ""
    detail = f"{', '.join(said)}{failed}, in {time.monotonic() - started:.2f} s" if said else ""
    return Warmed(level, detail, why, first_map)


def _rehearse(
    backend: Backend,
    settings: ZygoteSettings,
    steps: list[WarmStep],
    limit_s: float,
    announce: Callable[[int, int], None],
) -> tuple[int, str]:
    """How many requests, in order, end well in a fork; and what stopped it, if anything did."""
    requests = [request for step in steps for request in step.requests]
    ours, theirs = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        fork.die_with(parent)
        _play(backend, settings, requests, theirs)
    os.close(theirs)
    pidfd = os.pidfd_open(pid)
    announce(pid, pidfd)
    deadline = time.monotonic() + limit_s * _SHARE
    heard, late = _listen(ours, deadline)
    if late:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(ours)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pidfd)
    done, _, staying = heard.partition(b"!")
    if staying:
        return len(done), f"threads stay after the next: {staying.decode(errors='replace')}"
    if late:
        return len(done), f"no more within {limit_s:.3g} s"
    if code:
        return len(done), f"the next ended the process that tried it with {code}"
    return len(done), ""


def _listen(pipe: int, deadline: float) -> tuple[bytes, bool]:
    """What comes until its end, and whether the deadline came before that."""
    heard = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            piece = os.read(pipe, 4096)
            if not piece:
                return heard, False
            heard += piece
    return heard, True


def _play(
    backend: Backend, settings: ZygoteSettings, requests: list[wire.Request], pipe: int
) -> NoReturn:
    """In the fork: answer, and say after each whether the process could still be forked."""
    code = 70  # EX_SOFTWARE, of sysexits.h
    try:
        fork.mark_process("qgisd-rehearsal", 600)
        fork.repair_descriptors({settings.lifeline_fd, pipe})
        for request in requests:
            backend.handle(request, b"", Ignored())
            staying = fork.wait_single_threaded(backend.quiesce, settings.quiesce_s)
            if staying:
                os.write(pipe, b"!" + ", ".join(map(str, staying)).encode()[:2000])
                break
            os.write(pipe, _DONE)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
