"""What the projects of a pool did, minute by minute, for the last hour: what the page draws.

Pure: somebody notes the counters now and then, and the difference since the last row is a row's.
Projects that did nothing are left out of it, so that it is small however many are loaded.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from qgisd.supervisor.model import Project

STEP_S = 60.0
KEPT = 60

#: Requests, errors, answers of workers, and the seconds that these took there.
Counts = tuple[int, int, int, float]


@dataclass(frozen=True)
class Minute:
    """One row. They are numbered from 1 as they come, as long as the daemon runs."""

    number: int
    #: How long it is; the last one is not complete.
    seconds: float
    projects: dict[str, Counts]


class History:
    """Of one pool, whose `projects` are only read, since `now`."""

    def __init__(self, now: float, projects: Mapping[str, Project]) -> None:
        self._projects = projects
        self._rows: deque[Minute] = deque(maxlen=KEPT)
        self._begun = now
        self._next = 1
        self._before: dict[str, Counts] = {}

    def note(self, now: float) -> None:
        """Close the row that is open, if it is time."""
        if now - self._begun >= STEP_S:
            self._rows.append(self._open(now))
            self._before = {key: _counts(each) for key, each in self._projects.items()}
            self._begun = now
            self._next += 1

    def rows(self, since: int, now: float) -> list[Minute]:
        """The rows after number `since`, oldest first, and the one that is open."""
        closed = [row for row in self._rows if row.number > since]
        return [*closed, self._open(now)]

    def _open(self, now: float) -> Minute:
        projects = {}
        for key, each in self._projects.items():
            counts, before = _counts(each), self._before.get(key, _NONE)
            if counts[0] < before[0]:
                before = _NONE  # it was forgotten meanwhile, and began anew
            if counts != before:
                requests, errors, answered, run_s = counts
                projects[key] = (
                    requests - before[0],
                    errors - before[1],
                    answered - before[2],
                    round(run_s - before[3], 4),
                )
        return Minute(self._next, round(now - self._begun, 3), projects)


_NONE: Counts = (0, 0, 0, 0.0)


def _counts(project: Project) -> Counts:
    counters = project.counters
    return counters.requests, counters.errors, counters.answered, counters.run_s
