"""The story of a request: where its time went, how it ended, and how many are kept."""

import asyncio
from typing import Any

import pytest

from qgisd.errors import DeadlineExceeded, Unavailable, WorkerLost
from qgisd.supervisor import events as e
from qgisd.supervisor import recorder
from qgisd.supervisor.exchange import Buffering, Exchange, Order
from qgisd.supervisor.model import Job, ProjectRef
from qgisd.supervisor.recorder import Recorder, Seen, story_of
from qgisd.supervisor.states import JobState
from qgisd.supervisor.story import Story
from qgisd.words import Outcome, Reason, RequestClass
from tests.unit.driver import World
from tests.unit.test_exchange import Client

A = "a.qgs"
SLOW = dict.fromkeys(RequestClass, 5.0)
REF = ProjectRef(A, "/srv/a.qgs", (1, 2, 3))


def world(**figures: object) -> World:
    made = World(**figures)
    made.start()
    return made


def figures(job: Job) -> tuple[float, float, float]:
    """Seconds in the queue but for a load, for a load, and in workers."""
    return tuple(  # type: ignore[return-value]
        round(seconds, 6) for seconds in (job.waited - job.load_waited, job.load_waited, job.worked)
    )


# where the time went, as the machine counts it


def test_the_wait_for_a_load_is_no_wait_in_the_queue() -> None:
    w = world()
    first, second = w.arrive(A), w.arrive(A)
    token = (A, 1)
    w.snapshot_forked(token)
    w.wait(3)
    w.snapshot_loaded(token)
    (worker, *_) = w.workers
    w.worker_forked(worker)
    w.wait(0.25)
    w.worker_ready(worker)
    running = first if w.worker_of(first) else second
    w.wait(1.5)
    w.done(running)
    # Its first worker is a part of the load: only then the generation serves.
    assert figures(w.jobs[running]) == (0, 3.25, 1.5)
    waiting = second if running == first else first
    w.wait(0.5)
    w.done(waiting)
    assert figures(w.jobs[waiting]) == (1.5, 3.25, 0.5)
    assert w.jobs[waiting].generation == 1


def test_who_comes_during_a_reload_does_not_wait_for_it() -> None:
    w = world(workers=1, project_workers=1)
    w.serve(A)
    running = w.arrive(A)
    w.wait(1)
    w.tell(e.ReloadOrdered(A))
    waiting = w.arrive(A)
    w.wait(2)
    w.done(running)
    w.wait(0.5)
    w.settle()
    w.done(waiting)
    assert figures(w.jobs[waiting])[1] == 0
    assert figures(w.jobs[waiting])[0] >= 2
    assert figures(w.jobs[running]) == (0, 0, 3)


def test_two_attempts_are_added_up() -> None:
    w = world(workers=1, project_workers=1)
    worker = w.serve(A)
    job = w.arrive(A)
    w.wait(2)
    w.lose_worker(worker)
    w.wait(0.5)
    w.settle()
    assert w.jobs[job].attempts == 2
    w.wait(1)
    w.done(job)
    assert figures(w.jobs[job]) == (0.5, 0, 3)
    (ended,) = w.heard(e.WorkerEnded)
    assert (ended.job, ended.reason) == (job, Reason.CRASH)


def test_a_request_that_fails_while_its_project_loads_waited_for_the_load_alone() -> None:
    w = world()
    job = w.arrive(A, timeout_s=5.0)
    w.wait(6)
    assert isinstance(w.clients[job].error, Unavailable)
    assert figures(w.jobs[job]) == (0, 5, 0)


def test_what_is_ended_at_its_deadline_worked_until_then_and_names_its_worker() -> None:
    w = world()
    worker = w.serve(A)
    job = w.arrive(A, timeout_s=5.0)
    w.wait(6)
    assert figures(w.jobs[job]) == (0, 0, 5)
    w.worker_reported(worker)
    (ended,) = w.heard(e.WorkerEnded)
    assert (ended.worker, ended.job, ended.reason) == (worker, job, Reason.DEADLINE)


def test_a_worker_that_ends_without_a_request_ends_over_none() -> None:
    w = world()
    worker = w.serve(A)
    w.lose_worker(worker)
    (ended,) = w.heard(e.WorkerEnded)
    assert ended.job == 0


# how it ended


def order(request_id: str = "id-1", url: str = "http://h/ows/?") -> Order:
    return Order(REF, "GET", url, [], b"", RequestClass.MAP, True, 20.0, request_id)


