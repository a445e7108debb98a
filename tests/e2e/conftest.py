"""Fixtures with real QGIS, each made once and only if a test asks for it."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.helpers import (
    EXAMPLES,
    ProjectSet,
    Reference,
    crashes,
    make_sets,
    need_qgis,
    need_shared,
    postgresql,
)
from tests.support import Daemon, eventually, free_port, marked, start_daemon


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is real."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session", autouse=True)
def qgis() -> None:
    """Nothing here goes without QGIS."""
    need_qgis()


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all project sets: root of the daemons."""
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="session")
def demo(roots: Path) -> ProjectSet:
    """A copy of examples/world."""
    shutil.copytree(EXAMPLES / "world", roots / "demo")
    return ProjectSet(
        "demo/world", roots / "demo" / "world.qgs", "countries", "lakes", "NAME", "Norway",
        "relief", "A4",
    )  # fmt: skip


@pytest.fixture(scope="session")
def file_sets(roots: Path) -> Path:
    """world, broken, mixed and many, of ../shared/make_projects.py."""
    need_shared()
    make_sets(roots, "--many", "6")
    return roots


@pytest.fixture(scope="session")
def world(file_sets: Path) -> ProjectSet:
    return ProjectSet(
        "world/world", file_sets / "world" / "world.qgs", "countries", "lakes", "NAME", "Norway",
        "relief", "A4",
    )  # fmt: skip


@pytest.fixture(scope="session")
def broken(file_sets: Path) -> ProjectSet:
    """One of its layers cannot be opened."""
    return ProjectSet(
        "broken/broken", file_sets / "broken" / "broken.qgs", "countries", "lakes", "NAME",
        "Norway", "relief",
    )  # fmt: skip


@pytest.fixture(scope="session")
def mixed(file_sets: Path) -> ProjectSet:
    """A layer of each file provider."""
    return ProjectSet(
        "mixed/mixed", file_sets / "mixed" / "mixed.qgs", "shp", "gpkg", "NAME", "Norway", "tif"
    )


@pytest.fixture(scope="session")
def heavy(roots: Path) -> ProjectSet:
    """30 styled layers."""
    need_shared()
    make_sets(roots, "--only", "--heavy", "30")
    return ProjectSet(
        "heavy/heavy", roots / "heavy" / "heavy.qgs", "countries_0", "lakes_2", "NAME", "Norway"
    )


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    """A PostgreSQL server of our own."""
    with postgresql() as name:
        yield name


@pytest.fixture(scope="session")
def postgres(roots: Path, dsn: str) -> ProjectSet:
    """24 layers of PostGIS."""
    need_shared()
    make_sets(roots, "--only", "--postgres", dsn)
    return ProjectSet(
        "postgres/postgres", roots / "postgres" / "postgres.qgs", "countries_0", "lakes_0", "name",
        "Norway",
    )  # fmt: skip


@pytest.fixture(scope="session")
def remote(roots: Path, upstream: Daemon) -> ProjectSet:
    """A WMS and a WFS layer of another server."""
    url = f"http://{upstream.listen}/ows/?MAP=world/world.qgs"
    make_sets(roots, "--only", "--remote", url)
    return ProjectSet(
        "remote/remote", roots / "remote" / "remote.qgs", "wfs", "borders", "name", "", "wms",
        pixel="I=225&J=123",  # Lake Superior
    )  # fmt: skip


StartDaemon = Callable[..., Daemon]


@pytest.fixture(scope="session")
def session_daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartDaemon]:
    """Like `daemons`, with real QGIS, for the whole session."""
    started: list[Daemon] = []

    def start(roots: Path, **options: object) -> Daemon:
        folder = tmp_path_factory.mktemp("daemon")
        daemon = start_daemon(folder, roots, backend="qgis", **options)  # type: ignore[arg-type]
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        assert daemon.stop() == 0, daemon.log()[-2000:]
    for mark in [daemon.mark for daemon in started]:
        eventually(partial(nothing_is_left, mark), timeout=5)


def nothing_is_left(mark: str) -> bool:
    """No process of this daemon."""
    return not marked(mark)


@pytest.fixture(scope="session")
def upstream(session_daemons: StartDaemon, world: ProjectSet) -> Daemon:
    """A second qgisd, on a TCP port, that remote layers come from."""
    listen = f"127.0.0.1:{free_port()}"
    return session_daemons(world.path.parents[1], listen=listen, pool="workers = 3")


@pytest.fixture(scope="session")
def qgisd(session_daemons: StartDaemon, roots: Path) -> Iterator[Daemon]:
    """The daemon that most tests ask: all sets, four workers for one project.

    At the end of the session none of its workers may have ended unasked.
    """
    daemon = session_daemons(roots, pool="workers = 4\nproject_workers = 4")
    yield daemon
    assert crashes(daemon) == {}


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Reference]]:
    """Name → a plain QgsServer, one for each name, as some answers depend on earlier ones."""
    started: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in started:
            started[name] = Reference(tmp_path_factory.mktemp("reference"))
        return started[name]

    yield get
    for reference in started.values():
        reference.stop()


@pytest.fixture
def real_daemons(daemons: StartDaemon) -> StartDaemon:
    """`daemons` with real QGIS."""

    def start(roots: Path, **options: object) -> Daemon:
        return daemons(roots, backend="qgis", **options)

    return start


@pytest.fixture
def own_roots(tmp_path: Path) -> Callable[[ProjectSet], Path]:
    """Copies the folder of a project into a root of the test's own, to change it there."""

    def copy(project: ProjectSet) -> Path:
        root = tmp_path / "roots"
        # The large ones are linked: no test writes to them.
        shutil.copytree(
            project.path.parent, root / project.path.parent.name, copy_function=_copy, symlinks=True
        )
        return root

    return copy


def _copy(source: str, target: str) -> str:
    if Path(source).stat().st_size > 5 << 20:
        os.link(source, target)
        return target
    return shutil.copy2(source, target)
