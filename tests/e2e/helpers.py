"""Help for the tests with real QGIS: what they compare with, and the servers around qgisd."""

import base64
import contextlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from qgisd.config import Pool
from qgisd.daemon import zygote_environment
from tests.support import SHARED, Daemon, Response, eventually, free_port

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
#: The headers that http.client sends, as a plain server would be given them.
SENT_HEADERS = {"Host": "localhost", "Accept-Encoding": "identity"}
#: Of answers: made by the one who speaks HTTP, not by QGIS.
OWN_HEADERS = {"content-length", "server", "connection", "transfer-encoding"}


def need(found: bool, what: str) -> None:
    """Skip where something is missing; on CI that is a failure."""
    if found:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must not skip")
    pytest.skip(f"needs {what}")


def need_qgis() -> None:
    """Skip without PyQGIS."""
    need(importlib.util.find_spec("qgis") is not None, "PyQGIS of this interpreter (python3-qgis)")


def need_shared() -> None:
    """Skip without ../shared."""
    need((SHARED / "make_projects.py").exists(), f"{SHARED}, with data/ and make_projects.py")


def need_program(name: str) -> str:
    """The path of a program; skips without it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    need(found is not None, f"the program {name}")
    assert found is not None
    return found


def zygote(profile: Path) -> dict[str, str]:
    """The environment of a zygote of qgisd, its settings included."""
    for folder in ("", "qgis", "cache"):
        (profile / folder).mkdir(parents=True, exist_ok=True)
    return zygote_environment("test", Pool(), profile, "", -1, -1)


def plain_environment(profile: Path, hash_seed: str = "0") -> dict[str, str]:
    """The environment of a plain server: that of a zygote, less what is qgisd's own."""
    ours = zygote(profile)
    plain = {name: value for name, value in ours.items() if not name.startswith("QGISD_")}
    return plain | {
        "QT_HASH_SEED": hash_seed,
        "QGIS_SERVER_IGNORE_BAD_LAYERS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


class Reference:
    """tests/e2e/reference.py, running: a plain QgsServer without a fork in its life."""

    def __init__(
        self,
        folder: Path,
        hash_seed: str = "0",
        plugins: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        """plugins: a folder with server plugins, and the names of those to load."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "reference.py"), *plugins],
                env=plain_environment(folder / "profile", hash_seed) | (environment or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._lock = threading.Lock()

    def ask(
        self,
        path: Path,
        target: str,
        method: str = "GET",
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Response:
        """The answer of a plain server that knows itself as http://localhost.

        environment: of this request alone.
        """
        asked = {
            "path": str(path),
            "url": f"http://localhost{target}",
            "method": method,
            "body": base64.b64encode(body).decode(),
            "headers": SENT_HEADERS | (headers or {}),
            "environment": environment or {},
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, f"the reference server ended with {self._process.poll()} on {target}"
        answer = json.loads(line)
        assert answer["status"], f"a plain server does not load {path}"
        return Response(answer["status"], answer["headers"], base64.b64decode(answer["body"]))

    def stop(self) -> None:
        """End it by the end of its input."""
        self._process.communicate(timeout=20)


#: (pattern, what stands there instead): what differs between two answers of one plain server.
_TIMES = {
    "pdf": [  # Qt writes when it made the file, and an id made of that
        (rb"/(CreationDate|ModDate) \(D:[^)]*\)", rb"/\1 ()"),
        (rb"<xmp:(CreateDate|ModifyDate|MetadataDate)>[^<]*<", rb"<xmp:\1><"),
        (rb"/ID \[[^\]]*\]", b"/ID []"),
        (rb"uuid:[0-9a-f-]{36}", b"uuid:"),
    ],
    "json": [  # OGC API Features says when it answered
        (rb'"timeStamp":"[^"]*"', b'"timeStamp":""'),
    ],
    "xml": [  # and so does a GetFeature that asks for the number of hits
        (rb'timeStamp="[^"]*"', b'timeStamp=""'),
    ],
}


def without_times(body: bytes, content_type: str) -> bytes:
    """The body with times and ids of this very answer taken out."""
    for kind, patterns in _TIMES.items():
        if kind in content_type:
            for pattern, instead in patterns:
                body = re.sub(pattern, instead, body)
    return body


#: The box around all features, at the head of a GetFeature.
_BOX = rb'"bbox": \[[^]]*\]|<gml:Envelope.*?</gml:Envelope>|<gml:Box.*?</gml:Box>'


def without_box(answer: Response) -> Response:
    """The answer without the box of the whole collection, which is the extent of the layer.

    That of a WFS layer is the extent of the features that its provider has fetched so far, in
    the background: ten plain servers that are asked the same differ in it now and then.
    """
    body = re.sub(_BOX, b"", answer.body, count=1, flags=re.DOTALL)
    return Response(answer.status, answer.headers, body, answer.complete)


def difference(ours: Response, plain: Response) -> str:
    """Where an answer differs from a plain server's (status, headers, bytes); "" if nowhere."""
    if not ours.complete:
        return "cut off"
    if ours.status != plain.status:
        return f"status {ours.status}, plain server {plain.status}: {ours.body[:300]!r}"
    for name, value in plain.headers.items():
        if name.lower() not in OWN_HEADERS and ours.headers.get(name) != value:
            return f"header {name}: {ours.headers.get(name)!r}, plain server {value!r}"
    kind = plain.headers.get("Content-Type", "")
    left, right = without_times(ours.body, kind), without_times(plain.body, kind)
    if left == right:
        return ""
    at = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )
    around = slice(max(0, at - 60), at + 120)
    return (
        f"{kind}: {len(left)} bytes, plain server {len(right)}; the first difference at {at}:\n"
        f"  qgisd {left[around]!r}\n  plain {right[around]!r}"
    )


def assert_same(ours: Response, plain: Response) -> None:
    """Status, headers of QGIS, and body are those of a plain server, byte for byte."""
    found = difference(ours, plain)
    assert not found, found


@dataclass(frozen=True)
class ProjectSet:
    """A project of the tests, and the names in it that requests need."""

    #: MAP.
    name: str
    path: Path
    vector: str
    #: A second one.
    other: str
    #: Field of `vector` with text in it, and one of its values.
    field: str
    value: str
    raster: str = ""
    layout: str = ""
    #: Where GetFeatureInfo finds something of `vector`.
    pixel: str = "I=237&J=108"

    def target(self, **parameters: object) -> str:
        """Path and query of an OWS request for it."""
        return f"/ows/?{urlencode({'MAP': self.name} | parameters)}"


def in_parallel(count: int, work: Callable[[int], Any]) -> list[Any]:
    """work(0) to work(count - 1), each in a thread of its own, all at once; what they return."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait(20)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


def crashes(daemon: Daemon) -> dict[str, int]:
    """Project → workers that ended by themselves or were killed."""
    lost = {}
    for key, project in daemon.projects().items():
        count = sum(project["ended"].get(reason, 0) for reason in ("crash", "deadline", "memory"))
        if count:
            lost[key] = count
    return lost


def worker_pids(daemon: Daemon, *projects: str) -> set[int]:
    """The pids of the workers, of all projects or of these."""
    return {row["pid"] for row in daemon.workers() if not projects or row["project"] in projects}


def private_bytes(pid: int) -> int:
    """Private memory of a process (USS)."""
    return _rollup(pid, "Private_Clean", "Private_Dirty")


def resident_bytes(pid: int) -> int:
    """RSS of a process."""
    return _rollup(pid, "Rss")


def _rollup(pid: int, *names: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sum(fields[name] for name in names)


def make_sets(out: Path, *arguments: str) -> None:
    """Run ../shared/make_projects.py."""
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen", "QGIS_DISABLE_MESSAGE_HOOKS": "1"}
    done = subprocess.run(
        [sys.executable, str(SHARED / "make_projects.py"), str(out), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The data they are copied from is read-only. Project files are not, and must be left alone: a
    # plain server deletes a loaded project from under a request on so little as a chmod.
    for path in out.rglob("*"):
        if path.is_file() and not path.stat().st_mode & 0o200:
            path.chmod(0o644)


@contextlib.contextmanager
def postgresql(ssl: bool = False) -> Iterator[str]:
    """A throwaway cluster with PostGIS: its DSN. Runs as postgres if we are root.

    ssl: it speaks SSL too, and has a user gis_ssl (in the role gis, password gis) who is let in
    by SSL alone.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    need(bool(found), "PostgreSQL (/usr/lib/postgresql/*/bin)")
    extension = f"/usr/share/postgresql/{found[-1].parent.name}/extension/postgis.control"
    need(Path(extension).exists(), "PostGIS (postgresql-NN-postgis-3)")
    bin_dir, port = found[-1], free_port()
    top = Path(tempfile.mkdtemp(prefix="qgisd-test-postgres-"))  # pytest's own are 0700 of root
    run_as: list[str] = []
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(top, account.pw_uid, account.pw_gid)
        run_as = [
            "setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups",
        ]  # fmt: skip
    data, password = top / "data", top / "password"
    password.write_text("gis")
    password.chmod(0o644)

    def run(command: Sequence[object]) -> None:
        done = subprocess.run(
            [*run_as, *map(str, command)], cwd=top, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    server: subprocess.Popen[bytes] | None = None
    try:
        run(
            [bin_dir / "initdb", "-D", data, "--no-sync", "-U", "gis", f"--pwfile={password}",
             "-E", "UTF8", "--auth-local=trust", "--auth-host=md5"]
        )  # fmt: skip
        if ssl:
            run(
                ["openssl", "req", "-new", "-x509", "-nodes", "-newkey", "ec",
                 "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost",
                 "-out", data / "server.crt", "-keyout", data / "server.key"]
            )  # fmt: skip
            rules = data / "pg_hba.conf"
            rules.write_text("hostnossl all gis_ssl all reject\n" + rules.read_text())
        with (top / "log").open("wb") as log:
            server = subprocess.Popen(
                [*run_as, str(bin_dir / "postgres"), "-D", str(data), "-p", str(port),
                 "-k", str(top), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
                 # The order of rows is the plan's, and that depends on statistics.
                 "-c", "autovacuum=off", "-c", "synchronize_seqscans=off",
                 "-c", "synchronous_commit=off", "-c", f"ssl={'on' if ssl else 'off'}"],
                cwd=top, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        local = ["-h", str(top), "-p", str(port)]
        psql = [bin_dir / "psql", *local, "-U", "gis", "-v", "ON_ERROR_STOP=1"]

        def is_up() -> bool:
            assert server is not None and server.poll() is None, (top / "log").read_text()
            asked = [str(bin_dir / "pg_isready"), "-q", *local]
            return subprocess.run(asked, timeout=10, check=False).returncode == 0

        eventually(is_up, timeout=30, period=0.1)
        run([bin_dir / "createdb", *local, "-U", "gis", "gis"])
        run([*psql, "-qc", "CREATE EXTENSION postgis", "gis"])
        if ssl:
            run([*psql, "-qc", "CREATE ROLE gis_ssl LOGIN PASSWORD 'gis' IN ROLE gis", "gis"])
        yield f"host=127.0.0.1 port={port} dbname=gis user=gis password=gis"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # fast: does not wait for its clients
            server.wait(20)
        shutil.rmtree(top, ignore_errors=True)
