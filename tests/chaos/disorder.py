"""What is done to the daemon and its surroundings, at random, from a seed."""

import contextlib
import heapq
import itertools
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.source import DRIP, ERROR, GARBAGE, GOOD, HANG, Source
from tests.chaos.subjects import BROKEN, GONE, Subject
from tests.process.tools import named
from tests.support import Daemon, eventually


class EventLog:
    """What was done, and when; printed if something goes wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self.lines: list[str] = []

    def __call__(self, text: str) -> None:
        line = f"{time.monotonic() - self._begin:8.2f}  {text}"
        with self._lock:
            self.lines.append(line)
            with self._path.open("a") as file:
                file.write(line + "\n")


class Postgres:
    """The server behind a DSN, to be stopped and started as it was."""

    def __init__(self, dsn: str) -> None:
        port = dict(word.split("=", 1) for word in dsn.split())["port"]
        self._pid, self._command = self._find(port)
        self._folder = os.readlink(f"/proc/{self._pid}/cwd")
        self._owner = Path(f"/proc/{self._pid}").stat().st_uid
        self._started: subprocess.Popen[bytes] | None = None

    @staticmethod
    def _find(port: str) -> tuple[int, list[str]]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if words[0].endswith("/postgres") and port in words and "-D" in words:
                        return int(entry.name), words[:-1]
        raise AssertionError(f"no PostgreSQL on port {port}")

    def stop(self) -> None:
        """Fast: its clients are cut off. Told again and again: one that has only just been started
        may not hear it yet."""

        def is_down() -> bool:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGINT)
            return self._has_ended()

        eventually(is_down, timeout=20, period=0.2)

    def _has_ended(self) -> bool:
        if self._started is not None:
            return self._started.poll() is not None
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state == "Z"
        return True

    def start(self) -> None:
        """As before."""
        run_as = []
        if os.geteuid() == 0:
            run_as = ["setpriv", f"--reuid={self._owner}", "--clear-groups"]
        with Path(self._folder, "log").open("ab") as log:
            self._started = subprocess.Popen(
                [*run_as, *self._command], cwd=self._folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._pid = self._started.pid

    def end(self) -> None:
        """If it is ours by now; else it belongs to the fixture."""
        if self._started is not None and self._started.poll() is None:
            self._started.send_signal(signal.SIGINT)
            self._started.wait(20)


class Disorder:
    """Does one thing after the other, and undoes each that does not pass by itself."""

    def __init__(
        self, daemon: Daemon, seed: int, note: EventLog, changing: list[Subject],
        postgres: tuple[Subject, Postgres] | None, remote: tuple[Subject, Source],
        spool: Path | None, hog: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self._daemon = daemon
        self._rng = random.Random(seed)
        self._note = note
        self._changing = changing
        self._postgres = postgres
        self._remote = remote
        self._spool = spool
        self._hog = hog
        self._undo: list[tuple[float, int, str, Callable[[], None]]] = []
        self._numbers = itertools.count()
        #: What waits to be undone and cannot be done twice.
        self._taken: set[str] = set()
        self._hogs: list[threading.Thread] = []
        #: When processes were killed or stopped.
        self.blows: list[float] = []
        self.done: dict[str, int] = {}
        self._actions: dict[str, Callable[[], bool]] = {
            "kill a worker": lambda: self._kill("worker"),
            "kill another worker": lambda: self._kill("worker"),
            "kill all workers": self._kill_all_workers,
            "kill a snapshot": lambda: self._kill("snapshot"),
            "kill the zygote": lambda: self._kill("zygote"),
            "stop a worker": self._stop_worker,
            "replace a project": self._replace,
            "replace another project": self._replace,
            "break a project": self._break,
            "delete a project": self._delete,
            "stop PostgreSQL": self._stop_postgres,
            "load without PostgreSQL": lambda: self._stop_postgres() and self._kill_snapshots(),
            "load without the source": lambda: self._source(HANG) and self._kill_snapshots(),
            "the source hangs": lambda: self._source(HANG),
            "the source drips": lambda: self._source(DRIP),
            "the source sends garbage": lambda: self._source(GARBAGE),
            "the source fails": lambda: self._source(ERROR),
            "fill the spool folder": self._fill,
            "leak": lambda: self._start_hog("LEAK", 60, 8),
            "explode": lambda: self._start_hog("TAKE", 500, 2),
        }

    def run(self, seconds: float, pause: tuple[float, float]) -> None:
        """Until `seconds` are over; every action comes once before any comes again."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            names = list(self._actions)
            self._rng.shuffle(names)
            for name in names:
                self._wait(min(end, time.monotonic() + self._rng.uniform(*pause)))
                if time.monotonic() >= end:
                    return
                if self._actions[name]():
                    self.done[name] = self.done.get(name, 0) + 1

    def heal(self) -> None:
        """Undo all that is still undone."""
        for _, _, name, undo in sorted(self._undo):
            self._note(f"heal: {name}")
            undo()
        self._undo.clear()
        self._taken.clear()
        for thread in self._hogs:
            thread.join(90)

    def _wait(self, until: float) -> None:
        while (now := time.monotonic()) < until:
            if self._undo and self._undo[0][0] <= now:
                _, _, name, undo = heapq.heappop(self._undo)
                self._note(f"undo: {name}")
                undo()
                self._taken.discard(name)
            time.sleep(0.02)

    def _later(self, low: float, high: float, name: str, undo: Callable[[], None]) -> None:
        when = time.monotonic() + self._rng.uniform(low, high)
        self._taken.add(name)
        heapq.heappush(self._undo, (when, next(self._numbers), name, undo))

    # processes

    def _signal(self, pid: int, number: signal.Signals) -> None:
        self.blows.append(time.monotonic())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _kill(self, kind: str) -> bool:
        pids = sorted(named(self._daemon, kind))
        if not pids:
            self._note(f"no {kind} to kill")
            return False
        pid = self._rng.choice(pids)
        self._note(f"SIGKILL {kind} {pid}, of {len(pids)}")
        self._signal(pid, signal.SIGKILL)
        return True

    def _kill_all_workers(self) -> bool:
        pids = named(self._daemon, "worker")
        self._note(f"SIGKILL all workers {pids}")
        for pid in pids:
            self._signal(pid, signal.SIGKILL)
        return bool(pids)

    def _kill_snapshots(self) -> bool:
        """All projects are loaded again, as things are now."""
        time.sleep(0.2)
        pids = named(self._daemon, "snapshot")
        self._note(f"SIGKILL all snapshots {pids}")
        for pid in pids:
            self._signal(pid, signal.SIGKILL)
        return True

    def _stop_worker(self) -> bool:
        pids = sorted(named(self._daemon, "worker"))
        if not pids:
            return False
        pid = self._rng.choice(pids)
        self._note(f"SIGSTOP worker {pid}")
        self._signal(pid, signal.SIGSTOP)
        return True

    # files

    def _whole(self) -> list[Subject]:
        return [subject for subject in self._changing if subject.name not in self._taken]

    def _replace(self) -> bool:
        subjects = self._whole()
        if not subjects:
            return False
        subject = self._rng.choice(subjects)
        self._put_other(subject)
        return True

    def _put_other(self, subject: Subject) -> None:
        versions = sorted(set(subject.contents) - {subject.version})
        version = self._rng.choice(versions)
        self._note(f"{subject.name} becomes {version}")
        subject.put(version, subject.contents[version])

    def _break(self) -> bool:
        subjects = self._whole()
        if not subjects:
            return False
        subject = self._rng.choice(subjects)
        content = subject.contents[min(subject.contents)]
        broken = self._rng.choice([b"", b"no project", content[: len(content) // 2]])
        self._note(f"{subject.name} becomes broken, {len(broken)} bytes")
        subject.put(BROKEN, broken)
        self._later(2, 5, subject.name, lambda: self._put_other(subject))
        return True

    def _delete(self) -> bool:
        subjects = self._whole()
        if not subjects:
            return False
        subject = self._rng.choice(subjects)
        self._note(f"{subject.name} is deleted")
        subject.put(GONE, None)
        self._later(2, 5, subject.name, lambda: self._put_other(subject))
        return True

    # surroundings

    def _stop_postgres(self) -> bool:
        if self._postgres is None or "PostgreSQL" in self._taken:
            return False
        subject, server = self._postgres
        self._note("PostgreSQL is stopped")
        subject.falls_sick()
        server.stop()

        def again() -> None:
            server.start()
            subject.is_well()

        self._later(3, 6, "PostgreSQL", again)
        return True

    def _source(self, mode: str) -> bool:
        if "source" in self._taken:
            return False
        subject, source = self._remote
        self._note(f"the source: {mode}")
        subject.falls_sick()
        source.mode = mode

        def again() -> None:
            source.mode = GOOD
            subject.is_well()

        self._later(2, 5, "source", again)
        return True

    def _fill(self) -> bool:
        if self._spool is None or "spool" in self._taken:
            return False
        filler = self._spool / "filler"
        self._note("the spool folder is full")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 65536):
                pass
        self._later(2, 4, "spool", lambda: filler.unlink(missing_ok=True))
        return True

    def _start_hog(self, what: str, size: int, times: int) -> bool:
        self._note(f"{times} requests {what} {size} MiB each")

        def run() -> None:
            for _ in range(times):
                self._hog(what, size)

        thread = threading.Thread(target=run)
        thread.start()
        self._hogs.append(thread)
        return True