def exchange(number: int = 1, keep: Recorder | None = None, **changes: Any) -> Exchange:
    """One that tells a recorder of its end, at second 12; its job came in second 10."""
    job = Job(number, A, RequestClass.MAP, True, 10.0, 30.0)

    def closed(it: Exchange) -> None:
        if keep is not None:
            keep.finished(it, 12.0)

    return Exchange(
        job, order(**changes), Client(), Buffering(100, 1000, None, 30.0),
        lambda job, size: None, lambda job, held: None, closed,
    )  # fmt: skip


def whole(it: Exchange) -> None:
    it.head(200, [], b"twelve bytes", True)


def error_of_qgis(it: Exchange) -> None:
    it.head(400, [], b"<ServiceException/>", True)


def stream_ends(it: Exchange) -> None:
    it.head(200, [], b"", False)
    it.end()


def cached(it: Exchange) -> None:
    it.cached = True
    whole(it)


def refused(it: Exchange) -> None:
    it.fail(Unavailable("full"))


def timeout(it: Exchange) -> None:
    it.job.attempts = 1
    it.fail(DeadlineExceeded("too long"))


def lost(it: Exchange) -> None:
    it.job.attempts = 2
    it.fail(WorkerLost("died"))


def aborted(it: Exchange) -> None:
    it.head(200, [], b"", False)
    it.abort("the worker died")


def held_back(it: Exchange) -> None:
    it._sink.wants_length = True  # type: ignore[misc]
    it.head(200, [], b"", False)
    it.abort("the worker died")


def left(it: Exchange) -> None:
    it.gone(False)


def head_only(it: Exchange) -> None:
    it.head(200, [], b"", False)
    it.gone(True)


@pytest.mark.parametrize(
    ("ending", "outcome", "status", "sent", "detail"),
    [
        (whole, Outcome.OK, 200, 12, ""),
        (error_of_qgis, Outcome.ERROR, 400, 19, ""),
        (stream_ends, Outcome.OK, 200, 0, ""),
        (cached, Outcome.CACHED, 200, 12, ""),
        (refused, Outcome.REFUSED, 503, 0, "full"),
        (timeout, Outcome.TIMEOUT, 503, 0, "too long"),
        (lost, Outcome.FAILED, 503, 0, "died"),
        (aborted, Outcome.ABORTED, 200, 0, "the worker died"),
        (held_back, Outcome.FAILED, 503, 0, "the worker died"),
        (left, Outcome.DISCONNECTED, 0, 0, ""),
        (head_only, Outcome.OK, 200, 0, ""),
    ],
)
def test_each_end_has_its_word(
    ending: Any, outcome: Outcome, status: int, sent: int, detail: str
) -> None:
    async def run() -> None:
        kept = Recorder(SLOW, lambda slow: None)
        it = exchange(keep=kept)
        assert story_of(it, 11.0).outcome is Outcome.UNDER_WAY
        ending(it)
        it.abort("once more")
        (story,) = kept.stories.values()
        assert (story.outcome, story.status) == (outcome, status)
        assert (story.bytes, story.detail) == (sent, detail)

    asyncio.run(run())


def test_a_client_that_breaks_off_in_the_middle_is_disconnected() -> None:
    async def run() -> None:
        kept = Recorder(SLOW, lambda slow: None)
        it = exchange(keep=kept)
        it._sink.broken = True  # type: ignore[attr-defined]
        it.head(200, [], b"", False)
        it.chunk(b"x")
        while not it.over:
            await asyncio.sleep(0)
        (story,) = kept.stories.values()
        assert story.outcome is Outcome.DISCONNECTED

    asyncio.run(run())


# what is told


def test_times_are_those_of_the_job() -> None:
    it = exchange()
    it.job.waited, it.job.load_waited, it.job.worked = 1.5, 1.25, 0.25
    it.job.worker, it.job.attempts, it.job.generation = 7, 1, 3
    it.reason = Reason.CRASH
    row = story_of(it, 12.0).row()
    assert {name: row[name] for name in row if name.endswith("_ms")} == {
        "queue_ms": 250.0, "load_ms": 1250.0, "render_ms": 250.0, "total_ms": 2000.0,
    }  # fmt: skip
    assert (row["worker"], row["attempts"], row["generation"]) == (7, 1, 3)
    assert (row["reason"], row["request_class"], row["outcome"]) == ("crash", "map", "under_way")


def test_of_what_runs_the_time_so_far_is_told() -> None:
    it = exchange()
    it.job.state, it.job.started, it.job.worked = JobState.RUNNING, 10.5, 0.25
    assert story_of(it, 12.0).render_ms == 1750.0


def test_what_a_client_makes_long_is_cut_and_secrets_are_not_shown() -> None:
    it = exchange(url="http://h/?token=hunter2&" + "x" * 100_000)
    it.fail(Unavailable("y" * 100_000))
    story = story_of(it, 12.0)
    assert len(story.url) == 1000 and len(story.detail) == 500
    assert "hunter2" not in str(story.row())


