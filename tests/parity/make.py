"""Makes the projects of sources.py, with PyQGIS, in a process of its own.

    python tests/parity/make.py OUT DATA files
    python tests/parity/make.py OUT DATA postgres DSN
    python tests/parity/make.py OUT DATA upstream http://HOST:PORT/

DATA is ../shared/data (Natural Earth, public domain). `files` also makes the project `upstream`,
which the remote layers come from. Layers are few, small and of real shapes.
"""

import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransformContext,
    QgsFeature,
    QgsFeatureRequest,
    QgsLayoutItemLabel,
    QgsLayoutItemLegend,
    QgsLayoutItemMap,
    QgsLayoutItemScaleBar,
    QgsLayoutPoint,
    QgsLayoutSize,
    QgsMapLayer,
    QgsMapLayerServerProperties,
    QgsMeshLayer,
    QgsPalLayerSettings,
    QgsPrintLayout,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsRelation,
    QgsRendererCategory,
    QgsSymbol,
    QgsUnitTypes,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsVectorLayerJoinInfo,
    QgsVectorLayerSimpleLabeling,
    QgsVectorTileLayer,
    QgsVectorTileWriter,
)
from qgis.PyQt.QtCore import QDate
from qgis.PyQt.QtGui import QColor

MM = QgsUnitTypes.LayoutMillimeters
#: Of 240 countries every third, which are some 80 features.
EVERY = 3
KINDS = ("harbour", "market", "mine")
WGS84 = QgsCoordinateReferenceSystem("EPSG:4326")
#: Sides of the world that the raster shows.
EUROPE = (-20.0, 75.0, 50.0, 25.0)


def base_layers(data: Path) -> dict[str, QgsVectorLayer]:
    """`land` and `spots` as memory layers, the same in every run."""
    rng = random.Random(4)
    countries = QgsVectorLayer(f"{data / 'world.gpkg'}|layername=countries", "countries", "ogr")
    fields = "field=name:string&field=kind:string&field=rank:int&field=area:double&field=seen:date"
    land = QgsVectorLayer(f"MultiPolygon?crs=EPSG:4326&{fields}", "land", "memory")
    spots = QgsVectorLayer(f"Point?crs=EPSG:4326&{fields}", "spots", "memory")
    for number, country in enumerate(countries.getFeatures()):
        shape = country.geometry().simplify(0.3)
        if (number % EVERY and country["NAME"] != "Norway") or shape.isEmpty():
            continue
        shape.convertToMultiType()
        values = [
            country["NAME"], KINDS[number % 3], number, round(shape.area(), 3),
            QDate(2020, 1 + number % 12, 1 + number % 28),
        ]  # fmt: skip
        for layer, geometry in ((land, shape), (spots, shape.pointOnSurface())):
            feature = QgsFeature(layer.fields())
            feature.setAttributes(values)
            feature.setGeometry(geometry)
            layer.dataProvider().addFeature(feature)
        rng.random()
    return {"land": land, "spots": spots}


def checked(layer: QgsMapLayer) -> Any:
    """The layer, or an end of the process if it cannot be opened."""
    if not layer.isValid():
        sys.exit(f"invalid layer {layer.name()}: {layer.source()}: {layer.error().message()}")
    return layer


def vector(uri: object, name: str, provider: str = "ogr") -> QgsVectorLayer:
    return checked(QgsVectorLayer(str(uri), name, provider))


def raster(uri: object, name: str, provider: str = "gdal") -> QgsRasterLayer:
    return checked(QgsRasterLayer(str(uri), name, provider))


def write(layer: QgsVectorLayer, driver: str, path: Path, *options: str) -> Path:
    """The layer as a file, or as one more layer in a file that is there."""
    save = QgsVectorFileWriter.SaveVectorOptions()
    save.driverName = driver
    save.layerName = layer.name()
    save.datasourceOptions = [option for option in options if option.startswith("SPATIALITE")]
    save.layerOptions = [option for option in options if not option.startswith("SPATIALITE")]
    if path.exists():
        save.actionOnExistingFile = QgsVectorFileWriter.CreateOrOverwriteLayer
    writer = getattr(QgsVectorFileWriter, "writeAsVectorFormatV3", None)
    writer = writer or QgsVectorFileWriter.writeAsVectorFormatV2
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = writer(layer, str(path), QgsCoordinateTransformContext(), save)
    if answer[0] != QgsVectorFileWriter.NoError:
        sys.exit(f"cannot write {path}: {answer}")
    return path


