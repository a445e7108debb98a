"""Snapshots that answer a few requests themselves before they are forked."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.process.tools import background, named
from tests.support import Daemon, eventually, write_fake_project

Start = Callable[..., Daemon]


def generation(daemon: Daemon, project: str) -> dict[str, Any]:
    """The only one of a project."""
    (found,) = daemon.api("GET", f"/api/v1/projects/{project}.qgs")["generations"]
    return dict(found)


def learned(daemon: Daemon, project: str) -> str:
    """What a worker of it knows. From the snapshot; or, were it not asked at once, by itself."""
    answer = daemon.ows(project, do="learned")
    assert answer.status == 200, answer.body
    return answer.body.decode()


def inherited(daemon: Daemon, project: str) -> str:
    """What a worker of it has from the snapshot."""
    return " ".join(dict.fromkeys(learned(daemon, project).split()))


def zombies(daemon: Daemon) -> list[int]:
    """Children of the daemon whose exit nobody has collected."""
    children = psutil.Process(daemon.process.pid).children()
    return [child.pid for child in children if child.status() == psutil.STATUS_ZOMBIE]


def test_workers_inherit_what_the_snapshot_answered_as_far_as_asked(
    daemons: Start, fake_roots: Path
) -> None:
    write_fake_project(
        fake_roots / "warm.qgs",
        warm_capabilities="do=learn&word=one do=learn&word=two",
        warm_map="do=learn&word=three",
    )
    seen = {}
    for level in ("off", "capabilities", "map"):
        daemon = daemons(fake_roots, pool=f'warmup = "{level}"')
        seen[level] = inherited(daemon, "warm")
        found = generation(daemon, "warm")
        assert (found["mode"], found["warmup"], found["warmup_why"]) == ("forked", level, "")
        # A project that names no requests is not warmed up, and nothing is amiss with it.
        assert learned(daemon, "a") == ""
        assert (generation(daemon, "a")["warmup"], generation(daemon, "a")["why"]) == ("off", "")
        if level == "map":
            assert found["warmup_detail"].startswith("capabilities 2 of 2, map 1 of 1, in ")
    assert seen == {"off": "", "capabilities": "one two", "map": "one two three"}


def test_a_worker_that_is_not_asked_at_once_draws_a_map_for_itself(
    daemons: Start, fake_roots: Path
) -> None:
    write_fake_project(
        fake_roots / "warm.qgs",
        warm_capabilities="do=learn&word=document",
        warm_map="do=learn&word=one do=learn&word=two do=crash do=learn&word=three",
    )
    daemon = daemons(fake_roots, projects='pinned = ["warm"]')

    def rested() -> bool:
        (worker,) = daemon.workers()
        return bool(worker["state"] == "idle" and worker["age_s"] > 0.5)

    eventually(rested)
    assert learned(daemon, "warm") == "document one two one"


def test_a_warm_up_that_goes_wrong_leaves_the_snapshot_as_it_was(
    daemons: Start, fake_roots: Path
) -> None:
    """What is wrong shows in a rehearsal; the snapshot does only what went well there."""
    expected = {
        "thread": "threads stay after the next: Python thread",
        "crash": "the next ended the process that tried it with -11",
        "exit&code=3": "the next ended the process that tried it with 3",
        "hang": "no more within 2 s",
    }
    for number, trick in enumerate(expected):
        write_fake_project(
            fake_roots / f"wrong{number}.qgs",
            warm_capabilities="do=learn&word=one",
            warm_map=f"do=learn&word=two do={trick} do=learn&word=three",
        )
    daemon = daemons(fake_roots, pool="warmup_s = 2\nquiesce_s = 0.1\nmax_loads = 4")
    for number, why in enumerate(expected.values()):
        assert inherited(daemon, f"wrong{number}") == "one two"
        found = generation(daemon, f"wrong{number}")
        assert (found["mode"], found["why"], found["warmup"]) == ("forked", "", "map")
        assert why in found["warmup_why"]
        assert found["warmup_detail"].startswith("capabilities 1 of 1, map 1 of 3, in ")
        assert why in daemon.ctl("projects").stdout
        assert daemon.api("GET", f"/api/v1/projects/wrong{number}.qgs")["loads"] == 1
    assert not named(daemon, "rehearsal")
    assert zombies(daemon) == []


def test_an_error_in_a_warm_up_is_counted_and_is_no_fault(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(
        fake_roots / "warm.qgs",
        warm_capabilities="do=nosuchtrick",
        warm_map="do=learn&word=one do=break",
    )
    daemon = daemons(fake_roots)
    assert inherited(daemon, "warm") == "one"
    found = generation(daemon, "warm")
    assert (found["warmup"], found["warmup_why"]) == ("map", "")
    assert "map 2 of 2, 2 of them with an error" in found["warmup_detail"]


def test_a_rehearsal_ends_with_its_snapshot(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "slow.qgs", warm_map="do=hang")
    daemon = daemons(fake_roots, pool="warmup_s = 60")
    with background() as clients:
        answer = clients.ows(daemon, "slow", do="text")
        (rehearsal,) = eventually(lambda: named(daemon, "rehearsal"))
        (snapshot,) = named(daemon, "snapshot")
        write_fake_project(fake_roots / "slow.qgs", text="quick")
        os.kill(snapshot, signal.SIGKILL)
        eventually(lambda: rehearsal not in named(daemon, "rehearsal"))
        assert answer.result().body == b"quick"
    eventually(lambda: not zombies(daemon))


def test_a_project_loaded_by_each_worker_is_not_warmed_up(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "own.qgs", thread="stay", warm_map="do=learn&word=one")
    daemon = daemons(fake_roots, pool="quiesce_s = 0.1")
    assert learned(daemon, "own") == ""
    found = generation(daemon, "own")
    assert (found["mode"], found["warmup"]) == ("loaded", "off")
