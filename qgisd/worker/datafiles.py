"""The local files that the layers of a project read, for `watch_data`.

API used: QgsProviderRegistry.decodeUri (the key "path"), QGIS 3.22 and later.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from qgis.core import QgsProviderRegistry

from qgisd.datafiles import CHANGING, Versions, changed_since, version_of

#: Files of a project that are watched at most.
MOST = 1000
#: Bytes of a path that is watched: all of them must fit into control messages.
_LONGEST = 1000
#: What belongs to a file, by its suffix. Not what GDAL writes by itself beside what it reads
#: (.aux.xml, .qix): a load must not be the cause of the next one.
_BESIDE = {
    ".shp": (".dbf", ".shx"),
    ".tab": (".dat", ".map"),
    ".mif": (".mid",),
}
_SQLITE = (".gpkg", ".sqlite", ".db", ".mbtiles")
#: How GDAL and MDAL name a part of a file: NETCDF:"/data/a.nc":t
_QUOTED = re.compile(r'\w+:"(/[^"]+)"')
#: The clock of file times runs behind by up to a tick of the kernel.
_TICK_NS = 20_000_000


def versions_of(layers: Iterable[Any], since_ns: int) -> tuple[Versions, bool]:
    """Path → version of the files of QgsMapLayers, and whether there are more than MOST.

    since_ns: Unix time at which the load began; what changed later is CHANGING.
    """
    registry = QgsProviderRegistry.instance()
    found: Versions = {}
    for layer in layers:
        parts = registry.decodeUri(layer.providerType(), layer.source())
        for path in _files_of(str(parts.get("path") or "")):
            if path not in found and len(found) == MOST:
                return found, True
            moving = changed_since(path, since_ns - _TICK_NS)
            found[path] = CHANGING if moving else version_of(path)
    return found, False


def now_ns() -> int:
    """Unix time, as in file times."""
    return time.time_ns()


def _files_of(path: str) -> Iterator[str]:
    """A local file and what belongs to it; nothing for what is not on this machine."""
    quoted = _QUOTED.match(path)
    path = quoted[1] if quoted else path
    if not path.startswith("/") or path.startswith("/vsi") or "{" in path:
        return
    try:
        if len(path.encode()) > _LONGEST:
            return
    except UnicodeEncodeError:
        return  # a name that a message cannot carry
    yield path
    stem, suffix = os.path.splitext(path)
    for other in _BESIDE.get(suffix.lower(), ()):
        yield stem + (other.upper() if suffix.isupper() else other)
    if suffix.lower() in _SQLITE:
        yield path + "-wal"
