"""MAP → file: roots, suffixes, links, everything that must not be found, and versions."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgisd.errors import ProjectNotFound
from qgisd.supervisor.catalog import Catalog, version_of


def project(path: Path, text: str = "<qgis/>") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a few projects, and files outside it."""
    folder = tmp_path / "root"
    project(folder / "world.qgs")
    project(folder / "town" / "streets.qgz")
    project(folder / "both.qgs")
    project(folder / "both.qgz")
    project(folder / "notes.txt")
    (folder / "folder.qgs").mkdir()
    project(tmp_path / "outside.qgs")
    project(tmp_path / "root-twin" / "x.qgs")
    return folder


def missing(catalog: Catalog, name: str) -> str:
    with pytest.raises(ProjectNotFound) as refusal:
        catalog.resolve(name)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("world", "world.qgs"),
        ("world.qgs", "world.qgs"),
        ("/world", "world.qgs"),
        ("town/streets", "town/streets.qgz"),
        ("town//streets.qgz", "town/streets.qgz"),
        ("both", "both.qgs"),
        ("both.qgz", "both.qgz"),
    ],
)
def test_a_project_is_found_with_and_without_its_suffix(root: Path, name: str, key: str) -> None:
    found = Catalog({"/": str(root)}).resolve(name)
    assert found.key == key
    assert found.path == str(root / key)
    assert found.version == version_of(str(root / key))


@pytest.mark.parametrize(
    "name",
    [
        "", "/", ".", "..", "nothing", "nothing.qgs", "notes.txt", "notes", "folder", "folder.qgs",
        "town", "town/", "world.qgs/x",
        "../outside", "../outside.qgs", "town/../../outside", "./world", "town/./streets",
        "town/../world", "../root-twin/x", "%2e%2e/outside",
        "world\0", "world\0.qgs", "\0", "..\\outside", "town\\streets",
        "file:///etc/passwd", "http://host/world.qgs", "postgresql:?dbname=x", "C:/world.qgs",
        "world.qgs:stream", "x" * 300, "a/" * 600 + "world", "\ud800", "world\udcff",
    ],
)  # fmt: skip
def test_what_is_no_project_below_the_root_is_not_found(root: Path, name: str) -> None:
    missing(Catalog({"/": str(root)}), name)


def test_an_absolute_path_is_not_found_even_if_it_lies_in_the_root(root: Path) -> None:
    missing(Catalog({"/": str(root)}), str(root / "world.qgs"))
    missing(Catalog({"/": str(root)}), str(root.parent / "outside.qgs"))


def test_the_answer_is_the_same_for_what_is_not_there_and_what_is_outside(root: Path) -> None:
    os.symlink(root.parent / "outside.qgs", root / "out.qgs")
    catalog = Catalog({"/": str(root)})
    answers = {missing(catalog, name) for name in ("nothing", "../outside.qgs", "out", "notes.txt")}
    assert len(answers) == 1
    assert str(root) not in answers.pop()


def test_a_link_within_the_root_is_followed(root: Path) -> None:
    os.symlink("world.qgs", root / "alias.qgs")
    os.symlink("town", root / "village")
    catalog = Catalog({"/": str(root)})
    assert catalog.resolve("alias").version == catalog.resolve("world").version
    assert catalog.resolve("village/streets").key == "village/streets.qgz"


def test_a_link_out_of_the_root_is_not_followed(root: Path) -> None:
    os.symlink("../outside.qgs", root / "file.qgs")
    os.symlink("..", root / "up")
    os.symlink(root.parent / "root-twin", root / "twin")
    os.symlink("/proc/self/environ", root / "environ.qgs")
    catalog = Catalog({"/": str(root)})
    for name in ("file", "up/outside", "twin/x", "environ"):
        missing(catalog, name)


def test_a_link_to_what_is_no_project_is_not_followed(root: Path) -> None:
    os.symlink("notes.txt", root / "disguised.qgs")
    os.symlink("itself.qgs", root / "itself.qgs")
    catalog = Catalog({"/": str(root)})
    missing(catalog, "disguised")
    missing(catalog, "itself")


def test_a_root_that_is_a_link_is_a_root(root: Path, tmp_path: Path) -> None:
    os.symlink(root, tmp_path / "link")
    assert Catalog({"/": str(tmp_path / "link")}).resolve("world").key == "world.qgs"


def test_what_is_no_regular_file_is_not_found(root: Path) -> None:
    os.mkfifo(root / "pipe.qgs")
    missing(Catalog({"/": str(root)}), "pipe")


def test_the_longest_root_wins_and_does_not_fall_back(tmp_path: Path) -> None:
    for name in ("all/town/streets", "all/town/old", "all/other", "town/streets", "deep/x"):
        project(tmp_path / f"{name}.qgs")
    catalog = Catalog(
        {
            "/": str(tmp_path / "all"),
            "/town": str(tmp_path / "town"),
            "/town/deep": str(tmp_path / "deep"),
        }
    )
    assert catalog.resolve("town/streets").path == str(tmp_path / "town" / "streets.qgs")
    assert catalog.resolve("town/streets").key == "town/streets.qgs"
    assert catalog.resolve("town/deep/x").key == "town/deep/x.qgs"
    assert catalog.resolve("other").key == "other.qgs"
    missing(catalog, "town/old")


def test_without_a_root_for_everything_only_the_named_ones_serve(tmp_path: Path) -> None:
    project(tmp_path / "a" / "x.qgs")
    catalog = Catalog({"/a": str(tmp_path / "a")})
    assert catalog.resolve("a/x").key == "a/x.qgs"
    missing(catalog, "x")
    missing(catalog, "a")


def test_the_root_of_the_file_system_can_be_a_root(tmp_path: Path) -> None:
    path = project(tmp_path / "x.qgs")
    assert Catalog({"/": "/"}).resolve(str(path)).path == str(path)


@given(
    st.lists(
        st.sampled_from(["..", ".", "", "town", "world", "outside", "up", "~", "%2e%2e", "a" * 256])
        | st.text(max_size=5),
        max_size=6,
    )
)
def test_nothing_outside_the_root_is_ever_found(segments: list[str]) -> None:
    home = Path(__file__).resolve().parent
    try:
        found = Catalog({"/": str(home)}).resolve("/".join(segments))
    except ProjectNotFound:
        return
    assert os.path.realpath(found.path).startswith(f"{home}/")


def test_a_version_changes_with_content_time_and_file(tmp_path: Path) -> None:
    path = project(tmp_path / "x.qgs", "one")
    seen = [version_of(str(path))]

    def changed() -> None:
        version = version_of(str(path))
        assert version is not None and version not in seen
        seen.append(version)

    os.utime(path, ns=(10**18, 10**18))
    changed()
    os.utime(path, ns=(10**18 - 10**9, 10**18 - 10**9))  # back: an older copy was put there
    changed()
    path.write_text("more text")
    os.utime(path, ns=(10**18, 10**18))
    changed()
    fresh = project(tmp_path / "y.qgs", "same size")
    os.utime(fresh, ns=(10**18, 10**18))
    fresh.replace(path)
    changed()


def test_what_cannot_be_looked_at_has_no_version(tmp_path: Path) -> None:
    assert version_of(str(tmp_path / "nothing")) is None
    assert version_of(str(tmp_path)) is None
    assert version_of("a\0b") is None
