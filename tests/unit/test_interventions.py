"""What operators order of the machine: end a worker or a request, pin and unpin, drain."""

import pytest

from qgisd.errors import EndedByOperator, Unavailable
from qgisd.supervisor import events as e
from qgisd.supervisor.model import Generation
from qgisd.supervisor.states import WorkerState
from qgisd.words import NoteKind, Reason
from tests.unit.driver import World, ref

A, B = "a.qgs", "b.qgs"


def world(**figures: object) -> World:
    made = World(**figures)
    made.start()
    return made


def running(w: World, key: str = A) -> tuple[int, int]:
    """A request that a worker has: job and worker."""
    job = w.arrive(key)
    w.settle()
    return job, w.worker_of(job)


def a_while(w: World) -> None:
    """Two minutes in good health: pings are answered."""
    for _ in range(12):
        w.settle()
        w.wait(10)
    w.settle()


def kills(w: World) -> list[tuple[int, Reason]]:
    return [(do.worker, do.reason) for do in w.heard(e.KillWorker)]


def notes(w: World, kind: NoteKind) -> list[e.Note]:
    return [note for note in w.heard(e.Note) if note.kind is kind]


# workers


def test_the_request_of_a_killed_worker_fails_and_is_not_tried_again() -> None:
    w = world()
    job, worker = running(w)
    w.tell(e.WorkerKillOrdered(worker))
    assert isinstance(w.clients[job].error, EndedByOperator)
    assert kills(w) == [(worker, Reason.OPERATOR)]
    w.settle(answering=True)
    assert w.clients[job].ends == ["fail"]
    assert w.heard(e.Retry) == []
    (ended,) = w.heard(e.WorkerEnded)
    assert (ended.worker, ended.reason, ended.job) == (worker, Reason.OPERATOR, job)
    assert w.project(A).counters.ended == {Reason.OPERATOR: 1}


def test_a_killed_worker_is_replaced_and_others_go_on() -> None:
    w = world()
    jobs = [running(w)[0] for _ in range(2)]
    victim = w.worker_of(jobs[0])
    w.tell(e.WorkerKillOrdered(victim))
    w.settle()
    assert w.clients[jobs[1]].ends == []
    states = [worker.state for worker in w.machine.workers.values()]
    assert sorted(state.value for state in states) == ["busy", "idle"]
    assert victim not in w.machine.workers


def test_an_answer_under_way_is_cut() -> None:
    w = world()
    job, worker = running(w)
    w.head(job)
    w.tell(e.WorkerKillOrdered(worker))
    assert w.clients[job].ends == ["abort"]


def test_an_idle_worker_and_one_that_starts_can_be_killed() -> None:
    w = world()
    idle = w.serve(A)
    w.tell(e.WorkerKillOrdered(idle))
    w.settle()
    (fresh,) = w.machine.workers.values()
    assert (fresh.id != idle, fresh.state) == (True, WorkerState.IDLE)
    w.arrive(A)
    w.arrive(A)
    (starting,) = (x.id for x in w.machine.workers.values() if x.state is WorkerState.STARTING)
    w.tell(e.WorkerKillOrdered(starting))
    w.drain()
    assert kills(w) == [(idle, Reason.OPERATOR), (starting, Reason.OPERATOR)]


def test_a_worker_that_is_gone_or_dying_is_left_alone() -> None:
    w = world()
    _, worker = running(w)
    w.tell(e.WorkerKillOrdered(worker))
    w.tell(e.WorkerKillOrdered(worker))
    w.tell(e.WorkerKillOrdered(99))
    assert len(kills(w)) == 1


def test_kills_by_order_do_not_open_the_breaker() -> None:
    w = world(breaker_failures=1)
    for _ in range(3):
        _, worker = running(w)
        w.tell(e.WorkerKillOrdered(worker))
        w.settle()
    assert notes(w, NoteKind.BREAKER_OPENED) == []
    assert w.project(A).breaker is None


# requests


def test_a_request_in_the_queue_ends_without_costing_a_worker() -> None:
    w = world(workers=1, project_workers=1)
    first, _ = running(w)
    queued = w.arrive(A)
    w.tell(e.JobKillOrdered(queued))
    assert isinstance(w.clients[queued].error, EndedByOperator)
    assert (kills(w), w.machine.queue.length) == ([], 0)
    w.done(first)
    assert w.clients[first].ends == ["done"]


def test_a_running_request_ends_with_its_worker() -> None:
    w = world()
    job, worker = running(w)
    w.tell(e.JobKillOrdered(job))
    assert isinstance(w.clients[job].error, EndedByOperator)
    assert kills(w) == [(worker, Reason.OPERATOR)]
    w.settle()
    assert job not in w.machine.jobs


def test_a_request_whose_client_does_not_take_it_can_be_ended() -> None:
    w = world()
    job, worker = running(w)
    w.head(job)
    w.held(job, True)
    w.tell(e.JobKillOrdered(job))
    assert (w.clients[job].ends, kills(w)) == (["abort"], [(worker, Reason.OPERATOR)])


def test_a_request_whose_client_has_left_is_ended_for_nobody() -> None:
    w = world()
    job, worker = running(w)
    w.gone(job)
    w.tell(e.JobKillOrdered(job))
    assert (w.clients[job].ends, kills(w)) == (["gone"], [(worker, Reason.OPERATOR)])
    w.settle()
    assert w.machine.busy == 0


