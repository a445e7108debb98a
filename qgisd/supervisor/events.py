"""What happens to a pool, and what it decides to do: the only words between machine and shell.

Events come from HTTP, processes, the catalog and the clock. Instructions are carried out by
`pool.py`, in order, without a decision of its own. Pure data.
"""

from dataclasses import dataclass, field

from qgisd.datafiles import Versions
from qgisd.errors import RequestError
from qgisd.supervisor.model import Job, ProjectRef
from qgisd.wire import BadLayer, Layer, WarmUp
from qgisd.words import Mode, NoteKind, Reason

# events: requests


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request for a project that exists."""

    job: Job
    ref: ProjectRef


@dataclass(frozen=True, slots=True)
class AnsweredFromCache:
    """A request that cost no worker; the project is in use all the same."""

    project: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The client of a request has left."""

    job: int


@dataclass(frozen=True, slots=True)
class Held:
    """The client does not take what is there (held), or takes it again."""

    job: int
    held: bool


# events: processes


@dataclass(frozen=True, slots=True)
class ZygoteUp:
    number: int


@dataclass(frozen=True, slots=True)
class ZygoteDown:
    number: int
    message: str


@dataclass(frozen=True, slots=True)
class SnapshotLoaded:
    project: str
    generation: int
    mode: Mode
    why: str
    layers: int
    bad_layers: list[BadLayer]
    load_ms: float
    warmup: WarmUp = field(default_factory=WarmUp)
    data_files: Versions = field(default_factory=dict)
    contents: list[Layer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SnapshotDown:
    """It ended, or could not load; `message` says what is known.

    never_forked: its zygote died before it came to be, which is no fault of the project.
    crashed: it ended without a word, which may be no fault of the project either.
    """

    project: str
    generation: int
    message: str
    crashed: bool = False
    never_forked: bool = False


@dataclass(frozen=True, slots=True)
class WorkerUp:
    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class WorkerHead:
    worker: int
    job: int


@dataclass(frozen=True, slots=True)
class WorkerProgress:
    worker: int
    job: int


@dataclass(frozen=True, slots=True)
class WorkerDone:
    """The answer is complete; `broken` says that it is not, and will not be.

    grown: bytes of memory the worker has taken since it came up, as it says itself.
    """

    worker: int
    job: int
    broken: str = ""
    grown: int = 0


@dataclass(frozen=True, slots=True)
class WorkerPong:
    worker: int


@dataclass(frozen=True, slots=True)
class WorkerDown:
    """Its process ended. `detail` is for the log: "signal 11", "exit 1".

    never_forked: what was to fork it has ended, which is no fault of the project.
    """

    worker: int
    detail: str
    never_forked: bool = False


@dataclass(frozen=True, slots=True)
class WorkerConfused:
    """It sent what makes no sense; it is not to be trusted any more."""

    worker: int
    detail: str


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """Bytes: private of workers, PSS of snapshots by project and generation, PSS of the pool."""

    workers: dict[int, int]
    snapshots: dict[tuple[str, int], int]
    pool: int
    budget: int


# events: projects and operators


@dataclass(frozen=True, slots=True)
class Changed:
    """The file of a project has another version now."""

    ref: ProjectRef


@dataclass(frozen=True, slots=True)
class DataChanged:
    """A data file of this generation is not what it was at the last look."""

    project: str
    generation: int
    #: One that changed, for the log.
    path: str


@dataclass(frozen=True, slots=True)
class Vanished:
    """The file of a project is gone."""

    project: str


@dataclass(frozen=True, slots=True)
class LoadOrdered:
    """Load a project though nobody asks for it; `pin` keeps it."""

    ref: ProjectRef
    pin: bool = False


@dataclass(frozen=True, slots=True)
class ReloadOrdered:
    """A new generation of one project, or (None) a new zygote and then of all that are loaded."""

    project: str | None


@dataclass(frozen=True, slots=True)
class DropOrdered:
    """Unload a project; the next request loads it again."""

    project: str


@dataclass(frozen=True, slots=True)
class UnpinOrdered:
    """Keep a project no longer than it is used."""

    project: str


@dataclass(frozen=True, slots=True)
class WorkerKillOrdered:
    """Kill a worker; the request it has fails with it."""

    worker: int


@dataclass(frozen=True, slots=True)
class JobKillOrdered:
    """End a request, and kill the worker that has it."""

    job: int


@dataclass(frozen=True, slots=True)
class DrainOrdered:
    """Take no new requests (on), or take them again."""

    on: bool


@dataclass(frozen=True, slots=True)
class StopOrdered:
    """Take nothing new, finish what there is until `deadline`, then end."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Started:
    """The pool begins."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A deadline may have passed."""


Event = (
    Arrived | AnsweredFromCache | Gone | Held | ZygoteUp | ZygoteDown | SnapshotLoaded
    | SnapshotDown | WorkerUp | WorkerHead | WorkerProgress | WorkerDone | WorkerPong | WorkerDown
    | WorkerConfused | MemorySampled | Changed | DataChanged | Vanished | LoadOrdered
    | ReloadOrdered | DropOrdered | UnpinOrdered | WorkerKillOrdered | JobKillOrdered
    | DrainOrdered | StopOrdered | Started | Tick
)  # fmt: skip


# instructions


@dataclass(frozen=True, slots=True)
class StartZygote:
    number: int


@dataclass(frozen=True, slots=True)
class EndZygote:
    """`message` becomes that of its ZygoteDown, if it says anything."""

    number: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class ForkSnapshot:
    """background: nobody waits for it, as an older generation serves."""

    zygote: int
    project: str
    generation: int
    path: str
    background: bool = False


@dataclass(frozen=True, slots=True)
class HurrySnapshot:
    """It has loaded in the background for long enough."""

    project: str
    generation: int


@dataclass(frozen=True, slots=True)
class EndSnapshot:
    project: str
    generation: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class ForkWorker:
    """`path` is set where the worker loads the project itself, forked from the zygote."""

    zygote: int
    worker: int
    project: str
    generation: int
    path: str | None


@dataclass(frozen=True, slots=True)
class Send:
    worker: int
    job: int


@dataclass(frozen=True, slots=True)
class SendPing:
    worker: int


@dataclass(frozen=True, slots=True)
class StopWorker:
    worker: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    worker: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """For the record: why a worker is gone, and over which job, or 0."""

    worker: int
    project: str
    reason: Reason
    detail: str
    job: int


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """For the record: a project was loaded, or could not be, and how long that took."""

    project: str
    ok: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Retry:
    """The job will run again; nothing of its first attempt was sent."""

    job: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer the job with an error: its head is not out."""

    job: int
    error: RequestError


@dataclass(frozen=True, slots=True)
class Abort:
    """Cut the job's connection: its head is out and the rest will not come."""

    job: int
    reason: str


@dataclass(frozen=True, slots=True)
class Settled:
    """A load, reload or drop has come to its end. "" is the zygote's."""

    project: str
    generation: int
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something an operator may want to know: for the log, and for who listens to events.

    level: as in logging. generation, worker: 0 if it is about none.
    """

    level: int
    text: str
    project: str = ""
    kind: NoteKind = NoteKind.OTHER
    generation: int = 0
    worker: int = 0
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The pool cannot start at all."""

    message: str


@dataclass(frozen=True, slots=True)
class AllDone:
    """After StopOrdered: nothing runs any more."""


Instruction = (
    StartZygote | EndZygote | ForkSnapshot | HurrySnapshot | EndSnapshot | ForkWorker | Send
    | SendPing | StopWorker | KillWorker | WorkerEnded | LoadEnded | Retry | Fail | Abort | Settled
    | Note | GiveUp | AllDone
)  # fmt: skip
