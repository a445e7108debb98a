#!/usr/bin/python3
"""Build the demo project in this folder (world.qgs, world.gpkg, relief.tif) out of a data folder.

    make.py DATA        e.g. examples/world/make.py ../shared/data (needs PyQGIS, 3.22 or later)

DATA holds world.gpkg (countries, states, lakes) and relief.tif, both Natural Earth.
Two runs with one QGIS give the same bytes, so that a diff of the result shows real changes only.
"""

import os
import re
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["OGR_CURRENT_DATE"] = "2024-01-01T00:00:00.000Z"  # else the GeoPackage holds "now"
if os.environ.get("QT_HASH_SEED") != "0":  # Qt reads it at start: else XML attributes are shuffled
    os.environ["QT_HASH_SEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])

from cut import write_tables
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsLayerTreeModel,
    QgsLayoutItemLabel,
    QgsLayoutItemLegend,
    QgsLayoutItemMap,
    QgsLayoutItemScaleBar,
    QgsLayoutPoint,
    QgsLayoutSize,
    QgsLegendRenderer,
    QgsLegendStyle,
    QgsMapLayer,
    QgsMapThemeCollection,
    QgsPrintLayout,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsReferencedRectangle,
    QgsScaleBarSettings,
    QgsTextFormat,
    QgsUnitTypes,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QColor
from style import INK, OCEAN, SHORE, STYLES, text

HERE = Path(__file__).resolve().parent
CREDIT = "Made with Natural Earth"


LAYERS = {  # in drawing order: short name → title, abstract
    "relief": ("Relief", "Shaded relief with land cover and sea floor, 10 km a pixel."),
    "countries": ("Countries", "Countries and dependencies; neighbours never share a tint."),
    "states": ("States and provinces", "First-level divisions, seen from 1:9,000,000 on."),
    "lakes": ("Lakes", "Lakes of more than about 100 km²."),
    "coastline": ("Coastline", "Where the countries meet the sea."),
    "borders": ("Borders", "Where countries meet; dotted where that is not agreed."),
}


def add_layers(project: QgsProject) -> None:
    root = project.layerTreeRoot()
    lines = root.addGroup("Boundaries")
    owner = lines.serverProperties() if hasattr(lines, "serverProperties") else None
    for key, value in (
        ("ShortName", "boundaries"),
        ("Title", "Boundaries"),
        ("Abstract", "Coastline and borders."),
    ):
        if owner is not None:
            getattr(owner, f"set{key}")(value)
        else:
            lines.setCustomProperty(f"wms{key}", value)
    for name, (title, abstract) in LAYERS.items():
        layer: QgsMapLayer
        if name == "relief":
            layer = QgsRasterLayer(str(HERE / "relief.tif"), title, "gdal")
        else:
            layer = QgsVectorLayer(f"{HERE / 'world.gpkg'}|layername={name}", title, "ogr")
        if not layer.isValid():
            sys.exit(f"{name}: {layer.error().message()}")
        STYLES[name](layer)
        owner = layer.serverProperties()
        owner = owner if hasattr(owner, "setShortName") else layer  # moved in later releases
        owner.setShortName(name)
        owner.setTitle(title)
        owner.setAbstract(abstract)
        owner.setAttribution(CREDIT)
        owner.setAttributionUrl("https://www.naturalearthdata.com/")
        project.addMapLayer(layer, False)
        (lines if name in ("coastline", "borders") else root).insertLayer(0, layer)
    root.insertChildNode(0, lines.clone())
    root.removeChildNode(lines)


def publish(project: QgsProject) -> None:
    layers = {layer.name(): layer.id() for layer in project.mapLayers().values()}
    raster = [layers["Relief"]]
    vectors = sorted(set(layers.values()) - set(raster))
    for scope, key, value in (
        ("WMSServiceCapabilities", "/", True),
        ("WMSServiceTitle", "/", "The world"),
        (
            "WMSServiceAbstract",
            "/",
            "Countries, states, lakes and relief of the whole world, "
            f"for the eye and for tests. {CREDIT}.",
        ),
        ("WMSRootName", "/", "world"),
        ("WMSKeywordList", "/", ["world", "countries", "relief", "Natural Earth"]),
        ("WMSFees", "/", "none"),
        ("WMSAccessConstraints", "/", "None"),
        ("WMSCrsList", "/", ["EPSG:4326", "EPSG:3857"]),
        ("WMSExtent", "/", ["-180", "-90", "180", "90"]),
        ("WMSAddWktGeometry", "/", True),
        ("WMTSLayers", "Project", True),
        ("WMTSPngLayers", "Project", True),
        ("WMTSJpegLayers", "Project", True),
        ("WFSLayers", "/", vectors),
        ("WCSLayers", "/", raster),
    ):
        project.writeEntry(scope, key, value)
    for identity in vectors:
        project.writeEntry("WFSLayersPrecision", f"/{identity}", 5)


def add_themes(project: QgsProject) -> None:
    root = project.layerTreeRoot()
    relief = root.findLayer(project.mapLayersByName("Relief")[0])
    for name, seen in (("Political", False), ("Relief", True)):
        relief.setItemVisibilityChecked(seen)
        project.mapThemeCollection().insert(
            name, QgsMapThemeCollection.createThemeFromCurrentState(root, QgsLayerTreeModel(root))
        )


def add_layout(project: QgsProject) -> None:
    layout = QgsPrintLayout(project)
    layout.initializeDefaults()  # one A4 page, landscape
    layout.setName("A4")

    def place(item: Any, x: float, y: float, width: float, height: float) -> None:
        layout.addLayoutItem(item)
        item.attemptMove(QgsLayoutPoint(x, y, QgsUnitTypes.LayoutMillimeters))
        item.attemptResize(QgsLayoutSize(width, height, QgsUnitTypes.LayoutMillimeters))

    def write(
        words: str, style: QgsTextFormat, x: float, y: float, width: float, right: bool = False
    ) -> None:
        item = QgsLayoutItemLabel(layout)
        item.setText(words)
        item.setFont(style.font())
        item.setFontColor(style.color())
        item.setHAlign(Qt.AlignRight if right else Qt.AlignLeft)
        place(item, x, y, width, 12)

    sheet = QgsLayoutItemMap(layout)
    sheet.setId("map")
    place(sheet, 10, 24, 277, 160)
    # No CRS of its own: GetPrint's CRS would then not reach the map.
    sheet.zoomToExtent(QgsRectangle(-22, 33, 44, 71))
    sheet.setFrameEnabled(True)
    sheet.setFrameStrokeColor(QColor(SHORE))
    sheet.setBackgroundColor(QColor(OCEAN))

    legend = QgsLayoutItemLegend(layout)
    legend.setLinkedMap(sheet)
    legend.setAutoUpdateModel(False)  # chosen by hand: a relief has no classes to explain
    tree = legend.model().rootGroup()
    for node in tree.findLayers():
        if node.layerId() == project.mapLayersByName("Relief")[0].id():
            node.parent().removeChildNode(node)
    for group in tree.findGroups():
        QgsLegendRenderer.setNodeLegendStyle(group, QgsLegendStyle.Hidden)
    for part in (QgsLegendStyle.Subgroup, QgsLegendStyle.SymbolLabel):
        legend.setStyleFont(part, text(7.5).font())
    legend.setFontColor(QColor(INK))
    legend.setColumnCount(5)
    legend.setSplitLayer(True)
    legend.setEqualColumnWidth(False)
    legend.setColumnSpace(4)
    legend.setBoxSpace(0)
    legend.setBackgroundEnabled(False)
    place(legend, 10, 187, 150, 8)

    bar = QgsLayoutItemScaleBar(layout)
    bar.setLinkedMap(sheet)
    bar.setStyle("Single Box")
    bar.setUnits(QgsUnitTypes.DistanceKilometers)
    bar.setUnitLabel("km")
    bar.setNumberOfSegments(2)
    bar.setNumberOfSegmentsLeft(0)
    bar.setSegmentSizeMode(QgsScaleBarSettings.SegmentSizeFitWidth)  # right at every extent
    bar.setMinimumBarWidth(30)
    bar.setMaximumBarWidth(60)
    bar.setHeight(1.6)
    bar.setTextFormat(text(7))
    place(bar, 220, 187, 66, 10)

    write("[% @project_title %]", text(20, spacing=1.5), 10, 10, 200)
    write(CREDIT, text(7, "#6b6154"), 187, 199, 100, right=True)
    project.layoutManager().addLayout(layout)


def scrub(path: Path) -> None:
    """Take out who and when, and put stable ids for the random ones of this run."""
    content = path.read_text(encoding="utf-8")
    content = re.sub(r' (saveUser|saveUserFull|saveDateTime)="[^"]*"', r' \1=""', content)
    content = re.sub(r"<author>[^<]*</author>", "<author></author>", content)
    content = re.sub(r"<creation>[^<]*</creation>", "<creation></creation>", content)
    content = re.sub(r'<date ([^>]*)value="[^"]*"', r'<date \1value=""', content)
    content = re.sub(
        r"(<individual-layer-settings)>.*?</individual-layer-settings>",
        r"\1/>",
        content,
        flags=re.DOTALL,
    )  # snapping while editing; in the order of pointers
    digits = "[0-9a-f]{8}!(?:[0-9a-f]{4}!){3}[0-9a-f]{12}"
    names = {re.sub(r"\W", "_", title): name for name, (title, _) in LAYERS.items()}
    names["Annotations"] = "annotations"
    # QGIS 3.22 takes no layer id of ten characters or less: it makes up another, and the layer
    # tree, which has the id, then finds no layer.
    content = re.sub(
        f"({'|'.join(names)})_{digits.replace('!', '_')}",
        lambda found: f"world_{names[found[1]]}",
        content,
    )
    seen: dict[str, str] = {}
    content = re.sub(
        digits.replace("!", "-"),
        lambda found: seen.setdefault(
            found[0], str(uuid.uuid5(uuid.NAMESPACE_URL, f"qgisd-world-{len(seen)}"))
        ),
        content,
    )
    path.write_text(content, encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    data = Path(sys.argv[1]).resolve()
    application = QgsApplication([], False)
    application.initQgis()
    for old in HERE.glob("world.gpkg*"):
        old.unlink()
    write_tables(data / "world.gpkg", HERE / "world.gpkg")
    shutil.copyfile(data / "relief.tif", HERE / "relief.tif")
    project = QgsProject.instance()
    project.setTitle("The world")
    project.setCrs(QgsCoordinateReferenceSystem("EPSG:4326"), True)  # with its ellipsoid
    project.setBackgroundColor(QColor(OCEAN))
    project.writeEntryBool("Paths", "/Absolute", False)
    add_layers(project)
    publish(project)
    add_themes(project)
    add_layout(project)
    view = QgsReferencedRectangle(QgsRectangle(-180, -90, 180, 90), project.crs())
    project.viewSettings().setDefaultViewExtent(view)
    if not project.write(str(HERE / "world.qgs")):
        sys.exit(project.error())
    scrub(HERE / "world.qgs")
    (HERE / "world.qgs~").unlink(missing_ok=True)  # QGIS's copy of the last one
    sys.stdout.flush()
    os._exit(0)  # taking QGIS down in order can crash, and nothing is left to do


if __name__ == "__main__":
    main()
