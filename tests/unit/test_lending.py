"""A request that runs for long lends its slot: a stuck project does not slow the others down."""

import pytest

from qgisd.supervisor import events as e
from qgisd.supervisor.states import WorkerState
from qgisd.words import Reason, RequestClass
from tests.unit.driver import World

SOFT = 256 << 20


@pytest.fixture
def world() -> World:
    """Two workers, of which a project may have both; a request is long after one second."""
    made = World(workers=2, project_workers=2, lend_after_s=1.0, lent_workers=2)
    made.start()
    return made


def running(world: World, key: str) -> list[int]:
    return [
        number
        for number, worker in world.machine.workers.items()
        if worker.project == key and worker.state is WorkerState.BUSY
    ]


def test_others_wait_for_what_is_not_long_yet(world: World) -> None:
    world.serve("other")
    for _ in range(2):
        world.arrive("stuck")
    world.settle()
    assert len(running(world, "stuck")) == 2

    waiting = world.arrive("other")
    world.wait(0.9)
    world.settle()

    assert world.worker_of(waiting) == 0


def test_a_long_request_lends_its_slot(world: World) -> None:
    world.serve("other")
    for _ in range(2):
        world.arrive("stuck")
    world.settle()
    waiting = world.arrive("other")

    world.wait(1.1)
    world.settle()

    assert world.worker_of(waiting) != 0
    assert (world.machine.busy, world.machine.lent) == (3, 2)


def test_the_long_one_gets_no_more_workers_for_it(world: World) -> None:
    for _ in range(4):
        world.arrive("stuck")
    world.settle()
    world.wait(5)
    world.settle()
    assert len(running(world, "stuck")) == 2


def test_no_more_is_lent_than_may_be() -> None:
    world = World(workers=3, project_workers=3, lend_after_s=1.0, lent_workers=1)
    world.start()
    world.serve("other")
    for _ in range(3):
        world.arrive("stuck")
    world.settle()
    world.wait(3)
    first, second = world.arrive("other"), world.arrive("other")
    world.settle()
    assert world.machine.lent == 1
    assert [bool(world.worker_of(job)) for job in (first, second)] == [True, False]


def test_what_is_lent_comes_back_when_the_long_one_ends() -> None:
    world = World(workers=2, project_workers=2, lend_after_s=1.0, lent_workers=1)
    world.start()
    first = world.arrive("stuck")
    world.settle()
    second = world.arrive("stuck")
    world.settle()
    world.wait(1.5)
    assert world.machine.lent == 1

    world.done(first)
    world.wait(1.5)  # the other one is looked at again, and lends in its place

    assert world.machine.lent == 1
    assert world.worker(world.worker_of(second)).lent


def test_a_project_known_to_be_slow_lends_at_once(world: World) -> None:
    job = world.arrive("slow")
    world.settle()
    world.wait(3)
    world.done(job)
    assert world.machine.lent == 0

    world.arrive("slow")
    world.settle()

    assert world.machine.lent == 1


def test_a_deadline_counts_as_slow(world: World) -> None:
    """Else each request after a kill would hold a slot again until it is long."""
    world.serve("stuck")
    world.arrive("stuck", timeout_s=20)
    world.settle()
    world.wait(21)
    world.settle()
    assert [do.reason for do in world.heard(e.KillWorker)] == [Reason.DEADLINE]
    assert world.machine.lent == 0

    world.arrive("stuck")
    world.settle()

    assert world.machine.lent == 1


def test_slow_prints_do_not_make_maps_slow(world: World) -> None:
    job = world.arrive("p", RequestClass.PRINT)
    world.settle()
    world.wait(5)
    world.done(job)
    world.arrive("p", RequestClass.MAP)
    world.settle()
    assert world.machine.lent == 0


def test_a_worker_lost_while_it_lends_leaves_nothing_lent(world: World) -> None:
    world.serve("other")
    job = world.arrive("stuck")
    world.settle()
    world.wait(1.5)
    assert world.machine.lent == 1
    world.lose_worker(world.worker_of(job))
    assert (world.machine.busy, world.machine.lent) == (0, 0)


def test_a_worker_that_says_it_has_grown_too_much_is_replaced() -> None:
    world = World(worker_memory=SOFT)
    world.start()
    first = world.serve("p")
    job = world.arrive("p")
    world.settle()
    world.done(job, grown=SOFT)
    assert world.worker(first).state is WorkerState.IDLE

    job = world.arrive("p")
    world.settle()
    assert world.worker_of(job) == first
    world.done(job, grown=SOFT + 1)

    assert world.worker(first).state is WorkerState.STOPPING
    assert world.worker(first).reason is Reason.MEMORY
    again = world.arrive("p")
    world.settle()
    assert world.worker_of(again) not in (0, first)


def test_only_a_load_for_which_nobody_waits_is_in_the_background() -> None:
    world = World()
    world.start()
    world.serve("p")
    world.tell(e.ReloadOrdered("p"))
    assert [do.background for do in world.heard(e.ForkSnapshot)] == [False, True]


def test_a_load_in_the_background_does_not_hold_up_the_others() -> None:
    world = World(max_loads=1)
    world.start()
    for key in ("p", "q"):
        world.serve(key)
    before = len(world.heard(e.ForkSnapshot))
    for key in ("p", "q"):
        world.tell(e.ReloadOrdered(key))
    for key in ("r", "s"):
        world.arrive(key)
    forked = [(do.project, do.background) for do in world.heard(e.ForkSnapshot)[before:]]
    # One for which nobody waits, and one for which somebody does.
    assert forked == [("p", True), ("r", False)]
    world.settle()
    forked = [(do.project, do.background) for do in world.heard(e.ForkSnapshot)[before + 2 :]]
    assert sorted(forked) == [("q", True), ("s", False)]


def test_a_project_without_a_snapshot_to_fork_is_not_loaded_in_the_background() -> None:
    world = World()
    world.start()
    world.serve("p")
    world.lose_snapshot("p")
    assert [do.background for do in world.heard(e.ForkSnapshot)] == [False, False]


def test_a_load_in_the_background_is_hurried_in_time_and_may_still_take_too_long() -> None:
    world = World(load_timeout_s=100)
    world.start()
    world.serve("p")
    world.tell(e.ReloadOrdered("p"))
    coming = world.project("p").coming
    assert coming is not None and coming.background

    world.wait(24)
    assert not world.heard(e.HurrySnapshot)
    world.wait(2)
    assert world.heard(e.HurrySnapshot) == [e.HurrySnapshot("p", coming.number)]
    world.wait(73)
    assert world.project("p").coming is coming
    world.wait(2)
    assert len(world.heard(e.HurrySnapshot)) == 1
    assert "not loaded within load_timeout_s = 100" in world.project("p").error


def test_a_load_ends_at_its_deadline_where_sums_of_times_are_not_exact() -> None:
    since = next(n / 10 for n in range(10_000, 20_000) if n / 10 + 100 - n / 10 < 100)
    world = World(load_timeout_s=100)
    world.now = since
    world.start()
    world.serve("p")
    world.tell(e.ReloadOrdered("p"))
    coming = world.project("p").coming
    assert coming is not None and coming.since == since
    world.wait(100)
    assert len(world.heard(e.HurrySnapshot)) == 1
    assert "not loaded within" in world.project("p").error
