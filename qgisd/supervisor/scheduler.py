"""Who is next: bounded queues, fair between projects, cheap before expensive within one. Pure.

Projects take turns, so a flood on one does not delay the first request of another. Within a
project the class with the smallest *cost less age* is first: a legend goes before a print, but
a print that has waited long enough goes before any legend.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from qgisd.errors import Unavailable
from qgisd.supervisor.model import Job
from qgisd.words import RequestClass

#: A second of waiting is worth this many seconds of cost.
AGEING = 1.0


class ProjectQueue:
    """The waiting requests of one project, first come first served within a class."""

    def __init__(self) -> None:
        self._lines: dict[RequestClass, deque[Job]] = {}
        self.length = 0

    def push(self, job: Job, front: bool) -> None:
        """Join the line of the job's class."""
        line = self._lines.setdefault(job.cls, deque())
        if front:
            line.appendleft(job)
        else:
            line.append(job)
        self.length += 1

    def pop(
        self, now: float, cost: Callable[[RequestClass], float], may: Callable[[RequestClass], bool]
    ) -> Job | None:
        """The next request whose class may run now, or None."""
        best: tuple[float, int, RequestClass] | None = None
        for cls, line in self._lines.items():
            if line and may(cls):
                head = line[0]
                rank = (cost(cls) - AGEING * (now - head.arrived), head.id, cls)
                if best is None or rank < best:
                    best = rank
        if best is None:
            return None
        self.length -= 1
        return self._lines[best[2]].popleft()

    def remove(self, job: Job) -> bool:
        """Leave the line; False if it was not in it."""
        try:
            self._lines[job.cls].remove(job)
        except (KeyError, ValueError):
            return False
        self.length -= 1
        return True

    def work(self, cost: Callable[[RequestClass], float]) -> float:
        """Seconds that one worker needs for all of it."""
        return sum(len(line) * cost(cls) for cls, line in self._lines.items())

    def __iter__(self) -> Iterator[Job]:
        for line in self._lines.values():
            yield from line


class Scheduler:
    """The queues of a pool."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._queues: dict[str, ProjectQueue] = {}
        #: Projects with something waiting, in the order of their turns. A project that cannot run
        #: now keeps its place.
        self._turns: dict[str, None] = {}
        self.length = 0

    def push(self, job: Job, room: int, front: bool = False) -> None:
        """Queue a request; `front` for one that runs again and has been counted before.

        room: how many of its project may wait. Raises Unavailable if its project's queue, or the
        pool's, is full.
        """
        queue = self._queues.get(job.project)
        if not front:
            if queue is not None and queue.length >= room:
                raise Unavailable(f"{queue.length} requests wait for this project already")
            if self.length >= self._total:
                raise Unavailable(f"{self.length} requests wait already")
        if queue is None:
            queue = self._queues[job.project] = ProjectQueue()
            self._turns[job.project] = None
        queue.push(job, front)
        self.length += 1

    def waiting(self, project: str) -> int:
        """How many requests of a project wait."""
        queue = self._queues.get(project)
        return queue.length if queue else 0

    def work(self, cost: Callable[[str, RequestClass], float]) -> dict[str, float]:
        """Seconds that one worker needs for what waits, by project. cost: as of `take`."""
        return {key: queue.work(partial(cost, key)) for key, queue in self._queues.items()}

    def projects(self) -> list[str]:
        """Projects with something waiting, next turn first."""
        return list(self._turns)

    def take(
        self,
        now: float,
        can_run: Callable[[str], bool],
        cost: Callable[[str, RequestClass], float],
        may: Callable[[str, RequestClass], bool],
    ) -> Job | None:
        """The next request to run, or None if none can.

        can_run: whether a project has a worker free for it now; cost: seconds a class of a
        project takes; may: whether another request of the class may run in this project.
        """
        for project in self._turns:
            if not can_run(project):
                continue
            queue = self._queues[project]
            job = queue.pop(now, partial(cost, project), partial(may, project))
            if job is not None:
                self.length -= 1
                self._end_turn(project, queue)
                return job
        return None

    def remove(self, job: Job) -> bool:
        """Take a request out of its queue; False if it was not in one."""
        queue = self._queues.get(job.project)
        if queue is None or not queue.remove(job):
            return False
        self.length -= 1
        if not queue.length:
            del self._queues[job.project]
            del self._turns[job.project]
        return True

    def drain(self, project: str) -> list[Job]:
        """Take out all requests of a project."""
        queue = self._queues.pop(project, None)
        if queue is None:
            return []
        del self._turns[project]
        self.length -= queue.length
        return list(queue)

    def _end_turn(self, project: str, queue: ProjectQueue) -> None:
        del self._turns[project]
        if queue.length:
            self._turns[project] = None
        else:
            del self._queues[project]


class Queues:
    """One Scheduler for each depth of nesting.

    A request of depth 1 was made by a worker of ours, which waits for it: a project with a WMS
    layer of another one here. The deeper goes first, and has slots of its own (`dispatch.py`).
    """

    def __init__(self, depths: int, total: int) -> None:
        self._levels = [Scheduler(total) for _ in range(depths)]

    @property
    def length(self) -> int:
        """How many requests wait."""
        return sum(level.length for level in self._levels)

    def levels(self) -> Iterator[tuple[int, Scheduler]]:
        """Depth and queue of those in which something waits, deepest first."""
        for depth in range(len(self._levels) - 1, -1, -1):
            if self._levels[depth].length:
                yield depth, self._levels[depth]

    def push(self, job: Job, room: int, front: bool = False) -> None:
        """See Scheduler.push."""
        self._levels[job.depth].push(job, room, front)

    def remove(self, job: Job) -> bool:
        """See Scheduler.remove."""
        return self._levels[job.depth].remove(job)

    def waiting(self, project: str) -> int:
        """How many requests of a project wait."""
        return sum(level.waiting(project) for level in self._levels)

    def work(self, cost: Callable[[str, RequestClass], float]) -> dict[str, float]:
        """See Scheduler.work."""
        found: dict[str, float] = {}
        for level in self._levels:
            for key, seconds in level.work(cost).items():
                found[key] = found.get(key, 0.0) + seconds
        return found

    def depth(self, project: str) -> int:
        """Of the deepest request of a project that waits; 0 if none does."""
        waiting = (depth for depth, level in self.levels() if level.waiting(project))
        return next(waiting, 0)

    def drain(self, project: str) -> list[Job]:
        """Take out all requests of a project."""
        return [job for level in self._levels for job in level.drain(project)]
