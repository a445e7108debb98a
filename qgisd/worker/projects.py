"""Loading one project the way QGIS Server loads it, whatever the version of QGIS.

As `QgsConfigCache::project` does, but without its file watcher: that deletes the project from
under a request when the file changes. Here a change is a new generation.
"""

import time
import zipfile
from typing import IO, Any
from xml.etree.ElementTree import ParseError, iterparse

from qgis.core import QgsProject, QgsProjectBadLayerHandler
from qgis.server import QgsServerProjectUtils, QgsServerSettings

from qgisd import wire
from qgisd.worker import datafiles, features
from qgisd.worker.backend import LoadError, Project

#: Providers whose state does not survive a fork, with the failure that was seen. None so far:
#: ogr, gdal, postgres, spatialite, delimitedtext, virtual, wms and WFS are tested in forks.
UNFORKABLE_PROVIDERS: dict[str, str] = {}


class _BadLayers(QgsProjectBadLayerHandler):  # type: ignore[misc]
    """Keeps what could not be loaded instead of asking somebody at a screen."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []

    def handleBadLayers(self, nodes: Any) -> None:  # noqa: N802  (QGIS calls it)
        self.ids = [node.namedItem("id").toElement().text() for node in nodes]


class _Clock:
    """How long each layer takes to load: QgsProject says when it has added one, and when it goes
    on to the next (QGIS 3.22 and 3.40 alike). What newer versions open in parallel before that
    is counted for none."""

    def __init__(self, project: QgsProject) -> None:
        self._project = project
        self._mark = time.monotonic()
        self.ms: dict[str, float] = {}
        project.layerLoaded.connect(self._next)
        project.layerWasAdded.connect(self._added)

    def stop(self) -> None:
        """Nothing of Python stays in the project that is forked."""
        self._project.layerLoaded.disconnect(self._next)
        self._project.layerWasAdded.disconnect(self._added)

    def _next(self, number: int, of: int) -> None:
        self._mark = time.monotonic()

    def _added(self, layer: Any) -> None:
        self.ms[layer.id()] = (time.monotonic() - self._mark) * 1000


def load(
    path: str, settings: QgsServerSettings, strict: bool, watch_data: bool
) -> tuple[QgsProject, Project]:
    """Read the project at `path`. Raises LoadError with a text for operators.

    strict: any bad layer that is not restricted (QgsServerProjectUtils.wmsRestrictedLayers) is
    an error; otherwise such layers are reported and left out, as with
    QGIS_SERVER_IGNORE_BAD_LAYERS. watch_data: tell of the files that its layers read.
    """
    _check_root(path)
    begun = datafiles.now_ns()
    project = features.new_project()
    handler = _BadLayers()
    project.setBadLayerHandler(handler)
    # Virtual layers look for the layers they are made of in QgsProject.instance().
    QgsProject.setInstance(project)
    clock = _Clock(project)
    read = project.read(path, features.read_flags(settings))
    clock.stop()
    if not read:
        raise LoadError(project.error() or f"QGIS cannot read {path} as a project")
    layers = project.mapLayers()
    if not layers and not project.fileName():
        raise LoadError(f"{path} holds no project")
    restricted = set(QgsServerProjectUtils.wmsRestrictedLayers(project))
    bad = [
        wire.BadLayer(layer.name(), layer.providerType(), _complaint(layer))
        for layer in layers.values()
        if not layer.isValid() or layer.id() in handler.ids
    ]
    forbidden = [layer.name for layer in bad if layer.name not in restricted]
    if strict and forbidden:
        raise LoadError(f"layers that cannot be opened: {', '.join(forbidden)}")
    providers = {layer.providerType() for layer in layers.values()}
    why = "; ".join(UNFORKABLE_PROVIDERS[name] for name in providers & set(UNFORKABLE_PROVIDERS))
    contents = [
        wire.Layer(
            layer.id(),
            layer.name(),
            layer.providerType(),
            layer.isValid(),
            clock.ms.get(layer.id()),
        )
        for layer in sorted(layers.values(), key=lambda layer: layer.name())
    ]
    if not watch_data:
        return project, Project(len(layers), bad, why, contents=contents)
    files, more = datafiles.versions_of(layers.values(), begun)
    notes = [f"it has more than {datafiles.MOST} data files: the rest is not watched"]
    return project, Project(len(layers), bad, why, files, notes if more else [], contents)


def _check_root(path: str) -> None:
    """QgsProject.read takes any XML for an empty project: look at the root element first."""
    try:
        with _open_xml(path) as file:
            for _, element in iterparse(file, events=("start",)):
                if element.tag != "qgis":
                    raise LoadError(f"the root element is <{element.tag}>: no QGIS project")
                return
    except (ParseError, zipfile.BadZipFile, KeyError) as error:
        raise LoadError(f"not a QGIS project: {error}") from None
    except OSError as error:
        raise LoadError(f"cannot be read: {error.strerror}") from None


def _open_xml(path: str) -> IO[bytes]:
    if not path.endswith(".qgz"):
        return open(path, "rb")
    archive = zipfile.ZipFile(path)
    inside = [name for name in archive.namelist() if name.endswith(".qgs")]
    if not inside:
        raise LoadError("the archive holds no .qgs")
    return archive.open(inside[0])


def _complaint(layer: Any) -> str:
    """What the provider says; without the source, which may hold a password."""
    error = layer.error()
    text = error.summary() if not error.isEmpty() else ""
    return text or "the data source cannot be opened"
