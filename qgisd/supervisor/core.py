"""The state of a pool's machine, and the moves that all its parts share. Pure.

core ◀ dispatch ◀ generations ◀ outdated ◀ loads ◀ pressure ◀ interventions ◀ machine: each adds
the handlers of its own events, and `machine.Machine` is the whole. The records are those of
`model.py`.
"""

from collections.abc import Callable

from qgisd.errors import RequestError
from qgisd.supervisor import events as e
from qgisd.supervisor.model import MOST_DEPTH, Generation, Job, Limits, Project, Worker, Zygote
from qgisd.supervisor.scheduler import Queues
from qgisd.supervisor.states import WORKER, WorkerState, ZygoteState, advance
from qgisd.supervisor.timers import Timers
from qgisd.words import Mode, NoteKind, Reason


class Core:
    """What every part works on."""

    #: The pool uses more memory than it may, and loads nothing new.
    over_budget = False
    #: PSS of the pool at the last sample, and what it may have; bytes, 0 until then.
    memory = 0
    memory_limit = 0
    #: Seconds between the last two samples.
    sampled_every = 0.0

    def __init__(self, limits: Limits, jitter: Callable[[], float]) -> None:
        self.limits = limits
        self._jitter = jitter
        self.now = 0.0
        self.timers = Timers()
        self.queue = Queues(MOST_DEPTH + 1, limits.queue)
        self.projects: dict[str, Project] = {}
        self.workers: dict[int, Worker] = {}
        self.jobs: dict[int, Job] = {}
        #: Keys of the projects that are kept loaded.
        self.pinned: set[str] = set()
        #: Keys of projects that lost a worker, or got another generation: those of them that are
        #: pinned may be without a spare worker. To look at all that are pinned with each event
        #: would cost a millisecond with 500 of them.
        self.bare: set[str] = set()
        #: Workers with a request, over all projects.
        self.busy = 0
        #: How many of these have lent their slot. The others are at most limits.workers.
        self.lent = 0
        self._zygotes = 1
        self.zygote = Zygote(self._zygotes)
        #: Comes up beside the zygote during a reload, and takes its place.
        self.successor: Zygote | None = None
        self.ever_up = False
        self._next_worker = 1
        #: Numbers of generations are the pool's, not the project's: one that is dropped and comes
        #: back must not meet processes of its former life under the same name.
        self._generations = 0
        #: Keys of projects with a generation that is coming, in the order of their turns.
        self.coming: dict[str, None] = {}
        self._out: list[e.Instruction] = []

    def _generation_of(self, worker: Worker) -> Generation:
        for generation in self.projects[worker.project].generations():
            if generation.number == worker.generation:
                return generation
        raise AssertionError(f"worker {worker.id} outlived the record of its generation")

    def _fork_worker(self, generation: Generation) -> None:
        """Order one more worker of this generation, if it can still be had."""
        loads = generation.mode is Mode.LOADED
        if not loads and not generation.snapshot:
            return
        if loads and self.zygote.state is not ZygoteState.UP:
            return
        worker = Worker(self._next_worker, generation.project, generation.number, self.now)
        self._next_worker += 1
        self.workers[worker.id] = generation.workers[worker.id] = worker
        limit = self.limits.load_timeout_s if loads else self.limits.boot_timeout_s
        self.timers.set(("worker", worker.id), self.now + limit)
        self.projects[generation.project].counters.forks += 1
        self._out.append(
            e.ForkWorker(
                self.zygote.number,
                worker.id,
                generation.project,
                generation.number,
                generation.path if loads else None,
            )
        )

    def _stop(self, worker: Worker, event: str, reason: Reason) -> None:
        """Ask a worker without a request to end; it is killed if it does not."""
        worker.state = advance(WORKER, worker.state, event, worker.id)
        worker.reason = reason
        self.bare.add(worker.project)
        self.timers.cancel(("ping", worker.id))
        self.timers.set(("worker", worker.id), self.now + self.limits.stop_timeout_s)
        self._out.append(e.StopWorker(worker.id))

    def _kill(self, worker: Worker, reason: Reason) -> None:
        if worker.state in (WorkerState.KILLING, WorkerState.ENDED):
            return
        self._free_slot(worker)
        worker.state = advance(WORKER, worker.state, "kill", worker.id)
        worker.reason = reason
        self.bare.add(worker.project)
        self.timers.cancel(("worker", worker.id))
        self.timers.cancel(("ping", worker.id))
        self._out.append(e.KillWorker(worker.id, reason))

    def _left_queue(self, job: Job) -> None:
        """It is not in the queue any more: how long it was, and what of that was for a load."""
        serving = self.projects[job.project].serving
        ready = serving.serves_since if serving is not None else self.now
        job.waited += self.now - job.queued
        job.load_waited += max(0.0, ready - job.queued)

    def _free_slot(self, worker: Worker) -> None:
        """A worker comes to the end of its request: before it changes state."""
        if worker.state in (WorkerState.BUSY, WorkerState.RETIRING):
            self.busy -= 1
            self.lent -= worker.lent
            worker.lent = False
            self.timers.cancel(("long", worker.id))

    def _note(
        self,
        level: int,
        text: str,
        project: str = "",
        kind: NoteKind = NoteKind.OTHER,
        generation: int = 0,
        worker: int = 0,
        reason: Reason | None = None,
    ) -> None:
        self._out.append(e.Note(level, text, project, kind, generation, worker, reason))

    def _fail(self, job: Job, error: RequestError) -> None:
        raise NotImplementedError  # machine.Machine

    def _abort(self, job: Job, reason: str) -> None:
        raise NotImplementedError  # machine.Machine
