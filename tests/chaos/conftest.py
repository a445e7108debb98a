"""Fixtures of the chaos suite: projects, their right pictures, and a daemon to be mistreated."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.source import Source
from tests.chaos.subjects import Subject, features, is_whole, maps
from tests.e2e.helpers import Reference, make_sets, need_qgis, need_shared, postgresql

HERE = Path(__file__).resolve().parent
SHORT_S = 60.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is real; a long run needs a long timeout."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.timeout(chaos_seconds() + 420))


def chaos_seconds() -> float:
    """How long disorder lasts."""
    return float(os.environ.get("CHAOS_SECONDS", SHORT_S))


@pytest.fixture
def source() -> Iterator[Source]:
    """The remote WMS."""
    made = Source()
    yield made
    made.stop()


@pytest.fixture
def dsn() -> Iterator[str]:
    """A PostgreSQL server to be stopped."""
    with postgresql() as name:
        yield name


@pytest.fixture
def root(tmp_path: Path, source: Source, dsn: str) -> Path:
    """The root of the daemon: world, mixed, many, postgres, remote."""
    need_qgis()
    need_shared()
    root = tmp_path / "roots"
    make_sets(root, "--only", "world", "mixed", "many", "--many", "6", "--postgres", dsn)
    # A name without suffix would mean it while world.qgs is deleted.
    (root / "world" / "world.qgz").unlink()
    analyze(dsn)
    (root / "remote").mkdir()
    made = subprocess.run(
        [sys.executable, str(HERE / "make_remote.py"), source.url,
         str(root / "many" / "world.gpkg"), str(root / "remote" / "remote.qgs")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    shutil.rmtree(root / "broken", ignore_errors=True)
    return root


def analyze(dsn: str) -> None:
    """Now, for when PostgreSQL does it by itself its plans change, and so the order of features."""
    psql = sorted(Path("/usr/lib/postgresql").glob("*/bin/psql"))[-1]
    done = subprocess.run(
        [str(psql), dsn, "-qc", "VACUUM ANALYZE"], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def subjects(root: Path, tmp_path: Path) -> list[Subject]:
    """The projects, with all that is right of them."""
    found = [
        _subject(root, "world/world", [*maps("countries,lakes"), features("lakes"),
                                       _legend("countries")], 2),
        _subject(root, "mixed/mixed", [*maps("gpkg"), *maps("shp")[:2], *maps("virtual")[:1],
                                       *maps("tif")[:1], features("gpkg")], 1),
        _subject(root, "postgres/postgres", [*maps("countries_0"), *maps("lakes_1")[:2]], 1,
                 of_source=lambda query: True),
        _subject(root, "remote/remote", [*maps("wms"), *maps("borders")], 1,
                 of_source=lambda query: "LAYERS=wms" in query),
        *(_subject(root, f"many/p{number:04d}", [], 2) for number in range(6)),
    ]  # fmt: skip
    reference = Reference(tmp_path / "reference")
    try:
        for subject in found:
            _learn(subject, reference)
    finally:
        reference.stop()
    return found


@pytest.fixture
def big(subjects: list[Subject], tmp_path: Path) -> tuple[Subject, str, bytes]:
    """A long answer, the same in all versions of its project."""
    subject, query = subjects[0], features("us_counties")
    reference = Reference(tmp_path / "reference-big")
    try:
        body = reference.ask(subject.path, subject.target(query)).body
    finally:
        reference.stop()
    assert is_whole(body) and len(body) > 3 << 20
    return subject, query, body


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Path | None]:
    """A small file system of its own as TMPDIR, or None where it cannot be made."""
    folder = tmp_path / "spool"
    folder.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "chaos", str(folder)],
        check=False, capture_output=True,
    ).returncode  # fmt: skip
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A plugin_path with the hog."""
    folder = tmp_path / "plugins" / "hog"
    folder.mkdir(parents=True)
    shutil.copy(HERE / "hog.py", folder / "__init__.py")
    (folder / "metadata.txt").write_text(
        "[general]\nname=hog\nserver=True\nversion=1\nqgisMinimumVersion=3.0\n"
    )
    return folder.parent


def _legend(layer: str) -> str:
    return (
        "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetLegendGraphic&FORMAT=image/png"
        f"&LAYER={layer}&STYLE=&SLD_VERSION=1.1.0"
    )


def _subject(
    root: Path,
    name: str,
    queries: list[str],
    versions: int,
    of_source: Callable[[str], bool] = lambda query: False,
) -> Subject:
    """One of them; queries: none means maps of all its layers."""
    path = root / f"{name}.qgs"
    content = path.read_bytes()
    queries = queries or maps(",".join(_layers(content)))
    contents = {"v1": content}
    if versions > 1:
        contents["v2"] = _recoloured(content)
    subject = Subject(name, path, contents, queries, frozenset(filter(of_source, queries)))
    subject.history.append((0.0, "v1"))
    return subject


def _layers(content: bytes) -> list[str]:
    names = re.findall(rb'<layer-tree-layer [^>]*\bname="([^"]+)"', content)
    return [name.decode() for name in dict.fromkeys(names)]


def _recoloured(content: bytes) -> bytes:
    changed = re.sub(rb'"(\d+),(\d+),(\d+),255"', rb'"\3,\1,\2,255"', content)
    assert changed != content
    return changed


def _learn(subject: Subject, reference: Reference) -> None:
    """Ask a plain server for every picture of every version."""
    for version, content in subject.contents.items():
        path = subject.path.with_name(f"{subject.path.stem}_{version}.qgs")
        path.write_bytes(content)
        for query in subject.queries:
            answer = reference.ask(path, subject.target(query))
            assert answer.status == 200, (subject.name, query, answer.body[:300])
            subject.expected[version, query] = answer.body
        path.unlink()
    if len(subject.contents) > 1:
        query = subject.queries[0]
        assert subject.expected["v1", query] != subject.expected["v2", query]
