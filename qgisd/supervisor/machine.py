"""The decisions of a pool: an event in, instructions out. Pure: no clock, no I/O, no await.

`Machine` answers for requests and workers; what it stands on, `interventions` for operators,
`pressure` for memory, `loads` for zygotes and projects, `outdated` for their data, `generations`
for their loads, `dispatch` for who runs next. All work on the records of `model.py`, which nobody
else changes.
Every way a request can end goes through `_finish`, once.
"""

from collections.abc import Callable
from typing import Any

from qgisd.errors import DeadlineExceeded, ProjectNotFound, RequestError, Unavailable, WorkerLost
from qgisd.supervisor import events as e
from qgisd.supervisor import policy
from qgisd.supervisor.breaker import Breaker
from qgisd.supervisor.interventions import Interventions
from qgisd.supervisor.model import NO_PROJECT, Generation, Job, Limits, Project, Worker
from qgisd.supervisor.states import JOB, WORKER, GenerationState, JobState, WorkerState, advance
from qgisd.words import Mode, NoteKind, Reason

#: An idempotent request is given to this many workers before it fails.
ATTEMPTS = 2
#: Workers of one generation that may fail to come up, in a row, before it counts as broken.
BOOT_FAILURES = 3
#: Ends of workers that an operator should read of.
_LOUD = (Reason.CRASH, Reason.BOOT, Reason.DEADLINE, Reason.OPERATOR, Reason.PING)
#: Ends after which another is forked at once.
_REPLACED = (Reason.CRASH, Reason.DEADLINE, Reason.DISCONNECT, Reason.OPERATOR, Reason.PING)


