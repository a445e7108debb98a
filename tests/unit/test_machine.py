"""The decisions of a pool, one situation after the other: events in, instructions out.

Loads and their failures, generations, queues, deadlines, retries, deaths of every kind of process,
pinning, dropping, memory, the breaker, and the end. `driver.World` plays the processes and checks
the invariants after every event; test_machine_fuzz.py does all of this in random order.
"""

import logging

import pytest

from qgisd.errors import (
    DeadlineExceeded,
    ProjectNotFound,
    ProjectUnusable,
    RequestError,
    Unavailable,
    WorkerLost,
)
from qgisd.supervisor import events as e
from qgisd.supervisor.model import NO_PROJECT
from qgisd.supervisor.states import GenerationState, JobState, WorkerState, ZygoteState
from qgisd.words import Mode, Reason, RequestClass
from tests.unit.driver import World, ref

A, B = "a.qgs", "b.qgs"


def world(**figures: object) -> World:
    """A pool whose zygote is up."""
    made = World(**figures)
    made.start()
    return made


def error_of(made: World, job: int) -> RequestError:
    error = made.clients[job].error
    assert isinstance(error, RequestError), f"job {job}: {made.clients[job].ends}"
    return error


def busy_jobs(made: World, key: str, count: int) -> list[int]:
    """That many requests of one project, all running."""
    jobs = [made.arrive(key) for _ in range(count)]
    made.settle()
    assert all(made.worker_of(job) for job in jobs)
    return jobs


# loading


def test_the_first_request_loads_and_the_others_wait_for_the_same_load() -> None:
    w = world()
    jobs = [w.arrive(A) for _ in range(3)]
    assert len(w.heard(e.ForkSnapshot)) == 1
    w.settle(answering=True)
    assert len(w.heard(e.ForkSnapshot)) == 1
    assert [w.clients[job].ends for job in jobs] == [["done"]] * 3


def test_a_request_before_the_zygote_is_up_waits_for_it() -> None:
    w = World()
    w.tell(e.Started())
    job = w.arrive(A)
    assert w.heard(e.ForkSnapshot) == []
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_no_more_than_max_loads_at_once_and_what_is_asked_for_goes_first() -> None:
    w = world(max_loads=1)
    w.arrive("first.qgs")
    w.tell(e.LoadOrdered(ref("ordered.qgs")))
    w.arrive("asked.qgs")
    assert [do.project for do in w.heard(e.ForkSnapshot)] == ["first.qgs"]
    w.settle()
    assert [do.project for do in w.heard(e.ForkSnapshot)] == [
        "first.qgs",
        "asked.qgs",
        "ordered.qgs",
    ]


def test_two_loads_run_side_by_side_where_the_limit_allows_it() -> None:
    w = world(max_loads=2)
    for key in ("a.qgs", "b.qgs", "c.qgs"):
        w.arrive(key)
    assert [do.project for do in w.heard(e.ForkSnapshot)] == ["a.qgs", "b.qgs"]


def test_a_load_that_fails_fails_those_who_wait_and_is_not_repeated_at_once() -> None:
    w = world()
    first, second = w.arrive(A), w.arrive(A)
    w.lose_snapshot(A, "it is not a project")
    assert isinstance(error_of(w, first), ProjectUnusable)
    assert isinstance(error_of(w, second), ProjectUnusable)
    assert w.project(A).error == "it is not a project"
    third = w.arrive(A)
    assert isinstance(error_of(w, third), ProjectUnusable)
    assert len(w.heard(e.ForkSnapshot)) == 1


def test_the_error_of_a_load_does_not_reach_the_client() -> None:
    w = world()
    job = w.arrive(A)
    w.lose_snapshot(A, "cannot open /srv/secret/data.gpkg")
    assert "secret" not in str(error_of(w, job))


def test_a_failed_load_is_tried_again_by_a_request_after_the_backoff() -> None:
    w = world()
    w.arrive(A)
    w.lose_snapshot(A)
    w.wait(1.1)
    job = w.arrive(A)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]
    assert w.project(A).error == ""


def test_the_backoff_of_a_load_doubles() -> None:
    w = world()
    for failures in range(3):
        w.arrive(A)
        w.lose_snapshot(A)
        assert w.project(A).retry_at == w.now + 2**failures
        w.wait(2**failures + 0.01)


def test_a_changed_file_is_loaded_at_once_after_a_failure() -> None:
    w = world()
    w.arrive(A)
    w.lose_snapshot(A)
    w.files[A] = 2
    job = w.arrive(A)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_a_load_that_hangs_is_ended_by_its_deadline() -> None:
    w = world(load_timeout_s=30.0)
    job = w.arrive(A, timeout_s=100.0)
    w.snapshot_forked((A, w.project(A).newest))
    w.wait(30.1)
    assert [do.reason for do in w.heard(e.EndSnapshot)] == [Reason.DEADLINE]
    assert isinstance(error_of(w, job), ProjectUnusable)
    assert "load_timeout_s = 30" in w.project(A).error


def test_a_request_that_waits_too_long_for_a_load_is_told_to_come_back() -> None:
    w = world()
    job = w.arrive(A, timeout_s=7.0)
    w.snapshot_forked((A, w.project(A).newest))
    w.wait(7.1)
    error = error_of(w, job)
    assert isinstance(error, Unavailable) and "loading" in str(error)
    assert error.retry_after == 7, "it may take as long again as it has"
    w.settle()
    assert w.project(A).serving is not None, "the load goes on for the next one"


def test_a_project_that_nobody_loaded_is_not_served_without_on_demand() -> None:
    w = world(on_demand=False)
    job = w.arrive(A)
    assert isinstance(error_of(w, job), ProjectNotFound)
    assert w.heard(e.ForkSnapshot) == []
    w.tell(e.LoadOrdered(ref(A)))
    job = w.arrive(A)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_what_needs_no_project_is_served_without_on_demand() -> None:
    w = world(on_demand=False)
    job = w.arrive(NO_PROJECT.key)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_a_load_order_is_settled_when_the_project_serves() -> None:
    w = world()
    w.tell(e.LoadOrdered(ref(A)))
    assert w.heard(e.Settled) == []
    w.settle()
    (settled,) = w.heard(e.Settled)
    assert (settled.project, settled.ok) == (A, True)
    assert "3 layers in 0.50 s" in settled.detail


