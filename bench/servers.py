"""The three servers, each behind the same small interface."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import qgisd
from bench import client, processes
from qgisd import ctl

_V1_VENV = "py-qgis-server"


def free_port() -> int:
    """A port that was free a moment ago."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(ABC):
    """One server; `start` it, ask `http://127.0.0.1:{port}{target(…)}`, `stop` it."""

    #: For file names and options.
    name: str
    #: For tables.
    title: str

    def __init__(self, shared: Path, cache: Path, projects: Path, workers: int) -> None:
        self.shared = shared
        self.cache = cache
        self.projects = projects
        self.workers = workers
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix=f"bench-{self.name}-"))

    # to be told by each

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it."""

    @abstractmethod
    def project(self, path: str) -> str:
        """The MAP of a project, from its path below the folder of projects."""

    @abstractmethod
    def front_pids(self) -> list[int]:
        """The processes that stand between client and workers."""

    @abstractmethod
    def worker_pids(self, path: str) -> list[int]:
        """The processes that make the answers for that project."""

    def environment(self) -> dict[str, str]:
        """Added to the environment of the command."""
        return {}

    # the same for all

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def target(self, path: str, query: str) -> str:
        """What stands in the request line."""
        return f"/ows/?MAP={quote(self.project(path))}&{query}"

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self.process = processes.start(self.command(), self.folder / "log", self.environment())
        deadline = time.monotonic() + 300  # py-qgis-server may be installed on the way
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.title} did not start:\n{self.log()}")
            try:
                with closing(socket.create_connection(("127.0.0.1", self.port), timeout=1)):
                    return
            except OSError:
                time.sleep(0.1)

    def stop(self) -> None:
        """End all its processes and remove its files."""
        if self.process is not None:
            processes.end(self.process)
            self.process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def warm(self, path: str, query: str) -> None:
        """Ask until every worker has the project: loads take seconds, answers do not."""
        deadline = time.monotonic() + 300
        quick = 0
        while quick < 2:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.title} does not serve {path}:\n{self.log()}")
            begin = time.monotonic()
            found = client.load(
                self.port,
                iter(lambda: self.target(path, query), None),
                lambda kind, body: "",
                connections=2 * self.workers,
                seconds=0.5,
            )
            good = not found.failed and found.latencies_ms and time.monotonic() - begin < 2
            quick = quick + 1 if good else 0
            if found.failed:
                time.sleep(0.5)

    def pids(self) -> list[int]:
        """All its processes."""
        return processes.tree(self.pid)

    def log(self) -> str:
        """The end of what it has said."""
        return (self.folder / "log").read_text(errors="replace")[-3000:]


class Qgisd(Server):
    """qgisd, asked directly: no nginx before it."""

    name = "qgisd"
    title = "qgisd"

    def command(self) -> list[str]:
        config = self.folder / "qgisd.toml"
        config.write_text(
            f'[http]\nlisten = "127.0.0.1:{self.port}"\n'
            f'[admin]\nlisten = "{self.admin}"\n'
            f'[daemon]\nruntime_dir = "{self.folder / "run"}"\n'
            f'[log]\nlevel = "warning"\n'
            # All workers for one project, as the peers have it.
            f"[pool]\nworkers = {self.workers}\nproject_workers = {self.workers}\n"
            f'[pool.projects]\nroots = {{ "/" = "{self.projects}" }}\n'
        )
        return [str(Path(sys.executable).with_name("qgisd")), "serve", "-c", str(config)]

    @property
    def admin(self) -> str:
        return f"unix:{self.folder / 'admin.sock'}"

    def project(self, path: str) -> str:
        return path

    def front_pids(self) -> list[int]:
        return [self.pid]

    def worker_rows(self, path: str) -> list[dict[str, Any]]:
        """`ctl workers --json`, of one project."""
        rows = ctl.fetch(self.admin, "GET", "/api/v1/workers")
        wanted = path.rpartition(".")[0]
        return [row for row in rows if row["project"] in (wanted, path)]

    def worker_pids(self, path: str) -> list[int]:
        return [row["pid"] for row in self.worker_rows(path) if row["pid"]]


class Fcgi(Server):
    """nginx before N processes of QGIS's own FCGI server, which multiwatch starts again."""

    name = "fcgi"
    title = "nginx + FCGI"

    def command(self) -> list[str]:
        script = self.shared / "bench" / "run_fcgi.sh"
        return ["bash", str(script), str(self.port), str(self.workers)]

    def environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self.folder)}

    def project(self, path: str) -> str:
        return str(self.projects / path)

    def front_pids(self) -> list[int]:
        return [pid for pid in self.pids() if processes.command_of(pid).startswith("nginx:")]

    def worker_pids(self, path: str) -> list[int]:
        return [
            pid
            for pid in self.pids()
            if processes.command_of(pid).split(" ")[0].endswith("qgis_mapserv.fcgi")
        ]


class PyQgisServer(Server):
    """py-qgis-server, the predecessor, asked directly."""

    name = "v1"
    title = "py-qgis-server"

    @property
    def venv(self) -> Path:
        return self.cache / _V1_VENV

    def command(self) -> list[str]:
        script = self.shared / "bench" / "run_py_qgis_server.sh"
        words = [script, self.port, self.workers, self.projects, self.venv]
        return ["bash", *map(str, words)]

    def environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self.folder), "QGSRV_LOGGING_LEVEL": "ERROR"}

    def project(self, path: str) -> str:
        return path

    def front_pids(self) -> list[int]:
        # The process of HTTP, and the broker: its child that has no children.
        below = processes.children(self.pid)
        return [self.pid, *(pid for pid in below if not processes.children(pid))]

    def worker_pids(self, path: str) -> list[int]:
        return [pid for child in processes.children(self.pid) for pid in processes.children(child)]


ALL: tuple[type[Server], ...] = (Qgisd, Fcgi, PyQgisServer)


def versions(cache: Path) -> dict[str, str]:
    """What was measured, and on what kind of machine."""
    script = "from qgis.core import Qgis; print(Qgis.QGIS_VERSION)"
    quiet = {"QT_QPA_PLATFORM": "offscreen"}
    return {
        "qgisd": qgisd.__version__,
        "QGIS": _say([sys.executable, "-c", script], **quiet).partition("-")[0],
        "Python": sys.version.split()[0],
        "nginx": _say(["nginx", "-v"]).rpartition("/")[2],
        "py-qgis-server": _version_in(
            _say(
                [
                    str(cache / _V1_VENV / "bin" / "pip"),
                    "--disable-pip-version-check",
                    "show",
                    "py-qgis-server",
                ]
            )
        ),
        "kernel": ".".join(os.uname().release.split(".")[:2]),
        "cores": str(len(os.sched_getaffinity(0))),
    }


def _say(command: list[str], **environment: str) -> str:
    try:
        result = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=60
        )
    except OSError:
        return "?"
    return (result.stdout or result.stderr).strip()


def _version_in(text: str) -> str:
    found = re.search(r"^Version: (\S+)", text, re.MULTILINE)
    return found[1] if found else "?"
