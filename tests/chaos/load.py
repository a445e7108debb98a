"""The clients: ordinary ones that check every answer, slow ones, and ones that vanish."""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from tests.chaos.subjects import Subject
from tests.support import Daemon, Response

#: A client waits longer than any deadline of the daemon allows.
TIMEOUT_S = 60.0


@dataclass
class Found:
    """What the clients saw; many threads write to it."""

    violations: list[str] = field(default_factory=list)
    #: (project, outcome) → how often; outcome is "right", "aborted" or a status.
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Of the right answers, by project: when they were asked for, and the seconds they took.
    times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    slowest_health: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def violation(self, text: str) -> None:
        with self.lock:
            if len(self.violations) < 200:
                self.violations.append(text)

    def outcome(self, project: str, what: str, begin: float, seconds: float) -> None:
        with self.lock:
            self.outcomes[project, what] += 1
            if what == "right":
                self.times.setdefault(project, []).append((begin, seconds))

    def p95(self, projects: Collection[str], but: Sequence[tuple[float, float]] = ()) -> float:
        """Seconds; 0 where nothing was right.

        but: spans of time; what was asked for in one does not count.
        """
        found = sorted(
            seconds
            for project in projects
            for begin, seconds in self.times.get(project, [])
            if not any(since <= begin <= until for since, until in but)
        )
        return found[int(len(found) * 0.95)] if found else 0.0

    def requests(self) -> int:
        """How many had an outcome."""
        return sum(self.outcomes.values())

    def table(self) -> str:
        """A line for each project."""
        lines = []
        for project in sorted({project for project, _ in self.outcomes}):
            counts = {what: n for (name, what), n in sorted(self.outcomes.items())
                      if name == project}  # fmt: skip
            lines.append(f"  {project}: {counts}, p95 {self.p95([project]) * 1000:.0f} ms")
        return "\n".join(lines)


class Clients:
    """All threads of the load; leave the block to end them."""

    def __init__(
        self, daemon: Daemon, subjects: list[Subject], big: tuple[Subject, str, bytes],
        seed: int, note: Callable[[str], None], ordinary: int = 5,
    ) -> None:  # fmt: skip
        self.found = Found()
        self._daemon = daemon
        self._subjects = subjects
        self._big = big
        self._note = note
        self._stop = threading.Event()
        works = [self._ordinary] * ordinary + [self._slow, self._vanishing, self._health]
        self._threads = [
            threading.Thread(target=self._run, args=(work, random.Random(f"{seed} {number}")))
            for number, work in enumerate(works)
        ]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S + 30)
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            self.found.violation(f"clients that wait for ever: {stuck}")

    def _run(self, work: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            while not self._stop.is_set():
                work(rng)
        except Exception as error:
            self.found.violation(f"a client ended: {type(error).__name__}: {error}")

    def _fail(self, text: str) -> None:
        self._note(f"WRONG {text}")
        self.found.violation(text)

    def _ordinary(self, rng: random.Random) -> None:
        subject = rng.choice(self._subjects)
        query = rng.choice(subject.queries)
        ask(self._daemon, subject, query, self.found, self._fail)
        self._stop.wait(rng.uniform(0.01, 0.08))

    def _slow(self, rng: random.Random) -> None:
        """Takes a long answer a piece at a time, so that the daemon has to keep it."""
        subject, query, right = self._big
        begin = time.monotonic()
        connection = self._daemon.connection(TIMEOUT_S)
        pieces: list[bytes] = []
        complete = True
        try:
            connection.request("GET", subject.target(query))
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            answer = connection.getresponse()
            try:
                while piece := answer.read(65536):
                    pieces.append(piece)
                    self._stop.wait(0.02)
            except (http.client.IncompleteRead, ConnectionResetError):
                complete = False
        except OSError as error:
            self._fail(f"slow client: {type(error).__name__} {error}")
            return
        finally:
            connection.close()
        body = b"".join(pieces)
        seconds = time.monotonic() - begin
        response = Response(answer.status, answer.headers, body, complete)
        if answer.status == 200 and complete and body != right:
            self._fail(f"slow client: a well-ended answer of {len(body)} bytes, not {len(right)}")
        elif answer.status != 200 and (
            wrong := subject.judge(query, response, begin, begin + seconds)
        ):
            self._fail(f"slow client: {wrong}")
        what = "right" if complete and body == right else "aborted" if not complete else "error"
        self.found.outcome("(slow client)", what, begin, seconds)
        self._stop.wait(rng.uniform(0, 0.5))

    def _vanishing(self, rng: random.Random) -> None:
        """Asks and leaves."""
        subject = rng.choice(self._subjects)
        query = rng.choice(subject.queries)
        if rng.random() < 0.3:
            subject, query, _ = self._big
        connection = self._daemon.connection(TIMEOUT_S)
        try:
            connection.request("GET", subject.target(query))
            self._stop.wait(rng.choice((0.0, 0.01, 0.05, 0.3)))
        except OSError as error:
            self._fail(f"cannot connect: {error}")
        finally:
            connection.close()
        self._stop.wait(rng.uniform(0.1, 0.4))

    def _health(self, _: random.Random) -> None:
        """The daemon itself answers at any time."""
        begin = time.monotonic()
        try:
            answer = self._daemon.get("/healthz", timeout=20)
            if answer.status != 200:
                self._fail(f"/healthz: {answer.status}")
        except OSError as error:
            self._fail(f"/healthz: {type(error).__name__} {error}")
        self.found.slowest_health = max(self.found.slowest_health, time.monotonic() - begin)
        self._stop.wait(0.25)


def ask(
    daemon: Daemon, subject: Subject, query: str, found: Found, fail: Callable[[str], None]
) -> bool:
    """One request, judged. True if the answer is right."""
    begin = time.monotonic()
    try:
        answer = daemon.get(subject.target(query), timeout=TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        seconds = time.monotonic() - begin
        fail(f"{subject.name}: {type(error).__name__} {error} after {seconds:.1f} s: {query[:120]}")
        return False
    end = time.monotonic()
    wrong = subject.judge(query, answer, begin, end)
    if wrong:
        fail(f"{subject.name}: {wrong} ({end - begin:.1f} s, {query[:160]})")
    right = not wrong and answer.status == 200 and answer.complete
    what = "right" if right else "aborted" if not answer.complete else str(answer.status)
    found.outcome(subject.name, what, begin, end - begin)
    return right
