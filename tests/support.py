"""Help for tests: a real daemon as a subprocess, a small HTTP client, waiting with a deadline.

Nothing here sleeps to hope. A daemon listens on Unix sockets in the test's own folder, so tests
share no ports, and marks all its processes by an environment variable, so that what it leaves
behind is found.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

SHARED = Path(__file__).resolve().parents[2] / "shared"
MARK = "TEST_MARK_OF_QGISD"  # not QGISD_…: those are configuration


def eventually(predicate: Callable[[], Any], timeout: float = 10.0, period: float = 0.02) -> Any:
    """The first true value of `predicate`; fails with its last value after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s; last: {value!r}"
        time.sleep(period)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass
class Response:
    """A whole answer. `complete` is False if the connection was cut before its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    complete: bool = True

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Daemon:
    """`qgisd serve` in a process of its own."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    mark: str
    log_path: Path
    listen: str
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def admin(self) -> str:
        return f"unix:{self.folder / 'admin.sock'}"

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def connection(self, timeout: float = 30, admin: bool = False) -> http.client.HTTPConnection:
        """A fresh connection to the public (or admin) listener."""
        if admin:
            return UnixConnection(self.folder / "admin.sock", timeout)
        if self.listen.startswith("unix:"):
            return UnixConnection(Path(self.listen[5:]), timeout)
        return http.client.HTTPConnection(self.listen, timeout=timeout)

    def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
        admin: bool = False,
    ) -> Response:
        """One request on a connection of its own."""
        with closing(self.connection(timeout, admin)) as connection:
            connection.request(method, target, body, headers or {})
            answer = connection.getresponse()
            try:
                return Response(answer.status, answer.headers, answer.read())
            except http.client.IncompleteRead as cut:
                return Response(answer.status, answer.headers, cut.partial, complete=False)
            except ConnectionResetError:
                return Response(answer.status, answer.headers, b"", complete=False)

    def get(self, target: str, **options: Any) -> Response:
        return self.request("GET", target, **options)

    def ows(self, project: str, timeout: float = 30, **parameters: Any) -> Response:
        """GET /ows/ with MAP and upper-case parameters."""
        query = urlencode({"MAP": project} | parameters)
        return self.get(f"/ows/?{query}", timeout=timeout)

    def api(self, method: str, path: str, timeout: float = 60) -> Any:
        """A call of the admin API, decoded."""
        return self.request(method, path, admin=True, timeout=timeout).json()

    def workers(self) -> list[dict[str, Any]]:
        return self.api("GET", "/api/v1/workers")

    def projects(self) -> dict[str, dict[str, Any]]:
        """Key → project, of all pools."""
        return {row["project"]: row for row in self.api("GET", "/api/v1/projects")}

    def ctl(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """`qgisd ctl …`."""
        command = [sys.executable, "-m", "qgisd", "ctl", "--admin", self.admin, *words]
        # Not what C has: readline, which pytest imports, puts COLUMNS there behind Python's back.
        environment = dict(os.environ)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=90, check=False
        )

    def pids(self) -> list[int]:
        """Every process of this daemon's tree but itself, found by their mark."""
        return [pid for pid in marked(self.mark) if pid != self.process.pid]

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"qgisd ended with {self.process.returncode}:\n{self.log()}")
        try:
            return self.get("/readyz", timeout=5).status == 200
        except OSError:
            return False

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM and wait; its exit code. Killed if it does not end: nothing may be left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        self.process.kill()
        self.process.wait(10)


def start_daemon(
    folder: Path,
    roots: Path,
    backend: str = "fake",
    pool: str = "",
    extra: str = "",
    http: str = "",
    projects: str = "",
    environment: dict[str, str] | None = None,
    listen: str = "",
    wait: bool = True,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> Daemon:
    """Start one; pool, http and projects are further lines of those tables, extra of the file.

    prefix: a command that becomes the daemon, which is given as its arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listen = listen or f"unix:{folder / 'http.sock'}"
    config = folder / "qgisd.toml"
    config.write_text(
        f'[http]\nlisten = "{listen}"\n{http}\n'
        f'[admin]\nlisten = "unix:{folder / "admin.sock"}"\n'
        f'[daemon]\nruntime_dir = "{folder / "run"}"\n'
        f'[pool]\nbackend = "{backend}"\n{pool}\n'
        f'[pool.projects]\nroots = {{ "/" = "{roots}" }}\ncheck_interval_s = 0.1\n{projects}\n'
        f"{extra}\n"
    )
    mark = uuid.uuid4().hex
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "qgisd", "serve", "-c", str(config)],
            env=os.environ | {MARK: mark, "PYTHONUNBUFFERED": "1"} | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=pass_fds,
        )
    daemon = Daemon(folder, process, mark, log_path, listen)
    if wait:
        eventually(daemon.ready, timeout=60)
    return daemon


def marked(mark: str) -> list[int]:
    """Pids of living processes (zombies do not count) whose environment carries `mark`."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def free_port() -> int:
    """A port that was free a moment ago, for peers that cannot take a Unix socket."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_fake_project(path: Path, **settings: object) -> None:
    """A project of the fake backend (qgisd/worker/fake.py says what it understands)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
    fresh.replace(path)
