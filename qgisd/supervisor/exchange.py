"""One request in flight: what HTTP hands to a pool, and how the answer finds its way back.

A slow client must not hold a worker. What the client has not taken yet is kept here: some in
memory, then in an unlinked file, and only when that is full the worker is told to wait, by
withholding its credit.
"""

import asyncio
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol

from qgisd.errors import RequestError, WorkerLost
from qgisd.supervisor.cache import Cache
from qgisd.supervisor.measures import Measures
from qgisd.supervisor.model import Job, ProjectRef
from qgisd.supervisor.stats import Killed, PoolView, ProjectDetail, Result
from qgisd.supervisor.story import Story, outcome_of
from qgisd.wire import Headers
from qgisd.words import Outcome, Reason, RequestClass

if TYPE_CHECKING:
    from qgisd.supervisor.history import Minute
    from qgisd.supervisor.recorder import Crash, Slow

#: Bytes written to a client at once.
_PIECE = 256 << 10


@dataclass(frozen=True, slots=True)
class Order:
    """What to run: a request as QGIS is to see it."""

    ref: ProjectRef
    method: str
    #: Absolute, as the client sees the service.
    url: str
    headers: Headers
    body: bytes
    cls: RequestClass
    idempotent: bool
    #: Seconds until an answer must have begun.
    timeout_s: float
    request_id: str
    #: See model.Job.
    depth: int = 0
    #: All that the answer depends on besides the project; "" if it is not to be kept.
    cache_key: str = ""


class Sink(Protocol):
    """Where an answer goes: a client's connection. Each request ends with one of the last three."""

    #: Of the answer that has begun, or 0.
    status: int

    @property
    def wants_length(self) -> bool:
        """It ends an answer of unknown length by closing (HTTP/1.0), as a cut would."""

    def head(self, status: int, headers: Headers, body: bytes, length: int | None) -> int:
        """Status, headers and the first bytes of a body of `length` bytes, None if nobody knows.

        If these are all of it, this is the end of the answer. Returns how many bytes were sent:
        a client may want none of them (HEAD), or have them.
        """

    def write(self, data: bytes | memoryview) -> Awaitable[None]:
        """More bytes; done when the client's socket has taken them. Fails if it is closed."""

    def unsent(self) -> int:
        """Bytes that the kernel still holds for the client. While it shrinks, the client takes."""

    def end(self) -> None:
        """All bytes are written."""

    def fail(self, error: RequestError) -> None:
        """Nothing was sent: answer with this error."""

    def abort(self, reason: str) -> None:
        """Something was sent and the rest will not come: cut the connection."""

    def told(self, story: Story) -> None:
        """How it went; the last it hears."""


@dataclass(frozen=True)
class Buffering:
    """How much of one answer is kept for a slow client, in bytes, and for how long."""

    memory: int
    spool: int
    spool_dir: str | None
    #: Seconds in which a client must take something.
    client_timeout_s: float


