"""A daemon with real QGIS, a way to its admin socket, and a browser: one of each for the module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.source import GOOD, Source
from tests.e2e.helpers import need_program, need_qgis
from tests.support import Daemon, eventually, marked, start_daemon
from tests.ui.browser import Browser, browser
from tests.ui.forward import forwarded
from tests.ui.projects import write_projects

#: A request that gets no answer from its source is stuck for as long as these tests need.
PATIENT = "workers = 4\nproject_workers = 2\nidle_worker_s = 600\nrequest_timeout_s = 100"
NETWORK = "[pool.qgis]\nnetwork_timeout_s = 100"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is real."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    """The remote WMS of the project `stuck`."""
    found = Source()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def qgisd(tmp_path_factory: pytest.TempPathFactory, source: Source) -> Iterator[Daemon]:
    """It serves what projects.py writes."""
    need_qgis()
    root = tmp_path_factory.mktemp("projects")
    write_projects(root, source.url)
    folder = tmp_path_factory.mktemp("daemon")
    daemon = start_daemon(
        folder, root, backend="qgis", pool=PATIENT, projects='pinned = ["world"]', extra=NETWORK
    )
    yield daemon
    source.mode = GOOD
    assert daemon.stop() == 0, daemon.log()[-2000:]
    eventually(lambda: not marked(daemon.mark), timeout=5)


@pytest.fixture(scope="module")
def programs() -> tuple[str, str]:
    """Chromium and its driver."""
    return need_program("chromium"), need_program("chromedriver")


@pytest.fixture(scope="module")
def window(qgisd: Daemon, programs: tuple[str, str]) -> Iterator[Browser]:
    """A browser with the page of that daemon."""
    with (
        forwarded(qgisd.folder / "admin.sock") as port,
        browser(f"http://localhost:{port}", *programs) as opened,
    ):
        yield opened


@pytest.fixture
def page(window: Browser) -> Iterator[Browser]:
    """The browser, of usual size and light; at the end its console must be silent."""
    window.size(1280, 900)
    window.prefer("light")
    window.complaints()
    yield window
    assert window.complaints() == []