def test_an_order_to_load_what_is_loaded_is_settled_at_once() -> None:
    w = world()
    w.serve(A)
    said = w.tell(e.LoadOrdered(ref(A)))
    assert e.Settled(A, w.project(A).newest, True, "already loaded") in said
    assert not any(isinstance(do, e.ForkSnapshot) for do in said)


def test_a_load_runs_with_the_version_the_request_found() -> None:
    w = world()
    w.serve(A)
    w.tell(e.LoadOrdered(ref(A), pin=True))
    w.files[A] = 0
    w.tell(e.Vanished(A))
    w.files[A] = 7
    w.arrive(A)
    coming = w.project(A).coming
    assert coming is not None and coming.version == (7, 0, 0)


# queues


def test_a_full_project_queue_refuses_and_says_when_to_come_back() -> None:
    w = world(project_queue=2)
    jobs = [w.arrive(A) for _ in range(3)]
    error = error_of(w, jobs[2])
    assert isinstance(error, Unavailable) and error.retry_after == 1
    w.settle(answering=True)
    assert [w.clients[job].ends for job in jobs] == [["done"], ["done"], ["fail"]]


def test_how_long_to_wait_is_told_by_what_waits_and_who_works_on_it() -> None:
    w = world(workers=4, project_workers=2, project_queue=5, queue=8)
    for key in (A, B):
        w.serve(key)
    for key, cls, seconds in ((A, RequestClass.PRINT, 8.0), (B, RequestClass.MAP, 2.0)):
        w.project(key).cost[cls] = seconds
    busy_jobs(w, A, 2)
    busy_jobs(w, B, 2)
    prints = [w.arrive(A, RequestClass.PRINT, timeout_s=99.0) for _ in range(5)]
    cheap = error_of(w, w.arrive(A, RequestClass.LEGEND))
    assert cheap.retry_after == 20, "five prints of 8 s, by the two workers of the project"
    for _ in range(3):
        w.arrive(B)
    full = error_of(w, w.arrive(B))
    assert full.retry_after == 12, "those and three maps of 2 s, by the four of the pool"
    assert not any(w.clients[job].ends for job in prints)


def test_a_full_pool_queue_refuses_other_projects_too() -> None:
    w = world(queue=2)
    w.arrive(A)
    w.arrive(A)
    assert isinstance(error_of(w, w.arrive(B)), Unavailable)


def test_a_refused_request_leaves_no_record_of_its_project() -> None:
    w = world(queue=1)
    w.arrive(A)
    w.arrive(B)
    assert B not in w.machine.projects


def test_one_project_cannot_hold_the_whole_pool() -> None:
    w = world(workers=4, project_workers=3)
    jobs = [w.arrive(A) for _ in range(5)]
    w.settle()
    assert sum(1 for job in jobs if w.worker_of(job)) == 3
    other = w.arrive(B)
    w.settle()
    assert w.worker_of(other)


def test_one_project_cannot_hold_the_whole_pool_by_a_reload_either() -> None:
    w = world(workers=4, project_workers=3)
    busy_jobs(w, A, 3)
    w.tell(e.ReloadOrdered(A))
    w.settle()
    assert w.project(A).newest > 1 and w.project(A).coming is None
    w.arrive(A)
    w.arrive(A)
    w.settle()
    assert w.machine.busy == 3


def test_workers_are_busy_up_to_the_limit_of_the_pool_and_no_further() -> None:
    w = world(workers=2, project_workers=2)
    jobs = [w.arrive(key) for key in (A, A, B, B)]
    w.settle()
    assert w.machine.busy == 2
    w.settle(answering=True)
    assert [w.clients[job].ends for job in jobs] == [["done"]] * 4


def test_no_worker_is_forked_for_a_request_that_an_idle_one_will_take() -> None:
    w = world(workers=2, project_workers=2)
    w.serve(B)
    busy_jobs(w, A, 2)
    forks = len(w.heard(e.ForkWorker))
    w.arrive(B)
    w.tell(e.Tick())
    w.tell(e.Tick())
    assert len(w.heard(e.ForkWorker)) == forks


def test_the_worker_that_served_most_is_taken_first() -> None:
    w = world()
    w.serve(A)
    jobs = busy_jobs(w, A, 2)
    workers = [w.worker_of(job) for job in jobs]
    for job in jobs:
        w.done(job)
    busiest = max(workers, key=lambda number: w.worker(number).served)
    assert w.worker(busiest).served == 2
    assert w.worker_of(w.arrive(A)) == busiest


def test_prints_are_limited_over_the_whole_pool_and_others_pass_them() -> None:
    w = world(print_workers=1)
    first = w.arrive(A, RequestClass.PRINT)
    second = w.arrive(A, RequestClass.PRINT)
    third = w.arrive(B, RequestClass.PRINT)
    quick = w.arrive(A, RequestClass.LEGEND)
    w.settle()
    assert w.worker_of(first) and w.worker_of(quick)
    assert not w.worker_of(second) and not w.worker_of(third)
    w.settle(answering=True)
    assert all(w.clients[job].ends == ["done"] for job in (first, second, third, quick))


def test_a_nested_request_gets_on_though_those_that_wait_for_it_hold_all_slots() -> None:
    w = world(workers=2, project_workers=2)
    w.serve(B)
    outer = busy_jobs(w, A, 2)
    plain = w.arrive(B)
    nested = [w.arrive(B, depth=1) for _ in outer]
    w.settle()
    assert w.worker_of(nested[0]) and not w.worker_of(nested[1]) and not w.worker_of(plain)
    deeper = w.arrive(A, depth=2)
    w.settle()
    assert w.worker_of(deeper)
    w.settle(answering=True)
    assert all(w.clients[job].ends == ["done"] for job in [*outer, *nested, plain, deeper])


# deadlines


