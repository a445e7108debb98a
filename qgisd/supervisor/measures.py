"""What is counted in a pool since the daemon started, for metrics. Pure: numbers only.

Counts here outlive the records of `model.py`, which are forgotten with the project. What is so at
this moment is in `stats.py`; what it is called outside, in `http/metrics.py`.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from qgisd.supervisor import events as e
from qgisd.supervisor.story import Story
from qgisd.words import Outcome, Reason, RequestClass

#: Upper ends of buckets, in seconds, from a cached answer to the longest print or load.
BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0,
    60.0, 120.0, 300.0,
)  # fmt: skip
#: Projects that are counted one by one: each is a file below our roots, yet there may be many.
_MOST_PROJECTS = 10_000


class Histogram:
    """How often something took how long."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        #: By bucket; the last one is for what is beyond all bounds.
        self.counts = [0] * (len(BOUNDS) + 1)
        #: Seconds.
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Of:
    """Requests of one class."""

    __slots__ = ("bytes", "load", "outcomes", "queue", "render", "total")

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = {
            outcome: 0 for outcome in Outcome if outcome is not Outcome.UNDER_WAY
        }
        #: Of those that were given to a worker, and of those that waited for a load.
        self.queue = Histogram()
        self.render = Histogram()
        self.load = Histogram()
        #: Of all.
        self.total = Histogram()
        self.bytes = 0


class OfProject:
    """Requests of one project."""

    __slots__ = ("outcomes", "render_s", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.outcomes: dict[Outcome, int] = {}
        self.render_s = 0.0


class Measures:
    """Of one pool."""

    def __init__(self) -> None:
        self.classes: dict[RequestClass, Of] = {}
        self.projects: dict[str, OfProject] = {}
        #: Processes that were ordered: "zygote", "snapshot", "worker".
        self.forks: Counter[str] = Counter()
        #: Workers that ended, and those of them that were killed.
        self.ends: Counter[Reason] = Counter()
        self.kills: Counter[Reason] = Counter()
        self.retries = 0
        #: Loads of projects that came to their end, and that came to nothing.
        self.loads = Histogram()
        self.failed_loads = 0
        #: Bytes at the last sample: (process, "private" or "shared"). All of them together are
        #: what the pool uses: a page that n processes share counts 1/n in each (PSS).
        self.memory: dict[tuple[str, str], int] = {}
        self.memory_limit = 0
        #: Instructions that are counted.
        self.counted: Mapping[type, Callable[[Any], None]] = {
            e.StartZygote: lambda do: self._forked("zygote"),
            e.ForkSnapshot: lambda do: self._forked("snapshot"),
            e.ForkWorker: lambda do: self._forked("worker"),
            e.KillWorker: lambda do: self.kills.update((do.reason,)),
            e.WorkerEnded: lambda do: self.ends.update((do.reason,)),
            e.Retry: self._retried,
        }

    def count(self, performers: dict[type, Callable[[Any], None]]) -> None:
        """Have instructions counted, besides being carried out as before."""
        for kind, counted in self.counted.items():
            performers[kind] = _both(counted, performers[kind])

    def told(self, story: Story) -> None:
        """A request has come to its end."""
        of = self.classes.get(story.request_class)
        if of is None:
            of = self.classes[story.request_class] = Of()
        of.outcomes[story.outcome] += 1
        of.bytes += story.bytes
        of.total.observe(story.total_ms / 1000)
        if story.attempts:
            of.queue.observe(story.queue_ms / 1000)
            of.render.observe(story.render_ms / 1000)
        if story.load_ms:
            of.load.observe(story.load_ms / 1000)
        project = self.projects.get(story.project)
        if project is None:
            if len(self.projects) >= _MOST_PROJECTS:
                return
            project = self.projects[story.project] = OfProject()
        project.requests += 1
        project.outcomes[story.outcome] = project.outcomes.get(story.outcome, 0) + 1
        project.render_s += story.render_ms / 1000

    def load_ended(self, do: e.LoadEnded) -> None:
        """A load has come to its end."""
        if do.ok:
            self.loads.observe(do.seconds)
        else:
            self.failed_loads += 1

    def sampled(self, used: Mapping[str, tuple[int, int]], limit: int) -> None:
        """Token of a process (see wire) → its private bytes and its PSS; what all may have."""
        memory = {
            (process, kind): 0
            for process in ("zygote", "snapshot", "worker")
            for kind in ("private", "shared")
        }
        for token, (private, pss) in used.items():
            process = token.partition(" ")[0]
            memory[process, "private"] += private
            memory[process, "shared"] += max(0, pss - private)
        self.memory, self.memory_limit = memory, limit

    def _forked(self, process: str) -> None:
        self.forks[process] += 1

    def _retried(self, do: e.Retry) -> None:
        self.retries += 1


def _both(one: Callable[[Any], None], other: Callable[[Any], None]) -> Callable[[Any], None]:
    def do(instruction: Any) -> None:
        one(instruction)
        other(instruction)

    return do
