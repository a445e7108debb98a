"""A real nginx with etc/nginx/qgisd.conf, in which only addresses and paths are replaced."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import Daemon, eventually, free_port

SHIPPED = Path(__file__).resolve().parents[1] / "etc" / "nginx" / "qgisd.conf"


@dataclass(frozen=True)
class Nginx:
    """Running. `at` is host:port."""

    at: str
    folder: Path
    process: "subprocess.Popen[bytes]"

    def front(self, daemon: Daemon) -> Daemon:
        """The daemon, as it is seen through this nginx."""
        return Daemon(daemon.folder, daemon.process, daemon.mark, daemon.log_path, self.at)

    def log(self) -> str:
        """Its access log."""
        return (self.folder / "access.log").read_text()

    def errors(self) -> str:
        """Its error log."""
        return (self.folder / "error.log").read_text()

    def workers(self) -> set[int]:
        """Pids of its worker processes."""
        pid = self.process.pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def reload(self) -> None:
        """As `systemctl reload nginx` does; returns when only new workers are left."""
        old = self.workers()
        self.process.send_signal(signal.SIGHUP)
        eventually(lambda: self.workers() and not self.workers() & old)


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """The text with each of these, which must be there, replaced."""
    for old, new in pairs:
        assert old in text, f"there is no {old!r} any more"
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(folder: Path, upstream: str, cache: bool = False) -> Iterator[Nginx]:
    """Start one before `upstream`, "unix:/…"; cache: with the lines of the cache switched on."""
    at = f"127.0.0.1:{free_port()}"
    text = SHIPPED.read_text()
    if cache:
        # The command that the file itself tells.
        text = "\n".join(line.replace("#cache ", "", 1) for line in text.split("\n"))
    site = replaced(
        text,
        ("unix:/run/qgisd.sock", upstream),
        ("listen 80 default_server", f"listen {at} default_server"),
        ("/var/log/nginx/qgisd.log", f"{folder}/access.log"),
        ("/var/cache/nginx/qgisd", f"{folder}/cache"),
    )
    with serving(folder, site, at) as running:
        yield running


@contextlib.contextmanager
def serving(folder: Path, site: str, at: str) -> Iterator[Nginx]:
    """An nginx with the configuration `site`, which listens at `at`."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program, "nginx is missing: scripts/system-packages test installs it"
    (folder / "site.conf").write_text(site)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; {user} worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\n{temporary}include {folder}/site.conf;\n}}\n"
    )
    process = subprocess.Popen(
        [program, "-p", str(folder), "-c", str(folder / "nginx.conf")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    running = Nginx(at, folder, process)
    try:
        eventually(lambda: process.poll() is not None or len(running.workers()) >= 2)
        assert process.poll() is None, running.errors()
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
