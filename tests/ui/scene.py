"""What the tests of the page and its screenshots both need: a daemon with real QGIS and real
projects, one of which gets stuck on command.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tests.chaos.source import GOOD, HANG, Source
from tests.support import Daemon, Response, eventually, marked, start_daemon

#: Whoever gets no answer from its source is stuck for as long as is needed here.
_POOL = "workers = 4\nproject_workers = 2\nidle_worker_s = 600\nrequest_timeout_s = 100"
_NETWORK = "[pool.qgis]\nnetwork_timeout_s = 100"
MAP = {
    "SERVICE": "WMS", "VERSION": "1.1.1", "REQUEST": "GetMap", "SRS": "EPSG:4326", "STYLES": "",
    "BBOX": "-180,-90,180,90", "WIDTH": 600, "HEIGHT": 300, "FORMAT": "image/png",
}  # fmt: skip


@contextlib.contextmanager
def serving(folder: Path, roots: Path) -> Iterator[Daemon]:
    """The daemon; nothing of it is left afterwards."""
    daemon = start_daemon(
        folder, roots, backend="qgis", pool=_POOL, projects='pinned = ["world"]', extra=_NETWORK
    )
    try:
        yield daemon
    finally:
        code = daemon.stop()
    assert code == 0, daemon.log()[-2000:]
    eventually(lambda: not marked(daemon.mark), timeout=5)


@contextlib.contextmanager
def stuck(daemon: Daemon, source: Source) -> Iterator["Future[Response]"]:
    """A client asks for a map whose source never answers: the answer that it will get."""
    assert daemon.ows("stuck", LAYERS="wms", **MAP).status == 200
    source.mode = HANG
    with ThreadPoolExecutor(1) as threads:
        try:
            yield threads.submit(daemon.ows, "stuck", 90, LAYERS="wms,borders", **MAP)
        finally:
            source.mode = GOOD
