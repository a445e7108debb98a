"""A closed-loop HTTP/1.1 client on raw sockets: light enough not to be what is measured.

One thread, one `select.epoll`, N keep-alive connections, each with one request under way. Every
answer is read to its end and checked.
"""

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

#: Seconds without a byte after which an answer counts as failed.
TIMEOUT_S = 90.0
#: At most so many seconds longer for `at_least` answers.
_EXTRA_S = 10.0
_READ = 256 << 10

#: Content type and body of an answer with status 200 → what is wrong with it, or "".
Check = Callable[[str, bytes], str]


@dataclass
class Answer:
    """One answer, whole."""

    status: int
    content_type: str
    body: bytes


@dataclass
class Measured:
    """What one load found."""

    connections: int
    #: Answers per second: the sum over the connections of answers / seconds.
    rate: float = 0.0
    #: Milliseconds of each good answer, sorted.
    latencies_ms: list[float] = field(default_factory=list)
    #: What went wrong → how often; counted in the warm-up too.
    failures: dict[str, int] = field(default_factory=dict)
    #: All requests sent, the warm-up's included.
    sent: int = 0
    #: CPU of this client / time: close to 1 means that the client is what was measured.
    client_load: float = 0.0

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def percentile(self, share: float) -> float:
        """Milliseconds below which `share` of the answers came."""
        if not self.latencies_ms:
            return float("nan")
        return self.latencies_ms[
            min(len(self.latencies_ms) - 1, int(len(self.latencies_ms) * share))
        ]


class Broken(Exception):
    """An answer that is no HTTP, or was cut."""


class _Parser:
    """Takes the bytes of one answer; `feed` is True when it is complete."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._head_end = -1
        self._length = 0
        self._chunked = False
        self._at = 0
        self._pieces: list[bytes] = []
        self.status = 0
        self.content_type = ""
        self.keep_alive = True

    def feed(self, data: bytes) -> bool:
        self._data += data
        if self._head_end < 0 and not self._head():
            return False
        if self._chunked:
            return self._chunks()
        return len(self._data) >= self._head_end + self._length

    def body(self) -> bytes:
        if self._chunked:
            return b"".join(self._pieces)
        return bytes(self._data[self._head_end : self._head_end + self._length])

    def _head(self) -> bool:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self._data[:end].decode("latin-1").split("\r\n")
        if not first.startswith("HTTP/1.1 ") or not first[9:12].isdigit():
            raise Broken(f"no HTTP/1.1 head: {first[:40]!r}")
        self.status = int(first[9:12])
        length = None
        for line in lines:
            name, _, value = line.partition(":")
            name = name.lower()
            if name == "content-length":
                length = int(value)
            elif name == "transfer-encoding":
                self._chunked = "chunked" in value
            elif name == "content-type":
                self.content_type = value.strip()
            elif name == "connection":
                self.keep_alive = "close" not in value.lower()
        if length is None and not self._chunked:
            raise Broken("an answer of unknown length")
        self._length = length or 0
        self._head_end = self._at = end + 4
        return True

    def _chunks(self) -> bool:
        while True:
            line_end = self._data.find(b"\r\n", self._at)
            if line_end < 0:
                return False
            size = int(self._data[self._at : line_end].split(b";")[0], 16)
            start = line_end + 2
            if len(self._data) < start + size + 2:
                return False
            if size == 0:
                return True  # no trailers come from these servers
            self._pieces.append(bytes(self._data[start : start + size]))
            self._at = start + size + 2


class _Connection:
    """One keep-alive connection with one request under way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self.parser = _Parser()
        self.started = 0.0
        self.first = 0.0
        self.last = 0.0
        self.counted = 0

    def send(self, target: str, poll: select.epoll, by_fd: "dict[int, _Connection]") -> None:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=10)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            by_fd[self._socket.fileno()] = self
            poll.register(self._socket.fileno(), select.EPOLLIN)
        self.parser = _Parser()
        self.started = time.perf_counter()
        self._socket.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    def receive(self) -> bool:
        """True if the answer is complete. Raises Broken."""
        assert self._socket is not None
        data = self._socket.recv(_READ)
        if not data:
            raise Broken("connection closed in the middle of an answer")
        return self.parser.feed(data)

    def close(self, poll: select.epoll, by_fd: "dict[int, _Connection]") -> None:
        if self._socket is not None:
            poll.unregister(self._socket.fileno())
            del by_fd[self._socket.fileno()]
            self._socket.close()
            self._socket = None


def get(port: int, target: str, timeout_s: float = TIMEOUT_S) -> Answer:
    """One request on a connection of its own. Raises OSError, Broken."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=timeout_s)) as stream:
        stream.sendall(
            f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        parser = _Parser()
        while True:
            data = stream.recv(_READ)
            if not data:
                raise Broken("connection closed in the middle of an answer")
            if parser.feed(data):
                return Answer(parser.status, parser.content_type, parser.body())


def load(
    port: int,
    targets: Iterator[str],
    check: Check,
    connections: int,
    seconds: float,
    warm_s: float = 0.0,
    at_least: int = 0,
) -> Measured:
    """Keep `connections` requests under way, then let the last ones finish.

    What is sent in the first `warm_s` seconds is checked but not counted. at_least: counted
    answers of each connection before it stops, if `seconds` are too short for them.
    """
    measured = Measured(connections)
    poll = select.epoll()
    by_fd: dict[int, _Connection] = {}
    members = [_Connection(port) for _ in range(connections)]
    cpu, begin = time.process_time(), time.perf_counter()
    count_from = begin + warm_s
    end = count_from + seconds
    busy = set(members)

    def fail(connection: _Connection, what: str) -> None:
        measured.failures[what] = measured.failures.get(what, 0) + 1
        connection.close(poll, by_fd)

    def send(connection: _Connection) -> None:
        now = time.perf_counter()
        if now >= end and (connection.counted >= at_least or now >= end + _EXTRA_S):
            busy.discard(connection)
            return
        try:
            connection.send(next(targets), poll, by_fd)
        except OSError as error:
            fail(connection, f"cannot connect: {error}")
            busy.discard(connection)
            return
        measured.sent += 1
        if now >= count_from and not connection.first:
            connection.first = connection.started

    def finish(connection: _Connection) -> None:
        parser = connection.parser
        body = parser.body()
        wrong = f"status {parser.status}" if parser.status != 200 else ""
        wrong = wrong or check(parser.content_type, body)
        now = time.perf_counter()
        counts = connection.started >= count_from
        if counts:
            connection.last = now  # time spent on a wrong answer is spent
        if wrong:
            fail(connection, wrong)
        elif counts:
            measured.latencies_ms.append((now - connection.started) * 1000)
            connection.counted += 1
        if not parser.keep_alive:
            connection.close(poll, by_fd)

    try:
        for connection in members:
            send(connection)
        while busy:
            events = poll.poll(TIMEOUT_S)
            if not events:
                for connection in list(busy):
                    fail(connection, f"nothing came for {TIMEOUT_S:g} s")
                break
            for descriptor, _ in events:
                connection = by_fd[descriptor]
                try:
                    if not connection.receive():
                        continue
                    finish(connection)
                except (OSError, ValueError, Broken) as error:
                    fail(connection, str(error))
                    time.sleep(0.01)
                send(connection)
    finally:
        for connection in members:
            connection.close(poll, by_fd)
        poll.close()
    measured.latencies_ms.sort()
    measured.rate = sum(
        member.counted / (member.last - member.first) for member in members if member.counted
    )
    measured.client_load = (time.process_time() - cpu) / (time.perf_counter() - begin)
    return measured
