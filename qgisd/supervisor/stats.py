"""What is going on in a pool, frozen at one moment: for `ctl`, the REST API, metrics, readiness.

Built from the records of `model.py` here and nowhere else; the names of states and reasons are
those of the tables and enums.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qgisd.supervisor.model import Generation, Project, Worker
from qgisd.wire import ZygoteReady
from qgisd.words import NoteKind

if TYPE_CHECKING:
    from qgisd.supervisor.machine import Machine


@dataclass(frozen=True)
class Result:
    """What came of an order. project: "" is the zygote."""

    pool: str
    project: str
    generation: int
    ok: bool
    detail: str


@dataclass(frozen=True)
class Killed:
    """A request, a worker or both that an operator ended. worker: None where none had it."""

    pool: str
    worker: int | None
    #: "" if the worker had none.
    request_id: str
    detail: str


@dataclass(frozen=True)
class Happening:
    """Something that happened, for those who listen. "" and None: it is about none."""

    #: Seconds since 1970.
    time: float
    kind: NoteKind
    #: "debug", "info", "warning" or "error".
    level: str
    pool: str
    project: str
    generation: int | None
    worker: int | None
    reason: str
    request_id: str
    text: str


@dataclass(frozen=True)
class BadLayerView:
    name: str
    provider: str
    message: str


@dataclass(frozen=True)
class WorkerView:
    pool: str
    id: int
    pid: int
    project: str
    generation: int
    state: str
    served: int
    age_s: float
    #: The request it works on, or "".
    request_id: str
    request_class: str
    running_s: float
    #: Private memory (USS); None until it was sampled.
    private_bytes: int | None = None


@dataclass(frozen=True)
class GenerationView:
    number: int
    state: str
    reason: str
    #: "forked" or "loaded"; why says what forbids the fork.
    mode: str
    why: str
    layers: int
    bad_layers: list[BadLayerView]
    load_ms: float
    #: How far the snapshot was warmed up: "off", "capabilities" or "map"; what was done, and what
    #: kept it from more of what was asked for, "" if nothing did.
    warmup: str
    warmup_detail: str
    warmup_why: str
    workers: int


@dataclass(frozen=True)
class ProjectView:
    pool: str
    project: str
    #: "serving", "loading", "failed", "stale" (serving, but its newest file fails) or "unloaded".
    state: str
    pinned: bool
    error: str
    generations: list[GenerationView]
    queued: int
    #: PSS of its snapshot; None until it was sampled.
    memory_bytes: int | None
    #: "closed", "open" or "half_open".
    breaker: str
    requests: int
    #: Of these, answered from the cache.
    cached: int
    errors: int
    retried: int
    #: Answers that came from workers, and the seconds they took there, since the daemon started.
    answered: int
    run_s: float
    loads: int
    forks: int
    #: Workers ended, by reason.
    ended: dict[str, int]


@dataclass(frozen=True)
class PluginView:
    pool: str
    name: str
    version: str
    #: "loaded", "failed" or "disabled".
    state: str
    #: Why it failed.
    error: str
    #: What is special about it, such as a thread that forbids to fork it.
    note: str


@dataclass(frozen=True)
class LayerView:
    id: str
    name: str
    provider: str
    valid: bool
    #: None if nobody measured.
    load_ms: float | None


@dataclass(frozen=True)
class ProjectDetail(ProjectView):
    """A project with the layers of the generation that serves, by name; the first 1,000."""

    contents: list[LayerView]


@dataclass(frozen=True)
class PoolView:
    pool: str
    #: State of the zygote.
    zygote: str
    qgis: str
    services: list[str]
    plugins: list[PluginView]
    workers: list[WorkerView]
    projects: list[ProjectView]
    busy: int
    #: Of these, how many run for so long that their slot is another one's meanwhile.
    lent: int
    slots: int
    #: Snapshot processes.
    snapshots: int
    queued: int
    draining: bool
    #: PSS of all its processes, and what they may have; None until they were looked at.
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None


def view_of(
    pool: str,
    machine: "Machine",
    now: float,
    request_ids: dict[int, str],
    started: ZygoteReady | None,
) -> PoolView:
    """The frozen view. request_ids: job → X-Request-Id."""
    return PoolView(
        pool=pool,
        zygote=machine.zygote.state.value,
        qgis=started.qgis if started else "",
        services=started.services if started else [],
        plugins=[
            PluginView(pool, one.name, one.version, one.state.value, one.error, one.note)
            for one in (started.plugins if started else [])
        ],
        workers=[
            _worker(pool, worker, machine, now, request_ids) for worker in machine.workers.values()
        ],
        projects=[_project(pool, project, machine) for project in machine.projects.values()],
        busy=machine.busy,
        lent=machine.lent,
        slots=machine.limits.workers,
        snapshots=sum(
            generation.snapshot
            for project in machine.projects.values()
            for generation in project.generations()
        ),
        queued=machine.queue.length,
        draining=machine.stopping or machine.draining,
        memory_bytes=machine.memory or None,
        memory_limit_bytes=machine.memory_limit or None,
    )


def _worker(
    pool: str,
    worker: Worker,
    machine: "Machine",
    now: float,
    request_ids: dict[int, str],
) -> WorkerView:
    job = machine.jobs.get(worker.job)
    return WorkerView(
        pool=pool,
        id=worker.id,
        pid=worker.pid,
        project=worker.project,
        generation=worker.generation,
        state=worker.state.value,
        served=worker.served,
        age_s=round(now - worker.since, 3),
        request_id=request_ids.get(worker.job, "") if job else "",
        request_class=job.cls.value if job else "",
        running_s=round(now - job.started, 3) if job else 0.0,
        private_bytes=worker.private or None,
    )


def _project(pool: str, project: Project, machine: "Machine") -> ProjectView:
    return ProjectView(
        pool=pool,
        project=project.key,
        state=_state(project),
        pinned=project.pinned,
        error=project.error,
        generations=[_generation(generation) for generation in project.generations()],
        queued=machine.queue.waiting(project.key),
        memory_bytes=project.memory or None,
        breaker=project.breaker.state.value if project.breaker else "closed",
        requests=project.counters.requests,
        cached=project.counters.cached,
        errors=project.counters.errors,
        retried=project.counters.retried,
        answered=project.counters.answered,
        run_s=round(project.counters.run_s, 3),
        loads=project.counters.loads,
        forks=project.counters.forks,
        ended={reason.value: count for reason, count in project.counters.ended.items()},
    )


def detail_of(pool: str, project: Project, machine: "Machine") -> ProjectDetail:
    """One project, with its layers."""
    view = _project(pool, project, machine)
    contents = [
        LayerView(
            layer.id,
            layer.name,
            layer.provider,
            layer.valid,
            None if layer.load_ms is None else round(layer.load_ms, 1),
        )
        for layer in (project.serving.contents if project.serving else ())
    ]
    return ProjectDetail(**vars(view), contents=contents)


def _state(project: Project) -> str:
    if project.serving is not None:
        return "stale" if project.error else "serving"
    if project.coming is not None:
        return "loading"
    return "failed" if project.error else "unloaded"


def _generation(generation: Generation) -> GenerationView:
    return GenerationView(
        number=generation.number,
        state=generation.state.value,
        reason=generation.reason.value,
        mode=generation.mode.value,
        why=generation.why,
        layers=generation.layers,
        bad_layers=[
            BadLayerView(layer.name, layer.provider, layer.message)
            for layer in generation.bad_layers
        ],
        load_ms=round(generation.load_ms, 1),
        warmup=generation.warmup.level,
        warmup_detail=generation.warmup.detail,
        warmup_why=generation.warmup.why,
        workers=generation.live(),
    )
