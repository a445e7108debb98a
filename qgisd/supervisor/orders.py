"""What operators order of a pool: load, reload, drop, pin, kill, drain. What takes a while
returns when it is done, with what happened.

The machine says `Settled` when a load, a reload or a drop has come to its end; whoever waits for
it is woken here.
"""

import asyncio
from collections.abc import Callable, Mapping

from qgisd.errors import ProjectNotFound
from qgisd.supervisor import events as e
from qgisd.supervisor.exchange import Exchange
from qgisd.supervisor.files import ProjectFiles
from qgisd.supervisor.machine import Machine
from qgisd.supervisor.states import WorkerState
from qgisd.supervisor.stats import Killed, Result


class Orders:
    """Of one pool. handle: gives the machine an event; its records are only read here."""

    def __init__(
        self,
        pool: str,
        files: ProjectFiles,
        machine: Machine,
        exchanges: Mapping[int, Exchange],
        handle: Callable[[e.Event], None],
    ) -> None:
        self._pool = pool
        self._files = files
        self._projects = machine.projects
        self._workers = machine.workers
        self._jobs = machine.jobs
        self._exchanges = exchanges
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._settlers: dict[str, list[asyncio.Future[e.Settled]]] = {}

    async def load(self, name: str, pin: bool) -> Result:
        ref = await self._files.resolve(name)
        settled = self._expect(ref.key)
        self._handle(e.LoadOrdered(ref, pin))
        return self._outcome(await settled)

    async def reload(self, name: str | None) -> list[Result]:
        if name is not None:
            key = (await self._files.resolve(name)).key
            if key not in self._projects:
                raise ProjectNotFound(f"{key} is not loaded")
            settled = self._expect(key)
            await self._files.check()
            self._handle(e.ReloadOrdered(key))
            return [self._outcome(await self._last(settled, key))]
        settled = self._expect("")
        self._handle(e.ReloadOrdered(None))
        rows = [self._outcome(await settled)]
        coming = [key for key, project in self._projects.items() if project.coming]
        waits = [self._last(self._expect(key), key) for key in coming]
        return rows + [self._outcome(row) for row in await asyncio.gather(*waits)]

    async def drop(self, name: str) -> Result:
        key = (await self._files.resolve(name)).key if name not in self._projects else name
        if key not in self._projects:
            raise ProjectNotFound(f"{key} is not loaded")
        settled = self._expect(key)
        self._handle(e.DropOrdered(key))
        return self._outcome(await self._last(settled, key))

    async def unpin(self, name: str) -> Result:
        key = (await self._files.resolve(name)).key if name not in self._projects else name
        project = self._projects.get(key)
        if project is None:
            raise ProjectNotFound(f"{key} is not loaded")
        detail = "no longer pinned" if project.pinned else "was not pinned"
        generation = project.serving.number if project.serving else 0
        self._handle(e.UnpinOrdered(key))
        return Result(self._pool, key, generation, True, detail)

    def kill_worker(self, number: int) -> Killed | None:
        worker = self._workers.get(number)
        if worker is None or worker.state is WorkerState.KILLING:
            return None
        exchange = self._exchanges.get(worker.job)
        request_id = exchange.order.request_id if exchange is not None else ""
        detail = f"worker {number} (pid {worker.pid}) of {worker.project} was {worker.state.value}"
        self._handle(e.WorkerKillOrdered(number))
        return Killed(self._pool, number, request_id, detail)

    def kill_request(self, request_id: str) -> list[Killed]:
        killed = []
        for exchange in list(self._exchanges.values()):
            if exchange.order.request_id != request_id:
                continue
            job = self._jobs.get(exchange.number)
            if job is None:
                # Its worker is done, and the client still takes: there is only a line to cut.
                exchange.abort("an operator ended the request")
                killed.append(Killed(self._pool, None, request_id, "it was being sent"))
                continue
            worker, detail = job.worker or None, f"it was {job.state.value}"
            self._handle(e.JobKillOrdered(job.id))
            killed.append(Killed(self._pool, worker, request_id, detail))
        return killed

    def drain(self, on: bool) -> None:
        self._handle(e.DrainOrdered(on))

    def _expect(self, key: str) -> "asyncio.Future[e.Settled]":
        future: asyncio.Future[e.Settled] = self._loop.create_future()
        self._settlers.setdefault(key, []).append(future)
        return future

    async def _last(self, settled: "asyncio.Future[e.Settled]", key: str) -> e.Settled:
        """What came of a load in the end: one overtaken by a newer version is not the end."""
        outcome = await settled
        while not outcome.ok and (project := self._projects.get(key)) and project.coming:
            outcome = await self._expect(key)
        return outcome

    def settled(self, do: e.Settled) -> None:
        for future in self._settlers.pop(do.project, []):
            if not future.done():
                future.set_result(do)

    def _outcome(self, settled: e.Settled) -> Result:
        return Result(self._pool, settled.project, settled.generation, settled.ok, settled.detail)
