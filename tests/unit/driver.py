"""A world for the machine: plays processes, clients and files, and checks after every event.

`World` does what `pool.py` does with instructions, but with records instead of processes. Nothing
happens by itself: a test (or a fuzzer) says what the world does next, and `settle` does all that
a world in good health would do. What the shell (tree.py) promises the machine is kept: a dead
process is noticed later than it dies; an order to a dead forker is lost when its death is noticed,
after the word of that death, and at once when it was noticed before; a killed worker that never
showed up is reported at once.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qgisd.supervisor import events as e
from qgisd.supervisor.machine import Machine
from qgisd.supervisor.model import MOST_DEPTH, Job, Limits, Project, ProjectRef, Worker
from qgisd.supervisor.states import GenerationState, JobState, WorkerState, ZygoteState
from qgisd.wire import BadLayer
from qgisd.words import Mode, RequestClass

#: Events that one event may cause without the world doing anything: more is a livelock.
_MOST_EVENTS = 200

I = TypeVar("I", bound=e.Instruction)  # noqa: E741

FIGURES: dict[str, Any] = {
    "workers": 4,
    "project_workers": 3,
    "max_loads": 1,
    "queue": 20,
    "project_queue": 8,
    "zygote_timeout_s": 120.0,
    "load_timeout_s": 600.0,
    "boot_timeout_s": 10.0,
    "stream_timeout_s": 20.0,
    "stop_timeout_s": 5.0,
    "disconnect_grace_s": 1.0,
    "idle_worker_s": 60.0,
    "ping_interval_s": 10.0,
    "ping_timeout_s": 5.0,
    "on_demand": True,
    "print_workers": 2,
    "lend_after_s": 1.0,
    "lent_workers": 4,
    "backoff_limit_s": 60.0,
    "data_reload_s": 30.0,
    "data_settle_s": 3.0,
    "worker_memory": 512 << 20,
    "max_requests": 0,
    "breaker_failures": 5,
    "breaker_window_s": 60.0,
    "breaker_pause_s": 10.0,
}


def limits(**changes: Any) -> Limits:
    """The figures of a pool: FIGURES, but for `changes`."""
    return Limits(**(FIGURES | changes))


def ref(key: str, version: int = 1) -> ProjectRef:
    """A project file as the catalog would find it."""
    return ProjectRef(key, f"/srv/{key}", (version, 0, 0))


@dataclass
class ZygoteProcess:
    state: str = "starting"  # starting, up, dead (and not reported)


@dataclass
class SnapshotProcess:
    zygote: int
    state: str = "ordered"  # ordered, loading, loaded, dead (and not reported)
    message: str = ""
    #: It ended without a word.
    crashed: bool = False


@dataclass
class WorkerProcess:
    project: str
    generation: int
    #: The zygote that is to fork it, where the project is loaded by each worker.
    zygote: int | None
    state: str = "ordered"  # ordered, booting, ready, dead (and not reported)
    told_to_stop: bool = False
    pinged: bool = False
    detail: str = "signal 9"


@dataclass
class Client:
    project: str
    #: What it was told in the end: "done", "fail", "abort" or "gone".
    ends: list[str] = field(default_factory=list)
    error: Exception | None = None
    head: bool = False
    held: bool = False


class World:
    """A machine, a clock, and everything outside the machine."""

    def __init__(self, **figures: Any) -> None:
        #: Layers that do not open, by project, at the loads to come.
        self.bad_layers: dict[str, list[BadLayer]] = {}
        self.machine = Machine(limits(**figures), lambda: 0.0)
        self.now = 1000.0
        self.said: list[e.Instruction] = []
        self.clients: dict[int, Client] = {}
        self.jobs: dict[int, Job] = {}
        self.files: dict[str, int] = {}
        self.zygotes: dict[int, ZygoteProcess] = {}
        self.snapshots: dict[tuple[str, int], SnapshotProcess] = {}
        self.workers: dict[int, WorkerProcess] = {}
        self.gave_up = ""
        self.all_done = False
        self._tokens: set[tuple[str, int]] = set()
        self._next_job = 1

    # events in, instructions out

    def tell(self, event: e.Event) -> list[e.Instruction]:
        """Handle one event and all it causes at once; what the machine said to them."""
        inbox: deque[e.Event] = deque([event])
        said: list[e.Instruction] = []
        for _ in range(_MOST_EVENTS):
            if not inbox:
                break
            out = self.machine.handle(inbox.popleft(), self.now)
            said += out
            for do in out:
                inbox.extend(self._perform(do))
            if not inbox:
                self.check()
        assert not inbox, f"a livelock: {event} causes events without end, e.g. {inbox[0]}"
        self.said += said
        return said

    def wait(self, seconds: float) -> list[e.Instruction]:
        """Let time pass, with a tick at each deadline."""
        until, said = self.now + seconds, []
        while (when := self.machine.next_deadline()) is not None and when <= until:
            self.now = max(when, self.now)
            said += self.tell(e.Tick())
        self.now = until
        return said + self.tell(e.Tick())

    def heard(self, kind: type[I]) -> list[I]:
        """All instructions of one kind so far."""
        return [do for do in self.said if isinstance(do, kind)]

    def _perform(self, do: e.Instruction) -> Iterator[e.Event]:
        if isinstance(do, e.StartZygote):
            assert do.number not in self.zygotes
            self.zygotes[do.number] = ZygoteProcess()
        elif isinstance(do, e.EndZygote):
            if do.number in self.zygotes:
                self.zygotes[do.number].state = "dead"
        elif isinstance(do, e.ForkSnapshot):
            yield from self._fork_snapshot(do)
        elif isinstance(do, e.EndSnapshot):
            self._end_snapshot((do.project, do.generation))
        elif isinstance(do, e.ForkWorker):
            yield from self._fork_worker(do)
        elif isinstance(do, e.Send):
            assert self.workers[do.worker].state in ("ready", "dead")
            assert not self.clients[do.job].ends, "sent for a client that has its answer"
        elif isinstance(do, e.SendPing):
            self.workers[do.worker].pinged = True
        elif isinstance(do, e.StopWorker):
            self.workers[do.worker].told_to_stop = True
        elif isinstance(do, e.KillWorker):
            worker = self.workers.get(do.worker)
            if worker is None or worker.state == "ordered":
                self.workers.pop(do.worker, None)
                yield e.WorkerDown(do.worker, "it never came up")
            else:
                worker.state = "dead"
        elif isinstance(do, e.Retry):
            assert not self.clients[do.job].ends and not self.clients[do.job].head
        elif isinstance(do, e.Fail):
            assert not self.clients[do.job].head, "an error answer after the head"
            self.clients[do.job].error = do.error
            yield from self._end_client(do.job, "fail")
        elif isinstance(do, e.Abort):
            assert self.clients[do.job].head, "cut, though an error answer was possible"
            yield from self._end_client(do.job, "abort")
        elif isinstance(do, e.GiveUp):
            self.gave_up = do.message
        elif isinstance(do, e.AllDone):
            self.all_done = True

    def _end_client(self, job: int, how: str) -> Iterator[e.Event]:
        self.clients[job].ends.append(how)
        assert len(self.clients[job].ends) == 1, f"job {job}: {self.clients[job].ends}"
        self.clients[job].held = False
        yield e.Gone(job)  # as pool._close_exchange does

    def _fork_snapshot(self, do: e.ForkSnapshot) -> Iterator[e.Event]:
        token = (do.project, do.generation)
        assert token not in self._tokens, f"snapshot {token} is ordered, and was before"
        number = do.zygote
        if self.zygotes[number].state in ("up", "dead"):
            self._tokens.add(token)
            self.snapshots[token] = SnapshotProcess(number)
        else:
            yield e.SnapshotDown(*token, "its zygote ended", never_forked=True)

    def _end_snapshot(self, token: tuple[str, int]) -> None:
        process = self.snapshots.get(token)
        if process is not None and process.state == "ordered":
            del self.snapshots[token]
        elif process is not None:
            process.state = "dead"

    def _fork_worker(self, do: e.ForkWorker) -> Iterator[e.Event]:
        assert do.worker not in self.workers
        number = do.zygote
        if do.path is None:
            there = (do.project, do.generation) in self.snapshots
        else:
            there = self.zygotes[number].state in ("up", "dead")
        if there:
            self.workers[do.worker] = WorkerProcess(
                do.project, do.generation, None if do.path is None else number
            )
        else:
            yield e.WorkerDown(do.worker, "its forker is gone", never_forked=True)

    # zygotes

    def start(self) -> None:
        """The pool begins, and its zygote comes up."""
        self.tell(e.Started())
        self.zygote_up(1)

    def zygote_up(self, number: int) -> list[e.Instruction]:
        self.zygotes[number].state = "up"
        return self.tell(e.ZygoteUp(number))

    def zygote_dies(self, number: int) -> None:
        self.zygotes[number].state = "dead"

    def zygote_reported(self, number: int) -> list[e.Instruction]:
        """The shell notices the death of a zygote, and of what was ordered from it."""
        assert self.zygotes[number].state == "dead"
        self.zygotes[number].state = "gone"
        snapshots = [
            token
            for token, snapshot in self.snapshots.items()
            if snapshot.zygote == number and snapshot.state == "ordered"
        ]
        workers = [
            worker
            for worker, process in self.workers.items()
            if process.zygote == number and process.state == "ordered"
        ]
        said = self.tell(e.ZygoteDown(number, "signal 9"))
        for token in snapshots:
            if self.snapshots.pop(token, None) is not None:
                self._tokens.discard(token)
                said += self.tell(e.SnapshotDown(*token, "its zygote ended", never_forked=True))
        return said + self._lose_orders(workers)

    def _lose_orders(self, workers: list[int]) -> list[e.Instruction]:
        said = []
        for worker in workers:
            if self.workers.pop(worker, None) is not None:
                said += self.tell(e.WorkerDown(worker, "its forker ended", never_forked=True))
        return said

    def lose_zygote(self) -> list[e.Instruction]:
        """The zygote dies, and the shell notices."""
        number = self.machine.zygote.number
        self.zygote_dies(number)
        return self.zygote_reported(number)

    # snapshots

    def snapshot_forked(self, token: tuple[str, int]) -> None:
        self.snapshots[token].state = "loading"

    def snapshot_loaded(
        self, token: tuple[str, int], mode: Mode = Mode.FORKED
    ) -> list[e.Instruction]:
        self.snapshots[token].state = "loaded" if mode is Mode.FORKED else "dead"
        why = "" if mode is Mode.FORKED else "threads stay"
        bad = self.bad_layers.get(token[0], [])
        return self.tell(e.SnapshotLoaded(*token, mode, why, 3, bad, 500.0))

    def snapshot_dies(
        self, token: tuple[str, int], message: str = "signal 11", crashed: bool = False
    ) -> None:
        process = self.snapshots[token]
        process.state, process.message, process.crashed = "dead", message, crashed

    def snapshot_reported(self, token: tuple[str, int]) -> list[e.Instruction]:
        """The shell notices its death, and that what was ordered from it will not come."""
        process = self.snapshots.pop(token)
        assert process.state == "dead"
        workers = [
            worker
            for worker, record in self.workers.items()
            if record.zygote is None
            and record.state == "ordered"
            and (record.project, record.generation) == token
        ]
        said = self.tell(e.SnapshotDown(*token, process.message, process.crashed))
        return said + self._lose_orders(workers)

    def lose_snapshot(
        self, key: str, message: str = "signal 11", crashed: bool = False
    ) -> list[e.Instruction]:
        """The newest snapshot of a project dies, or says that it cannot load."""
        token = max(token for token in self.snapshots if token[0] == key)
        self.snapshot_dies(token, message, crashed)
        return self.snapshot_reported(token)

    # workers

    def worker_forked(self, worker: int) -> None:
        self.workers[worker].state = "booting"

    def worker_ready(self, worker: int) -> list[e.Instruction]:
        self.workers[worker].state = "ready"
        return self.tell(e.WorkerUp(worker, 10_000 + worker))

    def worker_dies(self, worker: int, detail: str = "signal 11") -> None:
        self.workers[worker].state, self.workers[worker].detail = "dead", detail

    def worker_reported(self, worker: int) -> list[e.Instruction]:
        process = self.workers.pop(worker)
        assert process.state == "dead"
        return self.tell(e.WorkerDown(worker, process.detail))

    def lose_worker(self, worker: int, detail: str = "signal 11") -> list[e.Instruction]:
        """A worker dies, and the shell notices."""
        self.worker_dies(worker, detail)
        return self.worker_reported(worker)

    def worker_pongs(self, worker: int) -> list[e.Instruction]:
        self.workers[worker].pinged = False
        return self.tell(e.WorkerPong(worker))

    def worker_of(self, job: int) -> int:
        """Who has it; 0 if nobody."""
        record = self.machine.jobs.get(job)
        return record.worker if record is not None else 0

    # requests

    def arrive(
        self,
        key: str,
        cls: RequestClass = RequestClass.MAP,
        timeout_s: float = 20.0,
        idempotent: bool | None = None,
        depth: int = 0,
    ) -> int:
        """A request comes in; its number."""
        number, self._next_job = self._next_job, self._next_job + 1
        self.clients[number] = Client(key)
        again = cls is not RequestClass.WRITE if idempotent is None else idempotent
        job = Job(number, key, cls, again, self.now, self.now + timeout_s, depth)
        self.jobs[number] = job
        self.tell(e.Arrived(job, ref(key, self.files.setdefault(key, 1))))
        return number

    def head(self, job: int) -> list[e.Instruction]:
        """Its worker sends the first part of a long answer."""
        worker = self.worker_of(job)
        if not self.clients[job].ends:
            self.clients[job].head = True
        return self.tell(e.WorkerHead(worker, job))

    def progress(self, job: int) -> list[e.Instruction]:
        return self.tell(e.WorkerProgress(self.worker_of(job), job))

    def done(self, job: int, broken: str = "", grown: int = 0) -> list[e.Instruction]:
        """Its worker has sent all of it (or says that it cannot)."""
        worker, client = self.worker_of(job), self.clients[job]
        if client.ends or broken:
            return self.tell(e.WorkerDone(worker, job, broken))
        client.ends.append("done")
        client.held = False
        return self.tell(e.WorkerDone(worker, job, grown=grown)) + self.tell(e.Gone(job))

    def gone(self, job: int) -> list[e.Instruction]:
        """The client leaves."""
        self.clients[job].ends.append("gone")
        self.clients[job].held = False
        return self.tell(e.Gone(job))

    def held(self, job: int, held: bool) -> list[e.Instruction]:
        self.clients[job].held = held
        return self.tell(e.Held(job, held))

    # all that goes well

    def good_moves(self, answering: bool) -> Iterator[Callable[[], object]]:
        """What a world in good health does next; answering: workers finish their requests too."""
        for number, zygote in self.zygotes.items():
            if zygote.state == "starting":
                yield lambda number=number: self.zygote_up(number)  # type: ignore[misc]
            elif zygote.state == "dead":
                yield lambda number=number: self.zygote_reported(number)  # type: ignore[misc]
        for token, snapshot in self.snapshots.items():
            if snapshot.state == "ordered" and self.zygotes[snapshot.zygote].state == "up":
                yield lambda token=token: self.snapshot_forked(token)  # type: ignore[misc]
            elif snapshot.state == "loading":
                yield lambda token=token: self.snapshot_loaded(token)  # type: ignore[misc]
            elif snapshot.state == "dead":
                yield lambda token=token: self.snapshot_reported(token)  # type: ignore[misc]
        for worker, process in self.workers.items():
            if process.state == "ordered" and self._forker_lives(process):
                yield lambda worker=worker: self.worker_forked(worker)  # type: ignore[misc]
            elif process.state == "booting":
                yield lambda worker=worker: self.worker_ready(worker)  # type: ignore[misc]
            elif process.state == "dead":
                yield lambda worker=worker: self.worker_reported(worker)  # type: ignore[misc]
            elif process.told_to_stop:
                yield lambda worker=worker: self.lose_worker(worker, "exit code 0")  # type: ignore[misc]
            elif process.pinged:
                yield lambda worker=worker: self.worker_pongs(worker)  # type: ignore[misc]
        for job in self.machine.jobs.values() if answering else ():
            if job.worker in self.workers and self.workers[job.worker].state == "ready":
                yield lambda job=job.id: self.done(job)  # type: ignore[misc]

    def _forker_lives(self, process: WorkerProcess) -> bool:
        if process.zygote is not None:
            return self.zygotes[process.zygote].state == "up"
        snapshot = self.snapshots.get((process.project, process.generation))
        return snapshot is not None and snapshot.state == "loaded"

    def settle(self, answering: bool = False, mode: Mode = Mode.FORKED) -> list[e.Instruction]:
        """Let everything that is under way end well; no time passes."""
        before = len(self.said)
        for _ in range(2000):
            for token, snapshot in list(self.snapshots.items()):
                if snapshot.state == "loading" and mode is Mode.LOADED:
                    self.snapshot_loaded(token, mode)
            move = next(self.good_moves(answering), None)
            if move is None:
                return self.said[before:]
            move()
        raise AssertionError("the world does not come to rest")

    def drain(self) -> None:
        """In a world in good health every request comes to its end, sooner or later."""
        for _ in range(400):
            self.settle(answering=True)
            for job, client in self.clients.items():
                if client.held:
                    self.held(job, False)
            if not self.machine.jobs:
                return
            when = self.machine.next_deadline()
            assert when is not None, f"nothing will ever end {self.machine.jobs}"
            self.now = max(self.now, when)
            self.tell(e.Tick())
        raise AssertionError(f"these do not end: {self.machine.jobs}")

    def serve(self, key: str, mode: Mode = Mode.FORKED) -> int:
        """Have a project loaded, with one idle worker: the worker."""
        job = self.arrive(key)
        self.settle(mode=mode)
        worker = self.worker_of(job)
        assert worker, f"{key} does not come up"
        self.done(job)
        return worker

    def project(self, key: str) -> Project:
        return self.machine.projects[key]

    def worker(self, number: int) -> Worker:
        return self.machine.workers[number]

    # what is always true

    def check(self) -> None:
        """The invariants; called after every event."""
        machine, figures = self.machine, self.machine.limits
        working = (WorkerState.BUSY, WorkerState.RETIRING)
        busy = [worker for worker in machine.workers.values() if worker.state in working]
        assert machine.busy == len(busy)
        assert machine.lent == sum(worker.lent for worker in busy) <= figures.lent_workers
        assert not any(worker.lent for worker in machine.workers.values() if worker not in busy)
        for worker in busy:
            assert worker.lent or ("long", worker.id) in machine.timers._when
        self._check_caps()
        self._check_work_is_conserved()
        self._check_jobs()
        self._check_workers()
        loading: list[bool] = []
        for project in machine.projects.values():
            numbers = [generation.number for generation in project.generations()]
            assert len(numbers) == len(set(numbers)) and max(numbers, default=0) <= project.newest
            if project.serving is not None:
                assert project.serving.state is GenerationState.SERVING
            if project.coming is not None and project.coming.state is GenerationState.LOADING:
                loading.append(project.coming.background)
                assert ("load", project.key, project.coming.number) in machine.timers._when
        # Loads that nested requests wait for have slots of their own.
        assert loading.count(False) <= figures.max_loads + MOST_DEPTH
        assert loading.count(True) <= figures.max_loads + MOST_DEPTH
        assert machine.pinned == {key for key, each in machine.projects.items() if each.pinned}
        for project in machine.projects.values():
            self._check_comes_back(project)
            serving = project.serving
            if project.pinned and serving is not None and not serving.live():
                forker = serving.snapshot or serving.mode is Mode.LOADED
                up = serving.mode is Mode.FORKED or machine.zygote.state is ZygoteState.UP
                assert project.key in machine.bare and not (forker and up), "no spare worker"

    def _check_comes_back(self, project: Project) -> None:
        """What does not serve as it should is loaded, or will be without anybody's doing."""
        serving, timers = project.serving, self.machine.timers._when
        if project.coming is not None:
            assert project.key in self.machine.coming
            return
        if serving is None:
            gone = project.version == (0, 0, 0)
            assert not project.pinned or gone or ("retry", project.key) in timers
            return
        if serving.outdated_since is not None:
            assert serving.awaits_use or ("data", project.key) in timers
        if serving.mode is Mode.FORKED and not serving.snapshot:
            assert ("retry", project.key) in timers

    def _check_caps(self) -> None:
        """A request of depth d finds one slot more than one of depth d - 1, and so on."""
        figures = self.machine.limits
        running = [job for job in self.machine.jobs.values() if self._runs(job)]
        keys = {job.project for job in running}
        for depth in range(MOST_DEPTH + 1):
            up_to = [job for job in running if job.depth <= depth]
            holding = [job for job in up_to if not self.machine.workers[job.worker].lent]
            assert len(holding) <= figures.workers + depth
            for key in keys:
                mine = [job for job in up_to if job.project == key]
                assert len(mine) <= figures.project_workers + depth

    def _check_work_is_conserved(self) -> None:
        """Nothing waits that an idle worker may take."""
        machine, figures = self.machine, self.machine.limits
        running = [job for job in machine.jobs.values() if self._runs(job)]
        prints = sum(job.cls is RequestClass.PRINT for job in machine.jobs.values() if job.worker)
        for job in machine.jobs.values():
            serving = machine.projects[job.project].serving
            if job.state is not JobState.QUEUED or serving is None:
                continue
            idle = any(worker.state is WorkerState.IDLE for worker in serving.workers.values())
            mine = sum(other.project == job.project for other in running)
            free = machine.busy - machine.lent < figures.workers + job.depth
            allowed = job.cls is not RequestClass.PRINT or prints < figures.print_workers
            room = mine < machine.projects[job.project].cap + job.depth
            assert not (idle and free and allowed and room), f"job {job.id} waits for nothing"

    def _runs(self, job: Job) -> bool:
        worker = self.machine.workers.get(job.worker)
        return worker is not None and worker.state in (WorkerState.BUSY, WorkerState.RETIRING)

    def _check_jobs(self) -> None:
        machine = self.machine
        queued = sorted(
            job.id
            for level in machine.queue._levels
            for line in level._queues.values()
            for job in line
        )
        assert machine.queue.length == len(queued)
        assert queued == sorted(
            number for number, job in machine.jobs.items() if job.state is JobState.QUEUED
        )
        prints = 0
        for number, job in machine.jobs.items():
            client = self.clients[number]
            assert client.ends in ([], ["gone"]) or self.machine.stopping, (number, client.ends)
            has_timer = ("job", number) in machine.timers._when
            assert has_timer or client.held, f"nothing will end job {number}"
            if job.state is JobState.QUEUED:
                assert not job.abandoned and job.worker == 0
            else:
                assert machine.workers[job.worker].job == number
                prints += job.cls is RequestClass.PRINT
        assert prints <= machine.limits.print_workers
        for number, client in self.clients.items():
            assert client.ends or number in machine.jobs, f"job {number} is lost"
        for job in self.jobs.values():
            assert 0 <= job.load_waited <= job.waited + 1e-6 and job.worked >= 0
            assert job.waited + job.worked <= self.now - job.arrived + 1e-6

    def _check_workers(self) -> None:
        machine = self.machine
        assert set(machine.workers) == set(self.workers)
        listed = [
            number
            for project in machine.projects.values()
            for generation in project.generations()
            for number in generation.workers
        ]
        assert sorted(listed) == sorted(machine.workers)
        for number, worker in machine.workers.items():
            state = worker.state
            assert state is not WorkerState.ENDED
            if state in (WorkerState.STARTING, WorkerState.IDLE, WorkerState.STOPPING):
                assert ("worker", number) in machine.timers._when, f"worker {number} may stay"
            if state is WorkerState.IDLE:
                assert ("ping", number) in machine.timers._when
