"""The part of the machine that minds memory. Pure: samples in, instructions out.

Each worker has a soft and a hard limit of private memory. The pool as a whole has a budget of
PSS; over it, one step is taken per sample, the gentle ones first, and the next sample tells
whether it helped: end idle workers, evict the least valuable snapshot, refuse new loads, and
at last kill the largest worker.
"""

from qgisd.supervisor import events as e
from qgisd.supervisor import policy
from qgisd.supervisor.loads import Loads
from qgisd.supervisor.model import Project, Worker
from qgisd.supervisor.states import WORKER, WorkerState, advance
from qgisd.words import Mode, NoteKind, Reason

#: What may take memory and has not been told to end.
_AT_WORK = (WorkerState.STARTING, WorkerState.BUSY, WorkerState.RETIRING)
#: Samples between two kills for the pool's sake: memory takes a while to come back.
KILL_PAUSE = 3


class Pressure(Loads):
    """Base of `machine.Machine`: see there."""

    _samples_since_kill = KILL_PAUSE
    _sampled_at = 0.0

    def _on_memory_sampled(self, event: e.MemorySampled) -> None:
        for number, private in event.workers.items():
            worker = self.workers.get(number)
            if worker is not None:
                worker.private = private
                self._mind_worker(worker)
        for (key, generation), size in event.snapshots.items():
            project = self.projects.get(key)
            if project and project.serving and project.serving.number == generation:
                project.memory = size
        self._mind_pool(event.pool, event.budget)

    def _mind_worker(self, worker: Worker) -> None:
        if self._generation_of(worker).mode is Mode.LOADED:
            # The project is its own, and no leak: what counts is what comes on top.
            if worker.state is WorkerState.STARTING:
                return
            worker.own_project = worker.own_project or worker.private
        soft, grown = self.limits.worker_memory, worker.private - worker.own_project
        if grown > 2 * soft:
            text = f"worker {worker.id} is killed: {grown >> 20} MiB"
            self._note(30, text, worker.project, NoteKind.MEMORY, worker=worker.id)
            self._kill(worker, Reason.MEMORY)
        elif grown > soft:
            self._replace(worker, Reason.MEMORY)

    def _replace(self, worker: Worker, reason: Reason) -> None:
        """End a worker as soon as it has no request; another is forked when one is needed."""
        if worker.state is WorkerState.IDLE:
            self._stop(worker, "stop", reason)
        elif worker.state is WorkerState.BUSY:
            worker.state = advance(WORKER, worker.state, "retire", worker.id)
            worker.reason = reason
            self.bare.add(worker.project)

    def _mind_pool(self, pss: int, budget: int) -> None:
        self.memory, self.memory_limit = pss, budget
        self.sampled_every = self.now - self._sampled_at if self._sampled_at else 0.0
        self._sampled_at = self.now
        self._samples_since_kill += 1
        was, self.over_budget = self.over_budget, pss > budget
        if self.over_budget != was:
            state = "over" if self.over_budget else "within"
            text = f"the pool is {state} its memory: {pss >> 20} of {budget >> 20} MiB"
            self._note(30, text, kind=NoteKind.MEMORY)
        if not self.over_budget:
            return
        if self._end_idle_workers():
            return
        victim = self._least_valuable()
        if victim is not None:
            text = "evicted: the pool is over its memory"
            self._note(30, text, victim.key, NoteKind.EVICTED)
            self._unload(victim, Reason.EVICTED)
            self._maybe_forget(victim)
            return
        # One at rest is the spare of a pinned project, and forked again: of use where it has grown.
        workers = [
            worker
            for worker in self.workers.values()
            if worker.state in _AT_WORK or (worker.state is WorkerState.IDLE and worker.served)
        ]
        if workers and self._samples_since_kill > KILL_PAUSE:
            self._samples_since_kill = 0
            largest = max(workers, key=lambda worker: worker.private)
            text = f"worker {largest.id} is killed for the pool's sake"
            self._note(40, text, largest.project, NoteKind.MEMORY, worker=largest.id)
            # Not for its own sake: its request is tried once more, and no breaker counts it.
            self._kill(largest, Reason.EVICTED)

    def _end_idle_workers(self) -> bool:
        """True if there were any."""
        idle = [worker for worker in self.workers.values() if worker.state is WorkerState.IDLE]
        for worker in idle:
            project = self.projects[worker.project]
            spare = project.pinned and self._generation_of(worker).live() == 1
            if not spare:
                self._stop(worker, "stop", Reason.MEMORY)
        return any(worker.state is WorkerState.STOPPING for worker in idle)

    def _least_valuable(self) -> Project | None:
        """The unpinned project without work whose snapshot is worth least for its memory."""
        candidates = [
            project
            for project in self.projects.values()
            if project.serving is not None
            and not project.pinned
            and not self.queue.waiting(project.key)
            and not project.serving.live()
        ]
        return min(candidates, key=self._value, default=None)

    def _value(self, project: Project) -> float:
        assert project.serving is not None
        age = max(1.0, self.now - project.since)
        return policy.snapshot_value(
            project.counters.requests / age,
            self.now - project.last_used,
            project.serving.load_ms / 1000,
            project.memory,
        )
