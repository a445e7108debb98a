"""Starts that fail and ends of every kind: what runs is finished, and nothing is left."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.process.tools import Raw, background, busy, idle, named, path, state, the
from tests.support import Daemon, eventually, free_port, marked, write_fake_project

Start = Callable[..., Daemon]


def forget_sockets(daemon: Daemon) -> None:
    """Remove what a daemon that was killed could not."""
    for file in daemon.folder.rglob("*.sock"):
        file.unlink()


def assert_nothing_left(daemon: Daemon) -> None:
    """No process, no socket."""
    eventually(lambda: not marked(daemon.mark), timeout=2)
    assert list(daemon.folder.rglob("*.sock")) == []


# SIGTERM


def test_what_was_accepted_before_sigterm_is_answered(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=0.8, text="slow")
    daemon = daemons(fake_roots, pool="workers = 3")
    daemon.ows("a", do="text")
    with background() as clients:
        running = [clients.ows(daemon, "a", do="text", s=0.4) for _ in range(6)]
        streamed = clients.ows(daemon, "b", do="chunks", n=5, pause=0.1)
        loading = clients.ows(daemon, "slow", do="text")
        eventually(lambda: "slow.qgs" in daemon.projects())
        eventually(lambda: state(daemon, "a.qgs")["requests"] == 7)
        eventually(lambda: state(daemon, "b.qgs")["requests"] == 1)
        assert daemon.stop() == 0
        assert [answer.result().body for answer in running] == [b"hello"] * 6
        assert (streamed.result().complete, len(streamed.result().body)) == (True, 50)
        assert loading.result().body == b"slow"
    assert_nothing_left(daemon)
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        daemon.get("/healthz")


def test_clients_that_keep_coming_see_answers_and_then_a_closed_door(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")

    def client() -> list[object]:
        outcomes: list[object] = []
        while True:
            try:
                answer = daemon.ows("a", do="text", s=0.02)
            except (ConnectionRefusedError, FileNotFoundError):
                return outcomes
            except OSError as error:
                outcomes.append(error)
            else:
                good = answer.complete and answer.body == b"hello"
                outcomes.append("good" if good else answer.status)

    with background() as clients:
        runs = [clients.run(client) for _ in range(6)]
        eventually(lambda: state(daemon, "a.qgs")["requests"] > 50)
        assert daemon.stop() == 0
        outcomes = [outcome for run in runs for outcome in run.result()]
    # 503 says: come back; an error would be a request that was taken and not answered.
    assert set(outcomes) <= {"good", 503}
    assert outcomes.count("good") > 40
    assert_nothing_left(daemon)


def test_whoever_has_connected_before_the_end_is_answered(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="workers = 2\nqueue = 500\nproject_queue = 500")
    daemon.ows("a", do="text")
    with ExitStack() as stack:
        os.kill(daemon.process.pid, signal.SIGSTOP)
        # More than Tornado accepts at one go: the rest waits in the kernel when SIGTERM is seen.
        connections = [stack.enter_context(closing(daemon.connection())) for _ in range(300)]
        for connection in connections:
            connection.request("GET", path("a", do="text"))
        os.kill(daemon.process.pid, signal.SIGTERM)
        os.kill(daemon.process.pid, signal.SIGCONT)
        answers = [connection.getresponse().read() for connection in connections]
        assert answers == [b"hello"] * 300
    assert daemon.process.wait(5) == 0
    assert_nothing_left(daemon)


def test_a_kept_connection_is_not_cut_within_an_answer(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    with closing(daemon.connection()) as used, closing(daemon.connection()) as unused:
        for connection in (used, unused):
            connection.request("GET", path("a", do="text"))
            assert connection.getresponse().read() == b"hello"
        used.request("GET", path("a", do="text", s=0.5))
        busy(daemon)
        os.kill(daemon.process.pid, signal.SIGTERM)
        assert used.getresponse().read() == b"hello"
        # An idle connection does not hold up the end.
        assert daemon.process.wait(5) == 0


def test_a_large_answer_is_still_taken_after_sigterm(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    with closing(daemon.connection()) as connection:
        connection.request("GET", path("a", do="chunks", n=40, size=1 << 20))
        answer = connection.getresponse()
        idle(daemon)
        os.kill(daemon.process.pid, signal.SIGTERM)
        eventually(lambda: "stopping" in daemon.log())
        assert len(answer.read()) == 40 << 20
    assert daemon.process.wait(5) == 0


def test_a_temporary_runtime_folder_is_removed(daemons: Start, fake_roots: Path) -> None:
    place = fake_roots.parent / "xdg"
    place.mkdir()
    environment = {"QGISD_DAEMON__RUNTIME_DIR": '""', "XDG_RUNTIME_DIR": str(place)}
    daemon = daemons(fake_roots, environment=environment)
    assert daemon.ows("a", do="text").body == b"hello"
    assert len(list(place.iterdir())) == 1
    assert daemon.stop() == 0
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("trick", ["stubborn", "stop"])
def test_a_worker_that_hangs_is_not_waited_for_beyond_shutdown_timeout(
    daemons: Start, fake_roots: Path, trick: str
) -> None:
    daemon = daemons(fake_roots, environment={"QGISD_DAEMON__SHUTDOWN_TIMEOUT_S": "0.6"})
    daemon.ows("a", do="text")
    with background() as clients:
        answer = clients.ows(daemon, "a", do=trick)
        busy(daemon)
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert 0.5 < time.monotonic() - begun < 3
        assert answer.result().status == 503
        assert answer.result().headers["Retry-After"]
    assert_nothing_left(daemon)


def test_an_upload_that_stands_still_is_not_waited_for(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    with background() as clients, Raw(daemon) as upload:
        upload.sock.sendall(b"POST /ows/?MAP=a HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\n<a")
        slow = clients.ows(daemon, "a", do="text", s=4)
        busy(daemon)
        begun = time.monotonic()
        assert daemon.stop() == 0
        # What was whole is answered all the same.
        assert slow.result().status == 200
        assert 3 < time.monotonic() - begun < 10
    assert_nothing_left(daemon)


def test_a_load_that_hangs_is_not_waited_for_beyond_shutdown_timeout(
    daemons: Start, fake_roots: Path
) -> None:
    write_fake_project(fake_roots / "hang.qgs", hang=1)
    daemon = daemons(fake_roots, environment={"QGISD_DAEMON__SHUTDOWN_TIMEOUT_S": "0.6"})
    with background() as clients:
        answer = clients.ows(daemon, "hang", do="text")
        eventually(lambda: named(daemon, "snapshot"))
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 3
        assert answer.result().status == 503
    assert_nothing_left(daemon)


def test_the_second_sigterm_means_now(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    with Raw(daemon) as client, Raw(daemon) as streaming:
        client.get(path("a", do="hang"))
        streaming.get(path("a", do="chunks", n=2, pause=15))
        busy(daemon, 2)
        os.kill(daemon.process.pid, signal.SIGTERM)
        eventually(lambda: "stopping" in daemon.log())
        assert daemon.process.poll() is None
        begun = time.monotonic()
        os.kill(daemon.process.pid, signal.SIGTERM)
        assert daemon.process.wait(5) == 0
        assert time.monotonic() - begun < 2
        # What was not finished does not look finished.
        assert not streaming.rest()[0].endswith(b"0\r\n\r\n")
        assert not client.rest()[0].startswith(b"HTTP/1.1 200")
    assert_nothing_left(daemon)


def test_sigint_ends_as_sigterm_does(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    os.kill(daemon.process.pid, signal.SIGINT)
    assert daemon.process.wait(5) == 0
    assert_nothing_left(daemon)


def test_sigterm_while_the_zygote_starts(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, environment={"QGISD_FAKE_START": "60"}, wait=False)
    eventually(lambda: len(marked(daemon.mark)) == 2)
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 2
    assert_nothing_left(daemon)


def test_sigterm_while_the_zygote_is_gone(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    os.kill(the(daemon, "zygote"), signal.SIGKILL)
    eventually(lambda: "the zygote ended" in daemon.log())
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 2
    assert_nothing_left(daemon)


def test_sigterm_while_a_snapshot_does_not_listen(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    for name in ("zygote", "snapshot", "worker"):
        os.kill(the(daemon, name), signal.SIGSTOP)
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 2
    assert_nothing_left(daemon)


# SIGKILL


def test_nothing_survives_a_daemon_that_is_killed(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "hang.qgs", hang=1)
    write_fake_project(fake_roots / "threads.qgs", thread="stay")
    daemon = daemons(fake_roots, pool="quiesce_s = 0.1\nmax_loads = 2")
    daemon.ows("a", do="text")
    daemon.ows("threads", do="text")
    tricks = [("a", "stubborn"), ("a", "stop"), ("threads", "hang"), ("hang", "text")]
    clients = [Raw(daemon) for _ in tricks]
    try:
        for client, (project, trick) in zip(clients, tricks, strict=True):
            client.get(path(project, do=trick))
        busy(daemon, 3)
        eventually(lambda: len(named(daemon, "snapshot")) == 2)
        assert len(marked(daemon.mark)) == 7  # with daemon and zygote
        daemon.kill()
        eventually(lambda: not marked(daemon.mark), timeout=2)
    finally:
        for client in clients:
            client.sock.close()
    forget_sockets(daemon)


def test_a_daemon_that_was_killed_starts_again_in_the_same_place(
    daemons: Start, fake_roots: Path
) -> None:
    # Under the same folder: the fixture numbers them, so the second is told its sockets.
    first = daemons(fake_roots)
    first.ows("a", do="text")
    first.kill()
    eventually(lambda: not marked(first.mark), timeout=2)
    assert len(list(first.folder.rglob("*.sock"))) == 3
    environment = {
        "QGISD_HTTP__LISTEN": first.listen,
        "QGISD_ADMIN__LISTEN": first.admin,
        "QGISD_DAEMON__RUNTIME_DIR": str(first.folder / "run"),
    }
    second = daemons(fake_roots, environment=environment, wait=False, listen=first.listen)
    eventually(second.ready)
    assert second.ows("a", do="text").body == b"hello"
    assert second.stop() == 0
    assert_nothing_left(first)


# starts that fail


def test_a_zygote_that_cannot_start_ends_the_daemon_with_the_reason(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, environment={"QGISD_FAKE_START": "fail"}, wait=False)
    assert daemon.process.wait(5) == 1
    assert "the fake zygote was told to fail" in daemon.log()
    assert "Traceback" not in daemon.log()
    assert_nothing_left(daemon)


def test_a_zygote_that_does_not_come_up_in_time_ends_the_daemon(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(
        fake_roots,
        pool="zygote_timeout_s = 3",
        environment={"QGISD_FAKE_START": "60"},
        wait=False,
    )
    assert daemon.process.wait(15) == 1
    reason = "not up within zygote_timeout_s = 3 while dawdling on command"
    assert f"cannot start: {reason}" in daemon.log()
    assert_nothing_left(daemon)


def test_a_port_in_use_ends_the_daemon_with_the_reason(daemons: Start, fake_roots: Path) -> None:
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", free_port()))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        daemon = daemons(fake_roots, listen=address, wait=False)
        assert daemon.process.wait(5) == 1
    assert address in daemon.log()
    assert "in use" in daemon.log()
    assert "Traceback" not in daemon.log()
    assert_nothing_left(daemon)


@pytest.mark.parametrize("which", ["QGISD_HTTP__LISTEN", "QGISD_ADMIN__LISTEN"])
def test_a_socket_that_another_daemon_serves_is_left_to_it(
    daemons: Start, fake_roots: Path, which: str
) -> None:
    first = daemons(fake_roots)
    address = first.listen if which == "QGISD_HTTP__LISTEN" else first.admin
    second = daemons(fake_roots, environment={which: address}, wait=False)
    assert second.process.wait(5) == 1
    assert "another process does" in second.log()
    assert_nothing_left(second)
    assert first.ows("a", do="text").body == b"hello"
    assert first.workers()


def test_a_stale_socket_file_is_replaced_and_another_file_is_not(
    daemons: Start, fake_roots: Path
) -> None:
    stale = fake_roots.parent / "h.socket"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(stale))
    daemon = daemons(fake_roots, listen=f"unix:{stale}")
    assert daemon.ows("a", do="text").body == b"hello"
    assert stale.stat().st_mode & 0o777 == 0o660
    assert daemon.stop() == 0
    assert not stale.exists()
    stale.write_text("precious")
    refused = daemons(fake_roots, listen=f"unix:{stale}", wait=False)
    assert refused.process.wait(5) == 1
    assert stale.read_text() == "precious"
