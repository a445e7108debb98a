"""Everything that can go wrong goes wrong at random; what clients see stays right or honest.

CHAOS_SECONDS=1800 CHAOS_SEED=… python -m pytest tests/chaos is the long run (`make chaos`). On a
failure the seed and the log of events are printed.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.conftest import chaos_seconds
from tests.chaos.disorder import Disorder, EventLog, Postgres
from tests.chaos.load import Clients, Found, ask
from tests.chaos.source import Source
from tests.chaos.subjects import PASSING, Subject
from tests.process.tools import named
from tests.support import Daemon, eventually

MIB = 1 << 20
WORKERS, PROJECT_WORKERS = 4, 3
#: Seconds after the last disorder until all is right again.
HEAL_S = 25.0
#: Descriptors and memory that a daemon may have more than after its warm-up.
MORE_DESCRIPTORS = 10
MORE_MEMORY = 40 * MIB
#: Of a run that is as long as this, time and memory are judged too.
LONG_S = 600.0
#: Between two acts of disorder. A short run has no time to breathe; a long one is judged by time.
PAUSE_S, LONG_PAUSE_S = (0.3, 2.5), (1.0, 9.0)
#: A long run has at least so many requests, over which the daemon's memory stays flat.
MANY = 10_000
#: Seconds after processes were killed: whose they were, others' or one's own, is not known.
BLOW_S = 3.0
#: p95 of a project to which nothing is done, as a multiple of its p95 in calm.
MOST_SLOWER = 1.5

POOL = f"""
workers = {WORKERS}
project_workers = {PROJECT_WORKERS}
request_timeout_s = 8
load_timeout_s = 20
zygote_timeout_s = 60
idle_worker_s = 8
ping_interval_s = 2
ping_timeout_s = 2
worker_memory = "200MiB"
memory_interval_s = 0.5
breaker_pause_s = 2
backoff_limit_s = 4
"""


@pytest.fixture
def note(tmp_path: Path) -> EventLog:
    """The log of events."""
    return EventLog(tmp_path / "events.log")


@pytest.fixture
def seed(note: EventLog) -> Iterator[int]:
    """CHAOS_SEED, or a new one."""
    number = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    yield number
    # pytest shows this for a test that failed.
    print(f"CHAOS_SEED={number} CHAOS_SECONDS={chaos_seconds():g}")
    print("\n".join(note.lines[-400:]))


@pytest.fixture
def daemon(daemons: Callable[..., Daemon], root: Path, spool: Path | None, plugins: Path) -> Daemon:
    """All limits short, so that much happens in a minute."""
    environment = {"TMPDIR": str(spool)} if spool else {}
    return daemons(
        root, backend="qgis", pool=POOL, environment=environment, http='buffer = "64KiB"',
        extra=f'[pool.qgis]\nplugin_path = "{plugins}"\nnetwork_timeout_s = 2',
    )  # fmt: skip


class Watch:
    """Looks at the daemon from outside the whole time."""

    def __init__(self, daemon: Daemon) -> None:
        self._process = psutil.Process(daemon.process.pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        #: (seconds, RSS, descriptors, processes of the tree)
        self.samples: list[tuple[float, int, int, int]] = []

    def look(self) -> tuple[float, int, int, int]:
        """Now."""
        process = self._process
        below = process.children(recursive=True)
        return time.monotonic(), process.memory_info().rss, process.num_fds(), len(below)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        try:
            while not self._stop.wait(1):
                self.samples.append(self.look())
        except psutil.Error:
            return  # it died: the test sees that

    def growth(self) -> int:
        """Bytes by which RSS grew from the second to the last quarter, medians."""
        quarter = len(self.samples) // 4
        sizes = [sample[1] for sample in self.samples]
        early, late = sorted(sizes[quarter : 2 * quarter]), sorted(sizes[-quarter:])
        return late[len(late) // 2] - early[len(early) // 2] if quarter else 0


def test_whatever_happens_answers_are_right_or_honest(
    daemon: Daemon, subjects: list[Subject], big: tuple[Subject, str, bytes], source: Source,
    dsn: str, spool: Path | None, seed: int, note: EventLog, tmp_path: Path,
) -> None:  # fmt: skip
    """The whole of it."""
    print("" if spool else "no tmpfs can be mounted here: the disk is never full in this run")
    by_name = {subject.name: subject for subject in subjects}
    world, remote, pg = (
        by_name["world/world"],
        by_name["remote/remote"],
        by_name["postgres/postgres"],
    )
    hogs: list[str] = []

    def hog(what: str, size: int) -> None:
        query = f"{world.queries[0]}&{what}={size}"
        # The parameter changes nothing of the picture.
        for version in world.contents:
            world.expected[version, query] = world.expected[version, world.queries[0]]
        ask(daemon, world, query, found, lambda text: hogs.append(f"hog: {text}"))

    found = Found()
    for subject in subjects:
        for query in subject.queries:
            assert ask(daemon, subject, query, found, note), note.lines
    server = Postgres(dsn)
    watch = Watch(daemon)
    try:
        calm = measure_calm(daemon, subjects, big, seed, note)
        settle(daemon)
        before = watch.look()
        disorder = Disorder(
            daemon, seed, note,
            [s for s in subjects if len(s.contents) > 1 and s.name not in UNCHANGED],
            (pg, server), (remote, source), spool, hog,
        )  # fmt: skip
        with Clients(daemon, subjects, big, seed, note) as clients, watch:
            found = clients.found
            disorder.run(chaos_seconds(), PAUSE_S if chaos_seconds() < LONG_S else LONG_PAUSE_S)
            disorder.heal()
            note("healed; the load goes on")
            healing = heal_times(daemon, subjects, note)
        assert daemon.process.poll() is None, "the daemon died"
        settle(daemon)
        rest(daemon, len(subjects))
        after = watch.look()
    finally:
        server.end()
    print(f"done: {disorder.done}\nin calm:\n{calm.table()}\nin disorder:\n{found.table()}")
    print(f"right again after: {healing}; slowest /healthz {found.slowest_health:.2f} s")
    print(f"RSS, descriptors, processes before {before[1:]}, after {after[1:]}")
    report(tmp_path)
    blows = [(when, when + BLOW_S) for when in disorder.blows]
    untouched = [*UNCHANGED, "mixed/mixed"]
    slower = found.p95(untouched, blows) / calm.p95(untouched)
    print(f"{found.requests()} requests; p95 of {untouched} is {slower:.2f} of what it is in calm")
    problems = found.violations + hogs
    problems += [f"not right in time: {name}, {seconds} s" for name, seconds in healing.items()
                 if seconds > HEAL_S]  # fmt: skip
    if found.slowest_health > 5:
        problems.append(f"/healthz took {found.slowest_health:.1f} s")
    problems += leaks(daemon, before, after, watch, len(subjects))
    problems += [
        line for line in daemon.log().splitlines() if any(word in line for word in DEFECTS)
    ]
    if chaos_seconds() >= LONG_S and slower > MOST_SLOWER:
        problems.append(f"p95 of projects to which nothing was done: {slower:.2f} of calm")
    if chaos_seconds() >= LONG_S and found.requests() < MANY:
        problems.append(f"only {found.requests()} requests")
    right = found.outcomes["mixed/mixed", "right"]
    honest = sum(found.outcomes["mixed/mixed", str(status)] for status in PASSING)
    if right <= 4 * honest:
        problems.append(f"a project to which nothing was done: {honest} failed, {right} right")
    # One of each kind is enough to read.
    kinds = {problem.split(" (")[0]: problem for problem in problems}
    assert not problems, f"{len(problems)}, of these kinds:\n" + "\n".join(
        list(kinds.values())[:30]
    )


#: In the log: defects of the daemon.
DEFECTS = ("IllegalTransition", "never retrieved", "KeyError", "AssertionError", "RuntimeError")
#: Small projects that stay as they are.
UNCHANGED = ("many/p0004", "many/p0005")


def measure_calm(
    daemon: Daemon, subjects: list[Subject], big: tuple[Subject, str, bytes], seed: int,
    note: EventLog,
) -> Found:  # fmt: skip
    """The same load without disorder: everything is right."""
    note("calm")
    with Clients(daemon, subjects, big, seed, note) as clients:
        time.sleep(max(5.0, min(30.0, chaos_seconds() / 10)))
    note("end of calm")
    assert clients.found.violations == []
    wrong = {key: n for key, n in clients.found.outcomes.items() if key[1] != "right"}
    assert not wrong, wrong
    return clients.found


def heal_times(daemon: Daemon, subjects: list[Subject], note: EventLog) -> dict[str, float]:
    """Seconds until each project answers everything exactly right; infinity if it does not."""
    begin = time.monotonic()
    found: dict[str, float] = {}
    while len(found) < len(subjects) and time.monotonic() - begin < HEAL_S + 10:
        for subject in subjects:
            if subject.name not in found and all_right(daemon, subject):
                found[subject.name] = round(time.monotonic() - begin, 1)
                note(f"{subject.name} is right")
        time.sleep(0.1)
    for subject in subjects:
        if subject.name not in found:
            found[subject.name] = float("inf")
            note(f"NOT HEALED {subject.name}: {daemon.projects().get(subject.key)}")
    return found


def all_right(daemon: Daemon, subject: Subject) -> bool:
    """Every request gets the answer of the version that is there now."""
    for query in subject.queries:
        answer = daemon.get(subject.target(query), timeout=60)
        right = subject.expected[subject.version, query]
        if answer.status != 200 or not answer.complete or answer.body != right:
            return False
    return True


def settle(daemon: Daemon) -> None:
    """Until no worker is left and nothing is loading: the load is over."""
    eventually(lambda: not named(daemon, "worker"), timeout=40, period=0.2)


def rest(daemon: Daemon, projects: int) -> None:
    """Until there is a zygote, and a snapshot of each project at most, and nothing else.

    A project whose source was away may be loading once more.
    """

    deadline = time.monotonic() + 40
    while True:
        below = psutil.Process(daemon.process.pid).children(recursive=True)
        seen = []
        for child in below:
            try:
                seen.append((child.pid, child.ppid(), child.name(), child.status()))
            except psutil.NoSuchProcess:
                seen.append((child.pid, 0, "", "gone"))
        dead = [one for one in seen if one[3] in (psutil.STATUS_ZOMBIE, "gone")]
        if not dead and len(seen) <= 1 + projects:
            return
        assert time.monotonic() < deadline, (seen, daemon.projects())
        time.sleep(0.2)


def leaks(
    daemon: Daemon, before: tuple[float, int, int, int], after: tuple[float, int, int, int],
    watch: Watch, projects: int,
) -> list[str]:  # fmt: skip
    """What is more than it was, or was out of bounds."""
    found = []
    if after[2] > before[2] + MORE_DESCRIPTORS:
        found.append(f"descriptors: {before[2]}, then {after[2]}")
    if after[1] > before[1] + MORE_MEMORY:
        found.append(f"RSS: {before[1] >> 20}, then {after[1] >> 20} MiB")
    # Zygotes and generations that go and come, and as many workers as a project may have.
    most = max(sample[3] for sample in watch.samples)
    if most > 2 + projects * (2 + PROJECT_WORKERS):
        found.append(f"{most} processes at once")
    if chaos_seconds() >= LONG_S and watch.growth() > 16 * MIB:
        found.append(f"RSS grows: {watch.growth() >> 20} MiB")
    return found


def report(folder: Path) -> None:
    """For CI, which keeps files."""
    target = os.environ.get("CHAOS_REPORT")
    if target:
        Path(target).write_text((folder / "events.log").read_text())
