"""While snapshots serve, the data changes: what is seen when, and that nothing is harmed.

Beside qgisd, with three workers, stands a plain QgsServer that loaded the same project at the same
time: what it shows at once, qgisd shows at once. What it never shows, because QGIS keeps what it
read at the load, qgisd shows after `watch_data` has loaded the project again; it then answers as
a plain server does that was started after the change. docs/writers.md has the table.
"""

import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest

from qgisd.datafiles import CHANGING, version_of
from tests.e2e.helpers import (
    HERE,
    Reference,
    assert_same,
    crashes,
    in_parallel,
    worker_pids,
)
from tests.support import Daemon, Response, eventually

WORKERS = 3
#: Seconds that each side is read while somebody writes; more for figures than for a test.
SECONDS = float(os.environ.get("WRITERS_SECONDS", "2.5"))
StartReference = Callable[[str], Reference]
StartDaemon = Callable[..., Daemon]


def python(*words: object) -> str:
    """Run Python with OGR and QGIS in a process of its own; what it prints."""
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=HERE.parents[1], env=environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


class Writer:
    """tests/e2e/writer.py, running."""

    def __init__(self, target: str, layer: str, journal: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "writer.py"), target, layer, journal],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._expect("open")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{word}\n"

    def write(self, order: object) -> None:
        """Returns when it is written."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        self._expect("done")

    def stop(self) -> None:
        """Close the data."""
        self._process.communicate(timeout=20)
        assert self._process.returncode == 0


@contextmanager
def writing(target: str, layer: str, journal: str = "DELETE") -> Iterator[Writer]:
    """A Writer, for as long as it is needed."""
    writer = Writer(target, layer, journal)
    try:
        yield writer
    finally:
        writer.stop()


@dataclass(frozen=True)
class Side:
    """One of the two that are asked: qgisd, or a plain server."""

    #: Request target → answer.
    get: Callable[[str], Response]
    name: str

    def ask(self, **parameters: object) -> Response:
        answer = self.get(f"/ows/?{urlencode({'MAP': self.name} | parameters)}")
        assert answer.status == 200, answer.body
        return answer

    def features(self, layer: str) -> Response:
        return self.ask(
            SERVICE="WFS", VERSION="1.1.0", REQUEST="GetFeature", TYPENAME=layer,
            OUTPUTFORMAT="application/json",
        )  # fmt: skip

    def names(self, layer: str) -> set[str]:
        """The names of all its features."""
        found = json.loads(self.features(layer).body)["features"]
        return {feature["properties"]["name"] for feature in found}

    def map(self, layer: str, x: float, y: float) -> Response:
        return self.ask(
            SERVICE="WMS", VERSION="1.3.0", REQUEST="GetMap", LAYERS=layer, STYLES="", CRS="CRS:84",
            BBOX=f"{x - 1},{y - 1},{x + 1},{y + 1}", WIDTH=40, HEIGHT=40, FORMAT="image/png",
        )  # fmt: skip

    def capabilities(self, service: str) -> Response:
        return self.ask(SERVICE=service, REQUEST="GetCapabilities")

    def pixel(self) -> int:
        """What GetFeatureInfo says of the raster."""
        answer = self.ask(
            SERVICE="WMS", VERSION="1.3.0", REQUEST="GetFeatureInfo", LAYERS="tif", STYLES="",
            QUERY_LAYERS="tif", CRS="CRS:84", BBOX="0,0,20,20", WIDTH=40, HEIGHT=40, I=20, J=20,
            INFO_FORMAT="text/plain",
        )  # fmt: skip
        found = re.search(r"Band 1 = '(\d+)", answer.body.decode())
        assert found is not None, answer.body
        return int(found[1])


@dataclass(frozen=True)
class Scene:
    """A copy of the project, and the two that serve it."""

    folder: Path
    daemon: Daemon
    ours: Side
    plain: Side

    @property
    def project(self) -> Path:
        return self.folder / "writers.qgs"

    def target(self, layer: str, dsn: str) -> str:
        """What OGR opens for a layer."""
        return f"PG:{dsn}" if layer == "pg" else str(self.folder / f"{layer}.gpkg")

    def beside(self, reference: Reference) -> Side:
        """Another plain server."""
        return Side(lambda target: reference.ask(self.project, target), self.ours.name)

    def open(self) -> None:
        """Have both load it, and all three workers at work."""
        self.plain.features("rollback")

        def all_there() -> bool:
            in_parallel(WORKERS, lambda _: self.ours.map("rollback", 1, 1))
            return len(worker_pids(self.daemon, f"{self.ours.name}.qgs")) >= WORKERS

        eventually(all_there, timeout=30)

    def loads(self) -> int:
        return int(self.daemon.projects()[f"{self.ours.name}.qgs"]["loads"])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, dsn: str) -> Path:
    """The folder of make_writers.py, to be copied."""
    folder = tmp_path_factory.mktemp("writers") / "original"
    python(HERE / "make_writers.py", folder, dsn)
    return folder


@pytest.fixture(scope="module")
def daemon(
    session_daemons: StartDaemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """Three workers for each project."""
    roots = tmp_path_factory.mktemp("roots")
    started = session_daemons(roots, pool=f"workers = {WORKERS}\nproject_workers = {WORKERS}")
    yield started
    assert crashes(started) == {}


_numbers = itertools.count(1)


@pytest.fixture
def scene(original: Path, daemon: Daemon, references: StartReference) -> Scene:
    """A copy of its own, in the roots of the daemon."""
    roots = re.search(r'"/" = "([^"]+)"', (daemon.folder / "qgisd.toml").read_text())
    assert roots is not None
    name = f"scene{next(_numbers)}"
    folder = Path(roots[1]) / name
    shutil.copytree(original, folder)
    reference = references("writers")
    return Scene(
        folder,
        daemon,
        Side(daemon.get, f"{name}/writers"),
        Side(lambda target: reference.ask(folder / "writers.qgs", target), f"{name}/writers"),
    )


def assert_sound(path: Path, layer: str, features: int) -> None:
    """Intact, with as many features as were written, for who opens it next."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute(f"SELECT count(*) FROM {layer}").fetchall() == [(features,)]
        # The index of geometries, which every map is drawn by.
        index = f"SELECT count(*) FROM rtree_{layer}_geom"
        assert connection.execute(index).fetchall() == [(features,)]
    finally:
        connection.close()


