"""Answers of 100 MB and more stream: nobody keeps them in memory, no client holds a worker."""

import contextlib
import http.client
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.helpers import ProjectSet, crashes, worker_pids
from tests.support import Daemon, eventually

StartDaemon = Callable[..., Daemon]
MB = 1_000_000
#: Layers of `heavy`; each table has five copies there. One copy of these is 27 MB of JSON.
COPIES = 4
LAYERS = [
    f"{table}_{first + 6 * copy}"
    for copy in range(COPIES)
    for first, table in ((1, "states"), (3, "coastline"), (5, "us_counties"))
]
SMALL = "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities"


@pytest.fixture(scope="module")
def daemon(session_daemons: StartDaemon, heavy: ProjectSet) -> Daemon:
    """One worker, so that who holds it is felt; loaded, and asked once."""
    daemon = session_daemons(heavy.path.parents[1], pool="workers = 1\nidle_worker_s = 600")
    with features(daemon, heavy, LAYERS[:1]) as answer:
        assert answer.status == 200
        assert len(answer.read()) > MB
    return daemon


@contextlib.contextmanager
def features(
    daemon: Daemon, project: ProjectSet, layers: list[str]
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GetFeature of all of these layers, its body not read."""
    connection = daemon.connection(timeout=60)
    connection.request(
        "GET",
        f"/ows/?MAP={project.name}&SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature"
        f"&OUTPUTFORMAT=application/json&TYPENAME={','.join(layers)}",
    )
    try:
        with contextlib.closing(connection.getresponse()) as answer:
            yield answer
    finally:
        connection.close()


def forget_peak(pid: int) -> int:
    """Start the kernel's record of the peak of resident memory anew; what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def peak(pid: int) -> int:
    """Most resident memory since `forget_peak`, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")


def test_100_megabytes_of_features_stream_through_flat_memory(
    daemon: Daemon, heavy: ProjectSet, tmp_path: Path
) -> None:
    (worker,) = worker_pids(daemon)
    before = {pid: forget_peak(pid) for pid in (daemon.process.pid, worker)}
    target = tmp_path / "features.json"
    with features(daemon, heavy, LAYERS) as answer, target.open("wb") as file:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        while piece := answer.read(1 << 20):
            file.write(piece)
    assert target.stat().st_size >= 100 * MB
    assert peak(daemon.process.pid) - before[daemon.process.pid] < 60 * MB
    assert peak(worker) - before[worker] < 120 * MB
    with target.open("rb") as file:
        content = json.load(file)
    target.unlink()
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == COPIES * (4556 + 4133 + 3235)
    assert worker_pids(daemon) == {worker}


def test_a_slow_client_holds_neither_the_worker_nor_memory(
    daemon: Daemon, heavy: ProjectSet
) -> None:
    (worker,) = worker_pids(daemon)
    before = forget_peak(daemon.process.pid)
    with features(daemon, heavy, LAYERS) as slow:
        received = len(slow.read(1 << 20))
        # The client stops here, and yet the worker comes to its end and serves others.
        eventually(lambda: [row["state"] for row in daemon.workers()] == ["idle"], timeout=60)
        others = daemon.get(f"/ows/?MAP={heavy.name}&{SMALL}", timeout=10)
        assert others.status == 200
        assert worker_pids(daemon) == {worker}
        assert spooled(daemon) > 90 * MB
        while piece := slow.read(1 << 20):
            received += len(piece)
    assert received >= 100 * MB
    assert peak(daemon.process.pid) - before < 60 * MB
    eventually(lambda: spooled(daemon) == 0)


def spooled(daemon: Daemon) -> int:
    """Bytes of the unlinked files that the daemon has open."""
    size = 0
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if tempfile.gettempdir() in os.readlink(entry) and entry.stat().st_nlink == 0:
                size += entry.stat().st_size
    return size


def test_a_client_that_leaves_a_long_answer_frees_the_worker(
    daemon: Daemon, heavy: ProjectSet
) -> None:
    with features(daemon, heavy, LAYERS) as answer:
        assert len(answer.read(1 << 20)) == 1 << 20
        assert [row["state"] for row in daemon.workers()] == ["busy"]
    begun = time.monotonic()
    served = daemon.get(f"/ows/?MAP={heavy.name}&{SMALL}", timeout=60)
    assert served.status == 200
    # disconnect_grace_s is 1; the whole answer takes several times as long.
    assert time.monotonic() - begun < 5
    eventually(lambda: spooled(daemon) == 0)
    assert crashes(daemon) == {}
