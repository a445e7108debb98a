"""A daemon with real QGIS, a way to its admin socket, and a browser: one of each for the module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.source import Source
from tests.e2e.helpers import need_program, need_qgis
from tests.support import Daemon
from tests.ui.browser import Browser, browser
from tests.ui.forward import forwarded
from tests.ui.projects import write_projects
from tests.ui.scene import serving


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
    with serving(tmp_path_factory.mktemp("daemon"), root) as daemon:
        yield daemon


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