# what is seen at once


@pytest.mark.parametrize(
    ("layer", "journal"), [("rollback", "DELETE"), ("wal", "WAL"), ("pg", "DELETE")]
)
def test_what_another_process_writes_is_seen_at_once_by_every_worker(
    scene: Scene, dsn: str, layer: str, journal: str
) -> None:
    with writing(scene.target(layer, dsn), layer if layer != "pg" else "writers_pg", journal) as to:
        scene.open()
        before = scene.plain.names(layer)
        changes: list[tuple[object, set[str], set[str]]] = [
            ([[f"e{number}", 40 + number, 40]], {f"e{number}"}, set()) for number in range(4)
        ]
        changes += [({"e0": "renamed"}, {"renamed"}, {"e0"}), ({"e1": None}, set(), {"e1"})]
        expected = set(before)
        for order, more, less in changes:
            to.write(order)
            expected = (expected | more) - less
            for seen in in_parallel(WORKERS, lambda _: scene.ours.names(layer)):
                assert seen == expected
            assert scene.plain.names(layer) == expected
            drawn = in_parallel(WORKERS, lambda _: scene.ours.map(layer, 41, 40))
            for answer in drawn:
                assert_same(answer, scene.plain.map(layer, 41, 40))
        if journal == "WAL":
            log = Path(f"{scene.folder / layer}.gpkg-wal")
            assert log.stat().st_size > 0, "it was not written in WAL mode at all"
    if layer != "pg":
        assert_sound(scene.folder / f"{layer}.gpkg", layer, len(expected))


TRANSACTION = (
    '<Transaction service="WFS" version="1.1.0" xmlns="http://www.opengis.net/wfs"'
    ' xmlns:ogc="http://www.opengis.net/ogc" xmlns:gml="http://www.opengis.net/gml">'
    "<Insert><{0}><name>{1}</name><geometry><gml:Point srsName='EPSG:4326'>"
    "<gml:pos>{2} {2}</gml:pos></gml:Point></geometry></{0}></Insert></Transaction>"
)


