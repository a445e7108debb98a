"""The corpus: every operation of QGIS Server, as requests in which layers are `land` and `spots`.

A case says what its answer must hold, so that two equal errors are not taken for success.
"""

from dataclasses import dataclass, field, replace
from urllib.parse import quote

from tests.parity.sources import Kind, Source

XML = {"Content-Type": "text/xml"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/geo+json"}
BOTH: tuple[Kind, ...] = ("vector", "raster")
VECTOR: tuple[Kind, ...] = ("vector",)
RASTER: tuple[Kind, ...] = ("raster",)
PNG, JPEG, PDF, TIFF = b"\x89PNG\r\n", b"\xff\xd8\xff", b"%PDF-", b"II*\0"
SIGNATURES = (PNG, JPEG, PDF, TIFF)


@dataclass(frozen=True)
class Case:
    """One request."""

    id: str
    #: Column of the table.
    operation: str
    query: str
    #: What the body holds, in whatever case; pictures begin with it. None where the version of
    #: QGIS decides whether it knows the request.
    holds: bytes | None
    kinds: tuple[Kind, ...] = BOTH
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/ows/"
    method: str = "GET"
    status: int = 200
    #: Only for these sources; () is all of them.
    only: tuple[str, ...] = ()
    #: Changes data, or reads what such a case has changed: asked in order only.
    writes: bool = False

    def target(self, source: Source) -> str:
        """Path and query for a source's project."""
        query = self.query.format(title=quote(source.title))
        path = self.path
        return f"{path}?MAP={source.map}" + (f"&{_escaped(query)}" if query else "")


def _escaped(query: str) -> str:
    return quote(query, safe="=&,:;/?{}()*%+-._~!$'@")


WMS = "SERVICE=WMS&VERSION=1.3.0"
OLD = "SERVICE=WMS&VERSION=1.1.1"
SIZE = "CRS=EPSG:4326&WIDTH=240&HEIGHT=120"
WORLD = "BBOX=-90,-180,90,180"
NORTH = "BBOX=25,-20,75,50"
MAP = f"{WMS}&REQUEST=GetMap&LAYERS=land&STYLES=&{SIZE}&{WORLD}&FORMAT=image/png"
VIEW = f"{WMS}&REQUEST=GetMap&LAYERS=land,spots&STYLES=,&{SIZE}&{NORTH}&FORMAT=image/png"
#: I, J of a point of Norway in the view, found by `land`.
INFO = (
    f"{WMS}&REQUEST=GetFeatureInfo&QUERY_LAYERS=land&LAYERS=land&STYLES=&{SIZE}&{NORTH}"
    "&I=93&J=29&FEATURE_COUNT=5&INFO_FORMAT="
)
LEGEND = f"{WMS}&REQUEST=GetLegendGraphic&STYLES=&FORMAT=image/png&LAYERS=land"
PRINT = (
    f"{WMS}&REQUEST=GetPrint&TEMPLATE=A7&CRS=EPSG:4326&map0:EXTENT=30,-10,70,40"
    "&map0:LAYERS=land,spots&DPI=60&FORMAT="
)
ATLAS = f"{WMS}&REQUEST=GetPrint&TEMPLATE=Atlas&CRS=EPSG:4326&DPI=60&map0:LAYERS=land,spots&FORMAT="
FEATURES = "SERVICE=WFS&VERSION=%s&REQUEST=GetFeature&TYPENAME=land"
GEOJSON = "&OUTPUTFORMAT=application/json"
TILE = "SERVICE=WMTS&VERSION=1.0.0&LAYER={title}&STYLE=&TILEMATRIXSET=EPSG:%s"
SE = (
    '<StyledLayerDescriptor xmlns="http://www.opengis.net/sld" xmlns:se="http://www.opengis.net/se"'
    ' xmlns:ogc="http://www.opengis.net/ogc" version="1.1.0"><NamedLayer><se:Name>land</se:Name>'
    "<UserStyle><se:Name>mine</se:Name><se:FeatureTypeStyle><se:Rule>{filter}<se:PolygonSymbolizer>"
    '<se:Fill><se:SvgParameter name="fill">#00ff88</se:SvgParameter></se:Fill>'
    '<se:Stroke><se:SvgParameter name="stroke">#ff0000</se:SvgParameter></se:Stroke>'
    "</se:PolygonSymbolizer></se:Rule></se:FeatureTypeStyle></UserStyle></NamedLayer>"
    "</StyledLayerDescriptor>"
)
HIGHLIGHT_SLD = (
    "<StyledLayerDescriptor><UserStyle><FeatureTypeStyle><Rule><Name>r</Name><PolygonSymbolizer>"
    '<Fill><CssParameter name="fill">#FF0000</CssParameter></Fill></PolygonSymbolizer></Rule>'
    "</FeatureTypeStyle></UserStyle></StyledLayerDescriptor>"
)
OGC = 'xmlns:ogc="http://www.opengis.net/ogc"'


def ogc_filter(inside: str) -> str:
    """FILTER=… of WFS."""
    return f'&FILTER=<Filter xmlns="http://www.opengis.net/ogc">{inside}</Filter>'


def compare(name: str, value: str, operator: str = "PropertyIsEqualTo", more: str = "") -> str:
    inside = f"<PropertyName>{name}</PropertyName><Literal>{value}</Literal>"
    return f"<{operator}{more}>{inside}</{operator}>"


def prefixed(xml: str) -> str:
    """The elements of a filter, as those of the prefix ogc."""
    return xml.replace("<", "<ogc:").replace("<ogc:/", "</ogc:")


NORWAY = compare("name", "Norway")
MINE = compare("kind", "mine")
INTERSECTS = (
    "<Intersects><PropertyName>geometry</PropertyName><Polygon "
    'xmlns="http://www.opengis.net/gml" srsName="EPSG:4326"><exterior><LinearRing>'
    '<posList srsDimension="2">0 50 30 50 30 70 0 70 0 50</posList></LinearRing></exterior>'
    "</Polygon></Intersects>"
)


def _wms() -> list[Case]:
    describe = "GetCapabilities"
    return [
        Case("wms-1.3.0", describe, f"{WMS}&REQUEST=GetCapabilities", b"<WMS_Capabilities"),
        Case("wms-1.1.1", describe, f"{OLD}&REQUEST=GetCapabilities", b"<WMT_MS_Capabilities"),
        Case("wms-any", describe, "SERVICE=WMS&REQUEST=GetCapabilities", b"<WMS_Capabilities"),
        Case("wms-settings", "GetProjectSettings", f"{WMS}&REQUEST=GetProjectSettings",
             b"LayerDrawingOrder"),
        Case("wms-context", "GetContext", f"{WMS}&REQUEST=GetContext", b"<OWSContext"),
        Case("wms-describe", "DescribeLayer",
             f"{WMS}&REQUEST=DescribeLayer&LAYERS=land,spots&SLD_VERSION=1.1.0",
             b"DescribeLayerResponse"),
        Case("wms-styles", "GetStyles", f"{WMS}&REQUEST=GetStyles&LAYERS=land,spots",
             b"StyledLayerDescriptor"),
        Case("wms-style", "GetStyles", f"{WMS}&REQUEST=GetStyle&LAYERS=spots",
             b"StyledLayerDescriptor"),
        Case("wms-nothing", describe, f"{WMS}&REQUEST=GetNothing", b"ServiceException",
             status=501),
        Case("no-service", describe, "SERVICE=NONE&REQUEST=GetCapabilities", b"ServiceException",
             status=400),
    ]  # fmt: skip


def _map() -> list[Case]:
    def one(id: str, query: str, holds: bytes | None = PNG, **more: object) -> Case:
        return Case(f"map-{id}", "GetMap", query, holds, **more)  # type: ignore[arg-type]

    form = f"{MAP}&MAP_RESOLUTION=90"
    selected = "&SELECTION=spots:1,2,3,4,5,6"
    return [
        one("png", MAP),
        one("view", VIEW),
        one("transparent", f"{VIEW}&TRANSPARENT=TRUE"),
        one("background", f"{VIEW}&BGCOLOR=0x336699"),
        *(one(f"png-{mode}", MAP.replace("image/png", f"image/png; mode={mode}"))
          for mode in ("1bit", "8bit", "16bit")),
        one("jpeg", MAP.replace("image/png", "image/jpeg"), JPEG),
        one("jpeg-quality", MAP.replace("image/png", "image/jpeg") + "&IMAGE_QUALITY=30", JPEG),
        one("webp", MAP.replace("image/png", "image/webp"), None),
        one("dxf", VIEW.replace("image/png", "application/dxf")
            + "&FORMAT_OPTIONS=MODE:SYMBOLLAYERSYMBOLOGY;SCALE:50000000", b"SECTION", kinds=VECTOR),
        one("pdf", VIEW.replace("image/png", "application/pdf"), None),
        one("no-format", MAP.replace("image/png", "image/nothing"), b"Exception", status=400),
        one("1.1.1", f"{OLD}&REQUEST=GetMap&LAYERS=spots,land&STYLES=&SRS=EPSG:4326&WIDTH=200"
            "&HEIGHT=120&BBOX=-20,25,50,75&FORMAT=image/png"),
        one("mercator", f"{WMS}&REQUEST=GetMap&LAYERS=land,spots&STYLES=&CRS=EPSG:3857&WIDTH=200"
            "&HEIGHT=200&BBOX=-2000000,3000000,6000000,11000000&FORMAT=image/png"),
        one("dpi", f"{VIEW}&DPI=180"),
        one("tiled", f"{VIEW}&TILED=TRUE"),
        one("opacity", f"{VIEW}&OPACITIES=100,180"),
        one("named-style", VIEW.replace("STYLES=,", "STYLES=default,default")),
        one("sld-body", f"{VIEW.replace('land,spots', 'land')}&SLD_BODY={SE.format(filter='')}"),
        one("sld-filter", f"{VIEW.replace('land,spots', 'land')}&SLD_BODY="
            + SE.format(filter=f"<ogc:Filter>{prefixed(MINE)}</ogc:Filter>"), kinds=VECTOR),
        one("filter", f"{VIEW}&FILTER=spots:\"kind\" = 'mine'"),
        one("filter-in", f"{VIEW}&FILTER=spots:\"kind\" IN ( 'mine' , 'harbour' )"),
        one("filter-refused", f"{VIEW}&FILTER=spots:\"kind\" = drop_table('x')", b"Exception",
            status=403),
        one("filter-ogc", f"{VIEW}&FILTER=(<Filter>{MINE}</Filter>)(<Filter>{MINE}</Filter>)",
            kinds=VECTOR),
        one("selection", VIEW + selected),
        one("selection-land", f"{VIEW}&SELECTION=land:1,2,3,4,5,6,7,8,9", kinds=VECTOR),
        one("highlight", f"{VIEW}&HIGHLIGHT_GEOM=POLYGON((0 40, 20 40, 20 60, 0 60, 0 40))"
            f"&HIGHLIGHT_SYMBOL={HIGHLIGHT_SLD}&HIGHLIGHT_LABELSTRING=Here&HIGHLIGHT_LABELSIZE=12"
            "&HIGHLIGHT_LABELCOLOR=black&HIGHLIGHT_LABELBUFFERCOLOR=white"
            "&HIGHLIGHT_LABELBUFFERSIZE=2"),
        one("time", f"{VIEW}&TIME=2020-01-01/2020-06-30"),
        one("time-one", f"{VIEW}&TIME=2020-01-01"),
        one("project", f"{WMS}&REQUEST=GetMap&LAYERS={{title}}&STYLES=&{SIZE}&{NORTH}"
            "&FORMAT=image/png"),
        one("no-layer", MAP.replace("LAYERS=land", "LAYERS=absent"), b"LayerNotDefined",
            status=400),
        one("no-crs", MAP.replace("EPSG:4326", "EPSG:1"), b"InvalidCRS", status=400),
        one("no-size", MAP.replace("&WIDTH=240", ""), b"Exception", status=400),
        one("form", "", PNG, body=form, headers=FORM, method="POST"),
    ]  # fmt: skip


def _info() -> list[Case]:
    def one(id: str, query: str, holds: bytes, **more: object) -> Case:
        return Case(f"info-{id}", "GetFeatureInfo", query, holds, **more)  # type: ignore[arg-type]

    by_filter = (
        f"{WMS}&REQUEST=GetFeatureInfo&QUERY_LAYERS=spots&LAYERS=spots&CRS=EPSG:4326&WIDTH=90"
        "&HEIGHT=90&FILTER=spots:\"name\" = 'Norway'&INFO_FORMAT="
    )
    return [
        one("json", INFO + "application/json", b'"FeatureCollection"'),
        one("json-geometry", INFO + "application/json&WITH_GEOMETRY=TRUE", b'"geometry"',
            kinds=VECTOR),
        one("json-tip", INFO + "application/json&WITH_MAPTIP=TRUE", b'"FeatureCollection"'),
        one("xml", INFO + "text/xml", b"GetFeatureInfoResponse"),
        one("xml-all", INFO + "text/xml&WITH_GEOMETRY=TRUE&WITH_MAPTIP=TRUE",
            b"GetFeatureInfoResponse"),
        one("html", INFO + "text/html", b"<table"),
        one("html-tip", INFO + "text/html&WITH_MAPTIP=HTML_FI_ONLY_MAPTIP", b""),
        one("text", INFO + "text/plain", b"GetFeatureInfo results"),
        one("gml", INFO + "application/vnd.ogc.gml", b"FeatureCollection"),
        one("gml3", INFO + "application/vnd.ogc.gml/3.1.1", b"FeatureCollection"),
        one("no-format", INFO + "text/nothing", b"Exception", status=400),
        one("tolerance", INFO + "application/json&FI_POINT_TOLERANCE=20&FI_POLYGON_TOLERANCE=20",
            b'"FeatureCollection"'),
        one("spots", INFO.replace("=land", "=spots").replace("I=93&J=29", "I=100&J=24")
            + "application/json&FI_POINT_TOLERANCE=40", b'"FeatureCollection"'),
        one("by-filter", by_filter + "application/json", b"Norway"),
        one("by-filter-xml", by_filter + "text/xml&WITH_GEOMETRY=TRUE", b"Norway"),
        one("by-geometry", f"{WMS}&REQUEST=GetFeatureInfo&QUERY_LAYERS=spots&LAYERS=spots&{SIZE}"
            f"&{NORTH}&FILTER_GEOM=POLYGON((0 55, 30 55, 30 75, 0 75, 0 55))&FEATURE_COUNT=9"
            "&INFO_FORMAT=application/json", b'"Feature"'),
        one("1.1.1", f"{OLD}&REQUEST=GetFeatureInfo&QUERY_LAYERS=land&LAYERS=land&STYLES="
            "&SRS=EPSG:4326&WIDTH=240&HEIGHT=120&BBOX=-20,25,50,75&X=93&Y=29"
            "&INFO_FORMAT=text/plain", b"GetFeatureInfo results"),
        one("no-layer", INFO.replace("QUERY_LAYERS=land", "QUERY_LAYERS=absent") + "text/xml",
            b"Exception", status=400),
    ]  # fmt: skip


def _legend() -> list[Case]:
    def one(id: str, query: str, holds: bytes | None = PNG, **more: object) -> Case:
        return Case(f"legend-{id}", "GetLegendGraphic", query, holds, **more)  # type: ignore[arg-type]

    json = LEGEND.replace("image/png", "application/json")
    in_view = f"&{NORTH}&CRS=EPSG:4326&SRCWIDTH=240&SRCHEIGHT=120&WIDTH=200&HEIGHT=200"
    return [
        one("png", LEGEND),
        one("both", LEGEND + ",spots"),
        one("jpeg", LEGEND.replace("image/png", "image/jpeg"), JPEG),
        one("style", LEGEND + "&BOXSPACE=4&LAYERSPACE=6&LAYERTITLE=FALSE&RULELABEL=TRUE"
            "&SYMBOLWIDTH=9&ITEMFONTSIZE=9&ITEMFONTBOLD=TRUE&ITEMFONTCOLOR=%23ff0000"),
        one("counts", LEGEND + ",spots&SHOWFEATURECOUNT=TRUE"),
        one("in-view", LEGEND.replace("land", "spots") + in_view),
        one("json", json, b'"nodes"'),
        one("json-both", json + ",spots&SHOWFEATURECOUNT=TRUE", b'"nodes"'),
        one("json-in-view", json.replace("land", "spots") + in_view, b'"nodes"'),
        one("rule", LEGEND.replace("land", "spots") + "&RULE=mine&WIDTH=20&HEIGHT=20"),
        one("no-layer", LEGEND.replace("land", "absent"), b"LayerNotDefined", status=400),
    ]  # fmt: skip


def _print() -> list[Case]:
    def one(id: str, query: str, holds: bytes, **more: object) -> Case:
        return Case(f"print-{id}", "GetPrint", query, holds, **more)  # type: ignore[arg-type]

    return [
        one("pdf", PRINT + "pdf", PDF),
        one("png", PRINT + "png", PNG),
        one("jpg", PRINT + "jpg", JPEG),
        one("svg", PRINT + "svg", b"<svg"),
        one("text", PRINT + "png&title=Written%20by%20the%20client", PNG),
        one("grid", PRINT + "png&map0:GRID_INTERVAL_X=10&map0:GRID_INTERVAL_Y=10&map0:ROTATION=20"
            "&map0:SCALE=90000000", PNG),
        one("highlight", PRINT + "png&map0:HIGHLIGHT_GEOM=POLYGON((0 40, 20 40, 20 60, 0 60, 0 40))"
            f"&map0:HIGHLIGHT_SYMBOL={HIGHLIGHT_SLD}", PNG),
        one("atlas", ATLAS + "pdf&ATLAS_PK=1,2", PDF),
        one("atlas-png", ATLAS + "png&ATLAS_PK=3", PNG),
        one("atlas-all", ATLAS + "pdf&ATLAS_PK=*", b"Exception", status=400),
        one("no-template", PRINT.replace("A7", "absent") + "pdf", b"Exception", status=400),
    ]  # fmt: skip


def _wfs() -> list[Case]:
    def one(id: str, query: str, holds: bytes, **more: object) -> Case:
        more.setdefault("kinds", VECTOR)
        return Case(f"wfs-{id}", "GetFeature", query, holds, **more)  # type: ignore[arg-type]

    old, new = FEATURES % "1.0.0", FEATURES % "1.1.0"
    found = b'"FeatureCollection"'
    xml = (
        f'<wfs:GetFeature service="WFS" version="%s" {OGC} xmlns:wfs="http://www.opengis.net/wfs"'
        ' xmlns:gml="http://www.opengis.net/gml"%s><wfs:Query typeName="land">'
        "<ogc:Filter>%s</ogc:Filter></wfs:Query></wfs:GetFeature>"
    )
    norway = prefixed(NORWAY)
    box = (
        '<ogc:BBOX><ogc:PropertyName>geometry</ogc:PropertyName><gml:Box srsName="EPSG:4326">'
        "<gml:coordinates>-10,40 30,70</gml:coordinates></gml:Box></ogc:BBOX>"
    )
    schema = "SERVICE=WFS&VERSION=%s&REQUEST=DescribeFeatureType"
    return [
        Case("wfs-1.0-capabilities", "WFS GetCapabilities",
             "SERVICE=WFS&VERSION=1.0.0&REQUEST=GetCapabilities", b"<WFS_Capabilities"),
        Case("wfs-1.1-capabilities", "WFS GetCapabilities",
             "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetCapabilities", b"<WFS_Capabilities"),
        Case("wfs-1.0-schema", "DescribeFeatureType", schema % "1.0.0" + "&TYPENAME=land",
             b"AbstractFeatureType", VECTOR),
        Case("wfs-1.1-schema", "DescribeFeatureType", schema % "1.1.0" + "&TYPENAME=land,spots",
             b"AbstractFeatureType", VECTOR),
        Case("wfs-schema-all", "DescribeFeatureType", schema % "1.1.0", b"AbstractFeatureType"),
        one("gml2", old + "&MAXFEATURES=5&OUTPUTFORMAT=GML2", b"<gml:featureMember"),
        one("gml3", new + "&MAXFEATURES=5&OUTPUTFORMAT=GML3", b"<gml:featureMember"),
        one("gml2-all", old, b"FeatureCollection"),
        one("gml3-all", new, b"FeatureCollection"),
        one("json", new + "&MAXFEATURES=5" + GEOJSON, found),
        one("json-all", new + GEOJSON, found),
        one("json-geojson", new + "&MAXFEATURES=2&OUTPUTFORMAT=geojson", found),
        one("two-types", new.replace("=land", "=land,spots") + "&MAXFEATURES=9" + GEOJSON, found),
        one("properties", new + "&PROPERTYNAME=name,kind&MAXFEATURES=5" + GEOJSON, found),
        one("no-geometry", new + "&GEOMETRYNAME=none&MAXFEATURES=5" + GEOJSON, found),
        one("extent", new + "&GEOMETRYNAME=extent&MAXFEATURES=5" + GEOJSON, found),
        one("hits", new + "&RESULTTYPE=hits", b"numberOfFeatures"),
        one("page", new + "&STARTINDEX=10&MAXFEATURES=5" + GEOJSON, found),
        one("page-2", new + "&STARTINDEX=15&MAXFEATURES=5" + GEOJSON, found),
        one("page-past", new + "&STARTINDEX=100000&MAXFEATURES=5" + GEOJSON, found),
        one("sorted", new + "&SORTBY=rank DESC&MAXFEATURES=5" + GEOJSON, found),
        one("bbox", new + "&BBOX=40,-10,70,30,EPSG:4326" + GEOJSON, found),
        one("bbox-gml", old + "&BBOX=-10,40,30,70", b"FeatureCollection"),
        one("srs", new + "&MAXFEATURES=3&SRSNAME=EPSG:3857", b"EPSG:3857"),
        one("srs-json", new + "&MAXFEATURES=3&SRSNAME=EPSG:3857" + GEOJSON, found),
        one("id", new + "&FEATUREID=land.1,land.2,land.7" + GEOJSON, found),
        one("filter", new + ogc_filter(NORWAY) + GEOJSON, b"Norway"),
        one("filter-and", new + ogc_filter(
            f"<And>{MINE}{compare('rank', '100', 'PropertyIsLessThan')}</And>") + GEOJSON, found),
        one("filter-or", new + ogc_filter(f"<Or>{NORWAY}{compare('name', 'Chad')}</Or>") + GEOJSON,
            b"Norway"),
        one("filter-not", old + ogc_filter(f"<Not>{MINE}</Not>"), b"FeatureCollection"),
        one("filter-like", new + ogc_filter(compare(
            "name", "N*", "PropertyIsLike", ' wildCard="*" singleChar="?" escapeChar="!"'))
            + GEOJSON, b"Norway"),
        one("filter-intersects", new + ogc_filter(INTERSECTS) + GEOJSON, found),
        one("expression", old + "&EXP_FILTER=\"kind\" = 'mine' AND \"rank\" < 100" + GEOJSON,
            found),
        one("post-1.0", "", b"Norway", body=xml % ("1.0.0", "", norway), headers=XML,
            method="POST"),
        one("post-1.1", "", b"Norway", body=xml % ("1.1.0", "", norway), headers=XML,
            method="POST"),
        one("post-box", "", b"FeatureCollection", headers=XML, method="POST",
            body=xml % ("1.0.0", ' maxFeatures="7"', box)),
        one("post-json", "", found, headers=XML, method="POST",
            body=xml % ("1.1.0", ' outputFormat="application/json"', norway)),
        one("no-type", new.replace("=land", "=absent"), b"Exception", status=400),
        one("no-filter", new + "&FILTER=<Filter><Nothing/></Filter>", b"Exception", status=400),
    ]  # fmt: skip


def _wcs() -> list[Case]:
    coverage = (
        "SERVICE=WCS&VERSION=1.0.0&REQUEST=GetCoverage&COVERAGE=land&CRS=EPSG:4326"
        "&BBOX=0,35,30,60&WIDTH=60&HEIGHT=50&FORMAT=GTiff"
    )
    data = ("tif", "mbtiles", "postgres-raster")
    return [
        Case("wcs-capabilities", "WCS", "SERVICE=WCS&VERSION=1.0.0&REQUEST=GetCapabilities",
             b"<WCS_Capabilities"),
        Case("wcs-describe", "WCS",
             "SERVICE=WCS&VERSION=1.0.0&REQUEST=DescribeCoverage&COVERAGE=land",
             b"CoverageDescription", only=data),
        Case("wcs-coverage", "WCS", coverage, TIFF, only=data),
        Case("wcs-mercator", "WCS", coverage.replace(
            "4326", "3857").replace("0,35,30,60", "0,4000000,3000000,8000000"), TIFF, only=data),
        Case("wcs-no-coverage", "WCS", coverage.replace("=land", "=absent"), b"Exception",
             status=400, only=data),
    ]  # fmt: skip


def _wmts() -> list[Case]:
    tile = TILE % 3857 + "&REQUEST=GetTile&FORMAT=image/png"
    return [
        Case("wmts-capabilities", "WMTS", "SERVICE=WMTS&VERSION=1.0.0&REQUEST=GetCapabilities",
             b"<TileMatrixSet"),
        *(Case(f"wmts-{zoom}-{row}-{column}", "WMTS",
               f"{tile}&TILEMATRIX={zoom}&TILEROW={row}&TILECOL={column}", PNG)
          for zoom, row, column in ((0, 0, 0), (2, 1, 2), (4, 4, 8))),
        Case("wmts-degrees", "WMTS", TILE % 4326 + "&REQUEST=GetTile&TILEMATRIX=1&TILEROW=0"
             "&TILECOL=2&FORMAT=image/png", PNG),
        Case("wmts-jpeg", "WMTS", tile.replace("png", "jpeg")
             + "&TILEMATRIX=2&TILEROW=1&TILECOL=2", JPEG),
        Case("wmts-info", "WMTS", TILE % 3857 + "&REQUEST=GetFeatureInfo&TILEMATRIX=2&TILEROW=1"
             "&TILECOL=2&I=50&J=50&INFOFORMAT=application/json&FORMAT=image/png", b"Feature"),
        Case("wmts-outside", "WMTS", tile + "&TILEMATRIX=2&TILEROW=99&TILECOL=2", b"Exception",
             status=400),
    ]  # fmt: skip


CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"
#: Stands for the URI by which a collection lists EPSG:3857: each QGIS knows its own alone.
MERCATOR = "{mercator}"


def _api() -> list[Case]:
    def one(id: str, path: str, holds: bytes, query: str = "", **more: object) -> Case:
        return Case(f"api-{id}", "OGC API", query, holds, path=path, **more)  # type: ignore[arg-type]

    def items(id: str, query: str, holds: bytes = b'"FeatureCollection"', **more: object) -> Case:
        path = "/wfs3/collections/land/items"
        more.setdefault("kinds", VECTOR)
        return one(f"items-{id}", path + str(more.pop("suffix", ".json")), holds, query, **more)

    return [
        one("landing", "/wfs3/", b'"links"', headers={"Accept": "application/json"}),
        one("landing-json", "/wfs3.json", b'"links"'),
        one("landing-html", "/wfs3.html", b"<html"),
        one("conformance", "/wfs3/conformance.json", b"conformsTo"),
        one("conformance-html", "/wfs3/conformance.html", b"<html"),
        one("openapi", "/wfs3/api.openapi3", b'"openapi"'),
        one("openapi-html", "/wfs3/api.html", b"<html"),
        one("collections", "/wfs3/collections.json", b'"collections"'),
        one("collections-html", "/wfs3/collections.html", b"<html"),
        one("collections-accept", "/wfs3/collections", b"<html", headers={"Accept": "text/html"}),
        one("collection", "/wfs3/collections/land.json", b'"extent"', kinds=VECTOR),
        one("collection-html", "/wfs3/collections/spots.html", b"<html"),
        one("no-collection", "/wfs3/collections/absent.json", b"", status=404),
        one("static", "/wfs3/static/style.css", b"{"),
        items("few", "limit=3"),
        items("all", "limit=500"),
        items("page", "limit=3&offset=6"),
        items("html", "limit=3", b"<html", suffix=".html"),
        items("accept", "limit=2", suffix="", headers={"Accept": "application/geo+json"}),
        items("bbox", "bbox=-10,40,30,70&limit=50"),
        items("bbox-crs", f"bbox=-1000000,5000000,3000000,9000000&bbox-crs={MERCATOR}&limit=50"),
        items("crs", f"crs={MERCATOR}&limit=3"),
        items("crs84", f"crs={CRS84}&limit=3"),
        items("no-crs", "crs=nothing&limit=3", b"", status=400),
        items("property", "name=Norway", b"Norway"),
        items("property-like", "name=N*&limit=50", b"Norway"),
        items("properties", "properties=name,kind&limit=4"),
        items("sorted", "sortby=name&limit=4"),
        items("descending", "sortby=name&sortdesc=1&limit=4"),
        items("datetime", "datetime=2020-01-01/2020-06-30&limit=5"),
        items("no-limit", "limit=-1", b"", status=400),
        one("item", "/wfs3/collections/land/items/2.json", b'"Feature"', kinds=VECTOR),
        one("item-html", "/wfs3/collections/land/items/2.html", b"<html", kinds=VECTOR),
        one("item-crs", "/wfs3/collections/land/items/2.json", b'"Feature"', f"crs={MERCATOR}",
            kinds=VECTOR),
        one("no-item", "/wfs3/collections/land/items/100000.json", b"Invalid feature",
            kinds=VECTOR, status=404),
        one("ogcapi", "/ogcapi/collections.json", b'"collections"'),
    ]  # fmt: skip


def _transaction() -> list[Case]:
    def one(id: str, inside: str, holds: bytes, version: str = "1.1.0") -> Case:
        body = (
            f'<Transaction service="WFS" version="{version}" xmlns="http://www.opengis.net/wfs"'
            f' {OGC} xmlns:gml="http://www.opengis.net/gml" xmlns:qgs="http://www.qgis.org/gml">'
            f"{inside}</Transaction>"
        )
        return Case(f"write-{id}", "Transaction", "", holds, VECTOR, body, XML, method="POST",
                    writes=True)  # fmt: skip

    def insert(name: str, place: str, id: str = "") -> str:
        return (
            f"<Insert{id}><qgs:spots><qgs:name>{name}</qgs:name><qgs:kind>mine</qgs:kind>"
            f"<qgs:rank>999</qgs:rank><qgs:geometry>{place}</qgs:geometry></qgs:spots></Insert>"
        )

    def where(name: str) -> str:
        return (
            "<ogc:Filter><ogc:PropertyIsEqualTo><ogc:PropertyName>name</ogc:PropertyName>"
            f"<ogc:Literal>{name}</ogc:Literal></ogc:PropertyIsEqualTo></ogc:Filter>"
        )

    old = (
        '<gml:Point srsName="EPSG:4326"><gml:coordinates cs="," ts=" ">5.5,52.5</gml:coordinates>'
        "</gml:Point>"
    )
    new = '<gml:Point srsName="EPSG:4326"><gml:pos srsDimension="2">6.5 53.5</gml:pos></gml:Point>'
    update = (
        '<Update typeName="spots"><Property><Name>kind</Name><Value>market</Value></Property>'
        f"{where('Newtown')}</Update>"
    )
    api = "/wfs3/collections/spots/items"
    done, failed = b"totalInserted", b"SUCCESS"
    feature = (
        '{"type": "Feature", "geometry": {"type": "Point", "coordinates": [7.5, 46.5]},'
        ' "properties": {"name": "%s", "kind": "mine", "rank": %d}}'
    )

    def see(id: str) -> list[Case]:
        query = (
            "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=spots"
            '&EXP_FILTER="rank" > 900&SORTBY=rank' + GEOJSON
        )
        return [
            Case(f"write-{id}-features", "Transaction", query, b"FeatureCollection", VECTOR,
                 writes=True),
            Case(f"write-{id}-map", "Transaction", VIEW, PNG, VECTOR, writes=True),
        ]  # fmt: skip

    def rest(id: str, method: str, path: str, body: str, holds: bytes, **more: object) -> Case:
        return Case(f"api-write-{id}", "OGC API writes", "", holds, VECTOR, body, JSON, path,
                    method, writes=True, **more)  # type: ignore[arg-type]  # fmt: skip

    return [
        one("insert-1.0", insert("Oldtown", old), failed, "1.0.0"),
        one("insert-1.1", insert("Newtown", new), done),
        *see("inserted"),
        one("update", update, b"totalUpdated"),
        *see("updated"),
        one("delete", f'<Delete typeName="spots">{where("Oldtown")}</Delete>', b"totalDeleted"),
        *see("deleted"),
        one("no-type", '<Delete typeName="absent"><ogc:Filter/></Delete>', b""),
        rest("post", "POST", api, feature % ("Resttown", 1000), b"", status=201),
        *[replace(case, operation="OGC API writes", id=case.id.replace("write", "api-write", 1))
          for case in see("posted")],
        rest("put", "PUT", f"{api}/1", feature % ("Putville", 1001), b"Putville"),
        rest("patch", "PATCH", f"{api}/2", '{"modify": {"rank": 1002}}', b"1002"),
        rest("delete", "DELETE", f"{api}/3", "", b""),
        rest("post-nothing", "POST", api, "{", b"", status=400),
        rest("delete-none", "DELETE", f"{api}/100000", "", b"", status=404),
        *[replace(case, operation="OGC API writes", id=case.id.replace("write", "api-write", 1))
          for case in see("changed")],
    ]  # fmt: skip


CASES = [
    *_wms(), *_map(), *_info(), *_legend(), *_print(), *_wfs(), *_wcs(), *_wmts(), *_api(),
    *_transaction(),
]  # fmt: skip
OPERATIONS = tuple(dict.fromkeys(case.operation for case in CASES))


def cases_of(source: Source, mercator: str) -> list[Case]:
    """What is asked of a source, in this order. mercator: what MERCATOR stands for."""
    return [
        replace(case, query=case.query.replace(MERCATOR, mercator))
        for case in CASES
        if source.kind in case.kinds and (not case.only or source.name in case.only)
        if source.name != "spatialite" or not case.id.startswith(_SELF_LOCKED)
    ]


#: With these QGIS, plain or ours, waits 5 s for itself in a SpatiaLite database, and then fails.
_SELF_LOCKED = ("api-write-p", "api-write-delete", "api-write-changed")
