"""The project of the tests of writers: a small layer of each kind of data that others write.

Started by the tests as `python tests/e2e/make_writers.py FOLDER [DSN]`. Makes FOLDER/writers.qgs,
with the layers rollback and wal (GeoPackages), shp and tif, and pg with a DSN; all published by
WMS, WFS (with transactions) and WCS. A vector layer has the points n0, n1, n2 at (0, 0), (1, 1)
and (2, 2); the raster is 10 everywhere. No extent is kept in the project but what QGIS writes.
"""

import os
import sqlite3
import sys
from pathlib import Path

from osgeo import gdal, ogr, osr
from qgis.core import QgsApplication, QgsProject, QgsRasterLayer, QgsVectorLayer

POINTS = [(f"n{number}", number, number) for number in range(3)]


def vector(driver: str, target: str, name: str) -> None:
    """Write POINTS."""
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(4326)
    reference.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    options = ["GEOMETRY_NAME=geom", "FID=fid"] if driver == "PostgreSQL" else []
    if driver == "PostgreSQL":
        source = ogr.Open(f"PG:{target}", 1)
    else:
        source = ogr.GetDriverByName(driver).CreateDataSource(target)
    layer = source.CreateLayer(name, reference, ogr.wkbPoint, options)
    layer.CreateField(ogr.FieldDefn("name", ogr.OFTString))
    for label, x, y in POINTS:
        feature = ogr.Feature(layer.GetLayerDefn())
        feature.SetField("name", label)
        feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POINT ({x} {y})"))
        layer.CreateFeature(feature)


def raster(target: str, value: int) -> None:
    """A GeoTIFF of one value, 20 degrees wide."""
    made = gdal.GetDriverByName("GTiff").Create(target, 20, 20, 1, gdal.GDT_Byte)
    made.SetGeoTransform((0, 1, 0, 20, 0, -1))
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(4326)
    made.SetProjection(reference.ExportToWkt())
    made.GetRasterBand(1).Fill(value)


def main() -> None:
    """Write data and project."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    gdal.UseExceptions()
    ogr.UseExceptions()
    application = QgsApplication([], False)
    application.initQgis()
    layers = []
    for name in ("rollback", "wal"):
        path = folder / f"{name}.gpkg"
        vector("GPKG", str(path), name)
        layers.append(QgsVectorLayer(f"{path}|layername={name}", name, "ogr"))
    connection = sqlite3.connect(folder / "wal.gpkg")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    vector("ESRI Shapefile", str(folder / "shp.shp"), "shp")
    layers.append(QgsVectorLayer(str(folder / "shp.shp"), "shp", "ogr"))
    if len(sys.argv) > 2:
        dsn = sys.argv[2]
        vector("PostgreSQL", dsn, "writers_pg")
        uri = f'{dsn} key=\'fid\' srid=4326 type=Point table="public"."writers_pg" (geom)'
        layers.append(QgsVectorLayer(uri, "pg", "postgres"))
    raster(str(folder / "tif.tif"), 10)
    grid = QgsRasterLayer(str(folder / "tif.tif"), "tif")
    project = QgsProject()
    for layer in [*layers, grid]:
        assert layer.isValid(), layer.source()
        project.addMapLayer(layer)
    vectors = [layer.id() for layer in layers]
    project.writeEntry("WFSLayers", "/", vectors)
    for action in ("Insert", "Update", "Delete"):
        project.writeEntry("WFSTLayers", action, vectors)
    project.writeEntry("WCSLayers", "/", [grid.id()])
    assert project.write(str(folder / "writers.qgs"))
    os._exit(0)


if __name__ == "__main__":
    main()
