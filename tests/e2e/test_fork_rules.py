"""The rules of the fork (design, section 2; qgisd/worker/fork.py), each with what it prevents.

Two kinds of tests. Some run tests/e2e/forks.py, which uses fork.py directly and can leave a rule
out: with the rule all is right, without it the damage shows. Where the damage comes by chance
(two processes must read one file in the same microsecond) what is looked at is its cause: an
open file, socket or eventfd that two processes have in common. The others ask a whole daemon
whose four workers answer at once, and compare with a plain QgsServer.
"""

import itertools
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import forks
from tests.e2e.helpers import (
    HERE,
    ProjectSet,
    Reference,
    assert_same,
    crashes,
    in_parallel,
    private_bytes,
    resident_bytes,
    worker_pids,
    zygote,
)
from tests.support import Daemon, eventually

StartDaemon = Callable[..., Daemon]
StartReference = Callable[[str], Reference]
WORKERS = 4
MAP = (
    "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&LAYERS=%s&STYLES=&CRS=EPSG:4326"
    "&BBOX=%s&WIDTH=300&HEIGHT=150&FORMAT=image/png"
)
WORLD = "-90,-180,90,180"
EXTENTS = (WORLD, "30,-20,70,60", "-60,-120,15,-30", "-40,-20,40,55", "0,60,60,180")


def maps_of(*layers: str) -> list[str]:
    """Queries of GetMaps: each of these layers in several extents."""
    return [MAP % pair for pair in itertools.product(layers, EXTENTS)]


def four_workers(daemon: Daemon, project: ProjectSet) -> set[int]:
    """Ask for so much at once that four workers of it are there; their pids."""
    query = maps_of(project.vector)[0]

    def are_there() -> set[int] | None:
        in_parallel(WORKERS, lambda _: daemon.get(f"/ows/?MAP={project.name}&{query}"))
        found = worker_pids(daemon, f"{project.name}.qgs")
        return found if len(found) == WORKERS else None

    return set(eventually(are_there, timeout=30))


def ask_all_at_once(
    daemon: Daemon, reference: Reference, project: ProjectSet, queries: list[str], rounds: int
) -> None:
    """Each of four clients asks for all of it, each in an order of its own; all must be right."""
    targets = [f"/ows/?MAP={project.name}&{query}" for query in queries]
    expected = {target: reference.ask(project.path, target) for target in targets}
    assert len({plain.body for plain in expected.values()}) > len(targets) // 2

    def client(number: int) -> int:
        order = random.Random(number)
        for _ in range(rounds):
            for target in order.sample(targets, len(targets)):
                assert_same(daemon.get(target), expected[target])
        return rounds * len(targets)

    before = four_workers(daemon, project)
    assert sum(in_parallel(WORKERS, client)) == WORKERS * rounds * len(targets)
    assert worker_pids(daemon, f"{project.name}.qgs") == before


# in the daemon: four workers at once


def test_four_workers_read_one_shapefile_at_once(
    qgisd: Daemon, references: StartReference, mixed: ProjectSet
) -> None:
    ask_all_at_once(qgisd, references("mixed forks"), mixed, maps_of("shp"), rounds=6)


def test_four_workers_read_every_file_provider_at_once(
    qgisd: Daemon, references: StartReference, mixed: ProjectSet
) -> None:
    layers = ("gpkg", "geojson", "fgb", "sqlite", "csv", "virtual", "tif")
    ask_all_at_once(qgisd, references("mixed forks"), mixed, maps_of(*layers), rounds=1)


def test_four_workers_ask_postgresql_at_once(
    qgisd: Daemon, references: StartReference, postgres: ProjectSet
) -> None:
    features = (
        "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=lakes_1&MAXFEATURES=100"
        "&OUTPUTFORMAT=application/json&STARTINDEX="
    )
    queries = maps_of("countries_0", "lakes_1", "borders_2")
    queries += [features + str(start) for start in range(0, 1000, 250)]
    ask_all_at_once(qgisd, references("postgres forks"), postgres, queries, rounds=2)


def test_four_workers_ask_a_remote_wms_and_wfs_at_once(
    qgisd: Daemon, references: StartReference, remote: ProjectSet
) -> None:
    queries = maps_of("wms", "wfs")
    ask_all_at_once(qgisd, references("remote forks"), remote, queries, rounds=1)


# rules 1 to 4: nothing in common