def test_a_request_that_is_over_is_left_alone() -> None:
    w = world()
    job, worker = running(w)
    w.done(job)
    w.tell(e.JobKillOrdered(job))
    assert (kills(w), w.worker(worker).state) == ([], WorkerState.IDLE)


# reloads


@pytest.mark.parametrize("what", [A, None])
def test_a_reload_by_order_closes_the_breaker(what: str | None) -> None:
    w = world(breaker_failures=2)
    for _ in range(4):
        job = w.arrive(A)
        w.settle()
        if w.worker_of(job):
            w.lose_worker(w.worker_of(job))
            w.settle()
    refused = w.arrive(A)
    assert isinstance(w.clients[refused].error, Unavailable)
    w.tell(e.ReloadOrdered(what))
    job = w.arrive(A)
    w.drain()
    assert w.clients[job].ends == ["done"]


# pins


def test_what_is_unpinned_ends_when_it_is_idle() -> None:
    w = world()
    w.tell(e.LoadOrdered(ref(A), pin=True))
    a_while(w)
    assert len(w.machine.workers) == 1
    w.tell(e.UnpinOrdered(A))
    a_while(w)
    assert (len(w.machine.workers), w.machine.pinned) == (0, set())
    assert (len(notes(w, NoteKind.PINNED)), len(notes(w, NoteKind.UNPINNED))) == (1, 1)


def test_what_was_not_pinned_is_not_unpinned() -> None:
    w = world()
    w.serve(A)
    w.tell(e.UnpinOrdered(A))
    w.tell(e.UnpinOrdered("never.qgs"))
    assert notes(w, NoteKind.UNPINNED) == []


def test_a_pin_is_told_once() -> None:
    w = world()
    for _ in range(2):
        w.tell(e.LoadOrdered(ref(A), pin=True))
    assert len(notes(w, NoteKind.PINNED)) == 1


# drain


def test_while_draining_what_runs_ends_well_and_nothing_new_is_taken() -> None:
    w = world(workers=1, project_workers=1)
    first, _ = running(w)
    queued = w.arrive(A)
    w.tell(e.DrainOrdered(True))
    refused = w.arrive(A)
    error = w.clients[refused].error
    assert isinstance(error, Unavailable) and error.retry_after and "draining" in str(error)
    nested = w.arrive(B, depth=1)  # what runs may need it
    w.drain()
    assert [w.clients[job].ends for job in (first, queued, nested)] == [["done"]] * 3
    w.tell(e.DrainOrdered(False))
    again = w.arrive(A)
    w.drain()
    assert w.clients[again].ends == ["done"]


def test_a_drain_is_told_once() -> None:
    w = world()
    for on in (False, True, True, False, False):
        w.tell(e.DrainOrdered(on))
    kinds = [note.kind for note in w.heard(e.Note)][-2:]
    assert kinds == [NoteKind.DRAINING, NoteKind.UNDRAINED]
    assert len(notes(w, NoteKind.DRAINING)) == 1


# what listeners hear


def test_a_life_of_a_project_is_told_in_kinds() -> None:
    w = world()
    worker = w.serve(A)
    w.tell(e.ReloadOrdered(A))
    w.settle()
    w.tell(e.DropOrdered(A))
    w.settle()
    told = [(note.kind, note.generation) for note in w.heard(e.Note) if note.project == A]
    for expected in (
        (NoteKind.LOAD_BEGUN, 1),
        (NoteKind.WORKER_STARTED, 1),
        (NoteKind.SWITCHED, 1),
        (NoteKind.LOAD_BEGUN, 2),
        (NoteKind.SWITCHED, 2),
        (NoteKind.WORKER_ENDED, 1),
        (NoteKind.PROJECT_DROPPED, 0),
    ):
        assert told.count(expected) == 1, expected
    (ended, *_) = notes(w, NoteKind.WORKER_ENDED)
    assert (ended.worker, ended.reason) == (worker, Reason.RELOAD)


def test_what_goes_wrong_is_told_in_kinds() -> None:
    w = world()
    w.arrive(A)
    w.snapshot_forked((A, 1))
    w.lose_snapshot(A, "not a project")
    assert notes(w, NoteKind.LOAD_FAILED)
    w.serve(B)
    w.lose_zygote()
    assert notes(w, NoteKind.ZYGOTE_ENDED)


def test_answers_are_counted_with_their_seconds() -> None:
    w = world()
    job, _ = running(w)
    w.now += 2.5
    w.done(job)
    counters = w.project(A).counters
    assert (counters.answered, counters.run_s) == (1, 2.5)


def test_an_event_does_not_cost_a_look_at_all_that_are_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w = World(queue=100)
    w.start()
    keys = [f"{number}.qgs" for number in range(20)]
    for key in keys:
        w.tell(e.LoadOrdered(ref(key), pin=True))
        w.settle()
    looked: list[str] = []
    live = Generation.live

    def counted(generation: Generation) -> int:
        looked.append(generation.project)
        return live(generation)

    monkeypatch.setattr(Generation, "live", counted)
    w.machine.handle(e.Tick(), w.now)
    w.machine.handle(e.AnsweredFromCache(keys[0]), w.now)
    assert looked == []
