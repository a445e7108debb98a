"""The files of the operators' page: how they are served, and what they must not hold."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from qgisd.http.ui import FILES
from tests.support import Daemon, Response, eventually, marked, start_daemon, write_fake_project

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(str(path.relative_to(FILES)) for path in FILES.rglob("*") if path.is_file())
OURS = [name for name in NAMES if not name.startswith("leaflet/")]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    roots = tmp_path_factory.mktemp("projects")
    write_fake_project(roots / "a.qgs", text="hello")
    daemon = start_daemon(tmp_path_factory.mktemp("daemon"), roots)
    yield daemon
    daemon.stop()
    eventually(lambda: not marked(daemon.mark), timeout=5)


def get(daemon: Daemon, path: str, **headers: str) -> Response:
    return daemon.get(path, admin=True, headers=headers)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_served_whole_with_its_type_and_policy(daemon: Daemon, name: str) -> None:
    answer = get(daemon, f"/ui/{name}")
    assert (answer.status, answer.body) == (200, (FILES / name).read_bytes())
    kinds = {
        ".js": "text/javascript",
        ".css": "text/css",
        ".html": "text/html",
        ".svg": "image/svg",
    }
    assert answer.headers["Content-Type"].startswith(kinds.get(Path(name).suffix, "text/plain"))
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert "default-src 'self'" in policy
    assert not [rule for rule in policy if "unsafe" in rule or "http" in rule or "*" in rule]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_file_that_is_known_is_not_sent_again(daemon: Daemon) -> None:
    tag = get(daemon, "/ui/js/main.js").headers["ETag"]
    again = get(daemon, "/ui/js/main.js", **{"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")
    other = get(daemon, "/ui/js/main.js", **{"If-None-Match": '"another"'})
    assert other.status == 200 and other.headers["ETag"] == tag


@pytest.mark.parametrize("path", ["/", "/ui"])
def test_the_way_to_the_page(daemon: Daemon, path: str) -> None:
    answer = get(daemon, path)
    assert (answer.status, answer.headers["Location"]) == (302, "/ui/")
    assert get(daemon, "/ui/").body == (FILES / "index.html").read_bytes()


@pytest.mark.parametrize(
    "path",
    ["/ui/none.js", "/ui/../admin.py", "/ui/..%2f..%2fadmin.py", "/ui/js", "/ui//etc/passwd",
     "/ui/%2fetc%2fpasswd", "/ui/js/%00main.js"],
)  # fmt: skip
def test_nothing_else_is_served(daemon: Daemon, path: str) -> None:
    answer = get(daemon, path)
    assert answer.status in (301, 302, 400, 403, 404)
    assert b"root:" not in answer.body and b"def " not in answer.body
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_what_projects_did_is_told_by_the_minute(daemon: Daemon) -> None:
    (before,) = daemon.api("GET", "/api/v1/history")
    asked = before["rows"][-1]["projects"].get("a.qgs", [0, 0, 0, 0.0])
    assert [daemon.ows("a", do="text").status for _ in range(3)] == [200] * 3
    (after,) = daemon.api("GET", "/api/v1/history")
    requests, errors, answered, run_s = after["rows"][-1]["projects"]["a.qgs"]
    assert (requests - asked[0], errors - asked[1], answered - asked[2]) == (3, 0, 3)
    assert run_s > asked[3] and after["rows"][-1]["seconds"] > before["rows"][-1]["seconds"]
    (later,) = daemon.api("GET", "/api/v1/history?since=99")
    assert [row["number"] for row in later["rows"]] == [after["rows"][-1]["number"]]


def test_the_public_listener_has_no_page(daemon: Daemon) -> None:
    assert [daemon.get(path).status for path in ("/ui/", "/ui/js/main.js", "/")] == [404] * 3


@pytest.mark.parametrize("name", [name for name in OURS if name.endswith(".js")])
def test_no_script_makes_markup_or_code_of_strings(name: str) -> None:
    code = re.sub(r"^\s*(//|\*|/\*).*$", "", (FILES / name).read_text(), flags=re.M)
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc"
    )
    assert re.findall(forbidden, code) == []


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    page = (FILES / "index.html").read_text()
    assert re.findall(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=|javascript:", page) == []
    for name in OURS:
        if name.endswith((".html", ".css", ".js")):
            urls = re.findall(r"https?://[^\s\"'`)]+", (FILES / name).read_text())
            assert [url for url in urls if url != "http://www.w3.org/2000/svg"] == [], name


def test_the_patterns_above_find_what_they_are_for() -> None:
    bad = '<p style="x"><script>1</script><a onclick="x" href="javascript:1">'
    found = re.findall(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=|javascript:", bad)
    assert len(found) == 4


def test_the_package_holds_every_file(tmp_path: Path) -> None:
    """A wheel that is built of this tree has them all."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    package = source / "qgisd"
    for path in (ROOT / "qgisd").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = package / path.relative_to(ROOT / "qgisd")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    command = [sys.executable, "-c", "import setuptools.build_meta as b; b.build_wheel('wheel')"]
    (source / "wheel").mkdir()
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        held = set(opened.namelist())
    assert {f"qgisd/http/ui/static/{name}" for name in NAMES} <= held


def test_leaflet_is_shipped_with_its_licence() -> None:
    assert "Volodymyr Agafonkin" in (FILES / "leaflet" / "LICENSE").read_text()
    assert 't.version="1.9.4"' in (FILES / "leaflet" / "leaflet.js").read_text()
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert "static/leaflet/*" in parser["options.package_data"]["qgisd.http.ui"]