class Exchange:
    """The answer of one request, from a worker to a sink. The pool calls it."""

    def __init__(
        self,
        job: Job,
        order: Order,
        sink: Sink,
        buffering: Buffering,
        credit: Callable[[int, int], None],
        held: Callable[[int, bool], None],
        closed: Callable[["Exchange"], None],
    ) -> None:
        self.number = job.id
        self.job = job
        self.order = order
        self.sent = 0
        #: How it ended, and what is to be said of that.
        self.outcome = Outcome.UNDER_WAY
        self.detail = ""
        #: Why a worker that had it ended, if one did.
        self.reason: Reason | None = None
        self.cached = False
        self._sink = sink
        self._buffering = buffering
        self._credit = credit
        self._held = held
        self._closed = closed
        self._backlog = _Backlog(buffering)
        self._owed = 0
        #: Status and headers of an answer that is kept whole before it is sent.
        self._held_head: tuple[int, Headers] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._ended = False
        self._over = False

    @property
    def over(self) -> bool:
        """The sink has heard the last of it."""
        return self._over

    def told(self, story: Story) -> None:
        """After its end."""
        self._sink.told(story)

    @property
    def request_id(self) -> str:
        """X-Request-Id."""
        return self.order.request_id

    @property
    def status(self) -> int:
        """What the client was told, or 0."""
        return self._sink.status

    def head(self, status: int, headers: Headers, body: bytes, whole: bool) -> None:
        """The worker's Head."""
        if whole and len(body) > _PIECE:
            # Like a stream, but of known length: a client may be slow to take it.
            self._sink.head(status, headers, b"", len(body))
            if not self._over:
                self._ended = True
                self._backlog.keep(body)
                self._start_writing()
            return
        if not whole and self._sink.wants_length:
            self._held_head = (status, headers)
            return
        self.sent = self._sink.head(status, headers, body, len(body) if whole else None)
        if whole:
            self._finish(self._complete())

    def chunk(self, data: bytes) -> None:
        """The worker's Chunk: keep it, and tell the worker so, unless too much is kept."""
        if self._over:
            self._credit(self.number, len(data))
            return
        self._backlog.push(data)
        if self._held_head is None:
            self._start_writing()
        elif self._backlog.size > self._buffering.spool:
            self._send_held_head(None)  # more than may be kept: its length stays unknown
        if self._backlog.size <= self._buffering.spool:
            self._credit(self.number, len(data))
        else:
            if not self._owed:
                self._held(self.number, True)
            self._owed += len(data)

    def end(self) -> None:
        """The worker's End; the client may still have much to take."""
        self._ended = True
        if self._held_head is not None:
            self._send_held_head(self._backlog.size)
        if self._writer is None and not self._over:
            self._sink.end()
            self._finish(self._complete())

    def fail(self, error: RequestError) -> None:
        """No answer will come."""
        if not self._over:
            try:
                self._sink.fail(error)
            finally:
                self._finish(outcome_of(error, self.job.attempts), str(error))

    def abort(self, reason: str) -> None:
        """No more of the answer will come."""
        if self._over:
            return
        if self._held_head is not None:
            self._sink.fail(WorkerLost("the answer broke off"))
            self._finish(Outcome.FAILED, reason)
        else:
            self._sink.abort(reason)
            self._finish(Outcome.ABORTED, reason)

    def gone(self, satisfied: bool) -> None:
        """The client has left, or (satisfied) wants no more than it has."""
        self._finish(self._complete() if satisfied else Outcome.DISCONNECTED)

    def _send_held_head(self, length: int | None) -> None:
        """What was held back until the length is known, or given up to be known."""
        assert self._held_head is not None
        (status, headers), self._held_head = self._held_head, None
        self._sink.head(status, headers, b"", length)
        if self._backlog.size and not self._over:
            self._start_writing()

    def _start_writing(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            while (data := self._backlog.pop()) is not None:
                if not await self._taken(self._sink.write(data)):
                    timeout = self._buffering.client_timeout_s
                    self.abort(f"the client took nothing for {timeout:g} s")
                    return
                self.sent += len(data)
                if self._owed and self._backlog.size <= self._buffering.spool:
                    owed, self._owed = self._owed, 0
                    self._held(self.number, False)
                    self._credit(self.number, owed)
        except Exception as error:
            # The connection is closed; its own callback says so as well.
            if not self._over:
                self._sink.abort(f"cannot write: {error}")
                self._finish(Outcome.DISCONNECTED)
            return
        self._writer = None
        if self._ended and not self._over:
            self._sink.end()
            self._finish(self._complete())

    async def _taken(self, writing: Awaitable[None]) -> bool:
        """Wait until the client has taken what is being written, as long as it takes anything.

        A socket is writable again only when much of its buffer has drained: a client on a slow
        line takes all the time, and shows it in `unsent` alone.
        """
        future = asyncio.ensure_future(writing)
        left = self._sink.unsent()
        while True:
            await asyncio.wait((future,), timeout=self._buffering.client_timeout_s)
            if future.done():
                future.result()
                return True
            before, left = left, self._sink.unsent()
            if left >= before:
                return False

    def _complete(self) -> Outcome:
        """How it ends with all that the worker said: as the worker's status has it."""
        if self.cached:
            return Outcome.CACHED
        return Outcome.ERROR if self._sink.status >= 400 else Outcome.OK

    def _finish(self, outcome: Outcome, detail: str = "") -> None:
        if not self._over:
            self._over = True
            self.outcome, self.detail = outcome, detail
            self._backlog.close()
            self._closed(self)


class _Backlog:
    """Bytes that wait for the client: first in memory, then in a file. First in, first out."""

    def __init__(self, buffering: Buffering) -> None:
        self._buffering = buffering
        self._pieces: deque[memoryview] = deque()
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        self._read_at = self._write_at = 0

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._in_memory + self._write_at - self._read_at

    def keep(self, data: bytes) -> None:
        """Keep `data` in memory, where all of it is anyway."""
        self._pieces.append(memoryview(data))
        self._in_memory += len(data)

    def push(self, data: bytes) -> None:
        """Keep `data`. Raises OSError if the disk is full."""
        in_file = self._write_at > self._read_at
        if not in_file and self._in_memory + len(data) <= self._buffering.memory:
            self.keep(data)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115  (closed by `close`)
                dir=self._buffering.spool_dir, buffering=0
            )
        self._file.seek(self._write_at)
        left = memoryview(data)
        while left:  # a raw write may be short, on a disk that is nearly full
            left = left[self._file.write(left) :]
        self._write_at += len(data)

    def pop(self) -> bytes | memoryview | None:
        """The next piece, or None if nothing is kept. No larger than what even a slow client
        takes within its timeout."""
        if self._pieces:
            first = self._pieces[0]
            if len(first) <= _PIECE:
                self._pieces.popleft()
            else:
                self._pieces[0] = first[_PIECE:]
            self._in_memory -= min(len(first), _PIECE)
            return first[:_PIECE]
        if self._file is None or self._read_at == self._write_at:
            return None
        self._file.seek(self._read_at)
        data = self._file.read(min(_PIECE, self._write_at - self._read_at))
        self._read_at += len(data)
        if self._read_at == self._write_at:
            self._file.truncate(0)
            self._read_at = self._write_at = 0
        return data

    def close(self) -> None:
        """Forget all of it."""
        self._pieces.clear()
        self._in_memory = 0
        if self._file is not None:
            self._file.close()
            self._file = None
        self._read_at = self._write_at = 0


