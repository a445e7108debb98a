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
    PING = "ping"
    RELOAD = "reload"
    STOP = "stop"

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


class Mode(str, Enum):
    """How workers of a generation come by their project."""

    #: Forked from a snapshot that holds it.
    FORKED = "forked"
    #: Loaded by each worker itself, because the snapshot could not be forked safely.
    LOADED = "loaded"

    def __str__(self) -> str:
        return self.value
