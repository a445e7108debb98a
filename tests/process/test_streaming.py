"""Answers in pieces: all bytes, no worker held by a slow client, no memory for them either."""

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.process.tools import XML, Raw, alive, background, busy, idle, path, state
from tests.support import Daemon, eventually, free_port

Start = Callable[..., Daemon]
MIB = 1 << 20


def pieces(count: int, size: int) -> Iterator[bytes]:
    """What do=chunks sends."""
    return (bytes([65 + number % 26]) * size for number in range(count))


def digest(parts: Iterator[bytes]) -> str:
    """A hash of all of them."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def resident(pid: int) -> int:
    """Bytes of memory of a process (RSS)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


# bytes


def test_an_answer_in_pieces_arrives_whole(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    for count, size in ((1, 0), (1, 1), (5000, 100), (40, 300_000), (3, 9 * MIB)):
        answer = daemon.ows("a", do="chunks", n=count, size=size)
        assert (answer.status, answer.complete) == (200, True)
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert answer.headers["X-Request-Id"]
        assert answer.body == b"".join(pieces(count, size))


def test_pieces_arrive_as_they_are_made(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    with Raw(daemon) as client:
        client.get(path("a", do="chunks", n=2, size=4, pause=0.5))
        client.until(b"AAAA")
        first = time.monotonic()
        client.until(b"BBBB")
        assert time.monotonic() - first > 0.3


# slow clients


def test_two_hundred_megabytes_to_a_slow_client_hold_neither_memory_nor_worker(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    before = highest = resident(daemon.process.pid)
    with closing(daemon.connection()) as connection:
        connection.request("GET", path("a", do="chunks", n=200, size=MIB))
        answer = connection.getresponse()
        got = hashlib.sha256(answer.read(64 << 10))
        # The client reads no further; its answer is put by, and the worker is free.
        deadline = time.monotonic() + 20
        while not all(row["state"] == "idle" for row in daemon.workers()):
            highest = max(highest, resident(daemon.process.pid))
            assert time.monotonic() < deadline, "a client that does not read holds a worker"
            time.sleep(0.02)
        assert daemon.ows("a", do="text").body == b"hello"
        while data := answer.read(4 * MIB):
            highest = max(highest, resident(daemon.process.pid))
            got.update(data)
    assert got.hexdigest() == digest(pieces(200, MIB))
    assert highest - before < 40 * MIB
    assert state(daemon, "a.qgs")["ended"] == {}


def test_a_full_spool_makes_the_worker_wait_and_the_answer_is_whole_all_the_same(
    daemons: Start, fake_roots: Path
) -> None:
    # The client rests for longer than a worker may make no progress: that is not its fault.
    daemon = daemons(
        fake_roots, pool="stream_timeout_s = 0.5", http='spool = "4MiB"\nbuffer = "1MiB"'
    )
    with closing(daemon.connection()) as connection:
        connection.request("GET", path("a", do="chunks", n=60, size=MIB))
        answer = connection.getresponse()
        got = hashlib.sha256(answer.read(64 << 10))
        (pid,) = busy(daemon)
        before = resident(daemon.process.pid)
        rest = time.monotonic() + 2
        while time.monotonic() < rest:
            assert busy(daemon) == [pid]
            assert resident(daemon.process.pid) - before < 20 * MIB
        while data := answer.read(MIB):
            got.update(data)
    assert got.hexdigest() == digest(pieces(60, MIB))
    assert idle(daemon) == pid


def test_a_full_spool_still_ends_for_a_client_that_is_slow_all_the_way(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(
        fake_roots,
        pool="stream_timeout_s = 0.4",
        http='spool = "1MiB"\nbuffer = "256KiB"\nclient_timeout_s = 1',
    )
    with closing(daemon.connection()) as connection:
        connection.request("GET", path("a", do="chunks", n=60, size=200_000))
        answer = connection.getresponse()
        got = hashlib.sha256()
        while data := answer.read(500_000):
            got.update(data)
            time.sleep(0.1)  # the slowness of this client
    assert got.hexdigest() == digest(pieces(60, 200_000))


def test_a_client_that_takes_nothing_is_cut(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, http="client_timeout_s = 0.5")
    with Raw(daemon) as client:
        client.get(path("a", do="chunks", n=20, size=MIB))
        client.until(b"\r\n\r\n")
        eventually(lambda: "took nothing for 0.5 s" in daemon.log(), timeout=3)
        body, _ = client.rest()
    assert len(body) < 19 * MIB
    assert not body.endswith(b"0\r\n\r\n")


def test_a_client_that_takes_nothing_of_an_answer_in_one_piece_is_cut(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, http="client_timeout_s = 0.5", listen=f"127.0.0.1:{free_port()}")
    document = b"<GetFeature>" + b" " * (12 * MIB) + b"</GetFeature>"
    target = path("a", do="echo")
    with Raw(daemon, buffer=64 << 10) as client:
        head = f"POST {target} HTTP/1.1\r\nHost: t\r\nContent-Type: text/xml\r\n"
        client.sock.sendall(f"{head}Content-Length: {len(document)}\r\n\r\n".encode() + document)
        client.until(b"\r\n\r\n")

        def cut() -> bool:
            return "aborted" in daemon.log()

        eventually(cut, timeout=4)
        body, ending = client.rest()
    assert (len(body) < len(document), ending) == (True, "reset")


def test_a_client_that_takes_a_large_piece_slowly_is_not_cut(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, http="client_timeout_s = 0.5", listen=f"127.0.0.1:{free_port()}")
    with Raw(daemon, buffer=64 << 10) as client:
        client.get(path("a", do="chunks", n=2, size=12 * MIB), "1.0")
        client.until(b"\r\n\r\n")
        taken = len(client.kept)
        slow_until = time.monotonic() + 2
        while time.monotonic() < slow_until:
            taken += len(client.sock.recv(64 << 10))
            time.sleep(0.02)  # the slowness of this client
        client.kept = b""
        body, ending = client.rest()
    assert (taken + len(body), ending) == (24 * MIB, "closed")


# clients that leave


@pytest.mark.parametrize("trick", [{"do": "hang"}, {"do": "chunks", "n": 1000, "pause": 0.05}])
def test_a_client_that_leaves_costs_no_more_than_its_grace(
    daemons: Start, fake_roots: Path, trick: dict[str, object]
) -> None:
    daemon = daemons(fake_roots, pool="disconnect_grace_s = 0.5")
    daemon.ows("a", do="text")
    pid = idle(daemon)
    with Raw(daemon) as client:
        client.get(path("a", **trick))
        assert busy(daemon) == [pid]
        left = time.monotonic()
    fresh = idle(daemon, other_than=pid, timeout=3)
    assert 0.4 < time.monotonic() - left < 2
    assert fresh
    eventually(lambda: state(daemon, "a.qgs")["ended"] == {"disconnect": 1})
    assert not alive(pid)
    assert daemon.ows("a", do="text").body == b"hello"


def test_a_worker_that_is_done_within_the_grace_is_used_again(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="disconnect_grace_s = 5")
    pid = daemon.ows("a", do="pid").body
    for trick in ({"do": "text", "s": 0.4}, {"do": "chunks", "n": 8, "pause": 0.05, "size": MIB}):
        with Raw(daemon) as client:
            client.get(path("a", **trick))
            busy(daemon)
        idle(daemon)
        assert daemon.ows("a", do="pid").body == pid
    assert state(daemon, "a.qgs")["ended"] == {}


def test_a_client_that_leaves_the_queue_is_not_served(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="workers = 1\ndisconnect_grace_s = 0.1")
    daemon.ows("a", do="text")
    with background() as clients:
        running = clients.ows(daemon, "a", do="text", s=0.6)
        busy(daemon)
        with Raw(daemon) as client:
            client.get(path("a", do="crash"))
            eventually(lambda: state(daemon, "a.qgs")["queued"] == 1)
        eventually(lambda: state(daemon, "a.qgs")["queued"] == 0)
        assert running.result().body == b"hello"
    assert daemon.ows("a", do="text").body == b"hello"
    assert state(daemon, "a.qgs")["ended"] == {}


def test_a_client_that_leaves_while_its_project_loads_costs_nothing(
    daemons: Start, fake_roots: Path
) -> None:
    (fake_roots / "slow.qgs").write_text("load_s = 0.4\ntext = slow\n")
    daemon = daemons(fake_roots)
    with Raw(daemon) as client:
        client.get(path("slow", do="crash"))
        eventually(lambda: daemon.projects().get("slow.qgs"))
    assert daemon.ows("slow", do="text").body == b"slow"
    assert state(daemon, "slow.qgs")["ended"] == {}


# HTTP


def test_head_is_the_head_alone(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="disconnect_grace_s = 0.3")
    with closing(daemon.connection()) as connection:
        for target, length in (
            (path("a", do="text"), "5"),
            (path("a", do="chunks", n=100, size=MIB), None),
            (path("a", do="nonsense"), "13"),
        ):
            connection.request("HEAD", target)
            answer = connection.getresponse()
            assert answer.read() == b""
            assert answer.headers["Content-Length"] == length
            assert answer.headers["X-Request-Id"]
            # The connection goes on where the answer would have stood.
            connection.request("GET", path("a", do="text"))
            assert connection.getresponse().read() == b"hello"


def test_many_requests_on_one_connection(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    with closing(daemon.connection()) as connection:
        connection.request("GET", path("a", do="text"))
        connection.getresponse().read()
        first = connection.sock
        for round_ in range(10):
            connection.request("POST", path("a", do="echo"), f"<r n='{round_}'/>", XML)
            assert connection.getresponse().read() == f"<r n='{round_}'/>".encode()
            connection.request("GET", path("a", do="chunks", n=3, size=1000))
            assert connection.getresponse().read() == b"".join(pieces(3, 1000))
            connection.request("GET", path("missing"))
            answer = connection.getresponse()
            assert (answer.status, len(answer.read()) > 50) == (404, True)
        assert connection.sock is first


def test_pipelined_requests_are_answered_in_order(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    with Raw(daemon) as client:
        targets = [path("a", do="text", s=0.3), path("a", do="chunks"), path("b", do="text")]
        lines = [f"GET {target} HTTP/1.1\r\nHost: t\r\n\r\n" for target in targets[:2]]
        last = f"GET {targets[2]} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
        client.sock.sendall("".join([*lines, last]).encode())
        data, ending = client.rest()
    assert data.count(b"HTTP/1.1 200 OK\r\n") == 3
    places = [data.index(body) for body in (b"hello", b"AAAAAAAAAA", b"other")]
    assert places == sorted(places)
    assert ending == "closed"


def test_an_http_1_0_client_gets_plain_bytes_and_the_end(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, listen=f"127.0.0.1:{free_port()}")
    with Raw(daemon) as client:
        client.get(path("a", do="text"), "1.0")
        data, ending = client.rest()
    head, _, body = data.partition(b"\r\n\r\n")
    assert (body, ending) == (b"hello", "closed")
    assert b"Content-Length: 5" in head
    with Raw(daemon) as client:
        client.get(path("a", do="chunks", n=30, size=100_000), "1.0")
        data, ending = client.rest()
    head, _, body = data.partition(b"\r\n\r\n")
    assert (body, ending) == (b"".join(pieces(30, 100_000)), "closed")
    assert b"chunked" not in head
    assert b"Content-Length: 3000000" in head


def test_an_answer_over_the_spool_goes_to_http_1_0_without_its_length(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, http='spool = "1MiB"', listen=f"127.0.0.1:{free_port()}")
    with Raw(daemon) as client:
        client.get(path("a", do="chunks", n=60, size=100_000), "1.0")
        data, ending = client.rest()
    head, _, body = data.partition(b"\r\n\r\n")
    assert (body, ending) == (b"".join(pieces(60, 100_000)), "closed")
    assert b"Content-Length" not in head


def test_a_client_that_closes_its_sending_side_still_gets_its_answer_or_is_counted_gone(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="disconnect_grace_s = 0.2")
    daemon.ows("a", do="text")
    with Raw(daemon) as client:
        client.get(path("a", do="text", s=0.5))
        busy(daemon)
        client.sock.shutdown(socket.SHUT_WR)
        data, _ = client.rest()
    assert data == b"" or data.endswith(b"hello")
    assert daemon.ows("a", do="text").body == b"hello"
