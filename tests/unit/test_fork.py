"""The rules of the fork that need no QGIS, each beside the failure that it prevents.

Real processes: a child is forked with and without the repair, and says by its exit code or through
a pipe what it saw. Threads of this process (pytest has none of its own) are made where needed.
"""

import asyncio
import ctypes
import fcntl
import gc
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qgisd.supervisor.process import Child
from qgisd.worker import fork
from qgisd.worker_settings import NICE
from tests.support import eventually


def in_child(work: Callable[[], bytes]) -> bytes:
    """What `work` returns in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, work())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as answer:
            return answer.read()
    finally:
        os.waitpid(pid, 0)


def repaired(*keep: int) -> fork.Repairs:
    """The repair of a child of a test: the pipe of `in_child` has the highest number."""
    pipes = [
        int(fd)
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}") and stat.S_ISFIFO(os.fstat(int(fd)).st_mode)
    ]
    return fork.repair_descriptors({*keep, *pipes})


@pytest.fixture
def thread() -> Iterator[threading.Thread]:
    """A Python thread that waits."""
    over = threading.Event()
    made = threading.Thread(target=over.wait, name="waits")
    made.start()
    yield made
    over.set()
    made.join()


# rule 1: threads


def test_a_python_thread_forbids_the_fork(thread: threading.Thread) -> None:
    (found,) = fork.blocking_threads()
    assert "Python thread 'waits'" in str(found) and found.tid == thread.native_id


def test_a_process_without_threads_may_fork() -> None:
    eventually(lambda: fork.other_threads() == [])  # one that was joined may take a moment to go
    assert fork.blocking_threads() == []


def test_waiting_calls_the_quiescing_until_the_threads_are_gone() -> None:
    over = threading.Event()
    made = threading.Thread(target=over.wait)
    made.start()
    calls = []

    def quiesce() -> None:
        calls.append(1)
        if len(calls) == 3:
            over.set()

    assert fork.wait_single_threaded(quiesce, 10.0) == []
    assert len(calls) >= 3
    made.join()


def test_waiting_ends_at_its_deadline_and_says_who_stays(thread: threading.Thread) -> None:
    (found,) = fork.wait_single_threaded(lambda: None, 0.03)
    assert found.tid == thread.native_id


SOURCE = """
#include <pthread.h>
#include <unistd.h>
static void *wait_here(void *x) { volatile char room[2048]; room[0] = 1; pause(); return 0; }
int begin(void) { pthread_t t; return pthread_create(&t, 0, wait_here, 0); }
"""

FIND = """
import ctypes, sys, time
from qgisd.worker import fork
assert ctypes.CDLL(sys.argv[1]).begin() == 0
while True:
    (found,) = fork.other_threads()
    if found.library:
        break
    time.sleep(0.01)
