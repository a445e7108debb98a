"""Layers whose source was down when the project was loaded come back by themselves."""

from qgisd.supervisor import events as e
from qgisd.wire import BadLayer
from tests.unit.driver import World

A = "a.qgs"
POSTGRES = [BadLayer("roads", "postgres", "connection refused")]
FILE = [BadLayer("gone", "ogr", "no such file")]


def world() -> World:
    made = World(
        workers=2, project_workers=2, backoff_limit_s=10.0, idle_worker_s=1e6, ping_interval_s=1e6
    )
    made.start()
    return made


def ask(made: World) -> None:
    job = made.arrive(A)
    made.settle()
    made.done(job)


def loads(made: World) -> int:
    return len(made.heard(e.ForkSnapshot))


def test_a_project_whose_database_was_down_is_loaded_again_and_serves_meanwhile() -> None:
    w = world()
    w.bad_layers[A] = POSTGRES
    w.serve(A)
    w.bad_layers[A] = []
    w.wait(1.1)
    serving = w.project(A).serving
    assert serving is not None and serving.bad_layers == POSTGRES
    assert loads(w) == 2
    w.settle()
    healed = w.project(A).serving
    assert healed is not None and healed.bad_layers == []
    w.wait(1000)
    assert loads(w) == 2


def test_as_long_as_it_is_down_the_pauses_grow() -> None:
    w = world()
    w.bad_layers[A] = POSTGRES
    w.serve(A)
    times = []
    for _ in range(9):
        before = loads(w)
        begun = w.now
        while loads(w) == before:
            w.wait(0.5)
        times.append(w.now - begun)
        w.settle()
        ask(w)
        w.settle()
    assert times == sorted(times)
    assert times[-1] >= 50  # five times backoff_limit_s, and no longer
    assert times[-1] < 61


def test_what_nobody_asks_for_is_not_loaded_again() -> None:
    w = world()
    w.bad_layers[A] = POSTGRES
    w.serve(A)
    w.wait(1.1)
    w.settle()
    assert loads(w) == 2
    w.wait(5000)
    w.settle()
    assert loads(w) == 2
    ask(w)
    w.wait(100)
    assert loads(w) == 3


def test_a_missing_file_is_no_reason_to_load_again() -> None:
    w = world()
    w.bad_layers[A] = FILE
    w.serve(A)
    for _ in range(5):
        w.wait(100)
        ask(w)
    assert loads(w) == 1


def test_a_load_that_fails_while_healing_is_tried_again() -> None:
    w = world()
    w.bad_layers[A] = POSTGRES
    w.serve(A)
    w.wait(1.1)
    w.lose_snapshot(A, "signal 11")
    assert loads(w) == 2
    assert w.project(A).serving is not None
    ask(w)
    w.bad_layers[A] = []
    w.wait(5)
    w.settle()
    serving = w.project(A).serving
    assert serving is not None and not serving.bad_layers


def test_a_pool_over_its_memory_heals_nothing_until_there_is_room() -> None:
    w = world()
    w.bad_layers[A] = POSTGRES
    w.serve(A)
    ask(w)
    w.tell(e.MemorySampled({}, {}, 2, 1))
    before = loads(w)
    for _ in range(100):
        ask(w)
        w.wait(1)
    assert loads(w) == before
    w.tell(e.MemorySampled({}, {}, 1, 2))
    for _ in range(100):
        ask(w)
        w.wait(1)
    assert loads(w) > before
