"""What systemd is told and what it hands over: with a real datagram socket, and for real with
systemd-socket-activate. A whole booted Debian is scripts/test-systemd.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from qgisd import sdnotify, service
from tests.process.tools import TRANSACTION, XML, background, frozen, path, state
from tests.support import MARK, Daemon, eventually, free_port, marked, write_fake_project

Start = Callable[..., Daemon]
#: Becomes its further arguments, with these descriptors as systemd hands them over.
ACTIVATE = """
import os, sys
for number, given in enumerate(sys.argv[1].split(",")):
    os.dup2(int(given), 3 + number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Systemd:
    """Its end of $NOTIFY_SOCKET."""

    def __init__(self, address: Path) -> None:
        self.environment = {"NOTIFY_SOCKET": str(address)}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(address))
        self.seen: list[dict[str, str]] = []

    def next(self, timeout: float = 15) -> dict[str, str]:
        """The next message, as it comes."""
        self.socket.settimeout(timeout)
        lines = self.socket.recv(4096).decode().split("\n")
        message = dict(line.partition("=")[::2] for line in lines)
        self.seen.append(message)
        return message

    def until(self, name: str, timeout: float = 15) -> dict[str, str]:
        """The next message with this variable in it."""
        while name not in (message := self.next(timeout)):
            pass
        return message

    def waiting(self) -> list[dict[str, str]]:
        """All that has come and was not looked at."""
        found = []
        while True:
            try:
                found.append(self.next(timeout=0.001))
            except (TimeoutError, BlockingIOError):
                return found


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    listener = Systemd(tmp_path / "notify")
    with closing(listener.socket):
        yield listener


# what it is told


def test_ready_is_said_when_what_is_pinned_is_loaded(
    daemons: Start, fake_roots: Path, systemd: Systemd
) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=0.6, text="slow")
    daemon = daemons(
        fake_roots, projects='pinned = ["slow", "a"]', environment=systemd.environment, wait=False
    )
    first = systemd.next()
    # A load may take long, and systemd is asked for patience before it loses it.
    assert int(first["EXTEND_TIMEOUT_USEC"]) >= 15_000_000
    assert first["STATUS"].startswith("starting: ")
    assert "READY" not in first
    ready = systemd.until("READY")
    assert ready["READY"] == "1"
    assert state(daemon, "slow.qgs")["state"] == "serving"
    assert ready["STATUS"].startswith("projects 2, workers ")


def test_a_pinned_project_that_fails_holds_up_nothing(
    daemons: Start, fake_roots: Path, systemd: Systemd
) -> None:
    write_fake_project(fake_roots / "bad.qgs", fail="no good")
    daemon = daemons(
        fake_roots,
        projects='pinned = ["bad", "absent"]',
        environment=systemd.environment,
        wait=False,
    )
    assert "failed: bad.qgs" in systemd.until("READY")["STATUS"]
    assert daemon.get("/readyz").status == 503
    assert daemon.ows("a", do="text").body == b"hello"


def test_the_status_follows_what_happens_and_is_said_only_when_it_changes(
    daemons: Start, fake_roots: Path, systemd: Systemd
) -> None:
    daemon = daemons(fake_roots, environment=systemd.environment)
    assert systemd.until("READY")["STATUS"] == "projects 0, workers 0 (0 busy), queued 0"
    with background() as clients:
        running = clients.ows(daemon, "a", do="text", s=2.6)
        assert systemd.until("STATUS")["STATUS"] == "projects 1, workers 1 (1 busy), queued 0"
        assert running.result().status == 200
    assert systemd.until("STATUS")["STATUS"] == "projects 1, workers 1 (0 busy), queued 0"
    assert [message for message in systemd.waiting() if "STATUS" in message] == []


