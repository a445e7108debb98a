"""The metrics there are: names, kinds, labels, meanings. docs/metrics.md is made of this table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Described:
    """One metric. kind: "gauge", "counter" or "histogram"."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def _gauge(name: str, text: str, *labels: str) -> Described:
    return Described(f"qgisd_{name}", "gauge", labels, text)


def _counter(name: str, text: str, *labels: str) -> Described:
    return Described(f"qgisd_{name}_total", "counter", labels, text)


def _histogram(name: str, text: str, *labels: str) -> Described:
    return Described(f"qgisd_{name}_seconds", "histogram", labels, text)


#: All there are, besides process_* (the daemon's own memory, time and descriptors).
METRICS = (
    _gauge("build_info", "Always 1: what runs.", "version", "python"),
    _gauge("loop_lag_seconds", "Longest hold-up of the daemon's loop in the last minute."),
    _gauge(
        "accept_backlog",
        "Connections that wait to be accepted, of the TCP listener with the most.",
    ),
    _counter(
        "http_answers",
        "Answers by HTTP status; 0: it ended before one had begun. Admin API and scrapes "
        "are not counted.",
        "code",
    ),
    _gauge("qgis_info", "Always 1: the QGIS of a pool.", "pool", "version"),
    _gauge(
        "ready",
        "1 if the zygote is up, all pinned projects are loaded, and it is not shutting down.",
        "pool",
    ),
    _counter(
        "requests",
        "Requests that came to an end, by how they ended.",
        "pool",
        "class",
        "outcome",
    ),
    _histogram(
        "request_queue",
        "Wait for a worker, less that for a load, of requests that got one.",
        "pool",
        "class",
    ),
    _histogram(
        "request_load",
        "Wait for the load of the project, of requests that waited for one.",
        "pool",
        "class",
    ),
    _histogram("request_render", "Time in workers, of requests that got one.", "pool", "class"),
    _histogram(
        "request_duration",
        "From arrival to the last byte that the client took.",
        "pool",
        "class",
    ),
    _counter("response_bytes", "Bytes of bodies that were sent.", "pool", "class"),
    _counter(
        "request_retries",
        "Requests given to a second worker, because the first one died.",
        "pool",
    ),
    _gauge("queue_length", "Requests that wait for a worker or a load.", "pool"),
    _gauge(
        "requests_slow",
        "Requests that wait or run, and have for longer than slow_s or class_slow_s.",
        "pool",
        "class",
    ),
    _gauge("slots", "Workers that may be busy at once (pool.workers).", "pool"),
    _gauge("slots_busy", "Workers that are busy.", "pool"),
    _gauge(
        "slots_lent",
        "Of the busy ones, those that run for so long that their slot is another one's.",
        "pool",
    ),
    _gauge("workers", "Worker processes.", "pool", "state"),
    _gauge(
        "snapshots",
        "Snapshot processes: loaded projects that workers are forked from.",
        "pool",
    ),
    _gauge("zygote_up", "1 if QGIS is started and can load projects.", "pool"),
    _gauge(
        "projects",
        "Projects; stale: serving, but the newest file does not load.",
        "pool",
        "state",
    ),
    _gauge(
        "generations",
        "Loads of projects, from the order to the end of the last worker.",
        "pool",
        "state",
    ),
    _gauge("bad_layers", "Layers that did not open, in what serves.", "pool"),
    _gauge(
        "breakers_open",
        "Projects that are refused because their workers failed too often.",
        "pool",
    ),
    _gauge(
        "memory_bytes",
        "Memory of processes: private, and shared, of which each counts its part. The sum "
        "is what the pool uses (PSS).",
        "pool",
        "process",
        "kind",
    ),
    _gauge(
        "memory_limit_bytes",
        "What they may use together: pool.memory, or the cgroup's limit if that is lower.",
        "pool",
    ),
    _counter("forks", "Processes that were ordered.", "pool", "process"),
    _counter("worker_ends", "Workers that ended, however.", "pool", "reason"),
    _counter("worker_kills", "Workers that were killed.", "pool", "reason"),
    _histogram("load", "Loads of projects that succeeded.", "pool"),
    _counter("load_failures", "Loads of projects that failed.", "pool"),
    _counter("cache_hits", "Requests answered from the cache.", "pool"),
    _counter(
        "cache_misses",
        "Requests that may be answered from the cache, and were not there.",
        "pool",
    ),
    _gauge("cache_bytes", "Bytes of answers that are kept.", "pool"),
    _gauge("cache_limit_bytes", "Bytes of answers that may be kept (pool.cache).", "pool"),
    _gauge("cache_entries", "Answers that are kept.", "pool"),
    _counter(
        "project_requests",
        "Requests that came to an end, of one project.",
        "pool",
        "project",
        "outcome",
    ),
    _counter("project_render_seconds", "Time in workers, of one project.", "pool", "project"),
    _gauge("project_up", "1 if it is loaded and serves.", "pool", "project"),
    _gauge(
        "project_failing",
        "1 if its newest file does not load; an older one may serve.",
        "pool",
        "project",
    ),
    _gauge(
        "project_generation",
        "Number of the load that serves; 0 if none does.",
        "pool",
        "project",
    ),
    _gauge("project_load_seconds", "How long the load took that serves.", "pool", "project"),
    _gauge("project_bad_layers", "Layers that did not open, in what serves.", "pool", "project"),
    _gauge("project_workers", "Worker processes.", "pool", "project"),
    _gauge("project_queue_length", "Requests that wait.", "pool", "project"),
    _gauge(
        "project_requests_slow",
        "Requests that wait or run, and have for longer than slow_s or class_slow_s.",
        "pool",
        "project",
    ),
    _gauge(
        "project_memory_bytes",
        "Its part of the memory of its snapshot, and private memory of its workers.",
        "pool",
        "project",
    ),
)