# how many are kept


def test_the_oldest_go_first_and_the_newest_of_an_id_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "_STORIES_KEPT", 3)
    kept = Recorder(SLOW, lambda slow: None)
    for number, name in enumerate(["x", "same", "y", "same", "z"], start=1):
        refused(exchange(number, kept, request_id=name))
    assert list(kept.stories) == [3, 4, 5]
    found = kept.find("same")
    assert isinstance(found, Story) and found is kept.stories[4]
    assert kept.find("x") is None


def test_a_worker_that_ends_over_a_request_after_it_ended_is_its_reason() -> None:
    kept = Recorder(SLOW, lambda slow: None)
    timeout(exchange(1, kept))
    lost(exchange(2, kept))
    kept.ended(9, A, Reason.DEADLINE, "signal 9", 1)
    assert [story.reason for story in kept.stories.values()] == [Reason.DEADLINE, None]
    kept.ended(10, A, Reason.IDLE, "exit code 0", 0)
    assert len(kept.stories) == 2


def test_a_request_that_is_kept_lets_nobody_in() -> None:
    given = [
        ("Authorization", "Bearer hunter2hunter2"),
        ("X-Api-Key", "hunter2"),
        ("X-Auth-Token", "hunter2"),
        ("X-Lizmap-User", "anna"),
        ("User-Agent", "QGIS: 3"),
    ]
    asked = Order(
        REF, "GET", "http://h/?token=hunter2", given, b"password=hunter2", RequestClass.MAP,
        True, 20.0, "id-1",
    )  # fmt: skip
    seen = Seen.of(asked)
    assert "hunter2" not in repr(seen)
    assert ("X-Lizmap-User", "anna") in seen.headers
    assert ("User-Agent", "QGIS: 3") in seen.headers


def test_of_a_large_body_only_the_beginning_is_kept_until_the_worker_ends() -> None:
    kept = Recorder(SLOW, lambda slow: None)
    asked = Order(REF, "POST", "http://h/", [], b"x" * (1 << 20), RequestClass.MAP, True, 20.0, "i")
    kept.sent(1, asked)
    (held,) = kept._last[1]
    assert held.body == b"x" * (16 << 10) and held.request_id == "i"
    kept.ended(1, A, Reason.CRASH, "signal 11", 1)
    assert kept.crashes[A].requests[0].body == "x" * (16 << 10)


# what is slow


def test_what_waits_or_runs_for_long_is_slow_and_what_is_only_sent_is_not() -> None:
    kept = Recorder(dict.fromkeys(RequestClass, 1.5), lambda slow: None)
    long, short = story_of(exchange(), 12.0), story_of(exchange(), 11.0)
    assert (long.total_ms, short.total_ms) == (2000, 1000)
    under_way = [("queued", long), ("running", short), ("sending", long), ("running", long)]
    found = kept.slow_now(under_way)
    assert [(slow.outcome, slow.seconds) for slow in found] == [("queued", 2.0), ("running", 2.0)]
    # Since half a second ago.
    assert found[0].when == pytest.approx(long.when + 1.5)
    assert not kept.slow


def test_of_several_that_are_killed_at_once_each_is_told_once_with_its_stack() -> None:
    told: list[recorder.Slow] = []
    kept = Recorder(dict.fromkeys(RequestClass, 0.0), told.append)
    stuck = [exchange(number, kept, request_id=f"id-{number}") for number in (1, 2, 3)]
    for it in stuck:
        it.job.worker = it.number + 10
        kept.sent(it.job.worker, it.order)
        timeout(it)
    assert [slow.outcome for slow in kept.slow] == ["timeout"] * 3
    for it in stuck:
        kept.autopsy(it.number + 10, f"stack {it.number}")
        kept.ended(it.number + 10, A, Reason.DEADLINE, "signal 9", it.number)
    assert [(slow.request_id, slow.outcome, slow.stack) for slow in kept.slow] == [
        (f"id-{number}", "killed at its deadline", f"stack {number}") for number in (1, 2, 3)
    ]
    assert len(told) == 3


def test_an_answer_that_was_slow_is_not_taken_for_one_that_was_killed() -> None:
    """A proxy may give the same id to many."""
    kept = Recorder(dict.fromkeys(RequestClass, 0.0), lambda slow: None)
    answered = exchange(1, kept)
    answered.job.worker = 7
    kept.sent(7, answered.order)
    whole(answered)
    kept.sent(7, answered.order)
    kept.ended(7, A, Reason.DEADLINE, "signal 9", 2)
    assert [slow.outcome for slow in kept.slow] == ["answered", "killed at its deadline"]
