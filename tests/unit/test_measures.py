"""What is counted, which projects are told of, and that the page about it is in step."""

import runpy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qgisd.config import Metrics as Settings
from qgisd.http.metrics import Scrape
from qgisd.supervisor import events as e
from qgisd.supervisor import measures
from qgisd.supervisor.cache import Cache
from qgisd.supervisor.measures import BOUNDS, Histogram, Measures
from qgisd.supervisor.recorder import story_of
from qgisd.supervisor.stats import PoolView
from qgisd.supervisor.story import Story
from qgisd.words import Outcome, Reason, RequestClass
from tests.unit.driver import World
from tests.unit.test_story import exchange

ROOT = Path(__file__).resolve().parents[2]


def story(project: str = "a.qgs", **changes: Any) -> Story:
    made = story_of(exchange(), 12.0)
    made.outcome, made.project = Outcome.OK, project
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 300.0, 301.0):
        histogram.observe(seconds)
    assert histogram.counts[:2] == [2, 1] and histogram.counts[-2:] == [1, 1]
    assert sum(histogram.counts) == 5 and histogram.sum == pytest.approx(601.0021)
    assert list(BOUNDS) == sorted(BOUNDS) and BOUNDS[-1] == 300


def test_who_got_no_worker_waited_for_none() -> None:
    kept = Measures()
    kept.told(story(outcome=Outcome.REFUSED, load_ms=5000.0))
    kept.told(story(outcome=Outcome.OK, attempts=1, queue_ms=20.0, render_ms=400.0, bytes=7))
    of = kept.classes[RequestClass.MAP]
    assert (sum(of.queue.counts), sum(of.render.counts), sum(of.load.counts)) == (1, 1, 1)
    assert (of.queue.sum, of.render.sum, of.load.sum) == (0.02, 0.4, 5.0)
    assert sum(of.total.counts) == 2 and of.bytes == 7
    assert of.outcomes[Outcome.REFUSED] == of.outcomes[Outcome.OK] == 1
    assert kept.projects["a.qgs"].render_s == 0.4


def test_no_more_than_so_many_projects_are_counted_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measures, "_MOST_PROJECTS", 2)
    kept = Measures()
    for name in ("a", "b", "c", "a"):
        kept.told(story(name))
    assert {name: of.requests for name, of in kept.projects.items()} == {"a": 2, "b": 1}
    assert kept.classes[RequestClass.MAP].outcomes[Outcome.OK] == 4


def test_instructions_are_counted() -> None:
    kept = Measures()
    for do in (
        e.StartZygote(1), e.ForkSnapshot(1, "a", 1, "/a"), e.ForkWorker(1, 1, "a", 1, None),
        e.ForkWorker(1, 2, "a", 1, None), e.KillWorker(1, Reason.DEADLINE),
        e.WorkerEnded(1, "a", Reason.DEADLINE, "signal 9", 1),
        e.WorkerEnded(2, "a", Reason.IDLE, "exit code 0", 0), e.Retry(1),
    ):  # fmt: skip
        kept.counted[type(do)](do)
    assert kept.forks == {"zygote": 1, "snapshot": 1, "worker": 2}
    assert kept.ends == {Reason.DEADLINE: 1, Reason.IDLE: 1}
    assert kept.kills == {Reason.DEADLINE: 1} and kept.retries == 1


def test_what_is_shared_is_what_is_not_private() -> None:
    kept = Measures()
    kept.sampled({"zygote 1": (10, 30), "snapshot 1 a": (100, 150), "snapshot 2 b": (1, 2),
                  "worker 1": (5, 5)}, 999)  # fmt: skip
    assert kept.memory["snapshot", "private"] == 101 and kept.memory["snapshot", "shared"] == 51
    assert sum(kept.memory.values()) == 187 and kept.memory_limit == 999
    kept.sampled({"zygote 1": (10, 30)}, 999)
    assert kept.memory["worker", "private"] == 0


# loads, as the machine tells of them


def loads_of(world: World) -> list[tuple[str, bool, float]]:
    return [(do.project, do.ok, round(do.seconds, 3)) for do in world.heard(e.LoadEnded)]


def test_a_load_tells_how_long_it_took() -> None:
    world = World()
    world.start()
    world.serve("a.qgs")
    assert loads_of(world) == [("a.qgs", True, 0.5)]


def test_a_load_that_fails_tells_so_and_its_second_try_too() -> None:
    world = World()
    world.start()
    world.arrive("a.qgs")
    world.snapshot_forked(("a.qgs", 1))
    world.wait(2)
    world.snapshot_dies(("a.qgs", 1))
    world.tell(e.SnapshotDown("a.qgs", 1, "signal 11", crashed=True))
    world.snapshots.pop(("a.qgs", 1))
    assert loads_of(world) == [("a.qgs", False, 2)]
    world.snapshot_forked(("a.qgs", 2))
    world.wait(1)
    world.lose_snapshot("a.qgs", "no database")
    assert loads_of(world)[1:] == [("a.qgs", False, 1)]


# which projects are told of


def told(settings: Settings) -> set[str]:
    """Projects that a scrape tells of a pool that counted a 3, b 2 and c 1 request."""
    kept = Measures()
    for name in ("a", "a", "a", "b", "b", "c"):
        kept.told(story(name))
    view = PoolView("p", "up", "3", [], {}, [], [], 0, 0, 4, 0, 0, False)
    service = SimpleNamespace(
        measures=kept, cache=Cache(0), view=lambda: view, ready=lambda: [], slow_now=lambda: []
    )
    health: Mapping[str, Any] = {"loop_lag_ms": 1.0, "backlog": 0}
    pools: Any = {"p": service}
    scrape = Scrape(pools, lambda: health, {}, settings)
    return {
        sample.labels["project"]
        for family in scrape.collect()
        for sample in family.samples
        if "project" in sample.labels
    }


def test_of_projects_the_most_asked_for_are_told_or_all_or_none() -> None:
    assert told(Settings()) == {"a", "b", "c"}
    assert told(Settings(top=2)) == {"a", "b"}
    assert told(Settings(projects="off")) == set()
    assert told(Settings(projects="all", top=1)) == {"a", "b", "c"}


def test_the_page_about_metrics_is_in_step() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "metrics-table.py"))
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert script["page"](page) == page, "run scripts/metrics-table.py"
    for word in [outcome.value for outcome in Outcome if outcome is not Outcome.UNDER_WAY]:
        assert f"| `{word}` |" in page
    for reason in Reason:
        assert f"`{reason.value}`" in page