def transact(scene: Scene, layer: str, name: str, place: int) -> None:
    """Insert by WFS, through qgisd."""
    answer = scene.daemon.request(
        "POST", f"/ows/?MAP={scene.ours.name}&SERVICE=WFS",
        TRANSACTION.format(layer, name, place).encode(), {"Content-Type": "text/xml"},
    )  # fmt: skip
    assert answer.status == 200 and b"totalInserted>1<" in answer.body, answer.body


def test_transactions_are_seen_at_once_and_extents_soon(
    scene: Scene, dsn: str, tmp_path: Path
) -> None:
    with writing(scene.target("wal", dsn), "wal", "WAL"):  # idle, but in WAL mode all the time
        scene.open()
        for layer in ("rollback", "wal", "pg"):
            for number in range(3):
                name = f"t{number}"
                transact(scene, layer, name, 60 + number)
                for seen in in_parallel(WORKERS, lambda _, layer=layer: scene.ours.names(layer)):
                    assert name in seen
                assert name in scene.plain.names(layer)
        transact(scene, "shp", "t0", 60)
        # Of a shapefile each process keeps the length it read at the load.
        eventually(
            lambda: all("t0" in seen for seen in in_parallel(3, lambda _: scene.ours.names("shp")))
        )
        as_if_started_now(scene, tmp_path)
    for layer in ("rollback", "wal"):
        assert_sound(scene.folder / f"{layer}.gpkg", layer, 6)


def as_if_started_now(scene: Scene, folder: Path) -> None:
    """qgisd comes to answer as a plain server does that is started now."""
    reference = Reference(folder / "fresh")
    try:
        fresh = scene.beside(reference)
        for service in ("WMS", "WFS"):
            wanted = fresh.capabilities(service)
            # From all workers, and from what is kept of their answers.
            eventually(
                lambda service=service, wanted=wanted: all(
                    answer.body == wanted.body
                    for answer in in_parallel(3, lambda _: scene.ours.capabilities(service))
                ),
                timeout=20,
            )
            assert_same(scene.ours.capabilities(service), wanted)
        for layer in ("rollback", "wal", "shp", "pg"):
            assert_same(scene.ours.features(layer), fresh.features(layer))
            assert_same(scene.ours.map(layer, 60, 60), fresh.map(layer, 60, 60))
        assert scene.ours.pixel() == fresh.pixel()
    finally:
        reference.stop()


# what a plain server never sees


REPLACEMENT = """
import sys
from pathlib import Path
from tests.e2e import make_writers
made, there = Path(sys.argv[1]), Path(sys.argv[2])
made.mkdir()
make_writers.POINTS.append(("late", 60, 60))
make_writers.vector("ESRI Shapefile", str(made / "shp.shp"), "shp")
make_writers.raster(str(made / "tif.tif"), 99)
for path in made.iterdir():
    path.replace(there / path.name)
"""


def test_a_shapefile_and_a_geotiff_replaced_by_rename_are_served_soon(
    scene: Scene, tmp_path: Path
) -> None:
    scene.open()
    for side in (scene.plain, scene.ours):
        assert ("late" in side.names("shp"), side.pixel()) == (False, 10)
    open_before = scene.folder / "shp.shp"
    inode = open_before.stat().st_ino
    python("-c", REPLACEMENT, scene.folder / "new", scene.folder)
    assert open_before.stat().st_ino != inode

    def seen_by_all() -> bool:
        """Asked at once, by as many as there are workers."""
        names = in_parallel(WORKERS, lambda _: scene.ours.names("shp"))
        pixels = in_parallel(WORKERS, lambda _: scene.ours.pixel())
        return all("late" in seen for seen in names) and set(pixels) == {99}

    eventually(seen_by_all)
    as_if_started_now(scene, tmp_path)


def test_to_load_and_to_read_does_not_count_as_a_change(
    scene: Scene, references: StartReference
) -> None:
    """Else each load would be the cause of the next one, for this project and its neighbours."""
    # The first load ends the WAL mode of a file that nobody has open, once.
    scene.plain.features("wal")
    files = sorted(scene.folder.iterdir())
    before = {path: version_of(str(path)) for path in files}
    reference = scene.beside(references("another"))
    for side in (scene.plain, reference, scene.ours):
        for layer in ("rollback", "wal", "shp", "pg"):
            side.features(layer)
            side.map(layer, 1, 1)
        side.pixel()
    assert {path: version_of(str(path)) for path in files} == before
    assert version_of(f"{scene.folder}/wal.gpkg-wal") is None


