"""The rules of the fork: what must be put right before and after a process with QGIS in it forks.

Each rule stands here with the failure that it prevents (measured; docs/decisions/0001).
Linux only; single-threaded by its own rules; imports no QGIS.
"""

import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qgisd.worker import heap

_TASKS = Path("/proc/self/task")
_DESCRIPTORS = Path("/proc/self/fd")
#: What is replaced by an eventfd of this process.
_RENEWED = (
    "anon_inode:[eventfd]", "anon_inode:inotify", "anon_inode:[timerfd]", "anon_inode:[pidfd]",
)  # fmt: skip
#: Bytes of a page of memory.
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: How much nicer than a worker a load is for which nobody waits: a tenth of its share.
_BACKGROUND = 10
#: capabilities(7)
_CAP_SYS_NICE = 23

#: Rule 1, the exceptions: threads that may stand beside a fork, by the library that started
#: them, each with its proof. Nothing a child does may wait for such a thread.
HARMLESS_THREADS = {
    # WebKit's memory scavenger: sleeps or waits on a condition, and returns freed pages to the
    # kernel. Started by any print layout on Qt 5. Prints with HTML and JavaScript come out
    # byte-identical in forks beside it (tests/parity prints from forks).
    "libQt5WebKit": "memory scavenger of WebKit",
}

#: Rule 1 in the zygote alone: threads that Qt starts with QgsServer, asleep in poll() while the
#: zygote is quiet, and absent in its forks. 1,170 forks beside them: 0 hung, 0 wrong.
HARMLESS_IN_ZYGOTE = ("QCA::KeyStoreTh", "QDBusConnection", "Qt bearer threa")

#: Libraries through which every thread starts; they tell nothing about whose it is.
_COMMON = ("libc.so", "libc-", "libpthread", "libstdc++", "ld-linux", "libQt5Core", "libQt6Core")


@dataclass(frozen=True)
class Thread:
    """A native thread of this process other than the main one."""

    tid: int
    name: str
    #: File name of the library whose code started it; "" where the kernel does not tell.
    library: str

    def __str__(self) -> str:
        return f"{self.name} of {self.library}" if self.library else self.name


@dataclass
class Repairs:
    """What `repair_descriptors` did, and what it did not know."""

    reopened: int = 0
    severed: int = 0
    renewed: int = 0
    notes: list[str] = field(default_factory=list)


def other_threads() -> list[Thread]:
    """All native threads but the main one, whoever started them (/proc/self/task)."""
    found = []
    for task in _TASKS.iterdir():
        tid = int(task.name)
        if tid == os.getpid():
            continue
        try:
            found.append(Thread(tid, (task / "comm").read_text().strip(), _library_of(tid)))
        except FileNotFoundError:
            continue  # it ended while we looked
    return found


def _library_of(tid: int) -> str:
    """The library whose code runs at the bottom of a thread's stack.

    The return addresses next to the stack's start are those of clone, start_thread and then of
    the function the thread was started with. Found by reading our own memory from the stack
    pointer up: /proc/self/task/TID/syscall ends with the stack pointer and the program counter.
    """
    try:
        words = (_TASKS / str(tid) / "syscall").read_text().split()
        pointer = int(words[-2], 16)
    except (OSError, ValueError, IndexError):
        return ""  # running just now, or a kernel without it
    code: list[tuple[int, int, str]] = []
    top = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, *_, name = ([*line.split(maxsplit=5), ""])[:6]
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= pointer < high:
            top = high
        elif "x" in access and "/" in name:
            code.append((low, high, Path(name).name))
    home = ""
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(pointer)
        stack = memory.read(min(top - pointer, 64 << 10)) or b""
    for offset in range(0, len(stack) - 7, 8):
        address = int.from_bytes(stack[offset : offset + 8], sys.byteorder)
        for low, high, name in code:
            if low <= address < high and not name.startswith(_COMMON):
                home = name
    return home


def blocking_threads(harmless_names: Collection[str] = ()) -> list[Thread]:
    """The threads that forbid a fork now: those of Python, and the native ones on no list."""
    if threading.active_count() > 1:
        return [
            Thread(thread.native_id or 0, f"Python thread {thread.name!r}", "")
            for thread in threading.enumerate()
            if thread is not threading.main_thread()
        ]
    return [
        thread
        for thread in other_threads()
        if thread.name not in harmless_names
        and not thread.library.startswith(tuple(HARMLESS_THREADS))
    ]


