"""A project whose data changed is loaded again: when it is at rest, not too often, and if used."""

import itertools

import pytest

from qgisd.supervisor import events as e
from qgisd.supervisor import policy
from qgisd.wire import BadLayer
from tests.unit.driver import FIGURES, World, ref

A, B = "a.qgs", "b.qgs"
SETTLE, LONGEST = FIGURES["data_settle_s"], FIGURES["data_reload_s"]
LOAD_S = 0.5  # of each load in driver.World


def world(**figures: object) -> World:
    made = World(**({"idle_worker_s": 1e6, "ping_interval_s": 1e6} | figures))
    made.start()
    made.serve(A)
    made.wait(100)
    return made


def loads(made: World) -> int:
    return len(made.heard(e.ForkSnapshot))


def change(made: World, key: str = A) -> None:
    """A file changes, and the shell sees it."""
    serving = made.project(key).serving
    assert serving is not None
    made.tell(e.DataChanged(key, serving.number, "/data/roads.gpkg"))


def ask(made: World, key: str = A) -> None:
    job = made.arrive(key)
    made.settle()
    made.done(job)
    made.settle()


def test_changed_data_is_loaded_beside_what_serves_once_it_is_at_rest() -> None:
    w = world()
    change(w)
    w.wait(SETTLE - 0.1)
    assert loads(w) == 1
    w.wait(0.2)
    assert loads(w) == 2
    before = w.project(A).serving
    assert before is not None  # and answers meanwhile
    w.settle()
    after = w.project(A).serving
    assert after is not None and after.number > before.number
    assert after.outdated_since is None
    w.wait(1000)
    assert loads(w) == 2
    assert [note.text for note in w.heard(e.Note) if "data" in note.text] == [
        "its data changed: /data/roads.gpkg"
    ]


def test_while_files_are_put_in_place_one_after_the_other_nothing_is_loaded() -> None:
    w = world()
    for _ in range(4):
        change(w)
        w.wait(SETTLE - 1)
    assert loads(w) == 1
    w.wait(1.1)
    assert loads(w) == 2


def busy(w: World, seconds: float) -> list[float]:
    """A file that changes every second, and somebody who asks as often: when loads began."""
    times = []
    until = w.now + seconds
    while w.now < until:
        before = loads(w)
        change(w)
        ask(w)
        w.wait(1)
        w.settle()
        times += [w.now] * (loads(w) - before)
    return times


def test_data_that_changes_all_the_time_is_loaded_now_and_then() -> None:
    w = world()
    begun = w.now
    times = busy(w, 600)
    assert times[0] - begun <= LONGEST + 1  # never at rest, yet loaded
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) > 10
    assert all(LONGEST <= gap <= LONGEST + 2 for gap in gaps)


def test_changes_one_by_one_are_loaded_soon_at_first_and_then_more_and_more_seldom() -> None:
    w = world()
    waits = []
    for _ in range(8):
        change(w)
        before, begun = loads(w), w.now
        while loads(w) == before:
            w.wait(0.25)
        waits.append(w.now - begun)
        w.settle()
        ask(w)
    assert waits[0] == pytest.approx(SETTLE, abs=0.3)
    assert waits == sorted(waits)
    assert LONGEST <= waits[-1] <= LONGEST + LOAD_S + 0.5
    # Quiet for long, the next one is served at once again.
    w.wait(3 * LONGEST)
    change(w)
    before = loads(w)
    w.wait(SETTLE + 0.1)
    assert loads(w) == before + 1


def test_the_pause_grows_with_the_cost_of_a_load() -> None:
    assert policy.longest_data_pause(30, 0.5) == 30
    assert policy.longest_data_pause(30, 8) == 80
    assert [policy.data_pause(n, 8, 80) for n in range(1, 6)] == [8, 16, 32, 64, 80]
    assert policy.data_pause(10**6, 0.1, 30) == 30


def test_what_nobody_asks_for_is_loaded_with_the_next_request() -> None:
    w = world()
    change(w)
    w.wait(SETTLE)
    w.settle()
    assert loads(w) == 2  # somebody had asked for the first one
    change(w)
    w.wait(1000)
    assert loads(w) == 2
    job = w.arrive(A)
    assert loads(w) == 3
    assert w.worker_of(job)  # answered from what is there
    w.settle()
    w.done(job)
    w.settle()
    w.wait(1000)
    assert loads(w) == 3


def test_an_answer_from_the_cache_counts_as_asking() -> None:
    w = world()
    change(w)
    w.wait(SETTLE)
    w.settle()
    change(w)
    w.wait(1000)
    w.tell(e.AnsweredFromCache(A))
    assert loads(w) == 3


def test_a_change_of_the_generation_before_says_nothing() -> None:
    w = world()
    before = w.project(A).serving
    assert before is not None
    w.tell(e.ReloadOrdered(A))
    w.settle()
    w.tell(e.DataChanged(A, before.number, "/data"))
    w.tell(e.DataChanged("gone.qgs", 1, "/data"))
    w.wait(1000)
    assert loads(w) == 2