# three readers beside a writer


def read_until(over: Callable[[], bool], side: Side, layer: str) -> Counter[str]:
    """Count answers that are wrong: each must count at least what the one before did."""
    counts: Counter[str] = Counter()
    most = 0
    while not over():
        answer = side.get(f"/ows/?{urlencode(_ALL | {'MAP': side.name, 'TYPENAME': layer})}")
        counts["asked"] += 1
        hits = re.search(rb'numberOfFeatures="(\d+)"', answer.body)
        found = int(hits[1]) if hits else -1
        counts["wrong"] += found < most
        counts[f"wrong: {answer.status} {found}"] += found < most
        most = max(most, found)
    return +counts


#: QGIS reads every feature to count them.
_ALL = {"SERVICE": "WFS", "VERSION": "1.1.0", "REQUEST": "GetFeature", "RESULTTYPE": "hits"}


def read_beside(
    write: Callable[[int], None], sides: list[Side], layer: str, first: int
) -> tuple["Counter[str]", int]:
    """Readers at work while somebody writes numbered features, from `first` on, one by one.

    What they counted, and the number after the last.
    """
    ends = time.monotonic() + SECONDS
    number = first

    def over() -> bool:
        return time.monotonic() > ends

    with ThreadPoolExecutor(len(sides)) as threads:
        readers = [threads.submit(read_until, over, side, layer) for side in sides]
        while not over():
            write(number)
            number += 1
        counts: Counter[str] = Counter()
        for reader in readers:
            counts += reader.result()
    return counts, number


def plain_sides(scene: Scene, references: StartReference, layer: str) -> list[Side]:
    """Three plain servers that have it loaded."""
    sides = [scene.beside(references(name)) for name in ("writers", "another", "third")]
    for side in sides:
        side.features(layer)
    return sides


def told(kind: str, plain: "Counter[str]", ours: "Counter[str]", written: int) -> None:
    """Figures for docs/writers.md (`WRITERS_SECONDS=20 pytest -s`)."""
    print(f"{kind}: {written} written\n  plain {dict(plain)}\n  qgisd {dict(ours)}")


@pytest.mark.parametrize(("layer", "journal"), [("rollback", "DELETE"), ("wal", "WAL")])
def test_three_readers_beside_a_writer_see_everything_and_as_seldom_nothing_as_plain_ones(
    scene: Scene, references: StartReference, layer: str, journal: str
) -> None:
    """QGIS answers empty now and then, when it opens a GeoPackage in the middle of a write."""
    path = scene.folder / f"{layer}.gpkg"
    with writing(str(path), layer, journal) as writer:

        def write(number: int) -> None:
            writer.write([[f"w{number}", 10 + number % 50, 10]])

        scene.open()
        plain, number = read_beside(write, plain_sides(scene, references, layer), layer, 0)
        ours, number = read_beside(write, [scene.ours] * WORKERS, layer, number)
        everything = {"n0", "n1", "n2"} | {f"w{done}" for done in range(number)}
        for seen in in_parallel(WORKERS, lambda _: scene.ours.names(layer)):
            assert seen == everything
    told(f"another process, {journal}", plain, ours, number)
    assert_sound(path, layer, len(everything))
    assert min(plain["asked"], ours["asked"], number) > 20
    # Seldom, and by chance: up to three in a test may be bad luck.
    allowed = plain["wrong"] / plain["asked"] * ours["asked"] + 3
    assert ours["wrong"] <= allowed


