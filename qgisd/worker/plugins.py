"""Server plugins, loaded in the zygote, once, for all its forks, as QGIS Server loads them.

A plugin is a folder whose metadata.txt says `server=True` and whose package has
`serverClassFactory(serverIface)`. It is registered as qgis.utils.startServerPlugin does, so that
plugins which look at `qgis.utils.server_plugins`, `server_active_plugins` and `pluginMetadata`
find each other.

One that leaves a thread behind is not for the zygote, which must be forked (rule 1): the zygote
starts again without it, and it is loaded by each snapshot and worker. Its thread then forbids to
fork the snapshot, too, so that the projects of the pool are loaded by each worker (rule 6).
"""

import configparser
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import qgis.utils
from qgis.server import QgsServerFilter, QgsServerInterface

from qgisd import wire
from qgisd.words import PluginState
from qgisd.worker import fork, py_qgis_server
from qgisd.worker.backend import LoadError

#: What a filter overrides to see an answer (QgsServerFilter; the names with "on" since 3.24).
_SEE = {"sendResponse", "onSendResponse", "responseComplete", "onResponseComplete"}
#: Characters of an error that are kept.
_MOST = 500


@dataclass(frozen=True)
class _Found:
    folder: Path
    metadata: configparser.ConfigParser
    #: Why it cannot be a server plugin, or cannot be read.
    problem: str

    @property
    def version(self) -> str:
        return self.metadata.get("general", "version", fallback="")[:100]


class Plugins:
    """Those of one pool, for the process it is made in and all forks of that."""

    def __init__(
        self, path: str, wanted: Sequence[str], required: Sequence[str], py_qgis_server: bool
    ) -> None:
        """path: folders, colon-separated; wanted: names, in the order of loading, or none for
        all that are for servers; py_qgis_server: see the module of that name."""
        self._found = _find(path)
        self._wanted = list(wanted)
        self._required = set(required)
        self._py_qgis_server = py_qgis_server
        self._failed: dict[str, str] = {}
        #: Threads left behind, by plugin.
        self.threaded: dict[str, str] = {}

    def load(
        self,
        interface: QgsServerInterface,
        deferred: Mapping[str, str],
        threads: Callable[[], list[fork.Thread]],
        begin: Callable[[str], None],
    ) -> list[wire.Plugin]:
        """Load those that are to be loaded, but for the deferred; what became of each.

        deferred: name → its threads, as `threaded` said at a start before this one.
        threads: those of this process that stay, after some time to end.
        Raises LoadError if one that is required fails.
        """
        qgis.utils.serverIface = interface
        if self._py_qgis_server:
            py_qgis_server.install(self.loaded)
        for name, found in self._found.items():
            qgis.utils.plugins_metadata_parser[name] = found.metadata
            if str(found.folder.parent) not in sys.path:
                sys.path.insert(0, str(found.folder.parent))
        for name in self._to_load():
            if name in deferred:
                continue
            begin(f"loading the plugin {name}")
            before = {thread.tid for thread in threads()}
            self.start(name)
            left = [thread for thread in threads() if thread.tid not in before]
            if left:
                self.threaded[name] = ", ".join(map(str, left))[:_MOST]
        for name in sorted(self._required & set(self._failed)):
            raise LoadError(f"the required plugin {name} failed: {self._failed[name]}")
        return self._states(deferred)

    def start(self, name: str) -> None:
        """Import it and make its server class. What it throws is kept for `load`'s answer."""
        found = self._found.get(name)
        if found is None or found.problem:
            self._failed[name] = found.problem if found else "it is not below plugin_path"
            return
        try:
            package = importlib.import_module(name)
            if self._py_qgis_server:
                py_qgis_server.mark(package)
            qgis.utils.server_plugins[name] = package.serverClassFactory(qgis.utils.serverIface)
            qgis.utils.server_active_plugins.append(name)
        except BaseException as error:  # SystemExit, too: it is not the plugin's to end us
            traceback.print_exc()
            self._failed[name] = self._describe(name, error)

    def loaded(self) -> dict[str, configparser.ConfigParser]:
        """Name → metadata of those that were loaded, by whomever."""
        return {name: self._found[name].metadata for name in qgis.utils.server_active_plugins}

    def failure(self, name: str) -> str:
        """Why it failed; "" if it did not."""
        return self._failed.get(name, "")

    def culprit(self, trace: TracebackType | None) -> str:
        """The plugin that an exception came from; "" if from none."""
        for frame, _ in reversed(list(traceback.walk_tb(trace))):
            file = Path(frame.f_code.co_filename)
            for name, found in self._found.items():
                if found.folder in file.parents:
                    return name
        return ""

    def _to_load(self) -> list[str]:
        if self._wanted:
            return self._wanted
        extra = sorted(self._required - set(self._found))
        return [name for name, found in self._found.items() if found.problem != _NOT_FOR_SERVERS or
                name in self._required] + extra  # fmt: skip

    def _states(self, deferred: Mapping[str, str]) -> list[wire.Plugin]:
        chosen = self._to_load()
        others = [
            name
            for name, found in self._found.items()
            if name not in chosen and found.problem != _NOT_FOR_SERVERS
        ]
        rows = []
        for name in [*chosen, *others]:
            version = self._found[name].version if name in self._found else ""
            state, error, note = PluginState.LOADED, self._failed.get(name, ""), ""
            if name in others:
                state = PluginState.DISABLED
            elif error:
                state = PluginState.FAILED
            elif name in deferred:
                note = f"loaded by each worker, with the projects, for it has {deferred[name]}"
            rows.append(wire.Plugin(name, version, state, error, note))
        return rows

    def _describe(self, name: str, error: BaseException) -> str:
        """What it threw and where, without the paths of this machine."""
        home = self._found[name].folder
        where = ""
        for frame, line in traceback.walk_tb(error.__traceback__):
            file = Path(frame.f_code.co_filename)
            if home in file.parents:
                where = f" ({file.relative_to(home.parent)}, line {line})"
        return f"{type(error).__name__}: {error}"[: _MOST - len(where)] + where


_NOT_FOR_SERVERS = "its metadata.txt does not say server=True"


def _find(path: str) -> dict[str, _Found]:
    """Name → every plugin below the folders; the first of a name counts, as in QGIS."""
    found: dict[str, _Found] = {}
    for folder in filter(None, path.split(":")):
        for file in sorted(Path(folder).glob("*/metadata.txt")):
            found.setdefault(file.parent.name, _look_at(file))
    return found


def _look_at(file: Path) -> _Found:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    problem = ""
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
        if not parser.getboolean("general", "server", fallback=False):
            problem = _NOT_FOR_SERVERS
    except (configparser.Error, ValueError, OSError) as error:
        problem = f"its metadata.txt cannot be read: {type(error).__name__}"
    return _Found(file.parent, parser, problem)


def see_answers(filters: Mapping[int, Iterable[Any]]) -> bool:
    """Whether some filter of a plugin looks at answers: each part of one is to be seen by it, once.

    filters: QgsServerInterface.filters(). QGIS has one of its own among them, of the landing page,
    which looks at requests only.
    """
    return any(
        not _SEE.isdisjoint(vars(kind))
        for some in filters.values()
        for one in some
        for kind in type(one).__mro__[: -len(QgsServerFilter.__mro__)]
    )