def test_a_queued_request_past_its_deadline_is_told_how_long_the_queue_is() -> None:
    w = world(workers=1, project_workers=1)
    w.serve(A)
    w.arrive(A, timeout_s=60.0)
    queued = w.arrive(A, timeout_s=5.0)
    w.wait(5.1)
    error = error_of(w, queued)
    assert isinstance(error, Unavailable) and str(error).startswith("waited 5.0 s")
    assert w.heard(e.KillWorker) == []


def test_a_running_request_past_its_deadline_is_answered_and_its_worker_killed() -> None:
    w = world()
    w.serve(A)
    job = w.arrive(A, timeout_s=5.0)
    worker = w.worker_of(job)
    w.wait(5.1)
    assert isinstance(error_of(w, job), DeadlineExceeded)
    assert w.heard(e.KillWorker) == [e.KillWorker(worker, Reason.DEADLINE)]
    assert w.machine.busy == 0, "its slot is free before the process has gone"
    assert w.heard(e.Retry) == [], "what took too long once does so again"


def test_after_a_deadline_another_worker_is_forked_at_once() -> None:
    w = world()
    w.serve(A)
    w.arrive(A, timeout_s=5.0)
    forks = len(w.heard(e.ForkWorker))
    w.wait(5.1)
    w.settle()
    assert len(w.heard(e.ForkWorker)) == forks + 1


def test_a_streaming_answer_has_no_deadline_while_it_moves() -> None:
    w = world(stream_timeout_s=20.0)
    w.serve(A)
    job = w.arrive(A, timeout_s=5.0)
    w.head(job)
    for _ in range(5):
        w.wait(15)
        w.progress(job)
    assert w.clients[job].ends == []
    w.wait(20.1)
    assert w.clients[job].ends == ["abort"]
    assert [do.reason for do in w.heard(e.KillWorker)] == [Reason.DEADLINE]


def test_a_slow_client_does_not_cost_the_answer_its_worker() -> None:
    w = world(stream_timeout_s=20.0)
    w.serve(A)
    job = w.arrive(A)
    w.head(job)
    w.held(job, True)
    w.wait(300)
    assert w.clients[job].ends == []
    w.held(job, False)
    w.wait(20.1)
    assert w.clients[job].ends == ["abort"]


def test_chunks_already_on_their_way_do_not_arm_the_deadline_of_a_held_answer() -> None:
    w = world(stream_timeout_s=20.0)
    w.serve(A)
    job = w.arrive(A)
    w.head(job)
    w.held(job, True)
    w.progress(job)
    w.wait(30)
    assert w.clients[job].ends == []


def test_frames_of_an_ended_request_are_dropped() -> None:
    w = world()
    w.serve(A)
    job = w.arrive(A)
    worker = w.worker_of(job)
    w.done(job)
    again = w.arrive(A)
    for event in (
        e.WorkerHead(worker, job),
        e.WorkerProgress(worker, job),
        e.WorkerDone(worker, job),
        e.WorkerDone(999, again),
        e.WorkerUp(999, 1),
        e.WorkerPong(999),
        e.WorkerDown(999, "exit code 0"),
        e.WorkerConfused(999, "nonsense"),
        e.Held(job, True),
        e.Gone(job),
    ):
        assert w.tell(event) == []
    assert w.worker_of(again) == worker
    assert w.machine.jobs[again].state is JobState.RUNNING


# clients that leave


def test_a_queued_request_whose_client_leaves_is_forgotten() -> None:
    w = world()
    job = w.arrive(A)
    assert w.gone(job) == []
    assert w.machine.jobs == {} and w.machine.queue.length == 0


def test_a_running_request_whose_client_leaves_gets_its_grace_then_the_worker_is_killed() -> None:
    w = world(disconnect_grace_s=1.0)
    w.serve(A)
    job = w.arrive(A)
    w.gone(job)
    w.wait(0.9)
    assert w.heard(e.KillWorker) == []
    said = w.wait(0.2)
    assert [do.reason for do in said if isinstance(do, e.KillWorker)] == [Reason.DISCONNECT]
    assert not any(isinstance(do, e.Fail) for do in said), "nobody is there to hear it"


def test_a_request_that_ends_within_the_grace_costs_no_worker() -> None:
    w = world(disconnect_grace_s=1.0)
    worker = w.serve(A)
    job = w.arrive(A)
    w.gone(job)
    w.wait(0.5)
    w.done(job)
    w.wait(2)
    assert w.heard(e.KillWorker) == []
    assert w.worker(worker).state is WorkerState.IDLE


def test_progress_does_not_lengthen_the_grace_of_an_abandoned_answer() -> None:
    w = world(disconnect_grace_s=1.0)
    w.serve(A)
    job = w.arrive(A)
    w.head(job)
    w.gone(job)
    w.wait(0.6)
    w.progress(job)
    w.wait(0.6)
    assert [do.reason for do in w.heard(e.KillWorker)] == [Reason.DISCONNECT]


def test_an_abandoned_request_is_not_repeated() -> None:
    w = world()
    worker = w.serve(A)
    job = w.arrive(A)
    w.gone(job)
    w.lose_worker(worker)
    assert w.heard(e.Retry) == [] and w.machine.jobs == {}


# workers that die


def test_a_request_whose_worker_dies_runs_once_more() -> None:
    w = world()
    worker = w.serve(A)
    job = w.arrive(A)
    assert e.Retry(job) in w.lose_worker(worker)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_a_request_whose_worker_dies_twice_fails() -> None:
    w = world()
    worker = w.serve(A)
    job = w.arrive(A)
    w.lose_worker(worker)
    w.settle()
    w.lose_worker(w.worker_of(job))
    assert isinstance(error_of(w, job), WorkerLost)
    assert w.heard(e.Retry) == [e.Retry(job)]


def test_a_request_that_runs_again_goes_before_those_that_wait() -> None:
    w = world(workers=1, project_workers=1)
    worker = w.serve(A)
    first, second = w.arrive(A), w.arrive(A)
    w.lose_worker(worker)
    w.settle()
    assert w.worker_of(first) and not w.worker_of(second)


