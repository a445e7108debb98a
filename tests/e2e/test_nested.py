"""Projects that draw each other through the daemon that serves them all.

A worker that draws a WMS layer of another project here holds its slot and waits for a second one.
None of that may end in everybody waiting for everybody.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.e2e.helpers import ProjectSet, Reference, assert_same, crashes, in_parallel
from tests.support import Daemon, Response, eventually, free_port

StartDaemon = Callable[..., Daemon]
StartReference = Callable[[str], Reference]
PNG = b"\x89PNG\r\n\x1a\n"
#: Seconds an answer may take: request_timeout_s, and what a busy machine adds.
ANSWER_S = 25


@dataclass
class Nest:
    """A root whose projects have layers of a daemon on `listen`."""

    root: Path
    listen: str
    template: str
    #: host:port that stands in the template.
    source: str

    def write(self, name: str, draws: str, layer: str) -> None:
        """Project `name`: its layer "wms" is `layer` of project `draws`; "borders" is a file."""
        text = self.template.replace(self.source, self.listen)
        text = text.replace("MAP%3Dworld/world.qgs", f"MAP%3D{draws}")
        text = text.replace("layers=countries", f"layers={layer}")
        path = self.root / name
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)


@pytest.fixture
def nest(own_roots: Callable[[ProjectSet], Path], world: ProjectSet, remote: ProjectSet,
         upstream: Daemon) -> Nest:  # fmt: skip
    """world, and room for projects beside the data of `remote`."""
    root = own_roots(world)
    (root / "nest").mkdir()
    shutil.copy(remote.path.parent / "world.gpkg", root / "nest")
    template = remote.path.read_text()
    assert f"{upstream.listen}/ows/?MAP%3Dworld/world.qgs" in template
    return Nest(root, f"127.0.0.1:{free_port()}", template, upstream.listen)


def map_of(project: str, number: int = 0, layers: str = "wms,borders") -> str:
    """A picture; another place for each number."""
    x, y = -120 + 7 * (number % 20), -40 + 11 * (number // 20)
    return "/ows/?" + urlencode(
        {
            "MAP": project, "SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetMap",
            "LAYERS": layers, "STYLES": "", "CRS": "EPSG:4326", "WIDTH": 200, "HEIGHT": 100,
            "BBOX": f"{y},{x},{y + 20},{x + 40}", "FORMAT": "image/png",
        }
    )  # fmt: skip


def refused(daemon: Daemon) -> int:
    """Requests that were too deep, as the log tells."""
    return len(re.findall(r" 508 \d+ bytes in ", daemon.log()))


@pytest.mark.parametrize("workers", [2, 1])
def test_a_project_that_draws_another_one_does_not_starve_itself(
    nest: Nest, real_daemons: StartDaemon, references: StartReference, workers: int
) -> None:
    """All workers draw A at once, and each of them needs one more for its layer of B."""
    nest.write("nest/a.qgs", "world/world.qgs", "countries")
    daemon = real_daemons(
        nest.root, listen=nest.listen, pool=f"workers = {workers}\nproject_workers = {workers}"
    )
    reference = references(f"nested-{workers}")
    wanted = [reference.ask(nest.root / "nest" / "a.qgs", map_of("nest/a", n)) for n in range(40)]
    assert all(answer.body.startswith(PNG) for answer in wanted)
    without = reference.ask(nest.root / "nest" / "a.qgs", map_of("nest/a", 3, "borders"))
    assert wanted[3].body != without.body, "the layer of the other project is not in the picture"

    def client(number: int) -> list[tuple[int, Response, float]]:
        found = []
        for at in range(number, 40, 8):
            begin = time.monotonic()
            answer = daemon.get(map_of("nest/a", at), timeout=60)
            found.append((at, answer, time.monotonic() - begin))
        return found

    answers = [row for rows in in_parallel(8, client) for row in rows]
    assert len(answers) == 40
    for at, answer, seconds in answers:
        assert_same(answer, wanted[at])
        assert seconds < ANSWER_S
    assert crashes(daemon) == {}
    assert refused(daemon) == 0


def test_beside_its_own_nested_requests_a_project_serves_others(
    nest: Nest, real_daemons: StartDaemon
) -> None:
    """B is asked by clients as well as by the workers of A."""
    nest.write("nest/a.qgs", "world/world.qgs", "countries")
    daemon = real_daemons(nest.root, listen=nest.listen, pool="workers = 2")
    wanted = {
        target: daemon.get(target).body
        for number in range(8)
        for target in (map_of("nest/a", number), map_of("world/world", number, "countries"))
    }

    def client(number: int) -> None:
        project, layers = [("nest/a", "wms,borders"), ("world/world", "countries")][number % 2]
        for at in range(8):
            target = map_of(project, at, layers)
            answer = daemon.get(target, timeout=60)
            assert answer.status == 200, answer.body[:300]
            assert answer.body == wanted[target]

    in_parallel(8, client)
    assert crashes(daemon) == {}


def test_a_project_that_draws_itself_ends_at_depth_two(
    nest: Nest, real_daemons: StartDaemon
) -> None:
    """It was harmless when it was loaded first; then its file changes and draws itself."""
    nest.write("nest/a.qgs", "world/world.qgs", "countries")
    daemon = real_daemons(nest.root, listen=nest.listen, pool="workers = 2\nproject_workers = 2")
    assert daemon.get(map_of("nest/a")).status == 200
    nest.write("nest/a.qgs", "nest/a.qgs", "wms")
    wait_for_generation(daemon, "nest/a.qgs", 2)
    look_into_the_well(daemon, "nest/a", "nest/a.qgs")


def test_projects_that_draw_each_other_end_at_depth_two(
    nest: Nest, real_daemons: StartDaemon
) -> None:
    """A draws B draws A."""
    nest.write("nest/a.qgs", "world/world.qgs", "countries")
    nest.write("nest/b.qgs", "nest/a.qgs", "wms")
    daemon = real_daemons(nest.root, listen=nest.listen, pool="workers = 2\nproject_workers = 2")
    # Two levels deep is allowed: B draws A draws world.
    deep = daemon.get(map_of("nest/b", 3), timeout=60)
    shallow = daemon.get(map_of("nest/a", 3), timeout=60)
    flat = daemon.get(map_of("nest/b", 3, "borders"), timeout=60)
    assert (deep.status, shallow.status, flat.status) == (200, 200, 200)
    assert deep.body != flat.body
    assert refused(daemon) == 0
    nest.write("nest/a.qgs", "nest/b.qgs", "wms")
    wait_for_generation(daemon, "nest/a.qgs", 2)
    look_into_the_well(daemon, "nest/a", "nest/a.qgs", "nest/b.qgs")


def wait_for_generation(daemon: Daemon, key: str, loads: int) -> None:
    """Until the file as it is now has been loaded, all its layers good."""

    def settled() -> bool:
        project = daemon.projects()[key]
        assert not project["error"], project["error"]
        generations = project["generations"]
        return project["loads"] >= loads and [row["state"] for row in generations] == ["serving"]

    eventually(settled, timeout=30)
    assert daemon.projects()[key]["generations"][0]["bad_layers"] == []


def look_into_the_well(daemon: Daemon, name: str, *keys: str) -> None:
    """Ask for pictures that never end: all are answered, at 508 inside, and nobody is hurt."""
    before = threading.active_count()

    def client(number: int) -> tuple[int, float]:
        begin = time.monotonic()
        answer = daemon.get(map_of(name, number), timeout=60)
        return answer.status, time.monotonic() - begin

    for status, seconds in in_parallel(6, client):
        assert status < 600
        assert seconds < ANSWER_S
    assert refused(daemon) > 0
    assert crashes(daemon) == {}
    # What draws no other project is as it was.
    answer = daemon.get(map_of(name, 1, "borders"), timeout=60)
    assert answer.status == 200 and answer.body.startswith(PNG)
    other = daemon.get(map_of("world/world", 1, "countries"), timeout=60)
    assert other.status == 200 and other.body.startswith(PNG)
    for key in keys:
        assert daemon.projects()[key]["state"] == "serving"
    assert threading.active_count() == before


def test_a_project_that_draws_itself_from_the_start_is_served_without_that_layer(
    nest: Nest, real_daemons: StartDaemon
) -> None:
    """Loading it asks for its own capabilities, which wait for that very load."""
    nest.write("nest/a.qgs", "nest/a.qgs", "wms")
    daemon = real_daemons(
        nest.root, listen=nest.listen, pool="workers = 2",
        extra="[pool.qgis]\nnetwork_timeout_s = 3",
    )  # fmt: skip
    answers = in_parallel(3, lambda number: daemon.get(map_of("nest/a", number, "borders")))
    assert [answer.status for answer in answers] == [200, 200, 200], answers[0].body[:300]
    bad = daemon.projects()["nest/a.qgs"]["generations"][0]["bad_layers"]
    assert [layer["name"] for layer in bad] == ["wms"]
    assert crashes(daemon) == {}