@pytest.mark.parametrize("name", ["mixed", "postgres", "remote"])
def test_no_two_processes_have_an_open_file_or_socket_in_common(
    qgisd: Daemon, request: pytest.FixtureRequest, name: str
) -> None:
    project: ProjectSet = request.getfixturevalue(name)
    workers = four_workers(qgisd, project)
    snapshots = {parent_of(pid) for pid in workers}
    assert len(snapshots) == 1, "the workers of one generation are forks of one snapshot"
    first = parent_of(next(iter(snapshots)))
    assert Path(f"/proc/{first}/comm").read_text() == "qgisd-zygote\n"
    common = {
        f"{os.readlink(f'/proc/{left}/fd/{number}')} ({left}, {right})"
        for left, right in itertools.combinations([first, *snapshots, *workers], 2)
        for number in open_files(left) & open_files(right)
        if number not in (0, 1, 2, lifeline_of(first)) and forks.same_file(left, right, number)
    }
    assert common == set()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def lifeline_of(pid: int) -> int:
    """The one descriptor that is meant to be the same in all (rule 11)."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    settings = next(entry for entry in variables if entry.startswith(b"QGISD_ZYGOTE="))
    return int(json.loads(settings.partition(b"=")[2])["lifeline_fd"])


def open_files(pid: int) -> set[int]:
    """Descriptors with a state of their own: not folders, nor devices such as /dev/urandom."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(entry)
        if not target.startswith("/dev/") and not Path(target).is_dir():
            found.add(int(entry.name))
    return found