def test_transactions_leave_the_answers_of_other_workers_whole(
    scene: Scene, references: StartReference
) -> None:
    """Beside a plain server that writes by WFS-T, most answers of the others are empty."""
    layer, path = "rollback", scene.folder / "rollback.gpkg"
    writing_one = scene.beside(references("fourth"))
    reference = references("fourth")

    def write_plain(number: int) -> None:
        body = TRANSACTION.format(layer, f"w{number}", 60).encode()
        target = f"/ows/?MAP={scene.ours.name}&SERVICE=WFS"
        answer = reference.ask(scene.project, target, "POST", body, {"Content-Type": "text/xml"})
        assert b"totalInserted>1<" in answer.body, answer.body

    writing_one.features(layer)
    scene.open()
    plain, number = read_beside(write_plain, plain_sides(scene, references, layer), layer, 0)
    ours, number = read_beside(
        lambda number: transact(scene, layer, f"w{number}", 60),
        [scene.ours] * WORKERS,
        layer,
        number,
    )
    told("WFS-T", plain, ours, number)
    assert scene.ours.names(layer) == {"n0", "n1", "n2"} | {f"w{done}" for done in range(number)}
    assert_sound(path, layer, 3 + number)
    assert min(plain["asked"], ours["asked"], number) > 10
    assert ours["wrong"] <= 3
    assert plain["wrong"] > ours["wrong"], "QGIS does not change the journal any more?"


# which files are looked at


WATCHED = """
import json, sys, time
from qgis.core import QgsApplication
from qgisd.worker import datafiles

application = QgsApplication([], False)
application.initQgis()

class Layer:
    def __init__(self, provider, source):
        self.providerType, self.source = lambda: provider, lambda: source

sources, since, most = json.loads(sys.argv[1])
datafiles.MOST = most
files, more = datafiles.versions_of([Layer(*each) for each in sources], since)
print(json.dumps([files, more]))
"""


def watched(*sources: tuple[str, str], since: int = 1 << 62, most: int = 1000) -> tuple[dict, bool]:  # type: ignore[type-arg]
    """What qgisd.worker.datafiles finds for layers of these providers and sources."""
    files, more = json.loads(python("-c", WATCHED, json.dumps([sources, since, most])))
    return files, more


def test_the_local_files_of_every_provider_are_watched_and_nothing_else() -> None:
    files, more = watched(
        ("ogr", "/d/a.shp"),
        ("ogr", "/d/A.SHP|subset=x > 1"),
        ("ogr", "/d/a.gpkg|layername=x"),
        ("ogr", "/d/a.gpkg|layername=y"),
        ("ogr", "/vsizip//d/a.zip/b/c.shp"),
        ("gdal", "/d/a.tif"),
        ("gdal", 'NETCDF:"/d/a.nc":t'),
        ("delimitedtext", "file:///d/a%20b.csv?type=csv&wktField=WKT"),
        ("spatialite", "dbname='/d/a.sqlite' table=\"x\" (geom)"),
        ("wms", "type=mbtiles&url=file:///d/a.mbtiles"),
        ("wms", "crs=EPSG:4326&url=http://h/x"),
        ("vectortile", "type=xyz&url=file:///d/{z}/{x}/{y}.pbf"),
        ("ogr", "PG:dbname=x"),
        ("ogr", "/vsicurl/http://h/a.tif"),
        ("ogr", "/d/" + "n" * 1000),
        ("postgres", "dbname='x' host=h table=\"a\""),
        ("virtual", "?query=select 1"),
        ("memory", "Point?crs=EPSG:4326"),
    )
    assert not more
    assert set(files) == {
        "/d/a.shp", "/d/a.dbf", "/d/a.shx", "/d/A.SHP", "/d/A.DBF", "/d/A.SHX",
        "/d/a.gpkg", "/d/a.gpkg-wal", "/d/a.zip", "/d/a.tif", "/d/a.nc", "/d/a b.csv",
        "/d/a.sqlite", "/d/a.sqlite-wal", "/d/a.mbtiles", "/d/a.mbtiles-wal",
    }  # fmt: skip
    assert set(files.values()) == {None}


def test_a_file_that_changes_during_the_load_is_told_from_one_that_did_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.tif"
    path.write_text("content")
    changed = path.stat().st_ctime_ns
    assert watched(("gdal", str(path)), since=changed)[0] == {str(path): list(CHANGING)}
    status = path.stat()
    before = [status.st_mtime_ns, status.st_size, status.st_ino]
    assert watched(("gdal", str(path)), since=changed + 10**9)[0] == {str(path): before}


def test_a_project_of_a_thousand_files_is_watched_as_far_as_that_goes() -> None:
    files, more = watched(("gdal", "/d/a.tif"), ("gdal", "/d/b.tif"), ("gdal", "/d/c.tif"), most=2)
    assert (set(files), more) == ({"/d/a.tif", "/d/b.tif"}, True)
