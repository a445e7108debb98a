"""Somebody else who writes to the data of a project, in a process of its own, by OGR.

Started by the tests as `python tests/e2e/writer.py TARGET LAYER JOURNAL`, where TARGET is what OGR
opens and JOURNAL that of SQLite. It keeps the data open all its life, as an editor does: only then
a GeoPackage stays in WAL mode, for whoever opens it alone puts it back. A line of JSON on stdin
is a list of [name, x, y], each inserted in a transaction of its own; or {"name": new name, or null
to delete it}. Each line is answered with "done" on stdout.
"""

import json
import os
import sys

from osgeo import gdal, ogr


def insert(layer: ogr.Layer, name: str, x: float, y: float) -> None:
    """One feature."""
    feature = ogr.Feature(layer.GetLayerDefn())
    feature.SetField("name", name)
    feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POINT ({x} {y})"))
    layer.CreateFeature(feature)


def change(layer: ogr.Layer, name: str, new: str | None) -> None:
    """Rename or delete one."""
    layer.SetAttributeFilter(f"name = '{name}'")
    feature = layer.GetNextFeature()
    layer.SetAttributeFilter(None)
    if new is None:
        layer.DeleteFeature(feature.GetFID())
    else:
        feature.SetField("name", new)
        layer.SetFeature(feature)


def main() -> None:
    """Write until stdin ends."""
    target, name, journal = sys.argv[1:]
    gdal.UseExceptions()
    ogr.UseExceptions()
    gdal.SetConfigOption("OGR_SQLITE_JOURNAL", journal)
    source = ogr.Open(target, 1)
    layer = source.GetLayerByName(name)
    print("open", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, dict):
            for old, new in order.items():
                change(layer, old, new)
        else:
            for row in order:
                insert(layer, *row)
        print("done", flush=True)
    del layer, source
    os._exit(0)


if __name__ == "__main__":
    main()