class Operators(Protocol):
    """What an operator may order of a pool; each returns when it is done."""

    async def load(self, name: str, pin: bool) -> Result:
        """Load a project and wait for it. Raises ProjectNotFound."""

    async def reload(self, name: str | None) -> list[Result]:
        """Load one project, or all, anew; what happened, a row for each."""

    async def drop(self, name: str) -> Result:
        """Unload a project."""

    async def unpin(self, name: str) -> Result:
        """Keep a project no longer than it is used."""

    def kill_worker(self, number: int) -> Killed | None:
        """Kill a worker, and end the request it has; None if there is no such worker."""

    def kill_request(self, request_id: str) -> list[Killed]:
        """End the requests of this id, and kill the workers that have them."""

    def drain(self, on: bool) -> None:
        """Take no new requests, or take them again."""


class Service(Protocol):
    """What HTTP sees of a pool."""

    name: str
    #: What was counted since the start, and what is kept of answers.
    measures: Measures
    cache: Cache

    @property
    def orders(self) -> Operators:
        """What an operator may order."""

    @property
    def api_root(self) -> str:
        """Path below which this QGIS serves OGC API Features: "/wfs3" or "/ogcapi"."""

    def known(self, name: str) -> ProjectRef | None:
        """The project of a MAP that was resolved a moment ago; no I/O."""

    async def resolve(self, name: str) -> ProjectRef:
        """The project of a MAP. Raises ProjectNotFound."""

    def submit(self, order: Order, sink: Sink) -> Exchange:
        """Queue a request. Its sink hears of everything that follows."""

    def leave(self, exchange: Exchange, satisfied: bool = False) -> None:
        """The client of a request is gone, or (satisfied) wants no more than it has."""

    def ready(self) -> list[str]:
        """What is missing before the pool can serve; empty when it can."""

    def view(self) -> PoolView:
        """Its state, at this moment."""

    def detail(self, project: str) -> ProjectDetail | None:
        """One project by its key, with its layers; None if it is not loaded, loading or failed."""

    def in_flight(self) -> list[tuple[str, Story]]:
        """State and story so far of each request that has not ended, oldest first.

        States: those of `states.JobState`; "sending" while its client still takes the answer.
        """

    def story(self, request_id: str) -> Story | None:
        """What became, or becomes, of a request; the last one, if several had this id."""

    def stories(self) -> list[Story]:
        """The last requests that ended, oldest first."""

    def history(self, since: int) -> "list[Minute]":
        """What its projects did by the minute: the rows after that number, oldest first."""

    def slowlog(self) -> "list[Slow]":
        """The last slow requests, those under way among them, oldest first."""

    def slow_now(self) -> "list[Slow]":
        """Requests that wait or run, and have for longer than they should."""

    def last_crash(self, project: str) -> "Crash | None":
        """The last worker that a project lost over a request."""