print(found.library)
print(len(fork.blocking_threads()))
fork.HARMLESS_THREADS["libmine"] = "for this test"
print(len(fork.blocking_threads()))
print(len(fork.blocking_threads({found.name})))
"""


def test_a_native_thread_is_known_by_the_library_that_started_it(tmp_path: Path) -> None:
    source, library = tmp_path / "mine.c", tmp_path / "libmine.so"
    source.write_text(SOURCE)
    try:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-lpthread"],
            check=True,
            timeout=60,
        )
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    done = subprocess.run(
        [sys.executable, "-c", FIND, str(library)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.split() == ["libmine.so", "1", "0", "0"], done.stderr[-800:]


# rule 2: files


@pytest.mark.parametrize(("repair", "sees"), [(False, b""), (True, b"2345")])
def test_a_fork_that_shares_an_offset_reads_other_bytes_and_a_repaired_one_its_own(
    tmp_path: Path, repair: bool, sees: bytes
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 2, os.SEEK_SET)
    first, second = socket.socketpair()

    def child() -> bytes:
        if repair:
            repairs = repaired(first.fileno(), second.fileno())
            assert repairs.reopened >= 1
        second.send(b"repaired")
        second.recv(10)  # the parent has moved its own offset
        return os.read(fd, 4)

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, child())
        finally:
            os._exit(0)
    os.close(writing)
    first.settimeout(10)
    first.recv(10)
    os.lseek(fd, 10, os.SEEK_SET)
    first.send(b"moved")
    with os.fdopen(reading, "rb") as answer:
        assert answer.read() == sees
    os.waitpid(pid, 0)
    os.close(fd)
    first.close()
    second.close()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
def test_a_reopened_file_keeps_number_access_and_position(tmp_path: Path, flags: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    fd = os.open(path, flags)
    os.lseek(fd, 7, os.SEEK_SET)

    def child() -> bytes:
        repaired()
        kept = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND)
        return struct.pack("iii", kept, os.lseek(fd, 0, os.SEEK_CUR), os.get_inheritable(fd))

    assert struct.unpack("iii", in_child(child)) == (flags, 7, 0)
    os.close(fd)


def test_a_deleted_file_is_reopened_too(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    path.unlink()

    def child() -> bytes:
        repairs = repaired()
        return b"%d %s" % (len(repairs.notes), os.read(fd, 3))

    assert in_child(child) == b"0 012"
    os.close(fd)


# rule 3: sockets, eventfds and the rest


@pytest.mark.parametrize("repair", [True, False])
def test_a_severed_socket_is_dead_in_the_child_and_alive_in_the_parent(repair: bool) -> None:
    ours, server = socket.socketpair()

    def child() -> bytes:
        if repair:
            assert repaired().severed >= 2
        try:
            ours.send(b"from the child")
        except OSError:
            return b"dead"
        return b"alive"

    assert in_child(child) == (b"dead" if repair else b"alive")
    server.setblocking(False)
    if repair:
        with pytest.raises(BlockingIOError):
            server.recv(100)
    else:
        assert server.recv(100) == b"from the child"
    ours.send(b"still here")
    assert server.recv(100) == b"still here"
    ours.close()
    server.close()


def test_a_severed_socket_reads_as_closed_by_the_peer() -> None:
    ours, server = socket.socketpair()

    def child() -> bytes:
        repaired()
        return b"closed" if ours.recv(1) == b"" else b"open"

    assert in_child(child) == b"closed"
    ours.close()
    server.close()


@pytest.mark.parametrize("repair", [True, False])
def test_a_wake_up_for_the_parent_is_not_eaten_by_the_child(repair: bool) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK)
    os.eventfd_write(event, 1)

    def child() -> bytes:
        if repair:
            assert repaired().renewed >= 1
        try:
            os.eventfd_read(event)
        except BlockingIOError:
            os.eventfd_write(event, 5)  # works, in the child alone
            return b"%d" % os.eventfd_read(event)
        return b"eaten"

    assert in_child(child) == (b"5" if repair else b"eaten")
    ready, _, _ = select.select([event], [], [], 0)
    assert ready == ([event] if repair else [])
    os.close(event)


def test_inotify_is_disarmed(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, str(tmp_path).encode(), 0x100) > 0  # IN_CREATE
    (tmp_path / "new").touch()

    def child() -> bytes:
        repaired()
        return b"%d" % len(select.select([watch], [], [], 0)[0])

    assert in_child(child) == b"0", "readable for ever: an event loop would turn without rest"
    assert len(os.read(watch, 1000)) > 0, "the parent still gets its event"
    os.close(watch)


def test_what_is_kept_and_the_standard_streams_are_left_alone() -> None:
    ours, server = socket.socketpair()

    def child() -> bytes:
        before = [os.fstat(fd).st_ino for fd in (0, 1, 2, ours.fileno())]
        repaired(ours.fileno())
        same = before == [os.fstat(fd).st_ino for fd in (0, 1, 2, ours.fileno())]
        ours.send(b"kept")
        return b"same" if same else b"changed"

    assert in_child(child) == b"same"
    assert server.recv(10) == b"kept"
    ours.close()
    server.close()


def test_a_kind_that_is_not_known_is_noted_and_left() -> None:
    epoll = select.epoll()

    def child() -> bytes:
        return "\n".join(repaired().notes).encode()

    assert b"eventpoll" in in_child(child)
    epoll.close()


def test_the_repair_leaves_no_descriptor_of_its_own() -> None:
    def child() -> bytes:
        before = set(os.listdir("/proc/self/fd"))
        repaired()
        return b"same" if set(os.listdir("/proc/self/fd")) == before else b"other"

    assert in_child(child) == b"same"


def test_a_fork_of_a_fork_can_be_repaired_again(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)

    def grandchild() -> bytes:
        repaired()
        return os.read(fd, 3)

    def child() -> bytes:
        repaired()
        os.lseek(fd, 4, os.SEEK_SET)
        return in_child(grandchild) + os.read(fd, 3)

    assert in_child(child) == b"456456"
    os.close(fd)


# rules 10 and 11


def test_what_is_there_at_the_fork_is_out_of_the_reach_of_the_collector() -> None:
    def child() -> bytes:
        fork.prepare_to_fork()
        return b"%d" % (gc.get_freeze_count() > 1000)

    assert in_child(child) == b"1"


def test_a_process_is_named_and_offered_to_the_kernel_first() -> None:
    def child() -> bytes:
        fork.mark_process("qgisd-worker-with-a-long-name", 500)
        return b"%s %s" % (
            Path("/proc/self/comm").read_bytes().strip(),
            Path("/proc/self/oom_score_adj").read_bytes().strip(),
        )

    assert in_child(child) == b"qgisd-worker-wi 500"


LEADER = r"""
import os, signal, socket, sys
from qgisd.worker import fork
if sys.argv[2] == "bound":
    fork.bind_lifeline(int(sys.argv[1]))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGIO, signal.SIG_IGN)
