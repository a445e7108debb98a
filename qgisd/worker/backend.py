"""What a pool runs in its processes: QGIS, or a stand-in that misbehaves on command.

A backend lives through the tree: `start` in the zygote, `load` in a snapshot (or a worker in
Mode.LOADED), `handle` in workers, all in forks of the same object.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from qgisd import wire
from qgisd.datafiles import Versions


class LoadError(Exception):
    """The project cannot be served. The message is for operators; clients get less."""


@dataclass(frozen=True)
class Started:
    """What the zygote has: for `ctl plugins`, `check` and the log."""

    qgis: str
    #: Path of OGC API Features: "/wfs3" up to QGIS 3, "/ogcapi" from 4 on.
    api_root: str
    services: list[str]
    plugins: list[wire.Plugin]
    notes: list[str] = field(default_factory=list)
    #: Plugins that leave threads in this process, name → the threads. It cannot be forked: start
    #: again without them (ZygoteSettings.threaded_plugins).
    threaded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Project:
    """What was loaded."""

    layers: int
    bad_layers: list[wire.BadLayer]
    #: Why this project must not be forked though it may be single-threaded; "" if it may.
    unforkable: str = ""
    #: What its layers read, as far as it is local; nothing if that is not watched.
    data_files: Versions = field(default_factory=dict)
    #: For the log.
    notes: list[str] = field(default_factory=list)
    #: Its layers, as far as they are told.
    contents: list[wire.Layer] = field(default_factory=list)


@dataclass(frozen=True)
class WarmStep:
    """Requests that a snapshot may answer to itself before it is forked."""

    #: "capabilities" or "map", of `pool.warmup`.
    level: str
    requests: list[wire.Request]


class Answer(Protocol):
    """Where a backend puts its answer; the worker's loop sends it on."""

    def begin(self, status: int, headers: wire.Headers) -> None:
        """Send the head now: the body will come in pieces."""

    def write(self, data: bytes) -> None:
        """Send a piece. Blocks while the daemon has not put away enough of what was sent."""

    def finish(self, status: int, headers: wire.Headers, data: bytes) -> None:
        """All at once, or the last piece after `begin` (status and headers are then out)."""

    def fail(self, message: str) -> None:
        """After `begin`: what was sent must not be taken for the whole."""


class Backend(Protocol):
    """One kind of server in the processes of a pool."""

    #: Names of threads that may be there when the zygote forks.
    zygote_threads: tuple[str, ...]

    def start(self, begin: Callable[[str], None]) -> Started:
        """Come up without any project. Raises LoadError.

        begin: told what comes next, before anything that may take the process down.
        """

    def load(self, path: str) -> Project:
        """Load the one project of this process; "" stands for none. Raises LoadError."""

    def quiesce(self) -> None:
        """End what threads can be ended; called again until they are gone."""

    def warm_steps(self, project: str) -> list[WarmStep]:
        """By what the loaded project, known by this key, can be warmed up; weakest first."""

    def warmed_up(self) -> None:
        """Forget the answers; keep what they opened."""

    def forked(self) -> None:
        """In a fresh worker, before it says that it is ready."""

    def idle(self) -> None:
        """Between requests, now and then: turn an event loop, return memory."""

    def handle(self, request: wire.Request, body: bytes, answer: Answer) -> None:
        """Answer one request: calls `answer.finish` or `answer.fail` once."""
