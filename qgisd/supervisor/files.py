"""The project files of a pool: what MAP means, and the watch on what changes.

Files are looked at in a thread, as their folder may be on a network that stalls. Polled rather
than notified: inotify sees nothing of what another machine does on NFS.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from qgisd.errors import ProjectNotFound
from qgisd.supervisor import events as e
from qgisd.supervisor.catalog import Catalog, version_of
from qgisd.supervisor.model import Project, ProjectRef, Version

#: MAP strings remembered with what they resolved to.
_KNOWN = 4096
#: Editors replace a file by removing it first: gone is what is missing so many times.
_MISSES = 2


class ProjectFiles:
    """Resolves names and emits Changed and Vanished for the files of `projects`.

    restart_file: a file that means ReloadOrdered(None) when it is touched; "" for none.
    """

    def __init__(
        self,
        catalog: Catalog,
        interval_s: float,
        restart_file: str,
        projects: Mapping[str, Project],
        emit: Callable[[e.Event], None],
        log: logging.Logger,
    ) -> None:
        self._catalog = catalog
        self._interval_s = interval_s
        self._restart_file = restart_file
        self._restart_version = version_of(restart_file) if restart_file else None
        self._projects = projects
        self._emit = emit
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._known: dict[str, ProjectRef] = {}
        self._missed: dict[str, int] = {}
        #: Every pinned project that is there has been ordered.
        self.pinned_ordered = False

    def known(self, name: str) -> ProjectRef | None:
        """See exchange.Service."""
        return self._known.get(name)

    async def resolve(self, name: str) -> ProjectRef:
        """See exchange.Service."""
        ref = await self._loop.run_in_executor(None, self._catalog.resolve, name)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[name] = ref
        return ref

    async def watch(self, pinned: Sequence[str]) -> None:
        """Load what is pinned, then look every interval; runs as long as the pool."""
        missing = [name for name in pinned if not await self._pin(name)]
        for name in missing:
            self._log.error("pinned project %r is not below the roots", name)
        self.pinned_ordered = True
        while True:
            await asyncio.sleep(self._interval_s)
            missing = [name for name in missing if not await self._pin(name)]
            try:
                await self.check()
            except OSError as error:
                self._log.warning("cannot look at project files: %s", error)

    async def _pin(self, name: str) -> bool:
        try:
            ref = await self.resolve(name)
        except ProjectNotFound:
            return False
        self._emit(e.LoadOrdered(ref, pin=True))
        return True

    def _restart_if_touched(self, version: Version | None) -> None:
        before, self._restart_version = self._restart_version, version
        if version not in (None, before):
            self._log.info("%s was touched: the pool is loaded anew", self._restart_file)
            self._emit(e.ReloadOrdered(None))

    async def _prefer_qgs(self) -> None:
        """A name without suffix means the .qgs, where there is one (again)."""
        for name, ref in list(self._known.items()):
            if ref.path.endswith(".qgz") and not name.endswith(".qgz"):
                try:
                    await self.resolve(name)
                except ProjectNotFound:
                    self._known.pop(name, None)

    async def check(self) -> None:
        """Compare the file of every project we know with what it was."""
        records = [(one.key, one.path) for one in self._projects.values() if one.path]
        paths = {ref.path for ref in self._known.values()} | {path for _, path in records}
        if self._restart_file:
            paths.add(self._restart_file)
        found = await self._loop.run_in_executor(
            None, lambda: {path: version_of(path) for path in paths}
        )
        self._restart_if_touched(found.get(self._restart_file))
        await self._prefer_qgs()
        for name, ref in list(self._known.items()):
            version = found.get(ref.path, ref.version)
            if version is None:
                del self._known[name]
            elif version != ref.version:
                self._known[name] = ProjectRef(ref.key, ref.path, version)
        for key, path in records:
            version = found[path]
            if version is not None:
                self._missed.pop(key, None)
                self._emit(e.Changed(ProjectRef(key, path, version)))
                continue
            self._missed[key] = self._missed.get(key, 0) + 1
            if self._missed[key] >= _MISSES:
                del self._missed[key]
                self._emit(e.Vanished(key))