def test_a_write_is_never_repeated() -> None:
    w = world()
    worker = w.serve(A)
    job = w.arrive(A, RequestClass.WRITE)
    w.lose_worker(worker)
    assert isinstance(error_of(w, job), WorkerLost)


def test_a_death_after_the_head_cuts_the_connection() -> None:
    w = world()
    worker = w.serve(A)
    job = w.arrive(A)
    w.head(job)
    said = w.lose_worker(worker)
    assert [do.job for do in said if isinstance(do, e.Abort)] == [job]
    assert w.heard(e.Retry) == []


def test_an_answer_that_breaks_is_cut_and_its_worker_goes_on() -> None:
    w = world()
    worker = w.serve(A)
    job = w.arrive(A)
    w.head(job)
    said = w.done(job, broken="the provider failed")
    assert said[0] == e.Abort(job, "the provider failed")
    assert w.worker(worker).state is WorkerState.IDLE


def test_a_confused_worker_is_killed_and_its_request_runs_again() -> None:
    w = world()
    worker = w.serve(A)
    job = w.arrive(A)
    said = w.tell(e.WorkerConfused(worker, "a frame of version 9"))
    assert e.KillWorker(worker, Reason.CRASH) in said
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_an_idle_worker_that_dies_is_replaced_without_being_asked() -> None:
    w = world()
    worker = w.serve(A)
    said = w.lose_worker(worker)
    assert [do.project for do in said if isinstance(do, e.ForkWorker)] == [A]


def test_a_worker_number_is_never_used_again() -> None:
    w = world()
    for _ in range(4):
        w.lose_worker(w.serve(A))
    numbers = [do.worker for do in w.heard(e.ForkWorker)]
    assert len(numbers) == len(set(numbers)) >= 4


# workers that do not come up


def test_the_first_worker_of_a_load_is_forked_again_when_it_dies_at_its_start() -> None:
    w = world()
    job = w.arrive(A)
    (order,) = w.heard(e.ForkSnapshot)
    w.snapshot_forked((A, order.generation))
    w.snapshot_loaded((A, order.generation))
    (fork,) = w.heard(e.ForkWorker)
    w.worker_forked(fork.worker)
    w.lose_worker(fork.worker)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_the_first_worker_of_a_load_is_forked_again_when_it_hangs_at_its_start() -> None:
    w = world(boot_timeout_s=3.0)
    job = w.arrive(A)
    (order,) = w.heard(e.ForkSnapshot)
    w.snapshot_forked((A, order.generation))
    w.snapshot_loaded((A, order.generation))
    (fork,) = w.heard(e.ForkWorker)
    w.worker_forked(fork.worker)
    w.wait(3.1)
    assert e.KillWorker(fork.worker, Reason.BOOT) in w.said
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


@pytest.mark.parametrize("hangs", [False, True])
def test_a_load_whose_workers_never_start_fails(hangs: bool) -> None:
    w = world(boot_timeout_s=3.0)
    job = w.arrive(A, timeout_s=1000.0)
    (order,) = w.heard(e.ForkSnapshot)
    w.snapshot_forked((A, order.generation))
    w.snapshot_loaded((A, order.generation))
    for _ in range(20):
        for worker in [n for n, process in w.workers.items() if process.state == "ordered"]:
            if worker not in w.workers:
                continue
            w.worker_forked(worker)
            if hangs:
                w.wait(3.1)
                if w.workers[worker].state == "dead":
                    w.worker_reported(worker)
            else:
                w.lose_worker(worker)
        if w.clients[job].ends:
            break
        w.wait(1.0)
    assert isinstance(error_of(w, job), ProjectUnusable)
    assert 3 <= len(w.heard(e.ForkWorker)) <= 6


def test_a_serving_project_does_not_fork_hanging_workers_for_ever() -> None:
    w = world(boot_timeout_s=3.0, idle_worker_s=5.0)
    w.serve(A)
    w.wait(6)
    w.settle()
    before = len(w.heard(e.ForkWorker))
    w.arrive(A, timeout_s=1000.0)
    for _ in range(40):
        for worker, process in list(w.workers.items()):
            if worker not in w.workers:
                continue
            if process.state == "ordered":
                w.worker_forked(worker)
            elif process.state == "dead":
                w.worker_reported(worker)
        w.wait(1.0)
    assert len(w.heard(e.ForkWorker)) - before <= 6


def test_a_worker_that_starts_well_clears_the_count_of_those_that_did_not() -> None:
    w = world()
    w.serve(A)
    for _ in range(5):
        w.lose_worker(next(iter(w.machine.workers)))  # an idle one: another is forked
        (worker,) = w.machine.workers
        w.worker_forked(worker)
        w.lose_worker(worker)
        job = w.arrive(A)
        w.settle(answering=True)
        assert w.clients[job].ends == ["done"]


def test_a_worker_that_dies_whenever_it_is_idle_is_not_forked_in_a_circle() -> None:
    w = world()
    w.lose_worker(w.serve(A))
    for _ in range(30):
        for worker, process in list(w.workers.items()):
            if worker not in w.workers:
                continue
            if process.state == "ordered":
                w.worker_forked(worker)
            elif process.state == "booting":
                w.worker_ready(worker)
            else:
                w.lose_worker(worker)
    assert len(w.heard(e.ForkWorker)) <= 8, "no pause between the attempts"


# snapshots that die


def test_a_project_whose_snapshot_dies_serves_on_and_loads_anew() -> None:
    w = world()
    worker = w.serve(A)
    first = w.project(A).newest
    said = w.lose_snapshot(A)
    assert [do.project for do in said if isinstance(do, e.ForkSnapshot)] == [A]
    assert w.worker_of(w.arrive(A)) == worker
    w.settle(answering=True)
    serving = w.project(A).serving
    assert serving is not None and serving.number > first and serving.snapshot


def test_a_project_whose_snapshot_died_and_does_not_load_comes_back_later() -> None:
    w = world(idle_worker_s=5.0)
    w.serve(A)
    w.lose_snapshot(A)
    w.lose_snapshot(A, "the database is down")
    w.wait(6)
    w.settle()
    assert w.machine.workers == {}
    w.wait(60)
    job = w.arrive(A)
    w.drain()
    assert w.clients[job].ends == ["done"]


