"""The sides of the comparison: projects made once, a daemon for each mode, plain servers."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.helpers import need, need_program, need_qgis, need_shared, postgresql
from tests.parity import table
from tests.parity.runner import Mode, Place, Suite, copy_database, copy_side
from tests.support import SHARED, Daemon, eventually, free_port, marked, start_daemon

MAKE = Path(__file__).with_name("make.py")
#: A raster of PostGIS over Europe: each pixel is its row times its column.
RASTER = """
CREATE EXTENSION postgis_raster;
CREATE TABLE picture AS SELECT 1 AS rid, ST_MapAlgebra(ST_AddBand(
    ST_MakeEmptyRaster(70, 50, -20, 75, 1, -1, 0, 0, 4326), '32BF'::text, 0, NULL),
    1, '32BF', '[rast.x]*[rast.y]') AS rast;
ALTER TABLE picture ADD PRIMARY KEY (rid);
SELECT AddRasterConstraints('picture'::name, 'rast'::name);
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is real."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="package")
def dsn() -> Iterator[str]:
    """A PostgreSQL server with SSL."""
    need_qgis()
    need_shared()
    need_program("psql")
    need_program("ogr2ogr")
    found = list(Path("/usr/share/postgresql").glob("*/extension/postgis_raster.control"))
    need(bool(found), "postgis_raster (postgresql-NN-postgis-3)")
    with postgresql(ssl=True) as name:
        subprocess.run(["psql", "-qd", name, "-v", "ON_ERROR_STOP=1", "-c", RASTER], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        yield name


def pg_files(folder: Path, dsn: str, database: str) -> dict[str, str]:
    """A service file and a password file for one database: the environment that names them."""
    words = dict(word.split("=") for word in dsn.split())
    service, passwords = folder / "pg_service.conf", folder / "pgpass"
    service.write_text(
        f"[parity]\nhost={words['host']}\nport={words['port']}\ndbname={database}\nuser=gis\n"
    )
    passwords.write_text(f"{words['host']}:{words['port']}:*:gis:gis\n")
    passwords.chmod(0o600)
    return {"PGSERVICEFILE": str(service), "PGPASSFILE": str(passwords)}


def make(out: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
    """Run make.py."""
    done = subprocess.run(
        [sys.executable, str(MAKE), str(out), str(SHARED / "data"), *arguments],
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen", "HOME": str(out.parent)}
        | (environment or {}),
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="package")
def started() -> Iterator[list[Daemon]]:
    """Daemons of the session: stopped at its end, and nothing of them may be left."""
    daemons: list[Daemon] = []
    yield daemons
    for daemon in daemons:
        assert daemon.stop() == 0, daemon.log()[-2000:]
    for daemon in daemons:
        eventually(lambda daemon=daemon: not marked(daemon.mark), timeout=5)


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory, dsn: str, started: list[Daemon]) -> Path:
    """All projects, those of remote layers included, whose upstream is a daemon of its own."""
    out = tmp_path_factory.mktemp("parity")
    make(out, "files")
    files = pg_files(tmp_path_factory.mktemp("pg"), dsn, "gis")
    make(out, "postgres", dsn, environment=files)
    listen = f"127.0.0.1:{free_port()}"
    upstream = start_daemon(
        tmp_path_factory.mktemp("upstream"), out, backend="qgis", listen=listen,
        pool="workers = 4\nproject_workers = 4",
    )  # fmt: skip
    started.append(upstream)
    make(out, "upstream", f"http://{listen}")
    return out


@pytest.fixture(scope="package")
def suite(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    made: Path,
    dsn: str,
    started: list[Daemon],
) -> Iterator[Suite]:
    """All that this session asks for is begun at once; tests wait for their part of it."""
    places: dict[str, Place] = {}
    lock = threading.Lock()

    def place(side: str) -> Place:
        with lock:
            if side not in places:
                database = f"gis_{side}"
                copy_database(dsn, database)
                folder = tmp_path_factory.mktemp(side)
                roots = copy_side(made, folder / "roots", database)
                places[side] = Place(roots, pg_files(folder, dsn, database))
            return places[side]

    def start(mode: Mode, place: Place) -> Daemon:
        environment = ", ".join(f'{key} = "{value}"' for key, value in place.environment.items())
        daemon = start_daemon(
            tmp_path_factory.mktemp(f"daemon-{mode.name}"), place.roots, backend="qgis",
            pool=f'memory = "16GiB"\n{mode.pool}',
            projects="watch_data = false",  # a plain server does not look at it either
            extra=f"[pool.qgis]\nenv = {{ {environment} }}",
        )  # fmt: skip
        started.append(daemon)
        return daemon

    upstream = started[0]
    collection = upstream.get("/wfs3/collections/land.json?MAP=upstream/upstream").json()
    (mercator,) = [uri for uri in collection["crs"] if uri.endswith("/3857")]
    suite = Suite(place, start, lambda name: tmp_path_factory.mktemp(name), mercator)
    wanted = [
        (item.callspec.params["mode"], item.callspec.params["source"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "suite" in item.fixturenames
        and "mode" in getattr(getattr(item, "callspec", None), "params", {})
    ]  # fmt: skip
    suite.order(wanted)
    yield suite
    folder = os.environ.get("PARITY_RESULTS")
    if folder:
        print("kept:", table.keep(Path(folder), suite.version, suite.done()))
    suite.stop()
