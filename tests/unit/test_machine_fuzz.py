"""The machine in a world where anything happens in any order, and then heals.

`driver.World` checks the invariants after every event: every request is answered once and keeps
a timer until then, the busy count is right and bounded, caps hold, no record is without a
process or the other way round. Afterwards the world heals: everything must drain, and every
project must serve again.
"""

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from qgisd.supervisor import events as e
from qgisd.wire import BadLayer
from qgisd.words import Mode, RequestClass
from tests.unit.driver import Client, World, ref

KEYS = ["a.qgs", "b.qgs", "c.qgs"]
CLASSES = [RequestClass.MAP, RequestClass.LEGEND, RequestClass.PRINT, RequestClass.WRITE]
Choose = Callable[[list[int]], int]


class Mischief:
    """Everything that can happen to a pool; `choose` picks one of several, from small to large."""

    def __init__(self, **figures: object) -> None:
        self.world = World(**figures)
        self.world.start()

    # every method takes a number that decides whom it concerns

    def arrives(self, which: int) -> None:
        key, cls = KEYS[which % 3], CLASSES[which // 3 % 4]
        if self.world.files.get(key, 1):
            self.world.arrive(key, cls, timeout_s=(2.0, 20.0, 100.0)[which // 12 % 3])

    def worker_asks(self, which: int) -> None:
        """A worker, in the middle of its request, asks for a map of another project."""
        key = KEYS[which % 3]
        if self._running() and self.world.files.get(key, 1):
            self.world.arrive(key, depth=1 + which // 3 % 2)

    def goes_well(self, which: int) -> None:
        moves = list(self.world.good_moves(answering=True))
        if moves:
            moves[which % len(moves)]()

    def time_passes(self, which: int) -> None:
        self.world.wait((0.01, 0.5, 3.0, 15.0, 70.0)[which % 5])

    def client_leaves(self, which: int) -> None:
        there = [number for number in self.world.machine.jobs if not self._client(number).ends]
        if there:
            self.world.gone(there[which % len(there)])

    def answer_begins(self, which: int) -> None:
        running = self._running()
        if running:
            self.world.head(running[which % len(running)])

    def answer_goes_on(self, which: int) -> None:
        streaming = [number for number in self._running() if self._client(number).head]
        if streaming:
            number = streaming[which % len(streaming)]
            if not self._client(number).held:
                self.world.progress(number)

    def answer_breaks(self, which: int) -> None:
        streaming = [number for number in self._running() if self._client(number).head]
        if streaming:
            self.world.done(streaming[which % len(streaming)], broken="the provider failed")

    def client_is_slow(self, which: int) -> None:
        for number in self._running():
            client = self._client(number)
            if client.head and not client.ends:
                self.world.held(number, not client.held)
                return

    def worker_dies(self, which: int) -> None:
        alive = [
            number
            for number, process in self.world.workers.items()
            if process.state in ("booting", "ready")
        ]
        if alive:
            self.world.worker_dies(alive[which % len(alive)])

    def worker_is_confused(self, which: int) -> None:
        alive = [n for n, process in self.world.workers.items() if process.state == "ready"]
        if alive:
            self.world.tell(e.WorkerConfused(alive[which % len(alive)], "nonsense"))

    def zygote_dies(self, which: int) -> None:
        for number, zygote in self.world.zygotes.items():
            if zygote.state in ("starting", "up"):
                self.world.zygote_dies(number)
                return

    def snapshot_dies(self, which: int) -> None:
        tokens = [t for t, s in self.world.snapshots.items() if s.state in ("loading", "loaded")]
        if tokens:
            crashed = which // 6 % 2 == 0
            self.world.snapshot_dies(tokens[which % len(tokens)], "of something", crashed)

    def project_is_not_forkable(self, which: int) -> None:
        tokens = [t for t, s in self.world.snapshots.items() if s.state == "loading"]
        if tokens:
            self.world.snapshot_loaded(tokens[which % len(tokens)], Mode.LOADED)

    def file_changes(self, which: int) -> None:
        key = KEYS[which % 3]
        self.world.files[key] = self.world.files.get(key, 1) + 1
        self.world.tell(e.Changed(ref(key, self.world.files[key])))

    def data_changes(self, which: int) -> None:
        project = self.world.machine.projects.get(KEYS[which % 3])
        if project is not None and project.serving is not None:
            number = project.serving.number - which // 3 % 2  # or of one that served before
            self.world.tell(e.DataChanged(project.key, number, "/data"))

    def layers_break(self, which: int) -> None:
        """Or are whole again: with the loads to come."""
        key = KEYS[which % 3]
        provider = ("ogr", "postgres")[which // 3 % 2]
        broken = which // 6 % 2 == 0
        self.world.bad_layers[key] = [BadLayer("roads", provider, "away")] if broken else []

    def file_vanishes(self, which: int) -> None:
        key = KEYS[which % 3]
        self.world.files[key] = 0
        self.world.tell(e.Vanished(key))

    def reload_is_ordered(self, which: int) -> None:
        self.world.tell(e.ReloadOrdered([*KEYS, None][which % 4]))

    def load_is_ordered(self, which: int) -> None:
        key = KEYS[which % 3]
        version = self.world.files.setdefault(key, 1)
        if version:
            self.world.tell(e.LoadOrdered(ref(key, version), pin=which % 2 == 0))

    def drop_is_ordered(self, which: int) -> None:
        self.world.tell(e.DropOrdered(KEYS[which % 3]))

    def kill_is_ordered(self, which: int) -> None:
        workers, jobs = list(self.world.machine.workers), list(self.world.machine.jobs)
        if which % 2 and workers:
            self.world.tell(e.WorkerKillOrdered(workers[which // 2 % len(workers)]))
        elif jobs:
            self.world.tell(e.JobKillOrdered(jobs[which // 2 % len(jobs)]))

    def unpin_is_ordered(self, which: int) -> None:
        self.world.tell(e.UnpinOrdered(KEYS[which % 3]))

    def drain_is_ordered(self, which: int) -> None:
        self.world.tell(e.DrainOrdered(which % 2 == 0))

    def cache_answers(self, which: int) -> None:
        self.world.tell(e.AnsweredFromCache(KEYS[which % 3]))

    def worker_has_grown(self, which: int) -> None:
        """It says so with its answer."""
        running = [n for n in self._running() if not self._client(n).held]
        if running:
            self.world.done(running[which % len(running)], grown=(100 << 20) * (which % 12))

    def memory_is_sampled(self, which: int) -> None:
        mebibytes = (10, 600, 1100)[which % 3]
        pool = (1000, 5000)[which // 3 % 2]
        workers = dict.fromkeys(self.world.machine.workers, 10 << 20)
        for number in list(workers)[: which // 6]:
            workers[number] = mebibytes << 20
        snapshots = dict.fromkeys(self.world.snapshots, 100 << 20)
        self.world.tell(e.MemorySampled(workers, snapshots, pool << 20, 4096 << 20))

    def _client(self, number: int) -> Client:
        return self.world.clients[number]

    def _running(self) -> list[int]:
        return [
            number
            for number, job in self.world.machine.jobs.items()
            if job.worker in self.world.workers and self.world.workers[job.worker].state == "ready"
        ]

    def heal(self) -> None:
        """No more mischief: all drains, and every project serves."""
        world = self.world
        if world.gave_up:
            return
        world.tell(e.DrainOrdered(False))
        for key in KEYS:
            world.bad_layers[key] = []
            if world.files.get(key) == 0:
                world.files[key] = 100
            world.tell(e.Changed(ref(key, world.files.get(key, 1))))
        world.tell(e.MemorySampled({}, {}, 0, 1))
        world.drain()
        assert world.machine.busy == world.machine.lent == 0
        for number, client in world.clients.items():
            assert len(client.ends) == 1, f"job {number}: {client.ends}"
        world.wait(400.0)
        world.settle(answering=True)
        for key in KEYS:
            job = world.arrive(key, timeout_s=100.0)
            world.drain()
            ends = world.clients[job].ends
            assert ends == ["done"], f"{key} does not come back: {world.clients[job].error}"
            self._is_up_to_date(key)

    def _is_up_to_date(self, key: str) -> None:
        """Data that changed is read, now that the project is used and its layers open."""
        world = self.world
        for _ in range(50):
            world.wait(2.0)
            world.settle(answering=True)
        serving = world.project(key).serving
        assert serving is not None and serving.outdated_since is None, f"{key} stays outdated"

    def stop(self, moves: Sequence[tuple[Callable[["Mischief", int], None], int]] = ()) -> None:
        """Told to stop, the pool ends, by the deadline at the latest, whatever else happens."""
        world = self.world
        world.tell(e.StopOrdered(world.now + 30))
        for move, which in moves:
            move(self, which)
        world.settle(answering=True)
        world.wait(31)
        assert world.all_done and not world.machine.jobs
        for number, client in world.clients.items():
            assert len(client.ends) == 1, f"job {number}: {client.ends}"


MOVES: list[tuple[Callable[[Mischief, int], None], int]] = [
    (Mischief.arrives, 16),
    (Mischief.worker_asks, 3),
    (Mischief.goes_well, 40),
    (Mischief.time_passes, 10),
    (Mischief.client_leaves, 4),
    (Mischief.answer_begins, 5),
    (Mischief.answer_goes_on, 3),
    (Mischief.answer_breaks, 1),
    (Mischief.client_is_slow, 3),
    (Mischief.worker_dies, 5),
    (Mischief.worker_is_confused, 1),
    (Mischief.zygote_dies, 2),
    (Mischief.snapshot_dies, 2),
    (Mischief.project_is_not_forkable, 1),
    (Mischief.file_changes, 2),
    (Mischief.data_changes, 4),
    (Mischief.file_vanishes, 1),
    (Mischief.reload_is_ordered, 2),
    (Mischief.load_is_ordered, 2),
    (Mischief.drop_is_ordered, 1),
    (Mischief.kill_is_ordered, 2),
    (Mischief.layers_break, 3),
    (Mischief.unpin_is_ordered, 1),
    (Mischief.drain_is_ordered, 2),
    (Mischief.cache_answers, 2),
    (Mischief.worker_has_grown, 2),
    (Mischief.memory_is_sampled, 2),
]

FIGURES: list[dict[str, object]] = [
    {},
    {"workers": 1, "project_workers": 1, "queue": 4, "project_queue": 2, "print_workers": 1},
    {"max_loads": 2, "project_workers": 2, "disconnect_grace_s": 0.0, "idle_worker_s": 2.0},
]


@pytest.mark.parametrize("seed", range(120))
def test_whatever_happens_the_pool_recovers(seed: int) -> None:
    dice = random.Random(seed)
    mischief = Mischief(**FIGURES[seed % len(FIGURES)])
    moves, weights = zip(*MOVES, strict=True)
    trail: list[str] = []
    try:
        for move in dice.choices(moves, weights, k=300):
            which = dice.randrange(36)
            trail.append(f"{move.__name__}({which})")
            move(mischief, which)
        if seed % 4:
            mischief.heal()
        mischief.stop([(dice.choice(moves), dice.randrange(36)) for _ in range(10)])
    except Exception as error:
        error.args = (f"{error} -- seed {seed}, last moves: {' '.join(trail[-25:])}",)
        raise


class AnyOrder(RuleBasedStateMachine):
    """The same by hypothesis, which shrinks what fails to the fewest moves."""

    def __init__(self) -> None:
        super().__init__()
        self.mischief = Mischief()

    @rule(
        move=st.sampled_from([move for move, weight in MOVES for _ in range(min(weight, 8))]),
        which=st.integers(0, 35),
    )
    def moves(self, move: Callable[[Mischief, int], None], which: int) -> None:
        move(self.mischief, which)

    @rule(times=st.integers(1, 8))
    def all_goes_well(self, times: int) -> None:
        for _ in range(times):
            self.mischief.goes_well(0)

    def teardown(self) -> None:
        self.mischief.heal()
        self.mischief.stop()


AnyOrder.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
TestAnyOrder = AnyOrder.TestCase