def test_an_order_to_a_snapshot_that_just_died_is_no_fault_of_the_project() -> None:
    w = world(idle_worker_s=5.0)
    w.serve(A)
    w.wait(6)
    w.settle()
    token = next(iter(w.snapshots))
    w.snapshot_dies(token)  # and nobody has noticed
    job = w.arrive(A)
    w.snapshot_reported(token)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"], w.clients[job].error


def test_a_snapshot_that_dies_with_a_worker_on_order_is_no_fault_of_the_project() -> None:
    w = world(idle_worker_s=5.0)
    w.serve(A)
    w.wait(6)
    w.settle()
    job = w.arrive(A)
    token = next(iter(w.snapshots))
    w.snapshot_dies(token)
    w.snapshot_reported(token)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"], w.clients[job].error


# zygotes


def test_a_pool_whose_first_zygote_does_not_start_gives_up() -> None:
    w = World()
    w.tell(e.Started())
    w.zygote_dies(1)
    w.zygote_reported(1)
    assert w.gave_up == "signal 9"


def test_a_zygote_that_does_not_come_up_in_time_is_ended() -> None:
    w = World(zygote_timeout_s=10.0)
    w.tell(e.Started())
    w.wait(10.1)
    assert [do.number for do in w.heard(e.EndZygote)] == [1]


def test_a_dead_zygote_is_followed_by_another_after_a_growing_pause() -> None:
    w = world()
    pauses = []
    for failures in range(3):
        w.lose_zygote()
        assert w.machine.zygote.state is ZygoteState.BACKOFF
        number, since = w.machine.zygote.number, w.now
        w.wait(2**failures - 0.01)
        assert w.machine.zygote.number == number
        w.wait(0.02)
        assert w.machine.zygote.number != number
        pauses.append(w.now - since)
    w.settle()
    assert w.machine.zygote.state is ZygoteState.UP
    assert pauses == sorted(pauses) and not w.gave_up


@pytest.mark.parametrize(("lived", "pause"), [(5.0, 2.0), (100.0, 1.0)])
def test_only_a_zygote_that_was_up_for_a_good_while_begins_the_pauses_anew(
    lived: float, pause: float
) -> None:
    w = world(backoff_limit_s=60.0, ping_interval_s=1e6)
    w.lose_zygote()
    w.wait(1.01)
    w.settle()
    w.wait(lived)
    w.lose_zygote()
    number = w.machine.zygote.number
    w.wait(pause - 0.02)
    assert w.machine.zygote.number == number
    w.wait(0.04)
    assert w.machine.zygote.number != number


def test_a_snapshot_that_dies_again_and_again_is_loaded_after_growing_pauses() -> None:
    w = world(backoff_limit_s=60.0, ping_interval_s=1e6, idle_worker_s=1e6)
    w.serve(A)
    loads = []
    for _ in range(4):
        before = len(w.heard(e.ForkSnapshot))
        w.lose_snapshot(A)
        begun = w.now
        while len(w.heard(e.ForkSnapshot)) == before:
            w.wait(0.25)
        loads.append(w.now - begun)
        w.settle()
    assert loads[0] < loads[1] < loads[2] < loads[3]
    serving = w.project(A).serving
    assert serving is not None and serving.snapshot
    w.wait(100)
    before = len(w.heard(e.ForkSnapshot))
    w.lose_snapshot(A)
    assert len(w.heard(e.ForkSnapshot)) == before + 1


def test_what_serves_goes_on_serving_without_a_zygote() -> None:
    w = world()
    worker = w.serve(A)
    w.lose_zygote()
    assert w.worker_of(w.arrive(A)) == worker
    second = w.arrive(A)
    w.settle(answering=True)
    assert w.clients[second].ends == ["done"]


def test_a_load_whose_zygote_dies_before_forking_waits_for_the_next_one() -> None:
    w = world()
    job = w.arrive(A)
    w.lose_zygote()
    coming = w.project(A).coming
    assert coming is not None and coming.state is GenerationState.PENDING
    w.wait(1.1)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]
    assert w.project(A).failures == 0


def test_a_load_ordered_from_a_zygote_whose_death_is_not_noticed_yet_waits() -> None:
    w = world()
    w.zygote_dies(1)
    job = w.arrive(A)
    w.zygote_reported(1)
    w.wait(1.1)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_a_reload_of_everything_brings_a_new_zygote_and_then_new_generations() -> None:
    w = world()
    w.serve(A)
    w.serve(B)
    before = {key: w.project(key).newest for key in (A, B)}
    said = w.tell(e.ReloadOrdered(None))
    assert [type(do) for do in said] == [e.StartZygote]
    assert w.machine.zygote.number == 1, "the old one is there until the new one is up"
    w.settle(answering=True)
    assert [do.number for do in w.heard(e.EndZygote)] == [1]
    assert w.machine.zygote.number == 2
    for key in (A, B):
        serving = w.project(key).serving
        assert serving is not None and serving.number > before[key]
    assert e.Settled("", 2, True, "new zygote") in w.said


def test_a_second_reload_of_everything_joins_the_first() -> None:
    w = world()
    w.tell(e.ReloadOrdered(None))
    w.tell(e.ReloadOrdered(None))
    assert len(w.heard(e.StartZygote)) == 2


def test_a_successor_that_does_not_start_leaves_the_old_zygote() -> None:
    w = world()
    w.serve(A)
    w.tell(e.ReloadOrdered(None))
    w.zygote_dies(2)
    said = w.zygote_reported(2)
    assert said == [e.Settled("", 2, False, "signal 9")]
    assert w.machine.zygote.number == 1 and w.machine.zygote.state is ZygoteState.UP
    job = w.arrive(B)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_a_first_load_under_way_is_loaded_by_the_new_zygote_too() -> None:
    w = world()
    w.arrive(A)
    w.snapshot_forked((A, w.project(A).newest))
    w.tell(e.ReloadOrdered(None))
    w.settle(answering=True)
    last = w.heard(e.ForkSnapshot)[-1]
    assert (last.project, last.zygote) == (A, 2), "it serves what the old zygote's plugins make"


