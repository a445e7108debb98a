"""What operators order of a pool: load, reload, drop; each returns when it is done, with what
happened.

The machine says `Settled` when a load, a reload or a drop has come to its end; whoever waits for
it is woken here.
"""

import asyncio
from collections.abc import Callable

from qgisd.errors import ProjectNotFound
from qgisd.supervisor import events as e
from qgisd.supervisor.files import ProjectFiles
from qgisd.supervisor.model import Project
from qgisd.supervisor.stats import Result


class Orders:
    """Of one pool. handle: gives the machine an event; projects: its records, only read."""

    def __init__(
        self,
        pool: str,
        files: ProjectFiles,
        projects: dict[str, Project],
        handle: Callable[[e.Event], None],
    ) -> None:
        self._pool = pool
        self._files = files
        self._projects = projects
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
