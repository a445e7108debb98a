"""A forker that ends between a fork and its report: what it forked is found, killed and buried."""

import asyncio
import ctypes
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from qgisd import channel
from qgisd.supervisor import events as e
from qgisd.supervisor import process, tree
from qgisd.supervisor.hearing import Hearing
from qgisd.words import Reason
from tests.support import Daemon, eventually

#: A zygote that forks on the first order, and ends without a word of it.
HASTY = """
import os, signal, socket, sys
control = socket.socket(fileno=int(sys.argv[1]))
control.recv(65536)
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, b"x")
    signal.pause()
os.read(read, 1)
os._exit(0)
"""


@pytest.fixture
def subreaper() -> Iterator[None]:
    """As in the daemon, and not for longer than the test."""
    process.become_subreaper()
    yield
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


def start_hasty(
    make_environment: Callable[[int, int], dict[str, str]], control: socket.socket,
    lifeline: process.Lifeline, output: int, on_exit: Callable[[int | None], None],
) -> process.Child:  # fmt: skip
    """In place of process.start_zygote."""
    started = subprocess.Popen(
        [sys.executable, "-c", HASTY, str(control.fileno())],
        pass_fds=[control.fileno()], start_new_session=True,
    )  # fmt: skip
    child = process.Child(started.pid, os.pidfd_open(started.pid), on_exit)
    started.returncode = 0  # its exit is collected by the pidfd
    return child


def test_what_a_hasty_zygote_leaves_is_killed_and_buried(
    subreaper: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "start_zygote", start_hasty)
    heard: list[e.Event] = []
    before = set(psutil.Process().children())

    async def run() -> None:
        made = tree.Tree(
            "p", "ipc://unused", tmp_path, lambda control, lifeline: {}, heard.append,
            Hearing("p", {}, str), lambda worker, stack: None, False, logging.getLogger("test"),
        )  # fmt: skip
        made.start_zygote(e.StartZygote(1))
        made.fork_snapshot(e.ForkSnapshot(1, "world.qgs", 1, "/srv/world.qgs"))
        deadline = asyncio.get_running_loop().time() + 10
        while not any(isinstance(event, e.SnapshotDown) for event in heard) or made._strays:
            assert asyncio.get_running_loop().time() < deadline, heard
            await asyncio.sleep(0.01)
        await made.shut_down()

    asyncio.run(run())
    assert [type(event) for event in heard] == [e.ZygoteDown, e.SnapshotDown]
    assert set(psutil.Process().children()) == before


def test_what_a_worker_has_started_ends_with_it(
    daemons: Callable[..., Daemon], fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    worker, program = map(int, daemon.ows("a.qgs", do="program").body.split())
    assert psutil.pid_exists(program)
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(program))  # and is no zombie
    assert daemon.ows("a.qgs").body == b"hello"


def test_orphans_are_those_of_the_group_alone(subreaper: None) -> None:
    ours, theirs = channel.pair()
    lone = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    leader = subprocess.Popen(
        [sys.executable, "-c", HASTY, str(theirs.fileno())],
        pass_fds=[theirs.fileno()], start_new_session=True,
    )  # fmt: skip
    theirs.close()
    with ours, lone:
        ours.send(b"fork")
        leader.wait(10)
        (left,) = eventually(lambda: process.orphans(leader.pid))
        assert left not in (lone.pid, leader.pid)
        os.kill(left, signal.SIGKILL)
        assert os.waitpid(left, 0)[0] == left
        assert process.orphans(leader.pid) == set()
        lone.kill()


def test_a_stuck_worker_is_killed_though_no_thread_is_free_to_look_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "_AUTOPSY_S", 0.05)
    heard: list[e.Event] = []
    stuck = threading.Event()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocked = loop.run_in_executor(None, stuck.wait, 20)
        made = tree.Tree(
            "p", "ipc://unused", tmp_path, lambda control, lifeline: {}, heard.append,
            Hearing("p", {}, str), lambda worker, stack: None, False, logging.getLogger("test"),
        )  # fmt: skip
        worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        worker.returncode = 0  # its exit is collected by the pidfd
        lifeline = process.Lifeline()
        made._adopt(tree._Group(lifeline), "worker 1", worker.pid, os.pidfd_open(worker.pid))
        made.worker_is_up(1, 0)
        made.kill_worker(e.KillWorker(1, Reason.DEADLINE))
        deadline = loop.time() + 10
        while not heard:
            assert loop.time() < deadline, "it lives"
            await asyncio.sleep(0.01)
        stuck.set()
        await blocked
        lifeline.hand_over()
        lifeline.cut()

    asyncio.run(run())
    assert heard == [e.WorkerDown(1, "signal 9")]


def test_a_snapshot_for_which_there_are_no_descriptors_is_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[e.Event] = []

    def none_left(token: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def run() -> None:
        hearing = Hearing("p", {}, str)
        monkeypatch.setattr(hearing, "open", none_left)
        made = tree.Tree(
            "p", "ipc://unused", tmp_path, lambda control, lifeline: {}, heard.append,
            hearing, lambda worker, stack: None, False, logging.getLogger("test"),
        )  # fmt: skip
        lifeline = process.Lifeline()
        made._zygotes[1] = tree._Forker(tree._Group(lifeline))
        made.fork_snapshot(e.ForkSnapshot(1, "world.qgs", 1, "/srv/world.qgs"))
        assert not made._snapshots and not made._zygotes[1].pending
        lifeline.hand_over()
        lifeline.cut()

    asyncio.run(run())
    (down,) = heard
    assert isinstance(down, e.SnapshotDown) and not down.never_forked
    assert down.message == "cannot be forked: [Errno 24] Too many open files"