class Machine(Interventions):
    """The state of one pool. `handle` is the only entry."""

    def __init__(self, limits: Limits, jitter: Callable[[], float]) -> None:
        super().__init__(limits, jitter)
        self.stopping = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            e.Started: self._on_started,
            e.Arrived: self._on_arrived,
            e.AnsweredFromCache: self._on_answered_from_cache,
            e.Gone: self._on_gone,
            e.Held: self._on_held,
            e.ZygoteUp: self._on_zygote_up,
            e.ZygoteDown: self._on_zygote_down,
            e.SnapshotLoaded: self._on_snapshot_loaded,
            e.SnapshotDown: self._on_snapshot_down,
            e.WorkerUp: self._on_worker_up,
            e.WorkerHead: self._on_worker_head,
            e.WorkerProgress: self._on_worker_progress,
            e.WorkerDone: self._on_worker_done,
            e.WorkerPong: self._on_worker_pong,
            e.WorkerDown: self._on_worker_down,
            e.WorkerConfused: self._on_worker_confused,
            e.MemorySampled: self._on_memory_sampled,
            e.Changed: self._on_changed,
            e.DataChanged: self._on_data_changed,
            e.Vanished: self._on_vanished,
            e.LoadOrdered: self._on_load_ordered,
            e.ReloadOrdered: self._on_reload_ordered,
            e.DropOrdered: self._on_drop_ordered,
            e.UnpinOrdered: self._on_unpin_ordered,
            e.WorkerKillOrdered: self._on_worker_kill_ordered,
            e.JobKillOrdered: self._on_job_kill_ordered,
            e.DrainOrdered: self._on_drain_ordered,
            e.StopOrdered: self._on_stop_ordered,
            e.Tick: lambda event: None,
        }

    def handle(self, event: e.Event, now: float) -> list[e.Instruction]:
        """What to do about `event`, and about deadlines that have passed, at time `now`."""
        self.now = now
        self._out = []
        for key in self.timers.due(now):
            self._on_deadline(key)
        self._handlers[type(event)](event)
        self._start_loads()
        self._dispatch()
        return self._out

    def next_deadline(self) -> float | None:
        """When to call `handle(Tick())` at the latest."""
        return self.timers.next()

    # requests

    def _on_arrived(self, event: e.Arrived) -> None:
        job, ref = event.job, event.ref
        if self.stopping:
            self._out.append(e.Fail(job.id, Unavailable("shutting down")))
            return
        if self.draining and not job.depth:  # what runs may need what it asks for itself
            self._out.append(e.Fail(job.id, Unavailable("draining: no new requests are taken")))
            return
        project = self.projects.get(ref.key)
        if project is None:
            if not self.limits.on_demand and ref.key != NO_PROJECT.key:
                self._out.append(e.Fail(job.id, ProjectNotFound("no such project is loaded")))
                return
            project = self._adopt(ref)
        refusal = self._refusal(project, ref, job)
        if refusal is None:
            try:
                self.queue.push(job, project.room)
            except Unavailable as full:
                if project.breaker is not None:
                    project.breaker.abandoned(job.id)
                full.retry_after = self._retry_after(project)
                refusal = full
        if refusal is not None:
            project.counters.errors += 1
            self._out.append(e.Fail(job.id, refusal))
            self._maybe_forget(project)
            return
        project.counters.requests += 1
        self._used(project)
        self.jobs[job.id] = job
        self.timers.set(("job", job.id), job.deadline)
        self._need_generation(project)

    def _on_answered_from_cache(self, event: e.AnsweredFromCache) -> None:
        project = self.projects.get(event.project)
        if project is not None:
            project.counters.requests += 1
            project.counters.cached += 1
            self._used(project)

    def _on_gone(self, event: e.Gone) -> None:
        job = self.jobs.get(event.job)
        if job is None:
            return
        job.abandoned = True
        if job.state is JobState.QUEUED:
            self.queue.remove(job)
            self._finish(job)
        else:
            # What runs may be nearly done; killing a worker for each impatient click is dear.
            self.timers.set(("job", job.id), self.now + self.limits.disconnect_grace_s)

    def _on_held(self, event: e.Held) -> None:
        job = self.jobs.get(event.job)
        if job is None or job.abandoned:
            return
        job.held = event.held
        if event.held:
            # The worker waits for the client; a slow client is not a stuck worker.
            self.timers.cancel(("job", job.id))
        else:
            self.timers.set(("job", job.id), self.now + self.limits.stream_timeout_s)

    def _on_job_deadline(self, job: Job) -> None:
        if job.state is JobState.QUEUED:
            self.queue.remove(job)
            self._fail(job, self._waited_too_long(job))
            return
        reason = Reason.DISCONNECT if job.abandoned else Reason.DEADLINE
        worker = self.workers[job.worker]
        seconds = self.now - job.started
        self._learn_cost(self.projects[job.project], job)
        if job.state is JobState.RUNNING:
            self._fail(job, DeadlineExceeded(f"ended after {seconds:.1f} s without an answer"))
        else:
            self._abort(job, f"no progress for {self.limits.stream_timeout_s:g} s")
        if not job.abandoned:
            # Not with its exit, before which it is examined: no other probe may pass meanwhile.
            self._count_failure(self.projects[job.project], reason, job.id)
        self._kill(worker, reason)

    def _learn_cost(self, project: Project, job: Job) -> None:
        known = project.cost.get(job.cls)
        project.cost[job.cls] = policy.moving_average(known, self.now - job.started)

    def _waited_too_long(self, job: Job) -> RequestError:
        project = self.projects[job.project]
        wait = self._retry_after(project)
        if project.serving is None:
            return Unavailable("the project is still loading", wait)
        return Unavailable(f"waited {self.now - job.arrived:.1f} s for a worker", wait)

    def _fail(self, job: Job, error: RequestError) -> None:
        if not job.abandoned:
            self._out.append(e.Fail(job.id, error))
        self.projects[job.project].counters.errors += 1
        self._finish(job)

    def _abort(self, job: Job, reason: str) -> None:
        if not job.abandoned:
            self._out.append(e.Abort(job.id, reason))
        self.projects[job.project].counters.errors += 1
        self._finish(job)

    def _finish(self, job: Job) -> None:
        """The one end of every request: after it nothing of it is known here."""
        if job.state is JobState.QUEUED:
            self._left_queue(job)
        else:
            job.worked += self.now - job.started
        job.state = advance(JOB, job.state, "done", job.id)
        breaker = self.projects[job.project].breaker
        if breaker is not None:
            breaker.abandoned(job.id)
        self.timers.cancel(("job", job.id))
        del self.jobs[job.id]
        if self.stopping and not self.jobs:
            self._end_all()

    # workers

    def _on_worker_up(self, event: e.WorkerUp) -> None:
        worker = self.workers.get(event.worker)
        if worker is None or worker.state is not WorkerState.STARTING:
            return
        worker.pid = event.pid
        generation = self._generation_of(worker)
        self._to_idle(worker, "ready")
        text = f"worker {worker.id} (pid {worker.pid}) is ready"
        kind = NoteKind.WORKER_STARTED
        self._note(10, text, worker.project, kind, generation.number, worker.id)
        if generation.state is GenerationState.WARMING:
            self._switch(self.projects[worker.project], generation)

    def _on_worker_head(self, event: e.WorkerHead) -> None:
        job = self._running(event.worker, event.job)
        if job is not None and job.state is JobState.RUNNING:
            job.state = advance(JOB, job.state, "head", job.id)
            if not job.abandoned:
                self.timers.set(("job", job.id), self.now + self.limits.stream_timeout_s)

    def _on_worker_progress(self, event: e.WorkerProgress) -> None:
        job = self._running(event.worker, event.job)
        if job is not None and not job.abandoned and not job.held:
            self.timers.set(("job", job.id), self.now + self.limits.stream_timeout_s)

    def _on_worker_done(self, event: e.WorkerDone) -> None:
        job = self._running(event.worker, event.job)
        worker = self.workers.get(event.worker)
        if job is None or worker is None:
            return
        project = self.projects[job.project]
        self._learn_cost(project, job)
        self._generation_of(worker).boot_failures = 0
        project.counters.answered += 1
        project.counters.run_s += self.now - job.started
        if event.broken:
            self._abort(job, event.broken)
        else:
            if project.breaker is not None and project.breaker.succeeded():
                self._note(20, "the breaker closed", project.key, NoteKind.BREAKER_CLOSED)
            self._finish(job)
        self._release(worker, event.grown)

    def _on_worker_pong(self, event: e.WorkerPong) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            worker.pinged = False
            if worker.state is WorkerState.IDLE:
                self.timers.set(("ping", worker.id), self.now + self.limits.ping_interval_s)

    def _on_worker_confused(self, event: e.WorkerConfused) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            self._note(40, f"worker {worker.id} is killed: {event.detail}", worker.project)
            self._kill(worker, Reason.CRASH)

    def _on_worker_down(self, event: e.WorkerDown) -> None:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return
        generation = self._generation_of(worker)
        project = self.projects[worker.project]
        was, job = worker.state, self.jobs.get(worker.job)
        self._free_slot(worker)
        worker.state = advance(WORKER, was, "exit", worker.id)
        self.timers.cancel(("worker", worker.id))
        self.timers.cancel(("ping", worker.id))
        reason = worker.reason or (Reason.BOOT if was is WorkerState.STARTING else Reason.CRASH)
        project.counters.ended[reason] = project.counters.ended.get(reason, 0) + 1
        del generation.workers[worker.id]
        self.bare.add(worker.project)
        self._out.append(e.WorkerEnded(worker.id, worker.project, reason, event.detail, worker.job))
        level = 30 if reason in _LOUD else 10
        text = f"worker {worker.id} (pid {worker.pid}) ended: {reason}, {event.detail}"
        kind, number = NoteKind.WORKER_ENDED, generation.number
        self._note(level, text, worker.project, kind, number, worker.id, reason)
        if was not in (WorkerState.STARTING, WorkerState.IDLE, WorkerState.STOPPING):
            self._count_failure(project, reason, worker.job)
        if job is not None and job.worker == worker.id:
            self._job_lost_worker(job, event.detail, reason)
        crashed_unused = was is WorkerState.IDLE and reason is Reason.CRASH and not worker.served
        if event.never_forked:
            pass  # its forker died, and that has been seen to
        elif reason is Reason.BOOT or crashed_unused:
            self._count_boot_failure(project, generation, event.detail)
        elif reason in _REPLACED:
            # At once, whether or not anybody waits: the next request should find one ready.
            if generation is project.serving and generation.live() < project.cap:
                self._fork_worker(generation)
        self._maybe_end(project, generation)

    def _count_failure(self, project: Project, reason: Reason, job: int) -> None:
        if reason in (Reason.CRASH, Reason.DEADLINE, Reason.MEMORY):
            if project.breaker is None:
                limits = self.limits
                project.breaker = Breaker(
                    limits.breaker_failures,
                    limits.breaker_window_s,
                    limits.breaker_pause_s,
                    limits.backoff_limit_s * 5,
                )
            if project.breaker.failed(self.now, job):
                text = "the breaker opened: workers fail again and again"
                self._note(40, text, project.key, NoteKind.BREAKER_OPENED)
        elif project.breaker is not None:
            project.breaker.abandoned(job)

    def _job_lost_worker(self, job: Job, detail: str, reason: Reason) -> None:
        if job.state is JobState.STREAMING:
            self._abort(job, f"the worker died: {detail}")
        elif job.abandoned:
            self._finish(job)
        elif job.idempotent and job.attempts < ATTEMPTS:
            job.state = advance(JOB, job.state, "requeue", job.id)
            job.worker, job.queued = 0, self.now
            job.worked += self.now - job.started
            project = self.projects[job.project]
            project.counters.retried += 1
            self.queue.push(job, project.room, front=True)
            self._need_generation(project)
            self._out.append(e.Retry(job.id))
        elif reason is Reason.MEMORY:
            self._fail(job, WorkerLost("the request took more memory than a worker may have"))
        else:
            self._fail(job, WorkerLost("the process that worked on this request died"))

    def _count_boot_failure(self, project: Project, generation: Generation, detail: str) -> None:
        generation.boot_failures += 1
        if generation.boot_failures >= BOOT_FAILURES or generation.mode is Mode.LOADED:
            if generation in (project.serving, project.coming):
                self._fail_generation(project, generation, f"its workers do not start: {detail}")

    def _running(self, worker_id: int, job_id: int) -> Job | None:
        """The job, if that worker has it: frames of ended requests and workers are dropped."""
        job = self.jobs.get(job_id)
        return job if job is not None and job.worker == worker_id else None

    def _release(self, worker: Worker, grown: int) -> None:
        if worker.state not in (WorkerState.BUSY, WorkerState.RETIRING):
            return  # being killed: its slot is free already
        self._free_slot(worker)
        worker.job = 0
        worker.served += 1
        if worker.state is WorkerState.RETIRING:
            self._stop(worker, "release", worker.reason or Reason.RELOAD)
        elif policy.served_enough(worker.served, self.limits.max_requests, worker.id):
            worker.state = advance(WORKER, worker.state, "retire", worker.id)
            self._stop(worker, "release", Reason.MAX_REQUESTS)
        elif grown > self.limits.worker_memory:
            # Told with each answer: between two samples a bad leak would reach the hard limit.
            worker.state = advance(WORKER, worker.state, "retire", worker.id)
            self._stop(worker, "release", Reason.MEMORY)
        else:
            self._to_idle(worker, "release")

    def _to_idle(self, worker: Worker, event: str) -> None:
        worker.state = advance(WORKER, worker.state, event, worker.id)
        self.timers.set(("worker", worker.id), self.now + self.limits.idle_worker_s)
        self.timers.set(("ping", worker.id), self.now + self.limits.ping_interval_s)

    def _on_worker_deadline(self, worker: Worker) -> None:
        if worker.state is WorkerState.STARTING:
            self._kill(worker, Reason.BOOT)
        elif worker.state is WorkerState.STOPPING:
            self._kill(worker, worker.reason or Reason.STOP)
        elif worker.state is WorkerState.IDLE:
            project = self.projects[worker.project]
            if project.pinned and self._generation_of(worker).live() == 1:
                self.timers.set(("worker", worker.id), self.now + self.limits.idle_worker_s)
            else:
                self._stop(worker, "stop", Reason.IDLE)

    def _on_ping_due(self, worker: Worker) -> None:
        if worker.state is not WorkerState.IDLE:
            return
        if worker.pinged:
            self._kill(worker, Reason.PING)
            return
        worker.pinged = True
        self._out.append(e.SendPing(worker.id))
        self.timers.set(("ping", worker.id), self.now + self.limits.ping_timeout_s)

    def _on_deadline(self, key: Any) -> None:
        kind = key[0]
        if kind == "job":
            self._on_job_deadline(self.jobs[key[1]])
        elif kind == "worker":
            self._on_worker_deadline(self.workers[key[1]])
        elif kind == "long":
            self._on_long(self.workers[key[1]])
        elif kind == "ping":
            self._on_ping_due(self.workers[key[1]])
        elif kind == "retry":
            self._on_retry_due(key[1])
        elif kind == "heal":
            self._on_heal_due(key[1])
        elif kind == "data":
            self._on_data_due(key[1])
        elif kind == "load":
            self._on_load_deadline(key[1], key[2])
        elif kind == "zygote":
            self._on_zygote_due(key[1])
        elif kind == "stop":
            self._on_stop_deadline()

    # the end

    def _on_stop_ordered(self, event: e.StopOrdered) -> None:
        self.stopping = True
        self.timers.set(("stop",), event.deadline)
        if not self.jobs:
            self._end_all()

    def _on_stop_deadline(self) -> None:
        for job in list(self.jobs.values()):
            if job.state is JobState.QUEUED:
                self.queue.remove(job)
            if job.state is JobState.STREAMING:
                self._abort(job, "shutting down")
            else:
                self._fail(job, Unavailable("shutting down"))
        self._end_all()

    def _end_all(self) -> None:
        self._out.append(e.AllDone())