# generations


def test_a_changed_file_is_loaded_beside_what_serves_and_then_takes_over() -> None:
    w = world()
    worker = w.serve(A)
    first = w.project(A).serving
    w.files[A] = 2
    w.tell(e.Changed(ref(A, 2)))
    job = w.arrive(A)
    assert w.worker_of(job) == worker
    token = (A, w.project(A).newest)
    w.snapshot_forked(token)
    w.snapshot_loaded(token)
    assert w.project(A).serving is first, "nothing changes until its first worker is there"
    w.settle()
    assert w.project(A).serving is not first
    assert w.worker(worker).state is WorkerState.RETIRING
    w.done(job)
    w.settle()
    assert worker not in w.machine.workers and w.project(A).leaving == []


def test_a_new_generation_starts_with_as_many_workers_as_the_old_one_has() -> None:
    w = world()
    for job in busy_jobs(w, A, 3):
        w.done(job)
    w.tell(e.ReloadOrdered(A))
    w.settle()
    serving = w.project(A).serving
    assert serving is not None and serving.live() == 3


def test_an_unchanged_file_is_not_loaded_again() -> None:
    w = world()
    w.serve(A)
    assert w.tell(e.Changed(ref(A, 1))) == []


def test_a_reload_that_fails_leaves_the_old_generation_serving_and_says_so() -> None:
    w = world()
    worker = w.serve(A)
    first = w.project(A).serving
    w.files[A] = 2
    w.tell(e.Changed(ref(A, 2)))
    said = w.lose_snapshot(A, "line 3: no element found")
    assert w.project(A).serving is first
    assert w.project(A).error == "line 3: no element found"
    assert any(isinstance(do, e.Settled) and not do.ok for do in said)
    notes = [do for do in said if isinstance(do, e.Note) and do.level == logging.ERROR]
    assert "still serves" in notes[0].text
    assert w.worker_of(w.arrive(A)) == worker


def test_a_change_during_a_load_starts_it_again_with_the_newer_file() -> None:
    w = world()
    job = w.arrive(A)
    w.files[A] = 2
    w.tell(e.Changed(ref(A, 2)))
    assert len(w.heard(e.EndSnapshot)) == 1
    assert w.clients[job].ends == []
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]
    serving = w.project(A).serving
    assert serving is not None and serving.version == (2, 0, 0)


@pytest.mark.parametrize("event", [e.Changed(ref(A, 2)), e.ReloadOrdered(A)])
def test_a_change_during_a_load_that_nobody_waits_for_is_not_lost(event: e.Event) -> None:
    w = world()
    w.tell(e.LoadOrdered(ref(A)))
    w.tell(event)
    w.settle()
    assert w.project(A).serving is not None
    assert [settled.ok for settled in w.heard(e.Settled)] == [False, True]


def test_a_project_whose_file_is_gone_is_not_found_and_forgotten() -> None:
    w = world()
    worker = w.serve(A)
    running = w.arrive(A)
    w.arrive(A, RequestClass.PRINT)
    w.tell(e.Vanished(A))
    assert w.clients[running].ends == [], "what runs is finished"
    w.done(running)
    w.settle(answering=True)
    assert worker not in w.machine.workers
    w.settle()
    assert A not in w.machine.projects


def test_those_who_wait_for_a_project_whose_file_goes_are_told_so() -> None:
    w = world()
    job = w.arrive(A)
    w.tell(e.Vanished(A))
    assert isinstance(error_of(w, job), ProjectNotFound)


def test_a_pinned_project_whose_file_comes_back_is_loaded() -> None:
    w = world()
    w.tell(e.LoadOrdered(ref(A), pin=True))
    w.settle()
    w.tell(e.Vanished(A))
    w.settle()
    assert w.project(A).serving is None
    w.tell(e.Changed(ref(A, 5)))
    w.settle()
    assert w.project(A).serving is not None


def test_a_dropped_project_is_unloaded_and_the_next_request_loads_it_again() -> None:
    w = world()
    w.serve(A)
    said = w.tell(e.DropOrdered(A))
    assert e.Settled(A, 0, True, "dropped") in said
    assert any(isinstance(do, e.EndSnapshot) for do in said)
    w.settle()
    assert A not in w.machine.projects and w.machine.workers == {}
    job = w.arrive(A)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_a_generation_number_is_never_used_again_even_after_a_drop() -> None:
    w = world(idle_worker_s=5.0)
    w.serve(A)
    w.wait(6)
    w.settle()
    w.tell(e.DropOrdered(A))  # its snapshot is killed, and not gone yet
    w.arrive(A)
    numbers = [do.generation for do in w.heard(e.ForkSnapshot)]
    assert len(numbers) == len(set(numbers)) == 2


def test_those_who_wait_for_a_dropped_project_get_its_next_load() -> None:
    w = world()
    job = w.arrive(A)
    w.tell(e.DropOrdered(A))
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


# pinned projects, idle workers, pings


def test_a_pinned_project_keeps_one_spare_worker() -> None:
    w = world(idle_worker_s=5.0)
    w.tell(e.LoadOrdered(ref(A), pin=True))
    w.settle()
    for job in busy_jobs(w, A, 3):
        w.done(job)
    for _ in range(5):
        w.wait(4)
        w.settle()
    assert [worker.state for worker in w.machine.workers.values()] == [WorkerState.IDLE]
    w.lose_worker(next(iter(w.machine.workers)))
    assert len(w.machine.workers) == 1


def test_a_pinned_project_that_does_not_load_is_tried_again_by_itself() -> None:
    w = world()
    w.tell(e.LoadOrdered(ref(A), pin=True))
    w.lose_snapshot(A, "the database is down")
    w.wait(70)
    w.settle()
    assert w.project(A).serving is not None


def test_an_idle_worker_is_told_to_stop_and_the_snapshot_stays() -> None:
    w = world(idle_worker_s=5.0)
    worker = w.serve(A)
    w.wait(5.1)
    assert w.heard(e.StopWorker) == [e.StopWorker(worker)]
    w.settle()
    assert w.machine.workers == {}
    assert w.project(A).counters.ended == {Reason.IDLE: 1}
    loads = len(w.heard(e.ForkSnapshot))
    job = w.arrive(A)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"] and len(w.heard(e.ForkSnapshot)) == loads