def test_a_load_that_is_coming_anyway_takes_the_change_along() -> None:
    w = world()
    change(w)
    w.tell(e.ReloadOrdered(A))
    w.settle()
    w.wait(1000)
    assert loads(w) == 2


def test_a_change_is_not_lost_when_the_load_that_was_coming_fails() -> None:
    w = world()
    w.tell(e.ReloadOrdered(A))
    change(w)
    w.wait(SETTLE)
    w.lose_snapshot(A, "layer tables missing")
    assert loads(w) == 2
    w.wait(LONGEST)
    assert loads(w) == 3
    w.settle()
    assert w.project(A).error == ""


def test_without_memory_it_waits() -> None:
    w = world()
    w.tell(e.MemorySampled({}, {}, 5 << 30, 4 << 30))  # ends the idle worker, no more at once
    change(w)
    w.wait(SETTLE + 0.1)
    assert loads(w) == 1
    w.tell(e.MemorySampled({}, {}, 1 << 30, 4 << 30))
    w.wait(LONGEST)
    assert loads(w) == 2


def test_loads_for_data_that_fail_leave_the_old_one_serving_and_are_as_seldom() -> None:
    w = world()
    times = []
    for _ in range(200):
        change(w)
        w.wait(1)
        if w.project(A).coming is not None:
            times.append(w.now)
            w.snapshot_forked(max(t for t in w.snapshots if t[0] == A))
            w.lose_snapshot(A, "the raster is cut off")
        ask(w)
    assert w.project(A).serving is not None
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[:5] == sorted(gaps[:5])
    assert len(gaps) > 6 and all(LONGEST <= gap <= LONGEST + 2 for gap in gaps[5:])


def test_projects_do_not_wait_for_each_other() -> None:
    w = world(max_loads=2)
    w.serve(B)
    change(w)
    change(w, B)
    w.wait(SETTLE)
    assert loads(w) == 4


def test_data_that_does_not_open_leaves_the_old_one_serving_until_it_does() -> None:
    w = world()
    before = w.project(A).serving
    change(w)
    w.bad_layers[A] = [BadLayer("roads", "ogr", "not recognized as a supported file format")]
    w.wait(SETTLE)
    w.settle()
    assert loads(w) == 2
    assert w.project(A).serving is before
    assert "do not open: roads" in w.project(A).error
    tries = []
    for _ in range(400):
        ask(w)
        w.wait(1)
        if w.project(A).coming is not None:
            tries.append(w.now)
            w.settle()
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps == sorted(gaps) and 60 <= gaps[-1] <= 62  # backoff_limit_s
    w.bad_layers[A] = []
    w.wait(62)
    w.settle()
    assert w.project(A).serving is not before
    assert w.project(A).error == ""
    count = loads(w)
    w.wait(1000)
    assert loads(w) == count


def test_a_layer_that_was_bad_before_does_not_stand_in_the_way() -> None:
    w = World(idle_worker_s=1e6, ping_interval_s=1e6)
    w.start()
    w.bad_layers[A] = [BadLayer("gone", "ogr", "no such file")]
    w.serve(A)
    before = w.project(A).serving
    w.wait(100)
    change(w)
    w.wait(SETTLE)
    w.settle()
    assert w.project(A).serving is not before


def test_a_changed_project_file_is_taken_with_whatever_layers_it_has() -> None:
    w = world()
    w.bad_layers[A] = [BadLayer("new", "ogr", "no such file")]
    w.tell(e.Changed(ref(A, 2)))
    w.settle()
    assert len(w.project(A).serving.bad_layers) == 1  # type: ignore[union-attr]


def test_a_load_for_changed_data_that_crashes_is_tried_again_on_the_same_terms() -> None:
    w = world()
    before = w.project(A).serving
    change(w)
    w.bad_layers[A] = [BadLayer("roads", "ogr", "half written")]
    w.wait(SETTLE)
    w.lose_snapshot(A, "signal 11", crashed=True)
    w.settle()  # the second try comes to its end, without the layer
    assert loads(w) == 3
    assert w.project(A).serving is before
    assert "do not open: roads" in w.project(A).error


@pytest.mark.parametrize("how", ["crash", "reload"])
def test_data_that_changed_is_loaded_in_the_end_whatever_load_failed_before(how: str) -> None:
    w = world()
    before = w.project(A).serving
    change(w)
    w.wait(SETTLE)
    if how == "crash":
        w.lose_snapshot(A, "signal 11", crashed=True)
    else:
        w.tell(e.ReloadOrdered(A))
    w.lose_snapshot(A, "cannot read it")
    assert w.project(A).coming is None and w.project(A).serving is before
    w.wait(FIGURES["backoff_limit_s"] + LONGEST)
    w.settle()
    assert w.project(A).serving is not before
