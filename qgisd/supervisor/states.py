"""Every state of every kind of process, and the legal moves, as literal tables. Pure.

`advance` is the only way from one state to another; what the tables do not list is a defect
and raises. Exit is legal from every live state: a process may die at any moment.
"""

from enum import Enum
from typing import TypeVar

from qgisd.errors import IllegalTransition


class ZygoteState(Enum):
    """A zygote: QGIS started, no project."""

    STARTING = "starting"
    UP = "up"
    BACKOFF = "backoff"
    ENDED = "ended"


class GenerationState(Enum):
    """One load of one project, from the order to the end of its last worker."""

    #: Waits for a zygote, or for one of the loads under way to end.
    PENDING = "pending"
    LOADING = "loading"
    #: Loaded; its first worker is on its way. The generation before still serves.
    WARMING = "warming"
    SERVING = "serving"
    #: Gets no new requests; ends with its last worker.
    RETIRED = "retired"
    FAILED = "failed"
    ENDED = "ended"


class WorkerState(Enum):
    """One worker process."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    #: Busy, and to end after its request.
    RETIRING = "retiring"
    #: Told to stop; killed if it does not.
    STOPPING = "stopping"
    #: SIGKILL is on its way; its exit is awaited.
    KILLING = "killing"
    ENDED = "ended"


class JobState(Enum):
    """One request."""

    QUEUED = "queued"
    RUNNING = "running"
    #: The head is out: from here on a failure aborts the connection.
    STREAMING = "streaming"
    DONE = "done"


Z, G, W, J = ZygoteState, GenerationState, WorkerState, JobState

ZYGOTE = {
    (Z.STARTING, "up"): Z.UP,
    (Z.STARTING, "exit"): Z.BACKOFF,
    (Z.UP, "exit"): Z.BACKOFF,
    (Z.BACKOFF, "start"): Z.STARTING,
    (Z.STARTING, "end"): Z.ENDED,
    (Z.UP, "end"): Z.ENDED,
    (Z.BACKOFF, "end"): Z.ENDED,
}

GENERATION = {
    (G.PENDING, "start"): G.LOADING,
    (G.LOADING, "loaded"): G.WARMING,
    (G.LOADING, "orphaned"): G.PENDING,
    (G.WARMING, "switch"): G.SERVING,
    (G.SERVING, "retire"): G.RETIRED,
    (G.PENDING, "fail"): G.FAILED,
    (G.LOADING, "fail"): G.FAILED,
    (G.WARMING, "fail"): G.FAILED,
    (G.SERVING, "fail"): G.FAILED,
    (G.RETIRED, "end"): G.ENDED,
    (G.FAILED, "end"): G.ENDED,
}

WORKER = {
    (W.STARTING, "ready"): W.IDLE,
    (W.IDLE, "assign"): W.BUSY,
    (W.BUSY, "release"): W.IDLE,
    (W.BUSY, "retire"): W.RETIRING,
    (W.IDLE, "stop"): W.STOPPING,
    (W.RETIRING, "release"): W.STOPPING,
    (W.STARTING, "kill"): W.KILLING,
    (W.IDLE, "kill"): W.KILLING,
    (W.BUSY, "kill"): W.KILLING,
    (W.RETIRING, "kill"): W.KILLING,
    (W.STOPPING, "kill"): W.KILLING,
    (W.STARTING, "exit"): W.ENDED,
    (W.IDLE, "exit"): W.ENDED,
    (W.BUSY, "exit"): W.ENDED,
    (W.RETIRING, "exit"): W.ENDED,
    (W.STOPPING, "exit"): W.ENDED,
    (W.KILLING, "exit"): W.ENDED,
}

JOB = {
    (J.QUEUED, "assign"): J.RUNNING,
    (J.RUNNING, "head"): J.STREAMING,
    (J.RUNNING, "requeue"): J.QUEUED,
    (J.QUEUED, "done"): J.DONE,
    (J.RUNNING, "done"): J.DONE,
    (J.STREAMING, "done"): J.DONE,
}

S = TypeVar("S", bound=Enum)


def advance(table: dict[tuple[S, str], S], state: S, event: str, who: object = "") -> S:
    """The state after `event`. Raises IllegalTransition, naming `who`, if it has no place."""
    try:
        return table[state, event]
    except KeyError:
        raise IllegalTransition(f"{who}: {event!r} in state {state.value!r}") from None