def test_a_worker_that_does_not_stop_is_killed() -> None:
    w = world(idle_worker_s=5.0, stop_timeout_s=2.0)
    worker = w.serve(A)
    w.wait(5.1)
    assert w.heard(e.KillWorker) == []
    w.wait(2)
    assert w.heard(e.KillWorker) == [e.KillWorker(worker, Reason.IDLE)]


def test_an_idle_worker_that_answers_pings_lives_and_one_that_does_not_is_killed() -> None:
    w = world(ping_interval_s=10.0, ping_timeout_s=5.0, idle_worker_s=1000.0)
    worker = w.serve(A)
    for _ in range(20):
        w.wait(3)
        if w.workers[worker].pinged:
            w.worker_pongs(worker)
    assert len(w.heard(e.SendPing)) >= 3 and w.heard(e.KillWorker) == []
    w.wait(20)
    assert w.heard(e.KillWorker) == [e.KillWorker(worker, Reason.PING)]


def test_a_ping_follows_the_answer_to_the_one_before_after_the_interval() -> None:
    w = world(ping_interval_s=10.0, ping_timeout_s=2.0, idle_worker_s=1000.0)
    worker = w.serve(A)
    w.wait(10.1)
    w.worker_pongs(worker)
    w.wait(8)
    assert len(w.heard(e.SendPing)) == 1


def test_a_busy_worker_is_not_pinged() -> None:
    w = world(ping_interval_s=10.0)
    w.serve(A)
    w.arrive(A, timeout_s=100.0)
    w.wait(60)
    assert w.heard(e.SendPing) == [] and w.heard(e.KillWorker) == []


def test_a_worker_that_served_its_number_of_requests_is_replaced() -> None:
    w = world(max_requests=3)
    worker = w.serve(A)
    for _ in range(2):
        w.done(w.arrive(A))
    w.settle()
    assert w.heard(e.StopWorker) == [e.StopWorker(worker)]
    assert w.project(A).counters.ended == {Reason.MAX_REQUESTS: 1}


# the old way: each worker loads the project itself


def test_a_project_that_cannot_be_forked_is_loaded_by_each_worker() -> None:
    w = world()
    job = w.arrive(A)
    w.settle(answering=True, mode=Mode.LOADED)
    assert w.clients[job].ends == ["done"]
    (fork,) = w.heard(e.ForkWorker)
    assert fork.path == f"/srv/{A}" and fork.zygote == 1
    serving = w.project(A).serving
    assert serving is not None and (serving.mode, serving.why) == (Mode.LOADED, "threads stay")


def test_a_worker_that_loads_itself_has_the_time_of_a_load() -> None:
    w = world(boot_timeout_s=3.0, load_timeout_s=100.0)
    w.arrive(A, timeout_s=1000.0)
    token = (A, w.project(A).newest)
    w.snapshot_forked(token)
    w.snapshot_loaded(token, Mode.LOADED)
    (worker,) = w.workers
    w.worker_forked(worker)
    w.wait(90)
    assert w.heard(e.KillWorker) == []
    w.wait(11)
    assert w.heard(e.KillWorker)[0] == e.KillWorker(worker, Reason.BOOT)


def test_a_project_loaded_by_its_workers_waits_for_a_zygote_that_is_down() -> None:
    w = world()
    job = w.arrive(A)
    token = (A, w.project(A).newest)
    w.snapshot_forked(token)
    w.lose_zygote()
    w.snapshot_loaded(token, Mode.LOADED)
    w.wait(1.1)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_a_zygote_that_dies_with_a_loading_worker_on_order_is_no_fault_of_the_project() -> None:
    w = world()
    job = w.arrive(A)
    token = (A, w.project(A).newest)
    w.snapshot_forked(token)
    w.snapshot_loaded(token, Mode.LOADED)
    w.lose_zygote()
    w.wait(1.1)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"], w.clients[job].error


# memory


def sample(w: World, private: dict[int, int], pool: int = 1000) -> list[e.Instruction]:
    """MiB of workers; the budget of the pool is 4096 MiB."""
    workers = {number: size << 20 for number, size in private.items()}
    return w.tell(e.MemorySampled(workers, {}, pool << 20, 4096 << 20))


def test_a_worker_over_its_memory_is_replaced_after_its_request() -> None:
    w = world()
    worker = w.serve(A)
    job = w.arrive(A)
    assert sample(w, {worker: 600}) == []
    assert w.worker(worker).state is WorkerState.RETIRING
    w.done(job)
    w.settle()
    assert w.project(A).counters.ended == {Reason.MEMORY: 1}


def test_a_request_over_twice_the_memory_of_a_worker_is_tried_once_more_and_then_told() -> None:
    """The first time it may be innocent: the worker may have leaked before."""
    w = world()
    first = w.serve(A)
    job = w.arrive(A)
    assert e.KillWorker(first, Reason.MEMORY) in sample(w, {first: 1100})
    w.settle()
    second = w.worker_of(job)
    assert second not in (0, first)
    assert e.KillWorker(second, Reason.MEMORY) in sample(w, {second: 1100})
    w.settle()
    error = error_of(w, job)
    assert isinstance(error, WorkerLost) and "memory" in str(error)


def test_a_pool_over_its_memory_ends_idle_workers_then_evicts_then_refuses_loads() -> None:
    w = world()
    w.serve(A)
    assert any(isinstance(do, e.StopWorker) for do in sample(w, {}, pool=5000))
    w.settle()
    said = sample(w, {}, pool=5000)
    assert [do.reason for do in said if isinstance(do, e.EndSnapshot)] == [Reason.EVICTED]
    assert isinstance(error_of(w, w.arrive(B)), Unavailable)
    sample(w, {}, pool=1000)
    job = w.arrive(B)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_who_is_refused_for_want_of_memory_may_come_back_after_two_looks() -> None:
    w = world()
    sample(w, {}, pool=1000)
    w.wait(7.0)
    sample(w, {}, pool=5000)
    assert error_of(w, w.arrive(A)).retry_after == 14


