"""Forks of a process with a loaded project, with the rules of the fork or without one of them.

Started by the tests as `python tests/e2e/forks.py SETTINGS`, JSON in and JSON out. Uses
qgisd.worker.fork and the QGIS backend directly, as zygote, snapshot and worker do:

    this process (zygote) ─▶ snapshot: repair, load, ask, quiesce ─▶ children: repair, ask

SETTINGS: project, urls, deadline (seconds for a child), without: rules that are left out

    quiesce    do not end the network thread before the fork (rule 1)
    reopen     leave regular files as inherited (rule 2)
    sever      leave sockets as inherited (rule 3)
    renew      leave eventfds as inherited (rule 3)
    again      repair in the snapshot only (rule 4)

The answer has the threads at the fork, and for each of four children: hashes of its answers or
how it ended, what it shares with its parent, and what the garbage collector keeps frozen.
"""

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

from qgisd import wire
from qgisd.worker import fork
from qgisd.worker.qgis_server import QgisBackend
from qgisd.worker_settings import ZygoteSettings

CHILDREN = 4
_SYS_KCMP = {"x86_64": 312, "aarch64": 272}[os.uname().machine]
_LIBC = ctypes.CDLL(None, use_errno=True)


def same_file(pid: int, other: int, descriptor: int) -> bool:
    """Whether a descriptor of two processes is one open file (kcmp(2), KCMP_FILE)."""
    return bool(_LIBC.syscall(_SYS_KCMP, pid, other, 0, descriptor, descriptor) == 0)


class Kept:
    """An answer, kept (backend.Answer)."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.status = 0

    def begin(self, status: int, headers: wire.Headers) -> None:
        self.status = status

    def write(self, data: bytes) -> None:
        self._digest.update(data)

    def finish(self, status: int, headers: wire.Headers, data: bytes) -> None:
        self.status = self.status or status
        self._digest.update(data)

    def fail(self, message: str) -> None:
        self.status = 599

    def hash(self) -> str:
        return f"{self.status} {self._digest.hexdigest()}"


def ask(backend: QgisBackend, url: str) -> str:
    """Status and hash of one answer."""
    kept = Kept()
    backend.handle(wire.Request(1, "GET", url, [("Host", "localhost")]), b"", kept)
    return kept.hash()


def kind_of(descriptor: str) -> str:
    """file, socket, eventfd, or other."""
    try:
        mode = os.fstat(int(descriptor)).st_mode
        target = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
    if target == "anon_inode:[eventfd]":
        return "eventfd"
    if stat.S_ISREG(mode):
        return "file"
    return "socket" if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) else "other"


def inherited() -> dict[int, str]:
    """Descriptor → kind, of all above the standard three."""
    found = {number: kind_of(number) for number in os.listdir("/proc/self/fd")}
    return {int(number): kind for number, kind in found.items() if int(number) > 2 and kind}


RULES = {"reopen": "file", "sever": "socket", "renew": "eventfd"}


def repair(without: set[str], keep: set[int]) -> None:
    """qgisd's, with the descriptors of a rule that is left out counted among those to keep."""
    spared = {kind for rule, kind in RULES.items() if rule in without}
    kept = {number for number, kind in inherited().items() if kind in spared}
    fork.repair_descriptors(keep | kept)


def child(backend: QgisBackend, settings: dict[str, Any], pipes: tuple[int, int]) -> None:
    """Repair, compare with the parent, ask, report."""
    start, results = pipes
    without = set(settings["without"])
    before = inherited()
    if "again" not in without:
        repair(without, {start, results})
    shared = [
        os.readlink(f"/proc/self/fd/{number}")
        for number, kind in before.items()
        if kind != "other" and number not in pipes and same_file(os.getpid(), os.getppid(), number)
    ]
    os.read(start, 1)  # returns when the parent has closed its end: all begin at once
    report: dict[str, Any] = {"shared": shared, "frozen": gc.get_freeze_count()}
    report["hashes"] = [ask(backend, url) for url in settings["urls"]]
    os.write(results, json.dumps(report).encode())


def snapshot(settings: dict[str, Any], backend: QgisBackend) -> dict[str, Any]:
    """Load, quiesce, fork the children, gather what they report."""
    without = set(settings["without"])
    backend.load(settings["project"])
    for url in settings["urls"] if "quiesce" in without or settings.get("warm") else []:
        ask(backend, url)
    if "quiesce" not in without:
        staying = fork.wait_single_threaded(backend.quiesce, 5)
        fork.prepare_to_fork()
    else:
        staying = fork.blocking_threads()
    outcome: dict[str, Any] = {"threads": [str(thread) for thread in staying], "children": []}
    start_read, start_write = os.pipe()
    running: list[tuple[int, int]] = []
    for _ in range(CHILDREN):
        results_read, results_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                os.close(start_write)
                child(backend, settings, (start_read, results_write))
                code = 0
            os._exit(code)
        os.close(results_write)
        running.append((pid, results_read))
    os.close(start_write)
    deadline = time.monotonic() + settings["deadline"]
    for pid, results in running:
        outcome["children"].append(gather(pid, results, deadline))
    return outcome


def gather(pid: int, results: int, deadline: float) -> dict[str, Any]:
    """What a child reported; {"ended": …} for one that did not."""
    hung = threading.Event()

    def kill() -> None:
        hung.set()
        os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), kill)
    timer.start()
    data = b""
    while piece := os.read(results, 65536):
        data += piece
    timer.cancel()
    timer.join()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if data and not code:
        return dict(json.loads(data))
    return {"ended": "hung" if hung.is_set() else f"died with {code}"}


def main() -> None:
    """Play the zygote; the snapshot prints."""
    settings = json.loads(sys.argv[1])
    out = os.dup(1)
    os.dup2(2, 1)
    backend = QgisBackend(ZygoteSettings.from_environment())
    backend.start(lambda what: None)
    backend.quiesce()
    pid = os.fork()
    if pid == 0:
        fork.repair_descriptors({out})
        outcome = snapshot(settings, backend)
        os.write(out, json.dumps(outcome).encode())
        os._exit(0)
    os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))


if __name__ == "__main__":
    assert Path("/proc/self/fd").exists()
    main()
