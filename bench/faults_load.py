"""A crowd of clients in threads, which remembers each request with its time: for faults."""

import http.client
import itertools
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One request: when it was sent, how long it took, and what came of it."""

    begin: float
    seconds: float
    #: "" if it was right, else what was wrong.
    wrong: str
    retry_after: str = ""


@dataclass
class Crowd:
    """Clients that ask one thing after the other until told to stop. Each keeps its connection."""

    port: int
    targets: Iterator[str]
    clients: int
    timeout_s: float = 90.0
    #: Requests that a client whose connection was refused makes no more of.
    stop_when_refused: bool = False
    #: Wait as long as Retry-After says, as a browser's user would at least.
    patient: bool = False
    samples: list[Sample] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(self.timeout_s + 10)

    def _next(self) -> str:
        with self._lock:
            return next(self.targets)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        with closing(connection):
            while not self._over.is_set():
                if not self._one(connection):
                    return

    def _one(self, connection: http.client.HTTPConnection) -> bool:
        begin, wrong, retry_after = time.monotonic(), "", ""
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            self.refused += 1
            time.sleep(0.02)
            return not self.stop_when_refused
        try:
            connection.request("GET", self._next())
            answer = connection.getresponse()
            body = answer.read()
            retry_after = answer.headers.get("Retry-After", "")
            if answer.status != 200:
                wrong = f"status {answer.status}"
            elif not body.startswith(b"\x89PNG"):
                wrong = "no picture"
        except (OSError, http.client.HTTPException) as error:
            wrong = type(error).__name__
            connection.close()
        sample = Sample(begin, time.monotonic() - begin, wrong, retry_after)
        with self._lock:
            self.samples.append(sample)
        if self.patient and retry_after:
            self._over.wait(int(retry_after))
        return True

    # what was found

    @property
    def failed(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.wrong]

    def rate(self, begin: float, end: float) -> float:
        """Right answers a second that came between the two."""
        came = [
            sample for sample in self.samples
            if not sample.wrong and begin <= sample.begin + sample.seconds < end
        ]  # fmt: skip
        return len(came) / (end - begin)

    def p95(self) -> float:
        """Milliseconds, of all, the failed included."""
        return percentile([sample.seconds for sample in self.samples], 0.95) * 1000

    def what(self) -> str:
        """Failures by kind."""
        kinds = sorted({sample.wrong for sample in self.failed})
        return ", ".join(
            f"{sum(sample.wrong == kind for sample in self.failed)} × {kind}" for kind in kinds
        )


def percentile(values: Sequence[float], share: float) -> float:
    """0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def forever(*targets: str) -> Iterator[str]:
    """These in turn."""
    return itertools.cycle(targets)


def at_once(port: int, targets: Sequence[str], timeout_s: float = 90.0) -> Crowd:
    """Each of `targets` once, all at the same time, each on a connection of its own."""
    crowd = Crowd(port, iter(targets), len(targets), timeout_s)
    barrier = threading.Barrier(len(targets))

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        with closing(connection):
            barrier.wait(30)
            crowd._one(connection)

    threads = [threading.Thread(target=run) for _ in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s + 10)
    return crowd


@dataclass(frozen=True)
class Curl:
    """One download, as curl saw it."""

    code: int
    status: int
    size: int
    #: When it ended, of the monotonic clock.
    end: float


class Download:
    """curl in the background."""

    def __init__(self, port: int, target: str, out: Path) -> None:
        self._process = subprocess.Popen(
            ["curl", "-s", "-m", "60", "-o", str(out), "-w", "%{http_code} %{size_download}",
             f"http://127.0.0.1:{port}{target}"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._out = out

    def size(self) -> int:
        """Bytes so far."""
        return self._out.stat().st_size if self._out.exists() else 0

    def wait(self) -> Curl:
        """Its end."""
        output, _ = self._process.communicate(timeout=90)
        end = time.monotonic()
        status, size = output.split()
        return Curl(self._process.returncode, int(status), int(size), end)