@pytest.fixture
def run_forks(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs tests/e2e/forks.py and returns what it found."""

    def run(
        project: ProjectSet,
        queries: list[str],
        *without: str,
        deadline: float = 30,
        warm: bool = False,
    ) -> dict[str, Any]:
        settings = {
            "project": str(project.path),
            "urls": [f"http://localhost/ows/?MAP={project.name}&{query}" for query in queries],
            "without": without,
            "deadline": deadline,
            "warm": warm,
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.e2e.forks", json.dumps(settings)],
            cwd=HERE.parents[1], env=zygote(tmp_path / "profile"), capture_output=True,
            text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))

    return run


RunForks = Callable[..., dict[str, Any]]


def answers(outcome: dict[str, Any]) -> set[str]:
    """The different answers of all children to all requests, or how they ended."""
    return {
        answer
        for child in outcome["children"]
        for answer in child.get("hashes", [child.get("ended")])
    }


def shared(outcome: dict[str, Any]) -> set[str]:
    """What at least one child had in common with the snapshot."""
    return {target for child in outcome["children"] for target in child.get("shared", [])}


def test_without_reopening_forks_read_each_others_bytes_of_a_shapefile(
    run_forks: RunForks, mixed: ProjectSet
) -> None:
    queries = maps_of("shp") * 3
    kept = run_forks(mixed, queries, warm=True)
    left_out = run_forks(mixed, queries, "reopen", warm=True)
    assert shared(kept) == set()
    assert {Path(target).suffix for target in shared(left_out)} >= {".shp", ".dbf", ".gpkg"}
    assert len(answers(kept)) == len(set(queries))
    assert all(answer.startswith("200 ") for answer in answers(kept))
    wrong = answers(left_out) - answers(kept)
    assert len(wrong) > 10, "four processes that seek in one open file get along?"


def test_without_severing_forks_spoil_the_postgresql_connection_they_share(
    run_forks: RunForks, postgres: ProjectSet
) -> None:
    queries = maps_of("countries_0", "lakes_1")
    kept = run_forks(postgres, queries, warm=True)
    assert [len(child["hashes"]) for child in kept["children"]] == [len(queries)] * 4
    assert len(answers(kept)) == len(queries)
    for _ in range(4):  # on a busy machine they may take turns by chance
        left_out = run_forks(postgres, queries, "sever", warm=True, deadline=6)
        assert any(target.startswith("socket:") for target in shared(left_out))
        if answers(left_out) != answers(kept):
            return
    pytest.fail("workers on one connection get along?")


def test_without_renewing_forks_eat_each_others_wakeups(
    run_forks: RunForks, mixed: ProjectSet
) -> None:
    queries = maps_of("gpkg")[:1]
    left_out = run_forks(mixed, queries, "renew")
    assert any("eventfd" in target for target in shared(left_out))


def test_without_repairing_again_a_fork_of_a_fork_shares_what_the_snapshot_opened(
    run_forks: RunForks, mixed: ProjectSet
) -> None:
    queries = maps_of("gpkg")[:1]
    left_out = run_forks(mixed, queries, "again")
    assert any(target.endswith("c.gpkg") for target in shared(left_out))
    assert any("eventfd" in target for target in shared(left_out))


def test_without_ending_the_network_thread_forks_hang_on_a_remote_layer(
    run_forks: RunForks, remote: ProjectSet
) -> None:
    queries = [MAP % ("wms", WORLD)]
    kept = run_forks(remote, queries, warm=True)
    left_out = run_forks(remote, queries, "quiesce", deadline=8)
    assert kept["threads"] == []
    assert len(answers(kept)) == 1 and answers(kept).pop().startswith("200 ")
    assert left_out["threads"] != []
    assert "hung" in answers(left_out)


# rule 5: SQLite


INSERT = """
import sys
from osgeo import ogr
ogr.UseExceptions()
source = ogr.Open(sys.argv[1], 1)
layer = source.GetLayerByName("x")
for name in sys.argv[2:]:
    feature = ogr.Feature(layer.GetLayerDefn())
    feature.SetField("NAME", name)
    feature.SetGeometry(ogr.CreateGeometryFromWkt("MULTIPOLYGON (((0 0, 0 1, 1 1, 0 0)))"))
    layer.CreateFeature(feature)
"""


def insert(path: Path, *names: str) -> None:
    """Add features to c.gpkg in another process; each is a transaction of its own."""
    command = [sys.executable, "-c", INSERT, str(path), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def find(daemon: Daemon, *names: str) -> dict[str, str]:
    """Name → feature id, of those of these names that a GetFeature finds."""
    quoted = ",".join(f"'{name}'" for name in names)
    answer = daemon.ows(
        "mixed/mixed", SERVICE="WFS", VERSION="1.1.0", REQUEST="GetFeature", TYPENAME="gpkg",
        OUTPUTFORMAT="application/json", EXP_FILTER=f"\"NAME\" IN ({quoted})",
    )  # fmt: skip
    assert answer.status == 200, answer.body
    return {feature["properties"]["NAME"]: feature["id"] for feature in answer.json()["features"]}


def assert_all_see(daemon: Daemon, asked: Sequence[str], expected: set[str]) -> None:
    """Four clients ask for these names at once; each sees exactly the expected ones."""
    for seen in in_parallel(WORKERS, lambda _: find(daemon, *asked)):
        assert set(seen) == expected


def assert_sound(path: Path) -> None:
    """PRAGMA integrity_check, by another process than those that wrote."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_what_another_process_writes_to_a_geopackage_is_served_at_once(
    real_daemons: StartDaemon,
    own_roots: Callable[[ProjectSet], Path],
    mixed: ProjectSet,
    journal: str,
) -> None:
    roots = own_roots(mixed)
    path = roots / "mixed" / "c.gpkg"
    connection = sqlite3.connect(path)
    assert connection.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal.lower(),)
    connection.close()
    # These workers, and not those of a load after the edit.
    daemon = real_daemons(
        roots, pool="workers = 4\nproject_workers = 4", projects="watch_data = false"
    )
    workers = four_workers(daemon, mixed)
    written: list[str] = []
    for number in range(5):
        written.append(f"edit {number}")
        insert(path, written[-1])
        assert_all_see(daemon, written, set(written))
    # And while they read.
    more = [f"busy {number}" for number in range(40)]
    writer = threading.Thread(target=insert, args=(path, *more))
    writer.start()
    statuses = set()
    query = f"/ows/?MAP=mixed/mixed&{MAP % ('gpkg', WORLD)}"
    while writer.is_alive():
        statuses |= {answer.status for answer in in_parallel(WORKERS, lambda _: daemon.get(query))}
    writer.join()
    assert statuses == {200}
    assert_all_see(daemon, more, set(more))
    assert worker_pids(daemon) == workers
    assert crashes(daemon) == {}
    daemon.stop()
    assert_sound(path)


