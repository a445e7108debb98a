"""What the tests of this folder share: raw clients, requests in the background, processes."""

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support import Daemon, Response, eventually

TRANSACTION = (
    b'<wfs:Transaction service="WFS" version="1.1.0" xmlns:wfs="http://www.opengis.net/wfs"/>'
)
GET_FEATURE = (
    b'<wfs:GetFeature service="WFS" version="1.1.0" xmlns:wfs="http://www.opengis.net/wfs"/>'
)
XML = {"Content-Type": "text/xml"}


def path(project: str, **parameters: object) -> str:
    """The request target of an OWS request."""
    return "/ows/?" + urlencode({"MAP": project} | parameters)


class Raw:
    """A client that counts bytes: what came, and how the connection ended."""

    def __init__(self, daemon: Daemon, timeout: float = 15, buffer: int = 0) -> None:
        unix = daemon.listen.startswith("unix:")
        self.sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self.sock.settimeout(timeout)
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if unix:
            self.sock.connect(daemon.listen[5:])
        else:
            host, _, port = daemon.listen.rpartition(":")
            self.sock.connect((host, int(port)))
        self.kept = b""

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def get(self, target: str, version: str = "1.1", headers: str = "") -> None:
        """Send a GET; `headers` are whole lines."""
        self.sock.sendall(f"GET {target} HTTP/{version}\r\nHost: t\r\n{headers}\r\n".encode())

    def until(self, mark: bytes) -> bytes:
        """What comes up to and including `mark`; fails if the connection ends before."""
        while mark not in self.kept:
            data = self.sock.recv(65536)
            assert data, f"closed before {mark!r}: {self.kept[-200:]!r}"
            self.kept += data
        end = self.kept.index(mark) + len(mark)
        found, self.kept = self.kept[:end], self.kept[end:]
        return found

    def rest(self) -> tuple[bytes, str]:
        """All that still comes, and how it ended: "closed" or "reset"."""
        pieces, self.kept = [self.kept], b""
        try:
            while data := self.sock.recv(1 << 20):
                pieces.append(data)
        except ConnectionResetError:
            return b"".join(pieces), "reset"
        return b"".join(pieces), "closed"


class Background:
    """Requests that go on while the test does something else."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor

    def ows(self, daemon: Daemon, project: str, **parameters: Any) -> "Future[Response]":
        """Start a GET."""
        return self._executor.submit(daemon.ows, project, **parameters)

    def run(self, function: Any, *arguments: Any) -> "Future[Any]":
        """Start anything else."""
        return self._executor.submit(function, *arguments)


@contextmanager
def background(threads: int = 32) -> Iterator[Background]:
    """Waits at the end for all that was started; timeouts of the clients bound that."""
    with ThreadPoolExecutor(threads) as executor:
        yield Background(executor)


def busy(daemon: Daemon, count: int = 1) -> list[int]:
    """Pids of the workers that have a request, once there are `count`."""

    def pids() -> list[int]:
        return [row["pid"] for row in daemon.workers() if row["state"] == "busy"]

    return eventually(lambda: found if len(found := pids()) == count else None)


def idle(daemon: Daemon, other_than: int = 0, timeout: float = 10) -> int:
    """The pid of a worker that waits for work, once there is one."""

    def pid() -> int:
        for row in daemon.workers():
            if row["state"] == "idle" and row["pid"] != other_than:
                return int(row["pid"])
        return 0

    return int(eventually(pid, timeout=timeout))


def state(daemon: Daemon, project: str) -> dict[str, Any]:
    """What the admin API says of a project."""
    return daemon.projects()[project]


def named(daemon: Daemon, name: str) -> list[int]:
    """Living processes of this daemon that are called `qgisd-NAME`."""
    found = []
    for pid in daemon.pids():
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == f"qgisd-{name}":
                found.append(pid)
        except OSError:
            continue
    return found


def the(daemon: Daemon, name: str) -> int:
    """The one process called `qgisd-NAME`, once there is exactly one."""
    return int(eventually(lambda: found[0] if len(found := named(daemon, name)) == 1 else 0))


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def frozen(daemon: Daemon) -> Iterator[None]:
    """The daemon stands still inside: what happens meanwhile it sees at once afterwards."""
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        stat = Path(f"/proc/{daemon.process.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