def dress(layer: QgsVectorLayer) -> None:
    """Styles by kind, labels, a dimension TIME: what a host's layers have."""
    rng = random.Random(layer.name())
    categories = []
    for kind in KINDS:
        symbol = QgsSymbol.defaultSymbol(layer.geometryType())
        symbol.setColor(QColor(rng.randrange(256), rng.randrange(256), rng.randrange(256)))
        categories.append(QgsRendererCategory(kind, symbol, kind))
    renderer = QgsCategorizedSymbolRenderer("kind", categories)
    # A table has no order of its own: PostgreSQL puts a changed row where there is room.
    renderer.setOrderBy(QgsFeatureRequest.OrderBy([QgsFeatureRequest.OrderByClause("rank")]))
    renderer.setOrderByEnabled(layer.name() == "spots")
    layer.setRenderer(renderer)
    settings = QgsPalLayerSettings()
    settings.fieldName = "name"
    layer.setLabeling(QgsVectorLayerSimpleLabeling(settings))
    layer.setLabelsEnabled(layer.name() == "land")
    layer.setMapTipTemplate("<b>[% name %]</b>")
    if "seen" in layer.fields().names():
        layer.serverProperties().addWmsDimension(
            QgsMapLayerServerProperties.WmsDimensionInfo(
                "time",
                "seen",
                "",
                "ISO8601",
                "",
                QgsMapLayerServerProperties.WmsDimensionInfo.AllValues,
            )
        )


def layout(project: QgsProject, name: str, atlas: QgsMapLayer | None) -> None:
    """A small page with a map, a legend, a scale bar, a text and an HTML label."""
    page = QgsPrintLayout(project)
    page.initializeDefaults()
    page.setName(name)
    page.pageCollection().page(0).setPageSize(QgsLayoutSize(120, 80, MM))

    def place(item: Any, x: float, y: float, width: float, height: float) -> None:
        item.attemptMove(QgsLayoutPoint(x, y, MM))
        item.attemptResize(QgsLayoutSize(width, height, MM))
        page.addLayoutItem(item)

    view = QgsLayoutItemMap(page)
    place(view, 5, 12, 80, 60)
    view.setExtent(QgsRectangle(-20, 30, 40, 70))
    legend = QgsLayoutItemLegend(page)
    legend.setLinkedMap(view)
    legend.setAutoUpdateModel(True)
    place(legend, 88, 12, 30, 40)
    bar = QgsLayoutItemScaleBar(page)
    bar.setLinkedMap(view)
    bar.applyDefaultSize()
    place(bar, 88, 60, 30, 10)
    text = QgsLayoutItemLabel(page)
    text.setText("[% @project_title %] [% @atlas_featurenumber %]")
    text.setId("title")
    place(text, 5, 2, 80, 8)
    html = QgsLayoutItemLabel(page)
    html.setMode(QgsLayoutItemLabel.ModeHtml)
    html.setText("<b>bold</b> <i>[% 1 + 1 %]</i>")
    place(html, 88, 2, 30, 8)
    if atlas is not None:
        page.atlas().setEnabled(True)
        page.atlas().setCoverageLayer(atlas)
        page.atlas().setPageNameExpression("name")
        view.setAtlasDriven(True)
    project.layoutManager().addLayout(page)