def test_the_largest_worker_is_killed_though_it_is_to_end_after_its_request() -> None:
    w = world()
    w.serve(A)
    small, large = busy_jobs(w, A, 2)
    sizes = {w.worker_of(small): 100, w.worker_of(large): 700}
    sample(w, sizes, pool=5000)
    assert w.heard(e.KillWorker) == [e.KillWorker(w.worker_of(large), Reason.EVICTED)]


def test_a_spare_worker_is_not_killed_and_forked_again_in_a_circle() -> None:
    """It is all there is to kill: once, if it may have grown; what is left is what must stay."""
    w = world()
    w.tell(e.LoadOrdered(ref(A), pin=True))
    w.settle()

    def kills() -> int:
        for _ in range(20):
            sample(w, dict.fromkeys(w.machine.workers, 10), pool=5000)
            w.settle()
        return len(w.heard(e.KillWorker))

    forks = len(w.heard(e.ForkWorker))
    assert kills() == 0 and len(w.heard(e.ForkWorker)) == forks
    w.arrive(A)
    w.settle(answering=True)
    assert kills() == 1 and len(w.heard(e.ForkWorker)) == forks + 1


def test_kills_for_the_sake_of_the_pool_leave_it_time() -> None:
    w = world()
    w.serve(A)
    busy_jobs(w, A, 3)
    killed = []
    for _ in range(9):
        sample(w, dict.fromkeys(w.machine.workers, 10), pool=5000)
        killed.append(len(w.heard(e.KillWorker)))
        w.settle()
    assert killed == [1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_a_pinned_project_is_not_evicted() -> None:
    w = world()
    w.tell(e.LoadOrdered(ref(A), pin=True))
    w.settle()
    sample(w, {}, pool=5000)
    assert w.heard(e.EndSnapshot) == [] and w.heard(e.StopWorker) == []


def test_a_request_killed_for_the_sake_of_the_pool_runs_again() -> None:
    w = world(breaker_failures=1)
    worker = w.serve(A)
    job = w.arrive(A)
    assert any(isinstance(do, e.KillWorker) for do in sample(w, {worker: 100}, pool=5000))
    sample(w, {}, pool=1000)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"], w.clients[job].error


def test_a_worker_that_holds_its_project_itself_is_not_killed_for_that() -> None:
    w = world()
    job = w.arrive(A)
    token = (A, w.project(A).newest)
    w.snapshot_forked(token)
    w.snapshot_loaded(token, Mode.LOADED)
    (worker,) = w.machine.workers
    w.worker_forked(worker)
    sample(w, {worker: 1500})
    w.settle()
    assert w.worker_of(job) == worker
    sample(w, {worker: 1500})
    assert w.heard(e.KillWorker) == []


# the breaker


def test_a_project_that_fails_again_and_again_is_refused_for_a_while() -> None:
    w = world(breaker_failures=3, breaker_pause_s=10.0)
    w.serve(A)
    for _ in range(3):
        w.settle()
        w.lose_worker(w.worker_of(w.arrive(A, idempotent=False)))
    w.settle()
    error = error_of(w, w.arrive(A))
    assert isinstance(error, Unavailable) and error.retry_after == 10
    other = w.arrive(B)
    w.settle(answering=True)
    assert w.clients[other].ends == ["done"], "its neighbours are not touched"
    w.wait(10.1)
    w.settle()
    probe, second = w.arrive(A), w.arrive(A)
    assert isinstance(error_of(w, second), Unavailable), "one probe at a time"
    w.settle()
    w.done(probe)
    job = w.arrive(A)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


def test_a_probe_that_hangs_lets_no_other_pass_while_its_worker_is_examined() -> None:
    w = world(breaker_failures=1, breaker_pause_s=10.0)
    w.serve(A)
    w.arrive(A, timeout_s=2.0)
    w.wait(2.1)
    assert isinstance(error_of(w, w.arrive(A)), Unavailable), "open before the worker has gone"
    w.wait(10.1)
    w.settle()
    probe = w.arrive(A, timeout_s=2.0)
    w.settle()
    assert w.worker_of(probe)
    w.wait(2.1)
    assert error_of(w, w.arrive(A)).retry_after == 20
    w.settle()
    assert error_of(w, w.arrive(A)).retry_after == 20, "its exit does not count once more"


def test_another_file_closes_the_breaker() -> None:
    w = world(breaker_failures=1)
    w.lose_worker(w.worker_of((w.serve(A), w.arrive(A, idempotent=False))[1]))
    assert isinstance(error_of(w, w.arrive(A)), Unavailable)
    w.files[A] = 2
    w.tell(e.Changed(ref(A, 2)))
    job = w.arrive(A)
    w.settle(answering=True)
    assert w.clients[job].ends == ["done"]


# the end


def test_a_stopping_pool_finishes_what_it_has_and_takes_nothing_new() -> None:
    w = world()
    w.serve(A)
    job = w.arrive(A)
    w.tell(e.StopOrdered(w.now + 30))
    assert isinstance(error_of(w, w.arrive(A)), Unavailable)
    assert not w.all_done
    w.done(job)
    assert w.clients[job].ends == ["done"] and w.all_done


def test_a_stopping_pool_without_requests_is_done_at_once() -> None:
    w = world()
    w.serve(A)
    assert e.AllDone() in w.tell(e.StopOrdered(w.now + 30))


def test_at_its_deadline_a_stopping_pool_ends_whatever_is_left() -> None:
    w = world(workers=2, project_workers=2)
    w.serve(A)
    running, streaming = busy_jobs(w, A, 2)
    queued = w.arrive(A, timeout_s=100.0)
    w.head(streaming)
    w.tell(e.StopOrdered(w.now + 3))
    w.wait(3.1)
    assert w.all_done and w.machine.jobs == {}
    assert isinstance(error_of(w, running), Unavailable)
    assert isinstance(error_of(w, queued), Unavailable)
    assert w.clients[streaming].ends == ["abort"]
