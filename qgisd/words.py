"""The words that mean the same in code, configuration, logs, metrics and `ctl`.

One enum each, so that a reason in a log line is the label in a metric and the text in `ctl`.
"""

from enum import Enum


class Reason(str, Enum):
    """Why a process was started, replaced or killed."""

    BOOT = "boot"
    CRASH = "crash"
    DEADLINE = "deadline"
    DISCONNECT = "disconnect"
    EVICTED = "evicted"
    IDLE = "idle"
    MAX_REQUESTS = "max_requests"
    MEMORY = "memory"
    OPERATOR = "operator"
    PING = "ping"
    RELOAD = "reload"
    STOP = "stop"

    def __str__(self) -> str:
        return self.value


class Outcome(str, Enum):
    """How a request ended, as far as it got to a pool."""

    #: An answer of QGIS with a status below 400, complete.
    OK = "ok"
    #: The same, from the cache.
    CACHED = "cached"
    #: An answer of QGIS with a status of 400 or more, complete.
    ERROR = "error"
    #: An error of ours; no worker was given it: queue full, still loading, breaker open …
    REFUSED = "refused"
    #: An error of ours: ended at its deadline.
    TIMEOUT = "timeout"
    #: An error of ours after a worker had it: the worker died, more than once.
    FAILED = "failed"
    #: Cut after its head was out.
    ABORTED = "aborted"
    #: The client left before the end.
    DISCONNECTED = "disconnected"
    #: It has not ended.
    UNDER_WAY = "under_way"

    def __str__(self) -> str:
        return self.value


class NoteKind(str, Enum):
    """What a note of a pool is about, for those who listen to `/api/v1/events`."""

    BREAKER_CLOSED = "breaker_closed"
    BREAKER_OPENED = "breaker_opened"
    DRAINING = "draining"
    EVICTED = "evicted"
    LOAD_BEGUN = "load_begun"
    LOAD_FAILED = "load_failed"
    MEMORY = "memory"
    PINNED = "pinned"
    PROJECT_CHANGED = "project_changed"
    PROJECT_DROPPED = "project_dropped"
    PROJECT_GONE = "project_gone"
    REQUEST_SLOW = "request_slow"
    SNAPSHOT_ENDED = "snapshot_ended"
    #: A generation gets the requests from now on.
    SWITCHED = "switched"
    UNDRAINED = "undrained"
    UNPINNED = "unpinned"
    WORKER_ENDED = "worker_ended"
    WORKER_STARTED = "worker_started"
    ZYGOTE_ENDED = "zygote_ended"
    ZYGOTE_UP = "zygote_up"
    OTHER = "other"

    def __str__(self) -> str:
        return self.value


class RequestClass(str, Enum):
    """What kind of work a request is: its place in the queue and its deadline follow from it."""

    CAPABILITIES = "capabilities"
    MAP = "map"
    LEGEND = "legend"
    INFO = "info"
    FEATURE = "feature"
    PRINT = "print"
    TILE = "tile"
    API = "api"
    WRITE = "write"

    def __str__(self) -> str:
        return self.value


class PluginState(str, Enum):
    """What became of a server plugin."""

    LOADED = "loaded"
    FAILED = "failed"
    #: It is there, but not in the list of those to load.
    DISABLED = "disabled"

    def __str__(self) -> str:
        return self.value


class Mode(str, Enum):
    """How workers of a generation come by their project."""

    #: Forked from a snapshot that holds it.
    FORKED = "forked"
    #: Loaded by each worker itself, because the snapshot could not be forked safely.
    LOADED = "loaded"

    def __str__(self) -> str:
        return self.value
