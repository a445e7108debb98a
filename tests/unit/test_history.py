"""What projects did by the minute."""

from qgisd.supervisor.history import KEPT, STEP_S, History, Minute
from qgisd.supervisor.model import Counters, Project


class Pool:
    """Projects whose counters a test sets."""

    def __init__(self) -> None:
        self.projects: dict[str, Project] = {}
        self.history = History(0.0, self.projects)

    def count(self, key: str, *counts: float) -> None:
        """Requests, errors, answers and seconds so far."""
        requests, errors, answered, run_s = (*counts, 0, 0, 0.0)[:4]
        project = self.projects.setdefault(key, Project(key, "/" + key, (1, 1, 1), 1))
        project.counters = Counters(
            requests=int(requests), errors=int(errors), answered=int(answered), run_s=run_s
        )


def test_the_open_row_tells_what_happened_since_it_was_opened() -> None:
    pool = Pool()
    pool.count("a", 3, 1, 2, 0.5)
    pool.count("b", 0)
    assert pool.history.rows(0, 10.0) == [Minute(1, 10.0, {"a": (3, 1, 2, 0.5)})]


def test_rows_are_closed_by_the_minute_and_hold_differences() -> None:
    pool = Pool()
    pool.count("a", 1)
    pool.history.note(STEP_S - 0.1)  # too early
    pool.count("a", 5, 1, 4, 2.0)
    pool.history.note(STEP_S)
    pool.count("a", 7, 1, 6, 2.5)
    pool.count("b", 1)
    assert pool.history.rows(0, STEP_S + 10) == [
        Minute(1, STEP_S, {"a": (5, 1, 4, 2.0)}),
        Minute(2, 10.0, {"a": (2, 0, 2, 0.5), "b": (1, 0, 0, 0.0)}),
    ]
    assert [row.number for row in pool.history.rows(1, STEP_S + 10)] == [2]


def test_an_hour_is_kept() -> None:
    pool = Pool()
    for minute in range(1, KEPT + 10):
        pool.count("a", minute)
        pool.history.note(minute * STEP_S)
    rows = pool.history.rows(0, (KEPT + 9) * STEP_S)
    assert [row.number for row in rows] == list(range(10, KEPT + 11))
    assert rows[0].projects == {"a": (1, 0, 0, 0.0)}
    assert rows[-1] == Minute(KEPT + 10, 0.0, {})


def test_a_project_that_was_forgotten_begins_anew() -> None:
    pool = Pool()
    pool.count("a", 50, 0, 50, 9.0)
    pool.history.note(STEP_S)
    del pool.projects["a"]
    pool.history.note(2 * STEP_S)
    pool.count("a", 4, 0, 4, 1.0)
    pool.history.note(3 * STEP_S)
    pool.count("a", 2, 1, 1, 0.5)  # forgotten and back within a minute
    pool.history.note(4 * STEP_S)
    assert [row.projects for row in pool.history.rows(1, 4 * STEP_S)] == [
        {},
        {"a": (4, 0, 4, 1.0)},
        {"a": (2, 1, 1, 0.5)},
        {},
    ]
