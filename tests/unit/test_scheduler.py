"""Who is next: bounds, fairness between projects, ageing within one; nothing lost or starved."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgisd.errors import Unavailable
from qgisd.supervisor.model import Job
from qgisd.supervisor.scheduler import AGEING, Scheduler
from qgisd.words import RequestClass

MAP, LEGEND, PRINT = RequestClass.MAP, RequestClass.LEGEND, RequestClass.PRINT


class Queue(Scheduler):
    """A scheduler with the same room for every project."""

    def __init__(self, total: int, room: int) -> None:
        super().__init__(total)
        self._room = room

    def add(self, job: Job, front: bool = False) -> None:
        self.push(job, self._room, front)


COSTS = {MAP: 0.5, LEGEND: 0.05, PRINT: 10.0}


def job(number: int, project: str, cls: RequestClass = MAP, arrived: float = 0.0) -> Job:
    return Job(number, project, cls, True, arrived, arrived + 20)


def take(queue: Scheduler, now: float = 0.0, barred: frozenset[str] = frozenset()) -> Job | None:
    """The next one, where every project but the barred ones has a worker."""
    return queue.take(
        now,
        lambda project: project not in barred,
        lambda project, cls: COSTS.get(cls, 0.1),
        lambda project, cls: True,
    )


def numbers(queue: Scheduler, now: float = 0.0) -> list[int]:
    """All that is left, in its order."""
    found = []
    while (taken := take(queue, now)) is not None:
        found.append(taken.id)
    return found


def test_an_empty_queue_has_nothing() -> None:
    assert take(Queue(10, 10)) is None


def test_requests_of_one_class_run_first_come_first_served() -> None:
    queue = Queue(10, 10)
    for number in range(5):
        queue.add(job(number, "a"))
    assert numbers(queue) == [0, 1, 2, 3, 4]


def test_projects_take_turns_whatever_the_flood() -> None:
    queue = Queue(100, 100)
    for number in range(6):
        queue.add(job(number, "flood"))
    queue.add(job(10, "b"))
    queue.add(job(11, "b"))
    assert numbers(queue) == [0, 10, 1, 11, 2, 3, 4, 5]


def test_a_project_that_cannot_run_now_keeps_its_turn() -> None:
    queue = Queue(10, 10)
    for number, project in enumerate(["a", "b", "c"]):
        queue.add(job(number, project))
    first = take(queue, barred=frozenset({"a"}))
    assert first is not None and first.project == "b"
    assert queue.projects() == ["a", "c"]


def test_a_class_that_may_not_run_is_passed_by_others() -> None:
    queue = Queue(10, 10)
    queue.add(job(1, "a", LEGEND))
    queue.add(job(2, "a", MAP))
    taken = queue.take(0.0, lambda p: True, lambda p, c: COSTS[c], lambda p, c: c is not LEGEND)
    assert taken is not None and taken.id == 2
    assert queue.waiting("a") == 1


def test_the_cheap_goes_before_the_expensive() -> None:
    queue = Queue(10, 10)
    queue.add(job(1, "a", PRINT))
    queue.add(job(2, "a", LEGEND))
    assert numbers(queue) == [2, 1]


def test_the_expensive_that_waited_long_enough_goes_before_the_cheap() -> None:
    queue = Queue(10, 10)
    queue.add(job(1, "a", PRINT, arrived=0.0))
    wait = COSTS[PRINT] / AGEING
    queue.add(job(2, "a", LEGEND, arrived=wait))
    assert numbers(queue, now=wait) == [1, 2]


def test_a_full_project_queue_refuses_that_project_only() -> None:
    queue = Queue(10, 2)
    queue.add(job(1, "a"))
    queue.add(job(2, "a"))
    with pytest.raises(Unavailable, match="2 requests wait for this project"):
        queue.add(job(3, "a"))
    queue.add(job(4, "b"))
    assert queue.length == 3


def test_a_full_pool_queue_refuses_everybody() -> None:
    queue = Queue(2, 2)
    queue.add(job(1, "a"))
    queue.add(job(2, "b"))
    with pytest.raises(Unavailable, match="2 requests wait already"):
        queue.add(job(3, "c"))
    assert queue.projects() == ["a", "b"] and queue.waiting("c") == 0


def test_a_request_that_runs_again_is_let_in_and_is_first() -> None:
    queue = Queue(2, 2)
    queue.add(job(1, "a"))
    queue.add(job(2, "a"))
    queue.add(job(3, "a"), front=True)
    assert numbers(queue) == [3, 1, 2]


def test_a_request_is_taken_out_once() -> None:
    queue = Queue(10, 10)
    one = job(1, "a")
    queue.add(one)
    assert queue.remove(one)
    assert not queue.remove(one)
    assert queue.length == 0 and queue.projects() == [] and take(queue) is None


def test_draining_takes_out_one_project_and_no_other() -> None:
    queue = Queue(10, 10)
    for number in range(4):
        queue.add(job(number, "ab"[number % 2]))
    assert [one.id for one in queue.drain("a")] == [0, 2]
    assert queue.drain("a") == [] and queue.length == 2
    assert numbers(queue) == [1, 3]


Step = tuple[str, int, RequestClass]
steps = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "front", "take", "barred", "remove", "drain"]),
        st.integers(0, 3),
        st.sampled_from([MAP, LEGEND, PRINT]),
    ),
    max_size=120,
)


@given(steps)
def test_nothing_is_lost_or_doubled_and_the_bounds_hold(work: list[Step]) -> None:
    queue, inside = Queue(12, 5), dict[int, Job]()
    for now, (what, which, cls) in enumerate(work):
        project = f"p{which}"
        one = job(now, project, cls, float(now))
        if what == "push":
            mine = sum(1 for other in inside.values() if other.project == project)
            full = mine >= 5 or len(inside) >= 12
            if full:
                with pytest.raises(Unavailable):
                    queue.add(one)
            else:
                queue.add(one)
                inside[now] = one
        elif what == "front":
            queue.add(one, front=True)
            inside[now] = one
        elif what in ("take", "barred"):
            barred = frozenset({project}) if what == "barred" else frozenset()
            taken = take(queue, float(now), barred)
            if taken is None:
                assert all(other.project in barred for other in inside.values()), "work was left"
            else:
                assert taken.project not in barred
                del inside[taken.id]
        elif what == "remove":
            for number, other in list(inside.items())[:1]:
                assert queue.remove(other)
                del inside[number]
        else:
            gone = {other.id for other in queue.drain(project)}
            assert gone == {n for n, other in inside.items() if other.project == project}
            inside = {n: other for n, other in inside.items() if n not in gone}
        counted = Counter(other.project for other in inside.values())
        assert queue.length == len(inside)
        assert {key: queue.waiting(key) for key in queue.projects()} == counted
    assert sorted(numbers(queue, 1000.0)) == sorted(inside)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 1000))
def test_between_two_turns_of_a_project_every_other_one_that_waits_has_one(
    lengths: list[int], seed: int
) -> None:
    queue = Queue(100, 100)
    left = {f"p{index}": length for index, length in enumerate(lengths)}
    for project, length in left.items():
        for number in range(length):
            queue.add(job(number, project, [MAP, LEGEND, PRINT][(number + seed) % 3]))
    order = []
    while (taken := take(queue)) is not None:
        order.append(taken.project)
    for project in left:
        places = [index for index, other in enumerate(order) if other == project]
        for first, second in pairwise(places):
            between = order[first + 1 : second]
            waiting = set(order[second:]) - {project}
            assert waiting <= set(between), f"{waiting - set(between)} was passed over: {order}"


@given(st.floats(0.0, 30.0), st.floats(0.01, 0.5), st.integers(2, 8))
def test_no_class_starves_under_a_flood_of_a_cheaper_one(
    cost: float, rhythm: float, depth: int
) -> None:
    """A print waits at most for its cost over the ageing and for those that came before then."""
    queue = Queue(10_000, 10_000)
    queue.add(job(0, "a", PRINT))
    now, number, backlog = 0.0, 1, 0
    limit = cost / AGEING + depth * rhythm + rhythm
    for _ in range(10_000):
        while backlog < depth:
            queue.add(job(number, "a", LEGEND, now))
            number, backlog = number + 1, backlog + 1
        taken = queue.take(
            now, lambda p: True, lambda p, c: cost if c is PRINT else 0.0, lambda p, c: True
        )
        assert taken is not None
        if taken.cls is PRINT:
            break
        backlog -= 1
        now += rhythm
        assert now <= limit + 1e-6, f"still waiting after {now:.1f} s"
    else:
        raise AssertionError("the print never ran")
