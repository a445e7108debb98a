"""Projects by name, their change while they are served, and the address they are served at."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

from tests.e2e.helpers import EXAMPLES, ProjectSet, Reference, assert_same, crashes, need_program
from tests.nginx import nginx
from tests.support import Daemon, Response, eventually

StartDaemon = Callable[..., Daemon]
StartReference = Callable[[str], Reference]
MAP = (
    "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&LAYERS=countries&STYLES=&CRS=EPSG:4326"
    "&BBOX=-60,-180,85,180&WIDTH=200&HEIGHT=100&FORMAT=image/png"
)
#: Seconds for what takes a moment on a quiet machine.
LONG_WAIT = 60
CAPABILITIES = "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities"


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """A root of its own with the demo in it."""
    root = tmp_path / "root"
    shutil.copytree(EXAMPLES / "world", root / "demo")
    return root


def replace(path: Path, content: bytes) -> None:
    """As QGIS and rsync do: write beside it and rename."""
    fresh = path.with_name("fresh")
    fresh.write_bytes(content)
    fresh.replace(path)


def recoloured(content: bytes) -> bytes:
    """The project with other colours."""
    changed = re.sub(rb'"(\d+),(\d+),(\d+),255"', rb'"\3,\1,\2,255"', content)
    assert changed != content
    return changed


# changes


class Load:
    """Four clients that ask for the same map until told to stop."""

    def __init__(self, daemon: Daemon, target: str) -> None:
        self._daemon = daemon
        self._target = target
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        self.answers: list[tuple[int, bytes, float]] = []

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            answer = self._daemon.get(self._target)
            body = answer.body if answer.complete else b"cut"
            self.answers.append((answer.status, body, time.monotonic() - begun))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answers) + count
        eventually(lambda: len(self.answers) >= wanted, timeout=LONG_WAIT)


def test_a_project_replaced_under_load_fails_nobody_and_then_shows_the_new_picture(
    real_daemons: StartDaemon, small_root: Path
) -> None:
    daemon = real_daemons(small_root, pool="workers = 2", projects='pinned = ["demo/world"]')
    path = small_root / "demo" / "world.qgs"
    target = f"/ows/?MAP=demo/world&{MAP}"
    old = daemon.get(target).body
    with Load(daemon, target) as load:
        load.more(20)
        replace(path, recoloured(path.read_bytes()))
        new = eventually(lambda: next((a[1] for a in load.answers if a[1] != old), None), LONG_WAIT)
        eventually(
            lambda: daemon.projects()["demo/world.qgs"]["generations"][0]["number"] == 2, LONG_WAIT
        )
        settled = len(load.answers) + 4  # those that were under way
        load.more(30)
    assert {answer[0] for answer in load.answers} == {200}
    assert {answer[1] for answer in load.answers} == {old, new}
    assert {answer[1] for answer in load.answers[settled:]} == {new}
    assert max(answer[2] for answer in load.answers) < 15  # 1 s on a quiet machine
    assert old.startswith(b"\x89PNG") and new.startswith(b"\x89PNG")
    assert crashes(daemon) == {}


def test_a_project_replaced_by_an_older_file_is_loaded_too(
    real_daemons: StartDaemon, small_root: Path
) -> None:
    """Different means new, not newer."""
    daemon = real_daemons(small_root, pool="workers = 2")
    path, target = small_root / "demo" / "world.qgs", f"/ows/?MAP=demo/world&{MAP}"
    old = daemon.get(target).body
    fresh = path.with_name("fresh")
    fresh.write_bytes(recoloured(path.read_bytes()))
    os.utime(fresh, (1, 1))
    fresh.replace(path)
    eventually(lambda: daemon.get(target).body != old, timeout=LONG_WAIT, period=0.1)


def test_a_project_replaced_by_a_broken_file_keeps_its_old_picture_and_says_why(
    real_daemons: StartDaemon, small_root: Path
) -> None:
    daemon = real_daemons(small_root, pool="workers = 2", projects='pinned = ["demo/world"]')
    path = small_root / "demo" / "world.qgs"
    target = f"/ows/?MAP=demo/world&{MAP}"
    whole, old = path.read_bytes(), daemon.get(target).body
    with Load(daemon, target) as load:
        load.more(10)
        replace(path, whole[:5000])
        eventually(
            lambda: daemon.projects()["demo/world.qgs"]["state"] == "stale", timeout=LONG_WAIT
        )
        load.more(20)
    assert {(answer[0], answer[1]) for answer in load.answers} == {(200, old)}
    project = daemon.projects()["demo/world.qgs"]
    assert project["error"]
    told = daemon.ctl("projects").stdout
    assert "stale" in told and f"demo/world.qgs: {project['error'].splitlines()[0]}" in told
    assert daemon.get("/readyz").status == 200
    replace(path, recoloured(whole))
    new = eventually(lambda: (body := daemon.get(target).body) != old and body, timeout=LONG_WAIT)
    assert new.startswith(b"\x89PNG")
    assert daemon.projects()["demo/world.qgs"]["error"] == ""
    assert crashes(daemon) == {}


def test_a_deleted_project_is_not_found_and_one_that_returns_is_served(
    real_daemons: StartDaemon, small_root: Path
) -> None:
    daemon = real_daemons(small_root, pool="workers = 2")
    path, target = small_root / "demo" / "world.qgs", f"/ows/?MAP=demo/world&{MAP}"
    content, picture = path.read_bytes(), daemon.get(target)
    assert picture.status == 200
    path.unlink()
    eventually(lambda: daemon.get(target).status == 404, timeout=LONG_WAIT)
    eventually(lambda: daemon.workers() == [], timeout=LONG_WAIT)
    assert daemon.projects() == {}
    path.write_bytes(content)
    again = eventually(
        lambda: (answer := daemon.get(target)).status == 200 and answer, timeout=LONG_WAIT
    )
    assert again.body == picture.body


def test_reload_tells_what_happened(real_daemons: StartDaemon, small_root: Path) -> None:
    daemon = real_daemons(small_root, pool="workers = 2")
    target = f"/ows/?MAP=demo/world&{MAP}"
    old = daemon.get(target).body
    done = daemon.ctl("reload", "demo/world")
    assert done.returncode == 0 and "generation 2: 6 layers" in done.stdout, done
    assert daemon.get(target).body == old
    path = small_root / "demo" / "world.qgs"
    replace(path, b"broken")
    done = daemon.ctl("reload", "demo/world")
    assert done.returncode != 0 and "FAILED" in done.stdout, done
    assert daemon.get(target).body == old


# bad layers


def test_a_bad_layer_does_not_keep_a_project_from_being_served_and_is_reported(
    qgisd: Daemon, broken: ProjectSet
) -> None:
    answer = qgisd.get(f"/ows/?MAP={broken.name}&{CAPABILITIES}")
    assert answer.status == 200
    assert b"<Name>countries</Name>" in answer.body
    detail = qgisd.api("GET", "/api/v1/projects/broken%2Fbroken")
    layers = {layer["name"]: layer for layer in detail["contents"]}
    assert {name for name, layer in layers.items() if not layer["valid"]} == {"gone"}
    assert layers["countries"]["provider"] == "ogr"
    times = [layer["load_ms"] for layer in layers.values()]
    assert all(time > 0 for time in times)
    assert sum(times) <= detail["generations"][0]["load_ms"]
    bad = qgisd.projects()["broken/broken.qgs"]["generations"][0]["bad_layers"]
    assert [layer["name"] for layer in bad] == ["gone"]
    assert "broken/broken.qgs: bad layer gone (ogr)" in qgisd.ctl("projects").stdout


def test_strict_refuses_a_project_with_a_bad_layer(
    real_daemons: StartDaemon, roots: Path, broken: ProjectSet, world: ProjectSet
) -> None:
    daemon = real_daemons(roots, pool="workers = 2", projects='bad_layers = "strict"')
    answer = daemon.get(f"/ows/?MAP={broken.name}&{CAPABILITIES}")
    assert answer.status == 422
    assert b"<ServiceException " in answer.body and b"gone.gpkg" not in answer.body
    assert "gone" in daemon.projects()["broken/broken.qgs"]["error"]
    assert daemon.get(f"/ows/?MAP={world.name}&{CAPABILITIES}").status == 200


# names


def test_a_project_is_found_with_and_without_its_suffix(
    real_daemons: StartDaemon, small_root: Path
) -> None:
    folder = small_root / "demo"
    with zipfile.ZipFile(folder / "packed.qgz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "world.qgs", "packed.qgs")
    (folder / "with space é.qgs").write_bytes((folder / "world.qgs").read_bytes())
    daemon = real_daemons(small_root, pool="workers = 2")
    pictures = {}
    for name in ("demo/world", "demo/world.qgs", "/demo/world", "demo//world.qgs", "demo/packed",
                 "demo/packed.qgz", "demo/with space é"):  # fmt: skip
        answer = daemon.get(f"/ows/?MAP={quote(name)}&{MAP}")
        assert answer.status == 200, (name, answer.body)
        pictures[name] = answer.body
    assert len(set(pictures.values())) == 1
    assert sorted(daemon.projects()) == [
        "demo/packed.qgz", "demo/with space é.qgs", "demo/world.qgs"
    ]  # fmt: skip


def test_links_are_followed_inside_the_root_only(
    real_daemons: StartDaemon, small_root: Path, tmp_path: Path
) -> None:
    (small_root / "link.qgs").symlink_to(small_root / "demo" / "world.qgs")
    (small_root / "relative.qgs").symlink_to("demo/world.qgs")
    (small_root / "folder").symlink_to("demo")
    shutil.copytree(EXAMPLES / "world", tmp_path / "outside")
    (small_root / "out.qgs").symlink_to(tmp_path / "outside" / "world.qgs")
    (small_root / "out").symlink_to(tmp_path / "outside")
    daemon = real_daemons(small_root, pool="workers = 2")
    statuses = {
        name: daemon.get(f"/ows/?MAP={name}&{CAPABILITIES}").status
        for name in ("folder/world", "link", "relative", "out.qgs", "out/world")
    }
    assert statuses == {
        "folder/world": 200, "link": 200, "relative": 200, "out.qgs": 404, "out/world": 404
    }  # fmt: skip


def test_a_link_that_is_switched_is_a_new_version(
    real_daemons: StartDaemon, small_root: Path
) -> None:
    """Blue-green deployment by a link."""
    folder = small_root / "demo"
    (folder / "green.qgs").write_bytes(recoloured((folder / "world.qgs").read_bytes()))
    (folder / "live.qgs").symlink_to("world.qgs")
    daemon = real_daemons(small_root, pool="workers = 2")
    target = f"/ows/?MAP=demo/live&{MAP}"
    blue, green = daemon.get(target).body, daemon.get(f"/ows/?MAP=demo/green&{MAP}").body
    assert blue != green
    (folder / "next").symlink_to("green.qgs")
    (folder / "next").replace(folder / "live.qgs")
    eventually(lambda: daemon.get(target).body == green, timeout=LONG_WAIT, period=0.1)


def test_map_is_taken_in_any_case_and_from_the_path(
    qgisd: Daemon, references: StartReference, demo: ProjectSet
) -> None:
    """And what QGIS answers points back to where it was asked."""
    targets = [f"/ows/?{name}=demo/world&{CAPABILITIES}" for name in ("MAP", "map", "Map", "mAp")]
    targets += [f"/ows?{CAPABILITIES}&MAP=demo/world", f"/ows/p/demo/world?{CAPABILITIES}"]
    targets += [f"/ows/p/demo/world.qgs?{CAPABILITIES}", f"/ows/p/demo/world/?{CAPABILITIES}"]
    for target in targets:
        answer = qgisd.get(target)
        assert_same(answer, references("names").ask(demo.path, target))
        where = online_resource(answer)
        assert where.startswith("http://localhost" + target.partition("?")[0])
        again = qgisd.get(where.removeprefix("http://localhost").rstrip("&") + "&" + CAPABILITIES)
        assert again.status == 200, where


def online_resource(answer: Response) -> str:
    """Where GetMap is to be had, by the capabilities."""
    assert answer.status == 200, answer.body
    element = ElementTree.fromstring(answer.body).find(".//{*}GetMap//{*}OnlineResource")
    assert element is not None
    return element.attrib["{http://www.w3.org/1999/xlink}href"]


# the address


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "http://localhost"),
        ({"Host": "maps.example.org:81"}, "http://maps.example.org:81"),
        ({"X-Forwarded-Host": "maps.example.org"}, "http://maps.example.org"),
        (
            {"X-Forwarded-Host": "maps.example.org", "X-Forwarded-Proto": "https"},
            "https://maps.example.org",
        ),
        (
            {
                "X-Forwarded-Host": "maps.example.org",
                "X-Forwarded-Proto": "https",
                "X-Forwarded-Port": "8443",
                "X-Forwarded-Prefix": "/gis",
            },
            "https://maps.example.org:8443/gis",
        ),
        ({"Forwarded": 'for=1.2.3.4;host="maps.example.org";proto=https'}, "https://maps.example.org"),
        ({"X-Forwarded-Host": "first.example.org, second.example.org"}, "http://first.example.org"),
    ],
    ids=range(7),
)  # fmt: skip
def test_capabilities_carry_the_public_address(
    qgisd: Daemon, demo: ProjectSet, headers: dict[str, str], expected: str
) -> None:
    answer = qgisd.get(f"/ows/?MAP={demo.name}&{CAPABILITIES}", headers=headers)
    assert online_resource(answer).startswith(f"{expected}/ows/?MAP=demo/world")
    answer = qgisd.get(f"/wfs3/collections.json?MAP={demo.name}", headers=headers)
    links = {link["href"] for link in answer.json()["links"]}
    assert links and all(link.startswith(f"{expected}/wfs3/collections") for link in links)


def test_an_untrusted_peer_cannot_set_the_address(
    real_daemons: StartDaemon, small_root: Path
) -> None:
    daemon = real_daemons(small_root, pool="workers = 2", http="trusted_proxies = []")
    forged = {
        "X-Forwarded-Host": "evil.example.org",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "host=evil.example.org",
        "X-Qgis-Service-Url": "http://evil.example.org/",
        "X-Qgis-Wms-Service-Url": "http://evil.example.org/",
        "X-Request-Id": "evil",
        "X-Qgis-Project": "demo/absent",
    }
    answer = daemon.get(f"/ows/?MAP=demo/world&{CAPABILITIES}", headers=forged)
    assert online_resource(answer).startswith("http://localhost/ows/?MAP=demo/world")
    assert b"evil" not in answer.body
    assert answer.headers["X-Request-Id"] != "evil"


def test_the_service_url_of_a_trusted_peer_is_used(qgisd: Daemon, demo: ProjectSet) -> None:
    headers = {"X-Qgis-Service-Url": "https://maps.example.org/here"}
    answer = qgisd.get(f"/ows/?MAP={demo.name}&{CAPABILITIES}", headers=headers)
    assert online_resource(answer).startswith("https://maps.example.org/here")


def test_a_trusted_peer_may_name_the_project_in_a_header(qgisd: Daemon, demo: ProjectSet) -> None:
    answer = qgisd.get(f"/ows/?{CAPABILITIES}", headers={"X-Qgis-Project": demo.name})
    assert answer.status == 200
    assert qgisd.projects()["demo/world.qgs"]["requests"] > 0


# behind nginx


@pytest.fixture(scope="module")
def fronted(session_daemons: StartDaemon, roots: Path) -> Daemon:
    """A daemon of its own: its workers are killed here."""
    return session_daemons(roots, pool="workers = 2")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, fronted: Daemon) -> Iterator[str]:
    """A real nginx with the shipped etc/nginx/qgisd.conf before the daemon: its host:port."""
    with nginx(tmp_path_factory.mktemp("nginx"), fronted.listen) as running:
        yield running.at


def curl(url: str, *options: str) -> "subprocess.CompletedProcess[bytes]":
    """curl, as most people would."""
    command = [need_program("curl"), "-sS", "-m", "60", *options, url]
    return subprocess.run(command, capture_output=True, timeout=70, check=False)


def test_capabilities_behind_nginx_carry_its_address(
    front: str, fronted: Daemon, demo: ProjectSet
) -> None:
    done = curl(f"http://{front}/ows/?MAP={demo.name}&{CAPABILITIES}")
    assert done.returncode == 0, done.stderr
    element = ElementTree.fromstring(done.stdout).find(".//{*}GetMap//{*}OnlineResource")
    assert element is not None
    href = element.attrib["{http://www.w3.org/1999/xlink}href"]
    assert href.startswith(f"http://{front}/ows/?MAP=demo/world")
    picture = curl(f"http://{front}/ows/p/demo/world?{MAP}")
    assert picture.stdout == fronted.get(f"/ows/p/demo/world?{MAP}").body


LONG = (
    "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&OUTPUTFORMAT=application/json"
    "&TYPENAME=states,us_counties,coastline,countries,lakes,borders"
)


def test_a_long_answer_comes_whole_through_nginx(
    front: str, fronted: Daemon, world: ProjectSet
) -> None:
    target = f"ows/?MAP={world.name}&{LONG}"
    whole = fronted.get(f"/{target}", timeout=60)
    assert whole.status == 200 and len(whole.body) > 20_000_000
    done = curl(f"http://{front}/{target}")
    assert (done.returncode, len(done.stdout)) == (0, len(whole.body))


@pytest.mark.parametrize("way", ["direct", "nginx"])
def test_an_answer_cut_in_its_middle_is_an_error_to_the_client(
    front: str, fronted: Daemon, world: ProjectSet, way: str
) -> None:
    """The worker is killed after the head is out; the end must not look like one."""
    target = f"ows/?MAP={world.name}&{LONG}"
    where = (
        [f"http://{front}/{target}"]
        if way == "nginx"
        else ["--unix-socket", fronted.listen.removeprefix("unix:"), f"http://localhost/{target}"]
    )
    before = crashes(fronted).get("world/world.qgs", 0)
    process = subprocess.Popen(
        [need_program("curl"), "-sSN", "-m", "60", *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    received = len(process.stdout.read(500_000))
    busy = eventually(
        lambda: [
            row["pid"]
            for row in fronted.workers()
            if row["state"] == "busy" and row["project"] == "world/world.qgs"
        ]
    )
    os.kill(busy[0], signal.SIGKILL)
    rest, error = process.communicate(timeout=60)
    assert process.returncode in (18, 52, 56, 92), (process.returncode, error, received, len(rest))
    assert received == 500_000
    eventually(lambda: crashes(fronted)["world/world.qgs"] == before + 1)
    assert fronted.get(f"/ows/?MAP={world.name}&{CAPABILITIES}").status == 200
