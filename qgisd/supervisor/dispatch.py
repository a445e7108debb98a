"""The part of the machine that gives requests to workers, and orders more of them. Pure."""

from functools import partial

from qgisd.supervisor import events as e
from qgisd.supervisor import policy
from qgisd.supervisor.core import Core
from qgisd.supervisor.model import Job, Project, Worker
from qgisd.supervisor.states import JOB, WORKER, GenerationState, WorkerState, advance
from qgisd.words import RequestClass


class Dispatch(Core):
    """Base of `machine.Machine`: see there."""

    def _dispatch(self) -> None:
        for depth, queue in self.queue.levels():
            # A slot more for each depth: the workers that wait for a nested request hold theirs,
            # and if they held all of them nobody would ever get on.
            slots = self.limits.workers + depth
            while queue.length and self.busy - self.lent < slots:
                can_run = partial(self._can_run, depth)
                job = queue.take(self.now, can_run, self._cost, self._may_run)
                if job is None:
                    break
                self._assign(job)
            for key in queue.projects():
                self._fork_where_wanted(self.projects[key], queue.waiting(key), depth)
        if self.bare:
            self._fork_spares()
        for key in self.coming:
            coming = self.projects[key].coming
            # Its first worker may have died on the way, or could not be ordered at the time.
            if coming and coming.state is GenerationState.WARMING and not coming.live():
                self._fork_worker(coming)

    def _fork_spares(self) -> None:
        for key in list(self.bare):
            serving = self.projects[key].serving if key in self.pinned else None
            if serving is not None and not serving.live():
                self._fork_worker(serving)
            if serving is None or serving.live():
                self.bare.discard(key)  # else it cannot be forked now: with one of the next events

    def _can_run(self, depth: int, key: str) -> bool:
        project = self.projects[key]
        if project.serving is None:
            return False
        busy = sum(
            worker.state in (WorkerState.BUSY, WorkerState.RETIRING)
            for generation in project.generations()
            for worker in generation.workers.values()
        )
        idle = next(project.serving.in_state(WorkerState.IDLE), None)
        return idle is not None and busy < project.cap + depth

    def _cost(self, key: str, cls: RequestClass) -> float:
        return self.projects[key].cost.get(cls, policy.DEFAULT_COST_S)

    def _retry_after(self, project: Project) -> int:
        """Seconds after which what waits now should be worked off.

        That of the project by as many workers as it may have, and all by all of them; a load that
        is under way takes as long again as it has, as nothing else is known of it.
        """
        work = self.queue.work(self._cost)
        wait = max(
            work.get(project.key, 0.0) / project.cap, sum(work.values()) / self.limits.workers
        )
        if project.serving is None and project.coming is not None:
            wait += self.now - project.coming.since
        return policy.retry_after(wait)

    def _may_run(self, key: str, cls: RequestClass) -> bool:
        if cls is not RequestClass.PRINT:
            return True
        running = sum(1 for job in self.jobs.values() if job.cls is cls and job.worker)
        return running < self.limits.print_workers

    def _assign(self, job: Job) -> None:
        generation = self.projects[job.project].serving
        assert generation is not None
        # The last one used has its caches warm; the others may go idle and end.
        worker = max(generation.in_state(WorkerState.IDLE), key=lambda worker: worker.served)
        worker.state = advance(WORKER, worker.state, "assign", worker.id)
        worker.job = job.id
        self.timers.cancel(("worker", worker.id))
        job.state = advance(JOB, job.state, "assign", job.id)
        self._left_queue(job)
        job.worker, job.generation, job.started = worker.id, generation.number, self.now
        job.attempts += 1
        self.busy += 1
        if not self._lend(worker, self._cost(job.project, job.cls)):
            self.timers.set(("long", worker.id), self.now + self.limits.lend_after_s)
        self._out.append(e.Send(worker.id, job.id))

    def _lend(self, worker: Worker, seconds: float) -> bool:
        """Give the slot of a request that runs for so many seconds to another one.

        What runs for long mostly waits, for a database or a server far away, and must not hold
        up the rest; where it does compute, the kernel shares the processors out fairly. A project
        has no more workers for it, only the others are not short of them.
        """
        if seconds < self.limits.lend_after_s or self.lent >= self.limits.lent_workers:
            return False
        worker.lent = True
        self.lent += 1
        return True

    def _on_long(self, worker: Worker) -> None:
        job = self.jobs.get(worker.job)
        if job is not None and not self._lend(worker, self.now - job.started):
            self.timers.set(("long", worker.id), self.now + self.limits.lend_after_s)

    def _fork_where_wanted(self, project: Project, waiting: int, depth: int) -> None:
        generation = project.serving
        if generation is None:
            return
        live = generation.live()
        free = sum(1 for _ in generation.in_state(WorkerState.STARTING, WorkerState.IDLE))
        for _ in range(policy.workers_wanted(waiting, live, free, project.cap + depth)):
            self._fork_worker(generation)
