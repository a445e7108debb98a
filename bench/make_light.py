"""Build the two one-layer projects: make_light.py WORLD.gpkg OUT. Needs PyQGIS.

A script, not a module of the benchmark: it runs in a process of its own, as PyQGIS does not
always leave politely.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransformContext,
    QgsFeature,
    QgsProject,
    QgsVectorFileWriter,
    QgsVectorLayer,
)

PLACES = 5000


def copy(source: QgsVectorLayer, path: Path, name: str) -> QgsVectorLayer:
    """Write a layer to a GeoPackage of its own."""
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    options.layerName = name
    writer = (
        getattr(QgsVectorFileWriter, "writeAsVectorFormatV3", None)
        or QgsVectorFileWriter.writeAsVectorFormatV2
    )
    writer(source, str(path), QgsCoordinateTransformContext(), options)
    layer = QgsVectorLayer(f"{path}|layername={name}", name, "ogr")
    if not layer.isValid():
        sys.exit(f"cannot write {path}")
    return layer


def places(world: str) -> QgsVectorLayer:
    """One point in each of the world's states, then in its lakes, until there are PLACES."""
    layer = QgsVectorLayer(
        "Point?crs=EPSG:4326&field=name:string(80)&field=kind:string(10)&field=number:integer",
        "places",
        "memory",
    )
    for kind in ("states", "lakes"):
        source = QgsVectorLayer(f"{world}|layername={kind}", kind, "ogr")
        features: list[QgsFeature] = []
        for feature in source.getFeatures():
            number = layer.featureCount() + len(features)
            if number == PLACES:
                break
            made = QgsFeature(layer.fields())
            made.setGeometry(feature.geometry().centroid())
            made.setAttributes([str(feature["name"]) if kind == "states" else "", kind, number])
            features.append(made)
        layer.dataProvider().addFeatures(features)
        layer.updateExtents()
    if layer.featureCount() != PLACES:
        sys.exit(f"{layer.featureCount()} places, not {PLACES}")
    return layer


def publish(layer: QgsVectorLayer, path: Path) -> None:
    """A project of this one layer, open to WMS and WFS."""
    project = QgsProject.instance()
    project.clear()
    project.setTitle(layer.name())
    project.setCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
    project.writeEntry("WMSServiceCapabilities", "/", True)
    project.writeEntry("WMSServiceTitle", "/", layer.name())
    project.writeEntry("WMSCrsList", "/", ["EPSG:4326", "EPSG:3857"])
    project.addMapLayer(layer)
    project.writeEntry("WFSLayers", "/", [layer.id()])
    if not project.write(str(path)):
        sys.exit(f"cannot write {path}")


def main() -> None:
    world, out = sys.argv[1], Path(sys.argv[2])
    application = QgsApplication([], False)
    application.initQgis()
    for name in ("light", "places"):
        (out / name).mkdir(parents=True, exist_ok=True)
    countries = QgsVectorLayer(f"{world}|layername=countries", "countries", "ogr")
    publish(copy(countries, out / "light" / "light.gpkg", "countries"), out / "light" / "light.qgs")
    publish(
        copy(places(world), out / "places" / "places.gpkg", "places"),
        out / "places" / "places.qgs",
    )
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