def test_the_end_is_announced_and_given_its_time(
    daemons: Start, fake_roots: Path, systemd: Systemd
) -> None:
    environment = systemd.environment | {"QGISD_DAEMON__SHUTDOWN_TIMEOUT_S": "123"}
    daemon = daemons(fake_roots, environment=environment)
    systemd.until("READY")
    assert daemon.stop() == 0
    stopping = systemd.until("STOPPING")
    assert stopping["STOPPING"] == "1"
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) >= 123_000_000


def test_a_systemd_that_does_not_listen_any_more_is_no_harm(
    daemons: Start, fake_roots: Path, systemd: Systemd
) -> None:
    daemon = daemons(fake_roots, environment=systemd.environment | {"WATCHDOG_USEC": "100000"})
    systemd.until("READY")
    systemd.socket.close()
    eventually(lambda: "systemd does not hear us" in daemon.log())
    assert daemon.ows("a", do="text").body == b"hello"
    assert daemon.stop() == 0


# the watchdog


def test_the_watchdog_is_fed_while_the_daemon_runs(
    daemons: Start, fake_roots: Path, systemd: Systemd
) -> None:
    daemon = daemons(fake_roots, environment=systemd.environment | {"WATCHDOG_USEC": "1000000"})
    systemd.until("READY")
    times = []
    for _ in range(5):
        systemd.until("WATCHDOG", timeout=5)
        times.append(time.monotonic())
    assert 1.2 < times[-1] - times[0] < 4.0  # four times 0.5 s; systemd would wait for 1 s
    with frozen(daemon):
        systemd.waiting()
        with pytest.raises(TimeoutError):
            systemd.next(timeout=1.2)
    assert systemd.until("WATCHDOG", timeout=5)


def test_a_watchdog_that_is_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    usec = {"WATCHDOG_USEC": "3000000"}
    assert sdnotify.watchdog_s(usec) == 3.0
    assert sdnotify.watchdog_s(usec | {"WATCHDOG_PID": str(os.getpid())}) == 3.0
    assert sdnotify.watchdog_s(usec | {"WATCHDOG_PID": "1"}) == 0.0
    assert sdnotify.watchdog_s({}) == sdnotify.watchdog_s({"WATCHDOG_USEC": "soon"}) == 0.0


def test_a_loop_that_stands_still_does_not_look_alive(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.environment["NOTIFY_SOCKET"])
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    counts = []

    async def run() -> None:
        unit = service.SystemdUnit({})
        unit.start()
        await asyncio.sleep(0.1)
        counts.append(len(systemd.waiting()))
        time.sleep(0.1)  # what must not happen on a loop
        counts.append(len(systemd.waiting()))
        await asyncio.sleep(0.1)
        counts.append(len(systemd.waiting()))
        unit.close()

    asyncio.run(run())
    assert counts[0] > 2 and counts[1] == 0 and counts[2] > 2


