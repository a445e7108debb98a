"""What the REST API takes and gives, where it is no view of `supervisor/stats.py`."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Query(BaseModel):
    """The parameters of a query: unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    pool: str | None = None
    """Only this pool."""


class LoadQuery(Query):
    """POST /projects/{project}."""

    pin: bool = False
    """Keep it loaded, with a spare worker."""


class ProjectQuery(Query):
    """What may be about one project alone."""

    project: str | None = None
    """Only this project, by key or by what MAP says."""


class EventsQuery(Query):
    """GET /events. `pool` has no effect here: events name theirs."""

    stats: bool = True
    """Pictures of all pools as well, about each second."""
    since: int | None = Field(None, ge=0)
    """First what came after this event, as far as it is kept."""


class HistoryQuery(Query):
    """GET /history."""

    since: int = 0
    """Only rows after the one of this number."""


class Answer(BaseModel):
    """Base of what is given."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Problem(Answer):
    """An error, RFC 7807."""

    type: str
    title: str
    status: int
    detail: str


class PoolRoute(Answer):
    """Where a pool is served."""

    pool: str
    route: str
    """Its OWS is at this + "/ows/"."""


class Index(Answer):
    """The daemon, and what the caller may do."""

    version: str
    qgis: str
    """Of the first pool; "" until its zygote is up."""
    python: str
    started: float
    """Unix time."""
    uptime_s: float
    role: str
    """"admin", or "read": may look, and change nothing."""
    pools: list[PoolRoute]


class Pool(Answer):
    """A pool, without its projects and workers."""

    model_config = ConfigDict(from_attributes=True, frozen=True, use_attribute_docstrings=True)

    pool: str
    zygote: str
    """"starting", "up", "backoff" or "ended"."""
    qgis: str
    services: list[str]
    busy: int
    """Workers with a request."""
    slots: int
    """So many may be busy at once."""
    queued: int
    draining: bool
    memory_bytes: int | None
    """PSS of all its processes; null until they were looked at."""
    memory_limit_bytes: int | None


class HealthReport(Answer):
    """How the daemon itself is."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    loop_lag_ms: float
    """Worst of the last minute."""
    descriptors: int
    descriptor_limit: int
    socket_folder: bool
    """The folder through which workers connect is there."""
    backlog: int
    """Connections that wait to be accepted, where the kernel tells."""


class ConfigReport(Answer):
    """The configuration in force."""

    config: dict[str, Any]
    sources: dict[str, str]
    """Dotted key → where its value came from; those not listed are defaults."""
    python: str


class SlowRequest(Answer):
    """A request that takes or took long, or was ended for that."""

    pool: str
    when: float
    """Unix time of its end, or at which one that is under way became slow."""
    request_id: str
    project: str
    request_class: str
    url: str
    seconds: float
    outcome: str
    worker: int
    stack: str
    """What the worker was doing when it was ended."""


class StoryReport(Answer):
    """A request: where its time went and how it ended, as far as it got. Times in ms."""

    pool: str
    state: str
    """"queued", "running", "streaming", "sending" (the client takes the rest) or "ended"."""
    request_id: str
    when: float
    """Unix time at which it came in."""
    project: str
    generation: int
    """The load of the project that was asked; 0 if none was."""
    request_class: str
    method: str
    url: str
    outcome: str
    status: int
    """Of HTTP; 0 if no answer had begun."""
    queue_ms: float
    """Until a worker took it up, less load_ms."""
    load_ms: float
    """Until its project was loaded."""
    render_ms: float
    """In workers."""
    total_ms: float
    """From its arrival to the last byte that the client took."""
    bytes: int
    worker: int
    """The last one that had it, or 0."""
    attempts: int
    reason: str
    """Why a worker that had it ended, if one did."""
    detail: str


class DrainState(Answer):
    """Whether a pool takes requests, and what it still has."""

    pool: str
    draining: bool
    busy: int
    queued: int


class SeenRequest(Answer):
    """A request such that it can be asked again; without secrets."""

    request_id: str
    method: str
    url: str
    headers: list[tuple[str, str]]
    body: str


class CrashReport(Answer):
    """A worker that was lost over a request, and what it had been asked, oldest first."""

    pool: str
    project: str
    when: float
    worker: int
    reason: str
    detail: str
    requests: list[SeenRequest]
    stack: str


class HistoryRow(Answer):
    """About a minute of a pool."""

    number: int
    """They are counted from 1 since the daemon started."""
    seconds: float
    """How long it is; the last one is not complete."""
    projects: dict[str, tuple[int, int, int, float]]
    """Requests, errors, answers of workers and the seconds that these took there, of each project
    that did something."""


class HistoryReport(Answer):
    """What the projects of a pool did."""

    pool: str
    rows: list[HistoryRow]
    """Oldest first, at most an hour."""