TRANSACTION = (
    '<Transaction service="WFS" version="1.1.0" xmlns="http://www.opengis.net/wfs"'
    ' xmlns:ogc="http://www.opengis.net/ogc" xmlns:gml="http://www.opengis.net/gml"'
    ' xmlns:qgs="http://www.qgis.org/gml">{}</Transaction>'
)
ADD = (
    "<Insert><gpkg><NAME>{}</NAME><geometry><gml:MultiPolygon srsName='EPSG:4326'>"
    "<gml:polygonMember><gml:Polygon><gml:exterior><gml:LinearRing>"
    "<gml:posList srsDimension='2'>0 0 0 1 1 1 0 0</gml:posList></gml:LinearRing></gml:exterior>"
    "</gml:Polygon></gml:polygonMember></gml:MultiPolygon></geometry></gpkg></Insert>"
)
WHERE = (
    "<ogc:Filter><ogc:PropertyIsEqualTo><ogc:PropertyName>NAME</ogc:PropertyName>"
    "<ogc:Literal>{}</ogc:Literal></ogc:PropertyIsEqualTo></ogc:Filter>"
)
CHANGE = (
    "<Update typeName='gpkg'><Property><Name>NAME</Name><Value>{}</Value></Property>{}</Update>"
)
#: QGIS deletes by id only.
REMOVE = "<Delete typeName='gpkg'><ogc:Filter><ogc:FeatureId fid='{}'/></ogc:Filter></Delete>"


def transact(daemon: Daemon, action: str) -> None:
    """A WFS transaction that must succeed."""
    answer = daemon.request(
        "POST", "/ows/?MAP=mixed/mixed&SERVICE=WFS", TRANSACTION.format(action).encode(),
        {"Content-Type": "text/xml"},
    )  # fmt: skip
    assert answer.status == 200, answer.body
    assert re.search(rb"<total(Inserted|Updated|Deleted)>1<", answer.body), answer.body


def allow_transactions(project: Path) -> None:
    """Publish all layers of WFS for insert, update and delete."""
    content = project.read_text()
    found = re.search(r"<WFSLayers type=\"QStringList\">(.*?)</WFSLayers>", content, re.DOTALL)
    assert found is not None
    lists = "".join(
        f'<{name} type="QStringList">{found[1]}</{name}>' for name in ("Insert", "Update", "Delete")
    )
    content = content.replace("<WFSLayers", f"<WFSTLayers>{lists}</WFSTLayers><WFSLayers", 1)
    project.write_text(content)


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_transaction_through_one_worker_is_seen_by_the_others(
    real_daemons: StartDaemon,
    own_roots: Callable[[ProjectSet], Path],
    mixed: ProjectSet,
    journal: str,
) -> None:
    roots = own_roots(mixed)
    path = roots / "mixed" / "c.gpkg"
    allow_transactions(roots / "mixed" / "mixed.qgs")
    connection = sqlite3.connect(path)
    assert connection.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal.lower(),)
    connection.close()
    # These workers, and not those of a load after the edit.
    daemon = real_daemons(
        roots, pool="workers = 4\nproject_workers = 4", projects="watch_data = false"
    )
    workers = four_workers(daemon, mixed)
    for number in range(4):
        old, new = f"old {number}", f"new {number}"
        transact(daemon, ADD.format(old))
        assert_all_see(daemon, (old, new), {old})
        transact(daemon, CHANGE.format(new, WHERE.format(old)))
        assert_all_see(daemon, (old, new), {new})
        if number % 2:
            transact(daemon, REMOVE.format(find(daemon, new)[new]))
            assert_all_see(daemon, (old, new), set())
    assert_all_see(daemon, [f"new {number}" for number in range(4)], {"new 0", "new 2"})
    assert worker_pids(daemon) == workers
    assert crashes(daemon) == {}
    daemon.stop()
    assert_sound(path)


# rule 6: the fallback


THREADS_AT_LOAD = '''
import threading

from qgis.core import QgsPathResolver


def resolve(path):
    """Called by QGIS for each layer of a project that it loads."""
    if "c.fgb" in path and threading.active_count() == 1:
        threading.Thread(target=threading.Event().wait, daemon=True, name="of a plugin").start()
    return path


def serverClassFactory(interface):
    QgsPathResolver.setPathPreprocessor(resolve)
    return None
'''


