"""How a GeoPackage is written by a request, so that those who read it meanwhile see it.

QGIS puts a GeoPackage into WAL mode for as long as it edits it, and reads one that is in rollback
mode without locks (NOLOCK, GDAL 3.4.2 and later). Who has it open in that way cannot read WAL: all
its answers are empty, with status 200, until the file is put back; and it is not put back while
somebody who came meanwhile has it open. Beside one that writes by WFS-T, three of four answers of
plain servers are empty, and one of ten of our workers' (docs/writers.md). With the journal set,
QGIS leaves the mode alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: A configuration option of GDAL, which looks for it in the environment.
_OPTION = "OGR_SQLITE_JOURNAL"


@contextmanager
def keeping_the_journal(writes: bool) -> Iterator[None]:
    """In a request that `writes`, GeoPackages keep their rollback journal.

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
