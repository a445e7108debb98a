"""Run as a script with PyQGIS: faults_project.py URL OUT. One WMS layer, which must answer now."""

import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsProject,
    QgsRasterLayer,
)


def main(url: str, out: str) -> int:
    """Write the project; 1 if the layer is not valid."""
    application = QgsApplication([], False)
    application.initQgis()
    project = QgsProject.instance()
    project.setCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
    project.writeEntry("WMSServiceCapabilities", "/", True)
    source = f"crs=EPSG:4326&dpiMode=7&format=image/png&layers=colour&styles&url={url}"
    layer = QgsRasterLayer(source, "wms", "wms")
    project.addMapLayer(layer)
    written = project.write(out)
    good = layer.isValid()
    del application
    return 0 if good and written else 1


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # taking QGIS down in order can crash