def wait_single_threaded(
    quiesce: Callable[[], None], deadline_s: float, harmless_names: Collection[str] = ()
) -> list[Thread]:
    """Rule 1: threads do not survive a fork, and a child that waits for one hangs.

    Calls `quiesce` and waits up to `deadline_s` for the threads to end. What is returned stays;
    an empty list means that this process may fork.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        quiesce()
        staying = blocking_threads(harmless_names)
        if not staying or time.monotonic() >= deadline:
            return staying
        time.sleep(0.01)


def repair_descriptors(keep: Collection[int]) -> Repairs:
    """Rules 2, 3 and 4: part this process's descriptors from its parent's. Call first in a child.

    keep: descriptors left as they are, besides 0, 1 and 2: the control channel, the lifeline.

    Regular files are opened again under the same number: over a fork the file offset is shared,
    and two processes that seek read each other's bytes ("Corrupted .shp file").
    Sockets get a dead one laid over them: libpq then finds its connection lost and QGIS
    reconnects; two workers on one connection hang. Nothing is closed the polite way, for that
    would end the parent's connection. Eventfds are made anew, as a wake-up for one process can
    be eaten by another. So are inotify and timer descriptors, as eventfds that nobody signals:
    a dead socket is always readable, and Qt's event loop would turn without rest.
    """
    repairs = Repairs()
    dead = _dead_socket()
    for number in sorted(int(entry) for entry in os.listdir(_DESCRIPTORS)):
        if number <= 2 or number == dead or number in keep:
            continue
        try:
            mode = os.fstat(number).st_mode
            target = os.readlink(_DESCRIPTORS / str(number))
        except OSError:
            continue  # the descriptor of the listing itself
        if target in _RENEWED:
            _replace(number, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            repairs.renewed += 1
        elif stat.S_ISREG(mode):
            _reopen(number, target, repairs)
        elif stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
            # A pipe is Qt's older wake-up: shared, it would wake the wrong process.
            os.dup2(dead, number, inheritable=False)
            repairs.severed += 1
        elif not (stat.S_ISCHR(mode) or stat.S_ISDIR(mode)):
            repairs.notes.append(f"descriptor of an unknown kind left as it is: {target}")
    os.close(dead)
    return repairs


def _dead_socket() -> int:
    left, right = socket.socketpair()
    right.close()
    return left.detach()


def _replace(number: int, fresh: int) -> None:
    os.dup2(fresh, number, inheritable=False)
    os.close(fresh)


def _reopen(number: int, target: str, repairs: Repairs) -> None:
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    try:
        fresh = os.open(
            f"/proc/self/fd/{number}", (flags & (os.O_ACCMODE | os.O_APPEND)) | os.O_CLOEXEC
        )
    except OSError as error:
        # Without the right to open it again (a file handed over by a privileged parent) the
        # offset stays shared: say so rather than fail, most such files are only mapped.
        repairs.notes.append(f"cannot open {target} again: {error.strerror}")
        return
    os.lseek(fresh, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
    _replace(number, fresh)
    repairs.reopened += 1


def prepare_to_fork() -> None:
    """Rule 10: keep the collector from touching, and so copying, pages shared with forks.

    Likewise malloc: see heap.py.
    """
    gc.collect()
    gc.freeze()
    return_memory()
    heap.fill_small_holes()


def return_memory() -> None:
    """Give back to the kernel what a load took for a while, the XML of a large project above all.

    Two thirds of it, measured (200 layers, 40 MB of .qgs, QGIS 3.22: 1,092 MiB before, 357 MiB
    after). What is free in a snapshot would besides be filled, and so copied, by each fork.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def own_memory() -> int:
    """Bytes of memory of this process that no file stands behind (proc(5), statm).

    Pages still shared with the snapshot count as well, so what it grows by after a fork is what
    the process has taken since, whichever of those it has copied. 9 µs, where smaps_rollup, which
    tells shared from private, takes as long as many a request.
    """
    with open("/proc/self/statm", "rb") as file:
        fields = file.read().split()
    return (int(fields[1]) - int(fields[2])) * _PAGE


@contextlib.contextmanager
def in_background() -> Iterator[None]:
    """Leave the processors to those who serve, for as long as the block takes.

    Only where the kernel lets this process come back, for what it forks inherits its priority:
    with CAP_SYS_NICE, or with RLIMIT_NICE (systemd's LimitNICE=+5). Else nothing happens.
    """
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    if not _may_be_as_nice_as(usual):
        yield
        return
    os.setpriority(os.PRIO_PROCESS, 0, usual + _BACKGROUND)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


def _may_be_as_nice_as(nice: int) -> bool:
    """getrlimit(2): the limit is 20 less the lowest nice value that may be set."""
    if 20 - resource.getrlimit(resource.RLIMIT_NICE)[0] <= nice:
        return True
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return bool(effective >> _CAP_SYS_NICE & 1)


def mark_process(name: str, oom_score_adj: int) -> None:
    """Name this process for `ps` and `top`, and tell the kernel whom to kill first (rule 10)."""
    Path("/proc/self/comm").write_text(name[:15])
    try:
        Path("/proc/self/oom_score_adj").write_text(str(oom_score_adj))
    except OSError:
        pass  # lower than our parent's, which an unprivileged process may not ask for


def die_with(parent: int) -> None:
    """In a child: be killed when the parent ends, for whatever reason.

    prctl(2), PR_SET_PDEATHSIG = 1; Python has no wrapper for it.
    """
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it ended before we asked


def bind_lifeline(descriptor: int) -> None:
    """Rule 11: end this process group the moment the daemon is gone, even if stuck in C++.

    The lifeline is a socketpair over which nothing is ever sent. When its other end closes the
    kernel signals the owner of this end; owner is the group, signal is SIGKILL. The group leader
    calls this once and all forks inherit it.

    The group is made here, for it must never be that of the daemon. It is no session: Linux shares
    the processor out by session first (sched(7), autogroup), and then nice values would count for
    nothing between the daemon, those who serve and those who load.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, 9)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
