"""The project files of a pool: what MAP means, and the watch on what changes.

The data files of what is loaded are looked at, too. All in a thread, as their folder may be on a
network that stalls. Polled rather than notified: inotify sees nothing of what another machine does
on NFS.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from qgisd import datafiles
from qgisd.errors import ProjectNotFound
from qgisd.supervisor import events as e
from qgisd.supervisor.catalog import Catalog, version_of
from qgisd.supervisor.model import Project, ProjectRef, Version

#: MAP strings remembered with what they resolved to.
_KNOWN = 4096
#: Editors replace a file by removing it first: gone is what is missing so many times.
_MISSES = 2
#: Of the time, a look at data files takes one part in so many: there may be 100,000 of them.
_DATA_SHARE = 50


class ProjectFiles:
    """Resolves names; emits Changed, Vanished and DataChanged for the files of `projects`.

    restart_file: a file that means ReloadOrdered(None) when it is touched; "" for none.
    reloading: whether such a reload is under way. It may have read what was changed after it began,
    so that a touch waits for its end.
    """

    def __init__(
        self,
        catalog: Catalog,
        interval_s: float,
        restart_file: str,
        reloading: Callable[[], bool],
        projects: Mapping[str, Project],
        emit: Callable[[e.Event], None],
        log: logging.Logger,
    ) -> None:
        self._catalog = catalog
        self._interval_s = interval_s
        self._restart_file = restart_file
        self._restart_version = version_of(restart_file) if restart_file else None
        self._touched = False
        self._reloading = reloading
        self._projects = projects
        self._emit = emit
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._known: dict[str, ProjectRef] = {}
        self._missed: dict[str, int] = {}
        #: Every pinned project that is there has been ordered.
        self.pinned_ordered = False
        #: Key → generation, and its data files at the last look.
        self._seen: dict[str, tuple[int, datafiles.Versions]] = {}
        self._next_data_look = 0.0

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
                await self._check_data()
            except OSError as error:
                self._log.warning("cannot look at project files: %s", error)
            except Exception:  # what fails once must not end the watch
                self._log.exception("cannot mind the project files")

    async def _pin(self, name: str) -> bool:
        try:
            ref = await self.resolve(name)
        except (ProjectNotFound, OSError):
            return False
        self._emit(e.LoadOrdered(ref, pin=True))
        return True

    def _restart_if_touched(self, version: Version | None) -> None:
        before, self._restart_version = self._restart_version, version
        self._touched = self._touched or version not in (None, before)
        if self._touched and not self._reloading():
            self._touched = False
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
                project = self._projects.get(key)
                if project is not None and project.version != version:
                    self._emit(e.Changed(ProjectRef(key, path, version)))
                continue
            self._missed[key] = self._missed.get(key, 0) + 1
            if self._missed[key] >= _MISSES:
                del self._missed[key]
                self._emit(e.Vanished(key))

    async def _check_data(self) -> None:
        """Compare the data files of what serves with what they were at the last look."""
        if self._loop.time() < self._next_data_look:
            return
        serving = [
            (key, project.serving.number, project.serving.data_files)
            for key, project in self._projects.items()
            if project.serving is not None and project.serving.data_files
        ]
        paths = {path for _, _, files in serving for path in files}
        begun = self._loop.time()
        found = await self._loop.run_in_executor(
            None, lambda: {path: datafiles.version_of(path) for path in paths}
        )
        ended = self._loop.time()
        self._next_data_look = ended + _DATA_SHARE * (ended - begun)
        last, self._seen = self._seen, {}
        for key, number, at_load in serving:
            seen, before = last.get(key, (0, at_load))
            before = before if seen == number else at_load
            now = {path: found[path] for path in at_load}
            self._seen[key] = (number, now)
            changed = next((path for path in now if now[path] != before[path]), None)
            if changed is not None:
                self._emit(e.DataChanged(key, number, changed))