def test_sigabrt_of_the_watchdog_says_where_the_daemon_stood(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    daemon.process.send_signal(signal.SIGABRT)
    assert daemon.process.wait(10) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in daemon.log()
    assert "daemon.py" in daemon.log()
    eventually(lambda: not marked(daemon.mark), timeout=2)
    for file in daemon.folder.rglob("*.sock"):
        file.unlink()


# SIGHUP


def serving(daemon: Daemon) -> dict[str, int]:
    """Project → number of the generation that serves."""
    return {
        key: generation["number"]
        for key, project in daemon.projects().items()
        for generation in project["generations"]
        if generation["state"] == "serving"
    }


def test_sighup_reloads_and_says_so(daemons: Start, fake_roots: Path, systemd: Systemd) -> None:
    write_fake_project(fake_roots / "c.qgs", load_s=0.3, text="c")
    daemon = daemons(fake_roots, environment=systemd.environment)
    assert daemon.ows("a", do="text").status == daemon.ows("c", do="text").status == 200
    systemd.until("READY")
    first = serving(daemon)
    before = time.monotonic_ns() // 1000
    daemon.process.send_signal(signal.SIGHUP)
    reloading = systemd.until("RELOADING")
    assert reloading["RELOADING"] == "1"
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    daemon.process.send_signal(signal.SIGHUP)  # meanwhile: what changed since may not be lost
    assert systemd.until("READY")["STATUS"].startswith("projects 2,")
    again = systemd.until("RELOADING")
    assert int(again["MONOTONIC_USEC"]) > int(reloading["MONOTONIC_USEC"])
    systemd.until("READY")
    after = serving(daemon)
    assert set(after) == {"a.qgs", "c.qgs"}
    assert all(after[key] >= first[key] + 2 for key in after)
    assert "RELOADING" not in str(systemd.waiting())
    assert daemon.ows("a", do="text").body == b"hello"


def test_a_reload_that_fails_is_in_the_log_and_ends(
    daemons: Start, fake_roots: Path, systemd: Systemd
) -> None:
    daemon = daemons(fake_roots, environment=systemd.environment)
    daemon.ows("a", do="text")
    systemd.until("READY")
    write_fake_project(fake_roots / "a.qgs", fail="spoilt")
    daemon.process.send_signal(signal.SIGHUP)
    systemd.until("RELOADING")
    status = systemd.until("READY")["STATUS"]
    assert "failed: a.qgs" in status
    assert "reload of a.qgs: " in daemon.log()
    assert daemon.ows("a", do="text").body == b"hello"


def test_sighup_while_it_starts_is_no_end(
    daemons: Start, fake_roots: Path, systemd: Systemd
) -> None:
    environment = systemd.environment | {"QGISD_FAKE_START": "0.5"}
    daemon = daemons(fake_roots, environment=environment, wait=False)
    systemd.next()
    daemon.process.send_signal(signal.SIGHUP)
    systemd.until("READY")
    assert not any("RELOADING" in message for message in systemd.seen)
    assert daemon.ows("a", do="text").body == b"hello"


# socket activation


def has_served(daemon: Daemon, count: int) -> bool:
    """So many requests of project a; False while it starts."""
    try:
        return int(daemon.projects().get("a.qgs", {"requests": 0})["requests"]) >= count
    except OSError:
        return False


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that systemd listens on."""
    with closing(socket.socket(socket.AF_UNIX)) as owned:
        owned.bind(str(tmp_path / "public"))
        owned.listen(4096)
        yield owned


def activated(names: str, *sockets: socket.socket) -> dict[str, object]:
    """Options of start_daemon: it is handed these."""
    numbers = ",".join(str(one.fileno()) for one in sockets)
    return {
        "prefix": (sys.executable, "-c", ACTIVATE, numbers),
        "pass_fds": [one.fileno() for one in sockets],
        "environment": {"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names},
    }


def test_a_restart_behind_the_socket_of_systemd_loses_no_request(
    daemons: Start, fake_roots: Path, listener: socket.socket
) -> None:
    address = listener.getsockname()
    over = threading.Event()

    def start() -> Daemon:
        options = activated("http", listener)
        return daemons(fake_roots, listen=f"unix:{address}", wait=False, **options)

    def client(daemon: Daemon, post: bool) -> list[object]:
        outcomes: list[object] = []
        while not over.is_set():
            target = path("a", do="text", s=0.01)
            try:
                answer = (
                    daemon.request("POST", target, TRANSACTION, XML) if post else daemon.get(target)
                )
            except OSError as error:
                outcomes.append(repr(error))
            else:
                good = answer.complete and answer.body == b"hello"
                outcomes.append("good" if good else (answer.status, answer.body))
        return outcomes

    current = start()
    eventually(current.ready)
    with background() as clients:
        runs = [clients.run(client, current, number == 0) for number in range(5)]
        try:
            for _ in range(3):
                eventually(partial(has_served, current, 40))
                assert current.stop() == 0
                assert Path(address).is_socket()
                current = start()
            eventually(current.ready)
        finally:
            over.set()
        outcomes = [outcome for run in runs for outcome in run.result()]
    assert [outcome for outcome in outcomes if outcome != "good"] == []
    assert len(outcomes) > 120


def test_what_is_handed_over_counts_more_than_http_listen(
    daemons: Start, fake_roots: Path, tmp_path: Path
) -> None:
    unused = f"127.0.0.1:{free_port()}"
    with closing(socket.create_server(("127.0.0.1", 0))) as tcp:
        address = f"127.0.0.1:{tcp.getsockname()[1]}"
        options = activated("http", tcp)
        options["environment"] |= {"QGISD_HTTP__LISTEN": unused}  # type: ignore[operator]
        daemon = daemons(fake_roots, listen=address, **options)
        eventually(lambda: f"ready on {address}" in daemon.log())
        assert "http.listen is not used" in daemon.log()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(unused.rpartition(":")[2])), 2)
        # Workers and zygotes do not get it: nobody but us and systemd holds it open.
        daemon.ows("a", do="text")
        inode = os.fstat(tcp.fileno()).st_ino
        assert daemon.pids()
        for pid in daemon.pids():
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
            assert f"socket:[{inode}]" not in links
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"LISTEN_" not in environment and b"NOTIFY_SOCKET" not in environment


@pytest.mark.parametrize(
    ("names", "kind", "reason"),
    [
        ("qgisd.socket", socket.SOCK_STREAM, "FileDescriptorName=http"),
        ("http", socket.SOCK_DGRAM, "is not one that listens"),
        ("http", socket.SOCK_STREAM, "is not one that listens"),
    ],
)
def test_a_socket_that_will_not_do_is_named(
    daemons: Start, fake_roots: Path, tmp_path: Path, names: str, kind: int, reason: str
) -> None:
    with closing(socket.socket(socket.AF_UNIX, kind)) as odd:
        odd.bind(str(tmp_path / "odd"))
        daemon = daemons(fake_roots, wait=False, **activated(names, odd))
        assert daemon.process.wait(10) == 1
    assert reason in daemon.log()
    assert "Traceback" not in daemon.log()


def test_descriptors_meant_for_another_process_are_left_alone(
    daemons: Start, fake_roots: Path
) -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http", "LISTEN_PID": "1"}
    daemon = daemons(fake_roots, environment=environment)
    assert daemon.ows("a", do="text").body == b"hello"


def test_systemd_socket_activate_starts_it_with_both_sockets(
    daemons: Start, fake_roots: Path, tmp_path: Path
) -> None:
    program = shutil.which("systemd-socket-activate")
    assert program, "systemd-socket-activate is missing: scripts/system-packages test installs it"
    public, admin = tmp_path / "public", tmp_path / "admin"
    kept = [f"-E{name}" for name in (MARK, "PATH", "PYTHONUNBUFFERED")]
    prefix = [program, "-l", str(public), "-l", str(admin), "--fdname=http:admin", *kept]
    daemon = daemons(fake_roots, listen=f"unix:{public}", prefix=prefix, wait=False)
    eventually(public.is_socket)
    # The connection that starts it is answered.
    answer = eventually(lambda: daemon.ows("a", do="text"))
    assert answer.body == b"hello"
    assert not (daemon.folder / "admin.sock").exists()
    done = daemon.ctl("--admin", f"unix:{admin}", "projects")
    assert (done.returncode, "a.qgs" in done.stdout) == (0, True), done.stderr
    assert daemon.stop() == 0
    assert public.is_socket() and admin.is_socket()


def test_a_name_begins_no_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd = Systemd(tmp_path / "notify")
    with closing(systemd.socket):
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert sdnotify.notify("READY=1", "STATUS=failed: a\nMAINPID=1\nb.qgs")
        assert systemd.next() == {"READY": "1", "STATUS": "failed: a MAINPID=1 b.qgs"}
