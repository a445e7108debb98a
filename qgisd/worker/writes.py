"""How a GeoPackage is written by a request, so that those who read it meanwhile see it.

QGIS puts a GeoPackage into WAL mode for as long as it edits it, and reads one that is in rollback
mode without locks (NOLOCK, GDAL 3.4.2 and later). Who has it open in that way cannot read WAL: all
its answers are empty, with status 200, until the file is put back; and it is not put back while
somebody who came meanwhile has it open. Beside one that writes by WFS-T, three of four answers of
plain servers are empty, and one of ten of our workers' (docs/writers.md). With the journal set,
QGIS leaves the mode alone.

A filter is enough: to set one on a layer QGIS opens it again, as if to edit it. One GetMap with
FILTER, and the file is in WAL mode for good; of 169 readers' answers in four workers eight were
empty (tests/parity, mode `random`).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

#: A configuration option of GDAL, which looks for it in the environment.
_OPTION = "OGR_SQLITE_JOURNAL"


#: FILTER of WMS, and what goes by a like name elsewhere: there it does no harm.
_FILTER = re.compile(r"[?&](exp_)?filter=", re.IGNORECASE)


def filters(url: str) -> bool:
    """Whether a request sets a filter on a layer (QgsVectorLayer::setSubsetString)."""
    return _FILTER.search(unquote(url)) is not None


def reads_on(method: str) -> bool:
    """Whether QGIS still reads from the layer while it writes: changes of OGC API Features.

    Its handler saves the changes with the cursor open that found the feature. In rollback mode that
    is refused as "database is locked" and the request fails (500), in WAL mode it is not.
    """
    return method in ("PUT", "PATCH", "DELETE")


@contextmanager
def keeping_the_journal(writes: bool) -> Iterator[None]:
    """In a request that `writes`, or sets a filter, GeoPackages keep their rollback journal.

    Only then: with the option set QGIS reads with locks, and would wait for whoever writes a lot.
    """
    if not writes or _OPTION in os.environ:
        yield
        return
    os.environ[_OPTION] = "DELETE"
    try:
        yield
    finally:
        del os.environ[_OPTION]
