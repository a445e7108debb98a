"""The data files of what serves are looked at; a change of one is a new generation."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.tools import state
from tests.support import Daemon, eventually, write_fake_project

Start = Callable[..., Daemon]


@pytest.fixture
def data(fake_roots: Path) -> Path:
    """A data file of two projects, beside one with the name of none."""
    data = fake_roots / "roads.shp"
    data.write_text("one")
    for name in ("a", "b"):
        files = f"{data} {fake_roots / 'none.dbf'}"
        write_fake_project(fake_roots / f"{name}.qgs", text=name, data=files)
    return data


def replace(path: Path, content: str) -> None:
    """Another file in its place, with the same time and size: only the inode tells."""
    fresh, status = path.with_suffix(".new"), path.stat()
    fresh.write_text(content)
    os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fresh.stat().st_size == status.st_size
    fresh.replace(path)


def loads(daemon: Daemon, project: str = "a.qgs") -> int:
    return int(state(daemon, project)["loads"])


def served(daemon: Daemon) -> list[int]:
    """Numbers of the generations that there are."""
    return [generation["number"] for generation in state(daemon, "a.qgs")["generations"]]


def test_a_file_replaced_by_rename_is_loaded_for_all_that_read_it(
    daemons: Start, fake_roots: Path, data: Path
) -> None:
    daemon = daemons(fake_roots)
    for name in ("a", "b"):
        assert daemon.ows(name, do="text").body == name.encode()
    replace(data, "two")
    for name in ("a.qgs", "b.qgs"):
        eventually(lambda name=name: loads(daemon, name) == 2)
    eventually(lambda: served(daemon) in ([3], [4]))
    assert state(daemon, "a.qgs")["generations"][0]["reason"] == "reload"
    assert f"a.qgs: its data changed: {data}" in daemon.log()


def test_written_in_place_removed_and_put_back(
    daemons: Start, fake_roots: Path, data: Path
) -> None:
    daemon = daemons(fake_roots)
    count = 1
    for change in (lambda: data.write_text("longer"), data.unlink, lambda: data.write_text("x")):
        daemon.ows("a", do="text")
        change()
        count += 1
        # A pause that doubles lies between two of them: 1 and 2 s.
        eventually(lambda count=count: served(daemon) == [count])


def test_a_file_that_appears_beside_the_others_counts(
    daemons: Start, fake_roots: Path, data: Path
) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    data.with_name("none.dbf").write_text("there")
    eventually(lambda: loads(daemon) == 2)


def test_capabilities_that_are_kept_end_with_the_generation(
    daemons: Start, fake_roots: Path, data: Path
) -> None:
    daemon = daemons(fake_roots)
    ask = {"SERVICE": "WMS", "REQUEST": "GetCapabilities", "do": "pid"}
    before = daemon.ows("a", **ask).body
    assert daemon.ows("a", **ask).body == before
    replace(data, "two")
    # Asked for nothing but what is kept, it is in use all the same.
    eventually(lambda: daemon.ows("a", **ask).body != before)
    assert loads(daemon) == 2


def test_what_nobody_uses_waits_for_somebody(daemons: Start, fake_roots: Path, data: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    replace(data, "two")
    eventually(lambda: served(daemon) == [2])
    replace(data, "six")
    eventually(lambda: daemon.log().count("its data changed") == 2)
    daemon.ows("b", do="text")  # of the daemon's, but not of this project
    assert loads(daemon) == 2
    eventually(lambda: daemon.ows("a", do="text") and loads(daemon) == 3)


def test_watch_data_false_leaves_it_alone(daemons: Start, fake_roots: Path, data: Path) -> None:
    daemon = daemons(fake_roots, projects="watch_data = false")
    daemon.ows("a", do="text")
    for count, content in ((2, "two"), (3, "six")):
        replace(data, content)
        # The project's own file is still looked at, in the same round as the data would be.
        write_fake_project(fake_roots / "a.qgs", text=content, data=str(data))
        eventually(lambda content=content: daemon.ows("a", do="text").body == content.encode())
        assert loads(daemon) == count
    assert "its data changed" not in daemon.log()
