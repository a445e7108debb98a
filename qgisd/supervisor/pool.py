"""A pool: feeds the machine with what happens, and carries out what it decides.

No decision is made here. Everything that mutates the pool passes through `_handle`, one event
after the other, on the loop of the daemon.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgisd import wire
from qgisd.errors import WireError
from qgisd.supervisor import events as e
from qgisd.supervisor import watchdog
from qgisd.supervisor.bulletin import Bulletin
from qgisd.supervisor.cache import Cache, Kept
from qgisd.supervisor.catalog import Catalog
from qgisd.supervisor.exchange import Buffering, Exchange, Order, Sink
from qgisd.supervisor.files import ProjectFiles
from qgisd.supervisor.hearing import Hearing
from qgisd.supervisor.history import History
from qgisd.supervisor.machine import Machine
from qgisd.supervisor.measures import Measures
from qgisd.supervisor.model import Job, Limits, ProjectRef
from qgisd.supervisor.orders import Orders
from qgisd.supervisor.recorder import Recorder
from qgisd.supervisor.stats import Happening
from qgisd.supervisor.transport import Router, identity_of
from qgisd.supervisor.tree import Tree
from qgisd.supervisor.views import Views
from qgisd.words import PluginState, RequestClass


@dataclass(frozen=True)
class MemoryBudget:
    """PSS that a pool may have, in bytes, and the seconds between two looks at it."""

    total: int
    interval_s: float
    #: Of what the cgroup allows all pools together.
    share: float = 1.0


class Pool(Views):
    """One pool (exchange.Service). Made on a running loop; `start` brings up its zygote."""

    def __init__(
        self,
        name: str,
        limits: Limits,
        catalog: Catalog,
        router: Router,
        buffering: Buffering,
        check_interval_s: float,
        restart_file: str,
        memory: MemoryBudget,
        cache_size: int,
        slow_s: Mapping[RequestClass, float],
        native_stacks: bool,
        home: Path,
        zygote_environment: Callable[[int, int], dict[str, str]],
        give_up: Callable[[str], None],
        publish: Callable[[Happening], None],
    ) -> None:
        self.name = name
        self._log = logging.getLogger(f"qgisd.pool.{name}")
        self._loop = asyncio.get_running_loop()
        self._machine = Machine(limits, random.random)
        self._files = ProjectFiles(
            catalog,
            check_interval_s,
            restart_file,
            lambda: self._machine.successor is not None,
            self._machine.projects,
            self._handle,
            self._log,
        )
        self._router = router
        self._buffering = buffering
        self._give_up = give_up
        self._inbox: deque[e.Event] = deque()
        self._handling = False
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._exchanges: dict[int, Exchange] = {}
        self._next_job = 1
        self.orders = Orders(name, self._files, self._machine, self._exchanges, self._handle)
        bulletin = Bulletin(name, self._log, publish)
        self.recorder = Recorder(slow_s, bulletin.slow)
        self.measures = Measures()
        self.cache = Cache(cache_size)
        self._history = History(self._loop.time(), self._machine.projects)
        self._hearing = Hearing(name, self._machine.workers, self._request_id)
        self._tree = Tree(
            name,
            router.endpoint,
            home,
            zygote_environment,
            self._handle,
            self._hearing,
            self.recorder.autopsy,
            native_stacks,
            self._log,
        )
        self._memory = memory
        self._tasks: list[asyncio.Task[None]] = []
        self._idle = asyncio.Event()
        self._performers: dict[type, Callable[[Any], None]] = {
            e.StartZygote: self._tree.start_zygote,
            e.EndZygote: self._tree.end_zygote,
            e.ForkSnapshot: self._tree.fork_snapshot,
            e.HurrySnapshot: self._tree.hurry_snapshot,
            e.EndSnapshot: self._tree.end_snapshot,
            e.ForkWorker: self._tree.fork_worker,
            e.Send: self._send,
            e.SendPing: self._send_ping,
            e.StopWorker: self._stop_worker,
            e.KillWorker: self._tree.kill_worker,
            e.WorkerEnded: self._worker_ended,
            e.LoadEnded: self.measures.load_ended,
            e.Retry: self._retry,
            e.Fail: lambda do: self._exchange(do.job, lambda exchange: exchange.fail(do.error)),
            e.Abort: lambda do: self._exchange(do.job, lambda exchange: exchange.abort(do.reason)),
            e.Settled: self.orders.settled,
            e.Note: bulletin.note,
            e.GiveUp: lambda do: self._give_up(do.message),
            e.AllDone: lambda do: self._idle.set(),
        }
        self.measures.count(self._performers)

    # life

    def start(self, pinned: list[str]) -> None:
        """Begin: zygote, pinned projects, and the watch on project files."""
        self._handle(e.Started())
        self._tasks = [
            self._loop.create_task(self._files.watch(pinned)),
            self._loop.create_task(self._watch_memory()),
        ]

    async def stop(self, timeout_s: float) -> None:
        """Finish what is under way within `timeout_s`, then end every process."""
        deadline = self._loop.time() + timeout_s
        self._handle(e.StopOrdered(deadline))
        for task in self._tasks:
            task.cancel()
        await self._idle.wait()
        # Clients may still take what was kept for them.
        while self._exchanges and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        for exchange in list(self._exchanges.values()):
            exchange.abort("shutting down")
        self._over = True  # what ends from here on ends because we say so
        if self._timer is not None:
            self._timer.cancel()
        await self._tree.shut_down()

    def stop_now(self) -> None:
        """The second SIGTERM: do not finish anything."""
        self._handle(e.StopOrdered(self._loop.time()))
        for exchange in list(self._exchanges.values()):
            exchange.abort("shutting down")

    def settled(self) -> bool:
        """Its zygote has been up, and each pinned project was loaded, or failed to."""
        machine = self._machine
        pinned = (machine.projects[key] for key in machine.pinned)
        return (
            machine.ever_up
            and self._files.pinned_ordered
            and not any(project.coming and not project.serving for project in pinned)
        )

    def pids(self) -> dict[str, int]:
        """Every process of the pool, by name: for memory accounting."""
        return self._tree.pids()

    # events and instructions

    def _handle(self, event: e.Event) -> None:
        # Performing an instruction may make the next event at once: keep them in order.
        if self._over:
            return
        self._inbox.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._inbox:
                for do in self._machine.handle(self._inbox.popleft(), self._loop.time()):
                    self._perform(do)
        finally:
            self._handling = False
        self._arm()

    def _perform(self, do: e.Instruction) -> None:
        try:
            self._performers[type(do)](do)
        except Exception:
            # One that fails must not take the rest along: a kill comes after its request's error.
            self._log.exception("cannot carry out %s", type(do).__name__)

    def _arm(self) -> None:
        when = self._machine.next_deadline()
        if when is None or (self._timer is not None and self._armed_for <= when):
            return  # a timer that is early only looks once more
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = when
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(e.Tick())

    # requests (exchange.Service)

    @property
    def api_root(self) -> str:
        return self._tree.started.api_root if self._tree.started else "/wfs3"

    def known(self, name: str) -> ProjectRef | None:
        return self._files.known(name)

    async def resolve(self, name: str) -> ProjectRef:
        return await self._files.resolve(name)

    def submit(self, order: Order, sink: Sink) -> Exchange:
        now = self._loop.time()
        number = self._next_job
        self._next_job += 1
        job = Job(
            number,
            order.ref.key,
            order.cls,
            order.idempotent,
            now,
            now + order.timeout_s,
            order.depth,
        )
        exchange = Exchange(
            job, order, sink, self._buffering, self._credit, self._held, self._close_exchange
        )
        kept = self._kept(order)
        if kept is not None:
            job.generation, exchange.cached = kept.generation, True
            self._handle(e.AnsweredFromCache(order.ref.key))
            exchange.head(200, kept.headers, kept.body, True)
            return exchange
        self._exchanges[number] = exchange
        self._handle(e.Arrived(job, order.ref))
        return exchange

    def _kept(self, order: Order) -> Kept | None:
        project = self._machine.projects.get(order.ref.key)
        if not order.cache_key or project is None or project.serving is None:
            return None
        if self._machine.draining:
            return None  # refused like all others
        return self.cache.get(project.key, project.serving.number, order.cache_key)

    def _keep(self, worker: int, order: Order, head: wire.Head, body: bytes) -> wire.Headers:
        """Keep an answer that may be kept; its headers, with an ETag then."""
        started, record = self._tree.started, self._machine.workers.get(worker)
        if not order.cache_key or head.status != 200 or started is None or record is None:
            return head.headers
        if any(plugin.state is not PluginState.DISABLED for plugin in started.plugins):
            # Filters and access control may look at anything: nothing is exact any more.
            return head.headers
        key = order.cache_key
        return self.cache.put(order.ref.key, record.generation, key, head.headers, body).headers

    def leave(self, exchange: Exchange, satisfied: bool = False) -> None:
        exchange.gone(satisfied)

    def _close_exchange(self, exchange: Exchange) -> None:
        self._exchanges.pop(exchange.number, None)
        if exchange.number in self._machine.jobs:
            # Its client is gone, or its connection was cut.
            self._handle(e.Gone(exchange.number))
        story = self.recorder.finished(exchange, self._loop.time())
        self.measures.told(story)
        exchange.told(story)

    def _exchange(self, job: int, do: Callable[[Exchange], None]) -> None:
        exchange = self._exchanges.get(job)
        if exchange is not None:
            do(exchange)

    def _credit(self, job: int, size: int) -> None:
        record = self._machine.jobs.get(job)
        if record is not None and record.worker:
            self._router.send(self._identity(record.worker), wire.Credit(job, size))

    def _held(self, job: int, held: bool) -> None:
        self._handle(e.Held(job, held))

    # frames of workers

    def _identity(self, worker: int) -> bytes:
        return identity_of(self.name, worker)

    def on_frames(self, worker: int, header: bytes, body: bytes) -> None:
        """A message of one of this pool's workers."""
        try:
            message = wire.decode_from_worker(header)
        except WireError as error:
            self._handle(e.WorkerConfused(worker, str(error)))
            return
        try:
            self._take(worker, message, body)
        except Exception:
            # A defect of ours costs this answer, and not those whose frames come after it.
            self._log.exception("worker %d: cannot pass on its answer", worker)
            if isinstance(message, (wire.Head, wire.Chunk, wire.End, wire.Broken)):
                self._exchange(message.id, lambda exchange: exchange.abort("internal error"))

    def _take(self, worker: int, message: wire.FromWorker, body: bytes) -> None:
        if not isinstance(message, wire.Chunk):
            self._hearing.take(wire.worker_token(worker))
        if isinstance(message, wire.Head):
            self._on_head(worker, message, body)
        elif isinstance(message, wire.Chunk):
            self._on_chunk(worker, message.id, body)
        elif isinstance(message, wire.End):
            exchange = self._current(worker, message.id)
            self._handle(e.WorkerDone(worker, message.id, grown=message.grown))
            if exchange is not None:
                exchange.end()
        elif isinstance(message, wire.Broken):
            self._handle(e.WorkerDone(worker, message.id, message.message or "broken"))
        elif isinstance(message, wire.Ready):
            self._tree.worker_is_up(worker, message.stack_fd)
            self._handle(e.WorkerUp(worker, message.pid))
        else:
            self._handle(e.WorkerPong(worker))

    def _current(self, worker: int, job: int) -> Exchange | None:
        """The exchange, if that worker has it now; frames from before a retry are dropped."""
        record = self._machine.jobs.get(job)
        return self._exchanges.get(job) if record and record.worker == worker else None

    def _on_head(self, worker: int, head: wire.Head, body: bytes) -> None:
        exchange = self._current(worker, head.id)
        headers = head.headers
        job = self._machine.jobs.get(head.id)
        if head.whole and job is not None and job.worker == worker:
            # Also if its client has left: the next one may have it.
            headers = self._keep(worker, self.recorder.at_work(worker), head, body)
        if head.whole:
            # Order matters: free the worker first, the answer itself costs a write.
            self._handle(e.WorkerDone(worker, head.id, grown=head.grown))
        else:
            self._handle(e.WorkerHead(worker, head.id))
        if exchange is not None:
            exchange.head(head.status, headers, body, head.whole)

    def _on_chunk(self, worker: int, job: int, body: bytes) -> None:
        exchange = self._current(worker, job)
        if exchange is None:
            # Nobody is there to take it; let the worker come to its end, or to its grace.
            self._router.send(self._identity(worker), wire.Credit(job, len(body)))
            return
        self._handle(e.WorkerProgress(worker, job))
        try:
            exchange.chunk(body)
        except OSError as error:
            self._log.error("cannot keep an answer for a slow client: %s", error)
            exchange.abort("no room to keep the answer")

    # what the machine wants done: workers

    def _send(self, do: e.Send) -> None:
        exchange = self._exchanges.get(do.job)
        if exchange is None:
            return  # its client left in this very moment; Gone is on its way
        order = exchange.order
        self.recorder.sent(do.worker, order)
        writes = order.cls is RequestClass.WRITE
        request = wire.Request(do.job, order.method, order.url, order.headers, writes)
        if not self._router.send(self._identity(do.worker), request, order.body):
            self._handle(e.WorkerConfused(do.worker, "it is not connected"))

    def _send_ping(self, do: e.SendPing) -> None:
        self._router.send(self._identity(do.worker), wire.Ping(0))

    def _stop_worker(self, do: e.StopWorker) -> None:
        self._router.send(self._identity(do.worker), wire.Stop())

    def _retry(self, do: e.Retry) -> None:
        exchange = self._exchanges.get(do.job)
        if exchange is not None:
            self._log.info("request %s runs again", exchange.order.request_id)

    def _worker_ended(self, do: e.WorkerEnded) -> None:
        exchange = self._exchanges.get(do.job)
        if exchange is not None:
            exchange.reason = do.reason
        self.recorder.ended(do.worker, do.project, do.reason, do.detail, do.job)

    # what they use and say

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(self._memory.interval_s)
            try:
                used, sampled = await self._loop.run_in_executor(
                    None,
                    watchdog.look,
                    self._tree.pids(),
                    self._memory.total,
                    self._memory.share,
                )
                self.measures.sampled(used, sampled.budget)
                self._handle(sampled)
                self._history.note(self._loop.time())
            except OSError as error:
                self._log.warning("cannot look at the memory: %s", error)
            except Exception:  # what fails once must not end the watch
                self._log.exception("cannot mind the memory")

    def _request_id(self, job: int) -> str:
        told = self._exchanges.get(job) or self.recorder.stories.get(job)
        return told.request_id if told is not None else ""