if os.fork() == 0:
    os.write(1, b"%d\n" % os.getpid())
    while True:
        pass
os.write(1, b"%d\n" % os.getpid())
signal.pause()
"""


@pytest.mark.parametrize("bound", [True, False])
def test_the_lifeline_kills_the_whole_group_even_if_it_ignores_sigterm_and_spins(
    bound: bool,
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, str(theirs.fileno()), "bound" if bound else "free"],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    try:
        assert leader.stdout is not None
        pids = {int(leader.stdout.readline()), int(leader.stdout.readline())}
        pidfds = [os.pidfd_open(pid) for pid in pids]
        theirs.close()
        os.killpg(leader.pid, signal.SIGTERM)
        assert select.select(pidfds, [], [], 0.1)[0] == [], "SIGTERM is ignored"
        ours.close()  # as when the daemon dies, however it dies
        if bound:
            eventually(lambda: len(select.select(pidfds, [], [], 0)[0]) == 2, timeout=10)
        else:
            assert select.select(pidfds, [], [], 0.3)[0] == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.communicate(timeout=10)
    for pidfd in pidfds:
        os.close(pidfd)


def niceness(limit: int, capable: bool) -> list[int]:
    """Nice values before, in and after the background, by a process of nice 5."""
    script = (
        "import os, resource, sys\n"
        "from qgisd.worker import fork\n"
        f"resource.setrlimit(resource.RLIMIT_NICE, ({limit}, {limit}))\n"
        "os.setpriority(os.PRIO_PROCESS, 0, 5)\n"
        "fork._CAP_SYS_NICE = 23 if sys.argv[1] == 'capable' else 63\n"
        "nice = lambda: print(os.getpriority(os.PRIO_PROCESS, 0))\n"
        "nice()\n"
        "with fork.in_background():\n"
        "    nice()\n"
        "nice()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "capable" if capable else ""],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return [int(line) for line in done.stdout.split()]


def test_no_process_goes_where_it_cannot_come_back_from() -> None:
    assert niceness(0, capable=False) == [5, 5, 5]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_NICE")
def test_a_load_in_the_background_comes_back() -> None:
    assert niceness(0, capable=True) == [5, 15, 5]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_NICE")
def test_the_daemon_ends_the_background_of_a_load() -> None:
    async def run() -> list[int]:
        sleeper = subprocess.Popen(["sleep", "60"])
        ended = asyncio.Event()
        child = Child(sleeper.pid, os.pidfd_open(sleeper.pid), lambda code: ended.set())
        os.setpriority(os.PRIO_PROCESS, sleeper.pid, 15)
        child.hurry()
        nice = [os.getpriority(os.PRIO_PROCESS, who) for who in (sleeper.pid, 0)]
        child.kill()
        await asyncio.wait_for(ended.wait(), 10)
        sleeper.returncode = 0  # collected by its pidfd
        child.hurry()  # too late, and no error
        return nice

    theirs, ours = asyncio.run(run())
    assert theirs == ours + NICE