def test_a_project_whose_threads_stay_is_loaded_by_each_worker(
    real_daemons: StartDaemon,
    references: StartReference,
    mixed: ProjectSet,
    world: ProjectSet,
    roots: Path,
    tmp_path: Path,
) -> None:
    plugin = tmp_path / "plugins" / "threads"
    plugin.mkdir(parents=True)
    (plugin / "metadata.txt").write_text(
        "[general]\nname=Threads\nserver=True\nversion=1\nqgisMinimumVersion=3.0\n"
    )
    (plugin / "__init__.py").write_text(THREADS_AT_LOAD)
    daemon = real_daemons(
        roots,
        pool="workers = 3\nproject_workers = 3\nquiesce_s = 0.5",
        extra=f'[pool.qgis]\nplugin_path = "{plugin.parent}"',
    )
    reference = references("fallback")
    targets = [f"/ows/?MAP={mixed.name}&{query}" for query in maps_of("shp", "gpkg")]
    expected = [reference.ask(mixed.path, target) for target in targets]
    for _ in range(2):
        asked = in_parallel(WORKERS, lambda _: [daemon.get(target) for target in targets])
        for ours, plain in zip(itertools.chain(*asked), expected * WORKERS, strict=True):
            assert_same(ours, plain)
    target = f"/ows/?MAP={world.name}&{maps_of('lakes')[0]}"
    assert_same(daemon.get(target), reference.ask(world.path, target))
    modes = {
        key: (project["generations"][0]["mode"], project["generations"][0]["why"])
        for key, project in daemon.projects().items()
    }
    mode, why = modes["mixed/mixed.qgs"]
    assert mode == "loaded" and "Python thread 'of a plugin'" in why
    assert modes["world/world.qgs"] == ("forked", "")
    told = daemon.ctl("projects").stdout
    assert "mixed/mixed.qgs: loaded in each worker: threads stay: Python thread" in told
    assert crashes(daemon) == {}
    assert Path(f"/proc/{parent_of(worker_pids(daemon, 'mixed/mixed.qgs').pop())}/comm").read_text(
    ) == "qgisd-zygote\n"  # fmt: skip


def test_snapshot_false_loads_in_each_worker(
    real_daemons: StartDaemon, references: StartReference, roots: Path, demo: ProjectSet
) -> None:
    daemon = real_daemons(roots, pool="workers = 2\nsnapshot = false")
    target = f"/ows/?MAP={demo.name}&{maps_of('countries')[0]}"
    assert_same(daemon.get(target), references("fallback").ask(demo.path, target))
    generation = daemon.projects()["demo/world.qgs"]["generations"][0]
    assert (generation["mode"], generation["why"]) == ("loaded", "pool.snapshot is false")


# rules 8 to 11


def test_all_workers_write_xml_alike_and_as_every_start_does(
    qgisd: Daemon, references: StartReference, tmp_path: Path, world: ProjectSet
) -> None:
    """Forks of one process agree without the seed too; two starts do not."""
    target = f"/ows/?MAP={world.name}&SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities"
    four_workers(qgisd, world)
    bodies = {
        answer.body
        for _ in range(5)
        for answer in in_parallel(WORKERS, lambda _: qgisd.get(target))
    }
    assert bodies == {references("seed").ask(world.path, target).body}
    other = Reference(tmp_path, hash_seed="7")
    try:
        assert other.ask(world.path, target).body not in bodies, "the seed has no effect?"
    finally:
        other.stop()


def test_a_worker_shares_most_of_its_memory_with_the_snapshot(
    qgisd: Daemon, world: ProjectSet
) -> None:
    for pid in four_workers(qgisd, world):
        assert private_bytes(pid) < resident_bytes(pid) // 2


def test_python_does_not_touch_the_pages_of_the_snapshot(
    run_forks: RunForks, mixed: ProjectSet
) -> None:
    outcome = run_forks(mixed, maps_of("gpkg")[:1])
    assert all(child["frozen"] > 1000 for child in outcome["children"])


def test_the_kernel_takes_workers_before_snapshots_before_the_daemon(
    qgisd: Daemon, world: ProjectSet
) -> None:
    worker = four_workers(qgisd, world).pop()
    snapshot = parent_of(worker)
    order = [worker, snapshot, parent_of(snapshot), qgisd.process.pid]
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in order]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


def test_workers_inside_qgis_end_when_the_daemon_is_killed(
    real_daemons: StartDaemon, roots: Path, world: ProjectSet
) -> None:
    daemon = real_daemons(roots, pool="workers = 2")
    daemon.get(f"/ows/?MAP={world.name}&{maps_of('lakes')[0]}")
    connection = daemon.connection()
    connection.request(
        "GET",
        f"/ows/?MAP={world.name}&SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&LAYERS=states&STYLES="
        f"&CRS=EPSG:4326&BBOX={WORLD}&WIDTH=8000&HEIGHT=4000&FORMAT=image/png",
    )
    eventually(lambda: any(row["state"] == "busy" for row in daemon.workers()))
    daemon.kill()
    eventually(lambda: not daemon.pids(), timeout=3)
    connection.close()
    for path in daemon.folder.rglob("*.sock"):
        path.unlink()
