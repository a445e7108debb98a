"""The projects of the suite: one for each provider, made on the fly by make.py. No QGIS here.

Every project has two layers that requests name: `land`, which is of the provider (polygons, or
what a raster provider shows), and `spots` (points; of the provider too where it has vectors).
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["vector", "raster"]


@dataclass(frozen=True)
class Source:
    """One provider, and so one project and one row of the table."""

    name: str
    kind: Kind
    #: What must run for it: "" for files.
    needs: Literal["", "postgres", "upstream"] = ""
    #: Its layers take WFS-T and OGC API writes.
    editable: bool = False
    #: Cases in which plain QGIS itself gives an error or nothing: compared, but not looked into.
    hollow: frozenset[str] = frozenset()
    #: What the row says beside the name.
    note: str = ""

    @property
    def map(self) -> str:
        """MAP."""
        return f"{self.name}/{self.name}"

    @property
    def title(self) -> str:
        """Title of the project, which is the WMTS layer that holds all of it."""
        return f"Parity {self.name}"


_NO_NORWAY = frozenset(
    {
        "wfs-filter", "wfs-filter-or", "wfs-filter-like", "wfs-post-1.0", "wfs-post-1.1",
        "api-items-property", "api-items-property-like", "wfs-gml2", "wfs-gml3",
        "info-json-geometry", "api-items-page", "api-item", "api-item-html", "api-item-crs",
    }
)  # fmt: skip

#: A changed feature of OGC API Features is refused as "database is locked" where a cursor that
#: locks is open beside: in a GeoPackage that keeps its journal, once a request has set a filter.
_LOCKED = frozenset({"api-write-put", "api-write-patch", "api-write-delete"})

#: Nothing is found where the request asks: newer QGIS makes no table of nothing.
_NOTHING_FOUND = frozenset({"info-html"})

SOURCES = (
    Source("shp", "vector", editable=True),
    Source("gpkg", "vector", editable=True, hollow=_LOCKED),
    Source(
        "broken",
        "vector",
        editable=True,
        hollow=_LOCKED,
        note="GeoPackage, and a layer whose file is gone",
    ),
    Source("geojson", "vector", editable=True),
    Source("fgb", "vector"),
    Source("spatialite", "vector", editable=True, hollow=_LOCKED),
    Source("csv", "vector"),
    Source("virtual", "vector"),
    Source(
        "memory",
        "vector",
        editable=True,
        hollow=_NO_NORWAY | _LOCKED | _NOTHING_FOUND,
        note="`land` is empty: a project file keeps no features of a memory layer",
    ),
    Source("join", "vector"),
    Source("relation", "vector"),
    Source("zip", "vector"),
    Source("tif", "raster"),
    Source("mbtiles", "raster"),
    Source("vectortile", "raster", hollow=_NOTHING_FOUND),
    Source("mesh", "raster", hollow=_NOTHING_FOUND),
    Source("postgres", "vector", "postgres", editable=True),
    Source("postgres-ssl", "vector", "postgres", editable=True),
    Source("postgres-service", "vector", "postgres", editable=True),
    Source("postgres-raster", "raster", "postgres"),
    Source("wms", "raster", "upstream"),
    Source("wmts", "raster", "upstream", hollow=_NOTHING_FOUND),
    Source("xyz", "raster", "upstream", hollow=_NOTHING_FOUND),
    # Its provider, asked for a part, has fetched that part alone.
    Source("wfs", "vector", "upstream", hollow=frozenset({"info-by-geometry", "print-atlas-png"})),
    Source("oapif", "vector", "upstream"),
)
BY_NAME = {source.name: source for source in SOURCES}
#: Other ways to what another source reads by the same provider. The short run asks them in one
#: mode.
VARIANTS = {
    "broken", "join", "relation", "zip", "mbtiles", "postgres-ssl", "postgres-service", "wmts",
    "xyz",
}  # fmt: skip