class Maker:
    """Makes one project after another below a folder."""

    def __init__(self, out: Path, data: Path) -> None:
        self.out = out
        self.base = base_layers(data)
        self.relief = data / "relief.tif"

    def file(self, name: str, file: str) -> Path:
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / file

    def pair(self, name: str, driver: str, suffix: str, *options: str) -> dict[str, Path]:
        """`land` and `spots`, each in a file of its own."""
        return {
            key: write(layer, driver, self.file(name, f"{key}.{suffix}"), *options)
            for key, layer in self.base.items()
        }

    def package(self, name: str) -> dict[str, QgsVectorLayer]:
        """`land` and `spots` of a GeoPackage in the project's folder."""
        path = self.file(name, "base.gpkg")
        for layer in self.base.values():
            write(layer, "GPKG", path)
        return {key: vector(f"{path}|layername={key}", key) for key in self.base}

    def project(
        self,
        name: str,
        layers: list[QgsMapLayer],
        finish: Callable[[QgsProject], None] = lambda project: None,
    ) -> None:
        """Write it; `layers` from the bottom up, as they are drawn."""
        project = QgsProject.instance()
        project.clear()
        project.setTitle(f"Parity {name}")
        project.setCrs(WGS84)
        entry = project.writeEntry
        entry("WMSServiceCapabilities", "/", True)
        entry("WMSServiceTitle", "/", f"Parity {name}")
        entry("WMSContactOrganization", "/", "Ærø & Sons")
        entry("WMSCrsList", "/", ["EPSG:4326", "EPSG:3857"])
        entry("WMSAddWktGeometry", "/", True)
        entry("WMSExtent", "/", ["-180", "-85", "180", "85"])
        entry("WMSMaxAtlasFeatures", "/", 3)
        entry("WMTSLayers", "Project", True)
        entry("WMTSPngLayers", "Project", True)
        entry("WMTSJpegLayers", "Project", True)
        for layer in layers:
            if isinstance(layer, QgsVectorLayer) and layer.isSpatial():
                dress(layer)
            project.addMapLayer(layer)
        vectors = [layer for layer in layers if isinstance(layer, QgsVectorLayer)]
        ids = [layer.id() for layer in vectors]
        entry("WFSLayers", "/", ids)
        for right in ("Insert", "Update", "Delete"):
            # Remote layers of all sides come from one upstream: it takes no writes.
            entry("WFSTLayers", right, ids if name != "upstream" else [])
        for layer in vectors:
            entry("WFSLayersPrecision", f"/{layer.id()}", 8)
        entry("WCSLayers", "/", [i.id() for i in layers if isinstance(i, QgsRasterLayer)])
        finish(project)
        layout(project, "A7", None)
        spots = [layer for layer in vectors if layer.name() == "spots"]
        layout(project, "Atlas", spots[0])
        path = self.file(name, f"{name}.qgs")
        if not project.write(str(path)):
            sys.exit(f"cannot write {path}")
        print(path, len(layers), "layers")

    def picture(self, name: str) -> Path:
        """A small GeoTIFF of three bands."""
        path = self.file(name, "picture.tif")
        gdal.Translate(str(path), str(self.relief), width=400, height=250, projWin=EUROPE)
        return path

    def files(self) -> None:
        """All that needs no server."""
        for name, driver, suffix in (
            ("shp", "ESRI Shapefile", "shp"), ("geojson", "GeoJSON", "geojson"),
            ("fgb", "FlatGeobuf", "fgb"),
        ):  # fmt: skip
            paths = self.pair(name, driver, suffix)
            self.project(name, [vector(path, key) for key, path in paths.items()])
        self.project("gpkg", list(self.package("gpkg").values()))
        self.broken()
        self.spatialite()
        paths = self.pair("csv", "CSV", "csv", "GEOMETRY=AS_WKT")
        uri = "file://{}?type=csv&wktField=WKT&crs=EPSG:4326&detectTypes=yes"
        self.project(
            "csv", [vector(uri.format(path), key, "delimitedtext") for key, path in paths.items()]
        )
        self.virtual()
        self.memory()
        self.join()
        self.relation()
        self.zip()
        pictures = self.picture("tif")
        self.project("tif", [raster(pictures, "land"), self.package("tif")["spots"]])
        self.mbtiles()
        self.vectortile()
        self.mesh()
        base = self.package("upstream")
        self.project(
            "upstream", [raster(self.picture("upstream"), "picture"), base["land"], base["spots"]]
        )

    def broken(self) -> None:
        """A third layer whose file is gone."""
        doomed = write(self.base["spots"], "GPKG", self.file("broken", "doomed.gpkg"))
        base = self.package("broken")
        gone = vector(f"{doomed}|layername=spots", "gone")
        self.project("broken", [*base.values(), gone])
        doomed.unlink()

    def spatialite(self) -> None:
        path = self.file("spatialite", "base.sqlite")
        for layer in self.base.values():
            write(layer, "SQLite", path, "SPATIALITE=YES")
        uri = "dbname='{}' table=\"{}\" (geometry)"
        layers = [vector(uri.format(path, key), key, "spatialite") for key in self.base]
        self.project("spatialite", layers)

    def virtual(self) -> None:
        """A query over a layer of the project, and one over the query's own."""
        base = self.package("virtual")
        base["land"].setName("base_land")
        base["spots"].setName("base_spots")
        below = list(base.values())
        QgsProject.instance().clear()
        for layer in below:
            QgsProject.instance().addMapLayer(layer, False)
        queries = {
            "land": "select * from base_land where rank < 200",
            "spots": "select s.*, st_x(s.geometry) as x from base_spots s"
            " join base_land l on l.name = s.name",
        }
        layers = [vector(f"?query={quote(sql)}", key, "virtual") for key, sql in queries.items()]
        # clear() would delete the layers: let them out first.
        kept = [QgsProject.instance().takeMapLayer(layer) for layer in below]
        self.project("virtual", [*kept, *layers])

    def memory(self) -> None:
        """Empty after a load: the project file holds the fields alone."""
        land = self.base["land"].clone()
        land.setName("land")
        self.project("memory", [land, self.package("memory")["spots"]])

    def join(self) -> None:
        """`land` with the fields of a CSV joined to it, and labelled by one of them."""
        base = self.package("join")
        path = self.file("join", "facts.csv")
        rows = [f"{f['name']},{number},fact of {f['kind']}" for number, f in
                enumerate(self.base["land"].getFeatures()) if "," not in f["name"]]  # fmt: skip
        path.write_text("\n".join(["country,number,fact", *rows]) + "\n")
        facts = vector(
            f"file://{path}?type=csv&detectTypes=yes&geomType=none", "facts", "delimitedtext"
        )

        def finish(project: QgsProject) -> None:
            info = QgsVectorLayerJoinInfo()
            info.setJoinLayer(facts)
            info.setJoinFieldName("country")
            info.setTargetFieldName("name")
            info.setUsingMemoryCache(True)
            info.setPrefix("j_")
            base["land"].addJoin(info)
            settings = QgsPalLayerSettings()
            settings.fieldName = 'concat("name", \' \', "j_fact")'
            settings.isExpression = True
            base["land"].setLabeling(QgsVectorLayerSimpleLabeling(settings))

        self.project("join", [facts, base["land"], base["spots"]], finish)

    def relation(self) -> None:
        """Notes that belong to `land`, counted in its label and shown in its map tip."""
        base = self.package("relation")
        notes = QgsVectorLayer(
            "NoGeometry?field=land:string&field=note:string&field=weight:int", "notes", "memory"
        )
        for number, land in enumerate(self.base["land"].getFeatures()):
            for again in range(number % 3):
                feature = QgsFeature(notes.fields())
                feature.setAttributes([land["name"], f"note {number}.{again}", number])
                notes.dataProvider().addFeature(feature)
        path = write(notes, "GPKG", self.file("relation", "notes.gpkg"))
        child = vector(f"{path}|layername=notes", "notes")

        def finish(project: QgsProject) -> None:
            relation = QgsRelation()
            relation.setId("notes_of_land")
            relation.setName("notes")
            relation.setReferencedLayer(base["land"].id())
            relation.setReferencingLayer(child.id())
            relation.addFieldPair("land", "name")
            project.relationManager().addRelation(relation)
            count = "relation_aggregate('notes_of_land', 'count', \"note\")"
            settings = QgsPalLayerSettings()
            settings.fieldName = count
            settings.isExpression = True
            base["land"].setLabeling(QgsVectorLayerSimpleLabeling(settings))
            base["land"].setMapTipTemplate(f"[% name %]: [% {count} %] notes")

        self.project("relation", [child, base["land"], base["spots"]], finish)

    def zip(self) -> None:
        """Shapefiles inside an archive, read by GDAL's /vsizip/."""
        paths = self.pair("zip", "ESRI Shapefile", "shp")
        archive = self.file("zip", "all.zip")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            for path in sorted(archive.parent.glob("*.*")):
                if path != archive:
                    target.write(path, path.name)
                    path.unlink()
        self.project("zip", [vector(f"/vsizip/{archive}/{key}.shp", key) for key in paths])

    def mbtiles(self) -> None:
        path = self.file("mbtiles", "picture.mbtiles")
        gdal.Translate(str(path), str(self.picture("mbtiles")), format="MBTiles")
        self.project("mbtiles", [raster(path, "land"), self.package("mbtiles")["spots"]])

    def vectortile(self) -> None:
        path = self.file("vectortile", "land.mbtiles")
        writer = QgsVectorTileWriter()
        writer.setDestinationUri(f"type=mbtiles&url={path}")
        writer.setMaxZoom(2)
        writer.setLayers([QgsVectorTileWriter.Layer(layer) for layer in self.base.values()])
        if not writer.writeTiles():
            sys.exit(f"vector tiles: {writer.errorMessage()}")
        tiles = checked(QgsVectorTileLayer(f"type=mbtiles&url={path}", "land"))
        self.project("vectortile", [tiles, self.package("vectortile")["spots"]])

    def mesh(self) -> None:
        """A hill of 400 triangles, as a .2dm."""
        path, side = self.file("mesh", "hill.2dm"), 15
        lines, nodes = ["MESH2D"], side * side
        element = 0
        for row in range(side - 1):
            for column in range(side - 1):
                one = row * side + column + 1
                for a, b, c in ((one, one + 1, one + side), (one + 1, one + side + 1, one + side)):
                    element += 1
                    lines.append(f"E3T {element} {a} {b} {c} 1")
        for number in range(nodes):
            row, column = divmod(number, side)
            x, y = -20 + column * 5, 25 + row * 3.5
            lines.append(f"ND {number + 1} {x} {y} {100 - (row - 7) ** 2 - (column - 7) ** 2}")
        path.write_text("\n".join(lines) + "\n")
        layer = checked(QgsMeshLayer(str(path), "land", "mdal"))
        layer.setCrs(WGS84)
        self.project("mesh", [layer, self.package("mesh")["spots"]])

    def postgres(self, dsn: str) -> None:
        """Tables of PostGIS by password, SSL and service file, and a raster. dsn: of libpq."""
        kinds = {"land": "MultiPolygon", "spots": "Point"}
        path = str(self.out / "gpkg" / "base.gpkg")

        def layer(name: str, way: str, key: str) -> QgsVectorLayer:
            """Of a table of its own: nobody else's writes are in it."""
            table = f"{name.replace('-', '_')}_{key}"
            subprocess.run(
                ["ogr2ogr", "-q", "-f", "PostgreSQL", f"PG:{dsn}", path, key, "-nln", table,
                 "-lco", "GEOMETRY_NAME=geom", "-lco", "FID=fid", "-nlt", kinds[key]],
                check=True,
            )  # fmt: skip
            place = f'key=\'fid\' srid=4326 type={kinds[key]} table="public"."{table}" (geom)'
            return vector(f"{way} {place}", key, "postgres")

        password = f"{dsn} sslmode=disable"
        ways = {
            "postgres": password,
            "postgres-ssl": f"{dsn} sslmode=require".replace("user=gis", "user=gis_ssl"),
            "postgres-service": "service='parity' sslmode=prefer",
        }
        for name, way in ways.items():
            self.project(name, [layer(name, way, key) for key in kinds])
        words = (word.split("=") for word in dsn.split())
        quoted = " ".join(f"{key}='{value}'" for key, value in words)
        uri = f'{quoted} sslmode=disable table="public"."picture" (rast)'
        picture = raster(uri, "land", "postgresraster")
        name = "postgres-raster"
        self.project(name, [picture, layer(name, password, "spots")])

    def upstream(self, base: str) -> None:
        """Layers of another QGIS server. base: http://HOST:PORT"""
        place = f"{base}/ows/?MAP=upstream/upstream"
        quoted = quote_plus(place)

        def spots(name: str) -> QgsVectorLayer:
            return self.package(name)["spots"]

        uri = f"crs=EPSG:4326&dpiMode=7&format=image/png&layers=land&styles&url={quoted}"
        self.project("wms", [raster(uri, "land", "wms"), spots("wms")])
        capabilities = quote_plus(f"{place}&SERVICE=WMTS&REQUEST=GetCapabilities")
        uri = (
            "crs=EPSG:3857&dpiMode=7&format=image/png&layers=Parity upstream&styles=default"
            f"&tileMatrixSet=EPSG:3857&url={capabilities}"
        )
        self.project("wmts", [raster(uri, "land", "wms"), spots("wmts")])
        tile = (
            f"{place}&SERVICE=WMTS&VERSION=1.0.0&REQUEST=GetTile&LAYER=Parity%20upstream&STYLE=default"
            "&TILEMATRIXSET=EPSG:3857&FORMAT=image/png&TILEMATRIX={z}&TILEROW={y}&TILECOL={x}"
        )
        uri = f"type=xyz&url={quote_plus(tile)}&zmax=6&zmin=0"
        self.project("xyz", [raster(uri, "land", "wms"), spots("xyz")])
        uri = (
            "pagingEnabled='true' restrictToRequestBBOX='1' srsname='EPSG:4326' typename='{}'"
            f" url='{place}' version='1.1.0'"
        )
        self.project("wfs", [vector(uri.format(key), key, "WFS") for key in self.base])
        uri = "srsname='EPSG:4326' typename='{}' url='" + f"{base}/wfs3/?MAP=upstream/upstream'"
        self.project("oapif", [vector(uri.format(key), key, "OAPIF") for key in self.base])


def main() -> None:
    """See the module's docstring."""
    out, data, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    application = QgsApplication([], False)
    application.initQgis()
    maker = Maker(out, data)
    if what == "files":
        maker.files()
    elif what == "postgres":
        maker.postgres(sys.argv[4])
    else:
        maker.upstream(sys.argv[4].rstrip("/"))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
