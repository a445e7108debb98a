"""The records of a pool: what is known of each project, load, process and request. Pure data.

Only `machine.py` changes them; `pool.py` and `stats.py` read them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from qgisd.datafiles import Versions
from qgisd.supervisor.breaker import Breaker
from qgisd.supervisor.states import GenerationState, JobState, WorkerState, ZygoteState
from qgisd.wire import BadLayer, Layer, WarmUp
from qgisd.words import Mode, Reason, RequestClass

#: How deep requests of our own workers may be nested: a project that draws one that draws one.
MOST_DEPTH = 2

#: What tells one content of a project file from another: (mtime in ns, size, inode).
Version = tuple[int, int, int]


@dataclass(frozen=True)
class ProjectRef:
    """A project file as the catalog found it."""

    #: Canonical name: root and path below it, with suffix, e.g. "world/world.qgs".
    key: str
    #: Where it is on this machine. Never shown to clients.
    path: str
    version: Version


#: What requests without a project are for: APIs of QGIS that need none. Its workers are forked from
#: a snapshot that holds nothing. No file has this key.
NO_PROJECT = ProjectRef("(none)", "", (0, 0, 0))


@dataclass(frozen=True)
class Limits:
    """The figures of one pool, from its configuration. Seconds, and counts."""

    workers: int
    project_workers: int
    max_loads: int
    queue: int
    project_queue: int
    zygote_timeout_s: float
    load_timeout_s: float
    boot_timeout_s: float
    stream_timeout_s: float
    stop_timeout_s: float
    disconnect_grace_s: float
    idle_worker_s: float
    ping_interval_s: float
    ping_timeout_s: float
    on_demand: bool
    print_workers: int
    #: A request that runs for longer lends its slot to another one; so many may, at once.
    lend_after_s: float
    lent_workers: int
    #: Private bytes after which a worker is replaced between requests; twice this: killed.
    worker_memory: int
    max_requests: int
    breaker_failures: int
    breaker_window_s: float
    breaker_pause_s: float
    #: Longest pause between attempts to start or load what failed.
    backoff_limit_s: float
    #: Longest pause between loads for data that changes all the time.
    data_reload_s: float
    #: Data that did not change for so long is written to its end.
    data_settle_s: float
    #: Pattern of keys → workers and queue of the projects it fits, None as for all.
    overrides: tuple[tuple[str, int | None, int | None], ...] = ()


@dataclass(slots=True)
class Job:
    """One request, as the pool sees it. Times are of the loop's clock."""

    id: int
    project: str
    cls: RequestClass
    #: May be run twice: everything but a write.
    idempotent: bool
    arrived: float
    #: By when its answer must have begun.
    deadline: float
    #: 0 from a client; 1 made by a worker for such a request, and so on.
    depth: int = 0
    state: JobState = JobState.QUEUED
    worker: int = 0
    attempts: int = 0
    started: float = 0.0
    #: Which load of its project it was given to last; 0 before.
    generation: int = 0
    #: Since when it is in the queue; `arrived`, but for a second attempt.
    queued: float = 0.0
    #: Seconds, of all attempts together: in the queue; of these, until its project was loaded;
    #: and in workers.
    waited: float = 0.0
    load_waited: float = 0.0
    worked: float = 0.0
    #: The client is gone; nobody waits for the answer.
    abandoned: bool = False
    #: The client does not take what is there, so that no progress is no fault of the worker.
    held: bool = False

    def __post_init__(self) -> None:
        self.queued = self.arrived

    @property
    def running(self) -> bool:
        """A worker has it."""
        return self.state in (JobState.RUNNING, JobState.STREAMING)


@dataclass(slots=True)
class Worker:
    """One incarnation: a number is never used again."""

    id: int
    project: str
    generation: int
    since: float
    state: WorkerState = WorkerState.STARTING
    job: int = 0
    served: int = 0
    #: Its request runs for long, and its slot is another one's meanwhile.
    lent: bool = False
    pid: int = 0
    #: Private memory (USS) at the last sample, bytes.
    private: int = 0
    #: What of it is the project, where the worker loaded that itself; bytes.
    own_project: int = 0
    #: A ping is out and unanswered.
    pinged: bool = False
    #: Why it was told to end, once it was.
    reason: Reason | None = None

    @property
    def live(self) -> bool:
        """May serve, now or soon."""
        return self.state in (WorkerState.STARTING, WorkerState.IDLE, WorkerState.BUSY)


