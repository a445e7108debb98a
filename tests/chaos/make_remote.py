"""Run as a script with PyQGIS: make_remote.py URL GPKG OUT. A WMS layer, and one of a file."""

import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)


def main(url: str, data: str, out: str) -> int:
    """Write the project; 1 if a layer is not valid."""
    application = QgsApplication([], False)
    application.initQgis()
    project = QgsProject.instance()
    project.setCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
    project.writeEntry("WMSServiceCapabilities", "/", True)
    project.writeEntry("WMSCrsList", "/", ["EPSG:4326"])
    source = f"crs=EPSG:4326&dpiMode=7&format=image/png&layers=colour&styles&url={url}"
    layers = [
        QgsRasterLayer(source, "wms", "wms"),
        QgsVectorLayer(f"{data}|layername=borders", "borders", "ogr"),
    ]
    good = all(layer.isValid() for layer in layers)
    for layer in layers:
        project.addMapLayer(layer)
    written = project.write(out)
    del application
    return 0 if good and written else 1


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # taking QGIS down in order can crash