@dataclass(slots=True)
class Generation:
    """One load of a project."""

    number: int
    project: str
    path: str
    version: Version
    reason: Reason
    since: float
    state: GenerationState = GenerationState.PENDING
    mode: Mode = Mode.FORKED
    #: Why not forked, where mode is LOADED.
    why: str = ""
    layers: int = 0
    bad_layers: list[BadLayer] = field(default_factory=list)
    load_ms: float = 0.0
    #: Its layers, as far as they are told.
    contents: list[Layer] = field(default_factory=list)
    warmup: WarmUp = field(default_factory=WarmUp)
    #: Since when its project is served without a break, by it or those before it.
    serves_since: float = 0.0
    #: Nobody waits for its load, as the one before serves.
    background: bool = False
    #: It is loaded because the data of the one before changed, and not the project.
    for_data: bool = False
    #: What its layers read, as they were at the load.
    data_files: Versions = field(default_factory=dict)
    #: Since when they are known to have changed.
    outdated_since: float | None = None
    #: Outdated, and to be loaded again with the next request.
    awaits_use: bool = False
    #: A snapshot process exists for it.
    snapshot: bool = False
    boot_failures: int = 0
    workers: dict[int, Worker] = field(default_factory=dict)

    @property
    def barren(self) -> bool:
        """No worker can be forked of it any more: its snapshot has died."""
        return self.mode is Mode.FORKED and not self.snapshot

    def in_state(self, *states: WorkerState) -> Iterator[Worker]:
        """Its workers in any of `states`."""
        return (worker for worker in self.workers.values() if worker.state in states)

    def live(self) -> int:
        """How many workers may serve, now or soon."""
        return sum(worker.live for worker in self.workers.values())


@dataclass(slots=True)
class Counters:
    """What happened to a project since the daemon started."""

    requests: int = 0
    #: Of these, answered from the cache.
    cached: int = 0
    errors: int = 0
    retried: int = 0
    #: Answers that came from workers, and the seconds they took there.
    answered: int = 0
    run_s: float = 0.0
    loads: int = 0
    forks: int = 0
    #: Why workers ended, by reason.
    ended: dict[Reason, int] = field(default_factory=dict)


@dataclass(slots=True)
class Project:
    """One project, while it has a generation, a request or an error worth keeping."""

    key: str
    path: str
    version: Version
    #: Workers it may have busy, and requests waiting.
    cap: int = 1
    room: int = 1
    pinned: bool = False
    #: The number of the newest generation.
    newest: int = 0
    serving: Generation | None = None
    #: Pending, loading or warming: at most one.
    coming: Generation | None = None
    #: Retired, with workers that still finish.
    leaving: list[Generation] = field(default_factory=list)
    #: What the last load said, if it failed; the generation before may still serve.
    error: str = ""
    #: Loads and snapshots that failed, since it last served for a good while.
    failures: int = 0
    switched_at: float = 0.0
    #: No new load of the same version before this.
    retry_at: float = 0.0
    #: Loads in a row that were to bring back layers whose source did not answer.
    heals: int = 0
    #: Loads in a row for data that changed, and when the next may begin.
    data_loads: int = 0
    data_not_before: float = 0.0
    #: Loads given up in a row because the file had changed again meanwhile.
    overtaken: int = 0
    #: PSS of the snapshot at the last sample, bytes.
    memory: int = 0
    since: float = 0.0
    breaker: Breaker | None = None
    counters: Counters = field(default_factory=Counters)
    #: Moving average of seconds a request of a class runs.
    cost: dict[RequestClass, float] = field(default_factory=dict)
    last_used: float = 0.0

    def generations(self) -> Iterator[Generation]:
        """All that may still have processes."""
        if self.serving:
            yield self.serving
        if self.coming:
            yield self.coming
        yield from self.leaving


@dataclass(slots=True)
class Zygote:
    """One incarnation of the pool's first process."""

    number: int
    state: ZygoteState = ZygoteState.STARTING
    since: float = 0.0
    failures: int = 0
