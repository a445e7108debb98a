"""Every kind of request, answered as a plain QgsServer in a process of its own answers it.

Bodies are equal byte for byte, pictures included. Three things are blanked on both sides: in PDF
files the time of making and the ids made of it, in OGC API Features and counts of hits the
"timeStamp" of the answer (helpers.without_times), in a GetFeature of a remote layer its extent
(without_box). A plain
server gets the requests in the same order, for some answers depend on earlier ones (the WFS
provider caches); so each project has one worker here.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.e2e.helpers import ProjectSet, Reference, assert_same, without_box
from tests.support import Daemon, Response

StartReference = Callable[[str], Reference]
ALL = ("demo", "world", "broken", "mixed", "postgres", "remote")
RASTER = ("demo", "world", "broken", "mixed")  # served by WCS
LAYOUT = ("demo", "world")
#: The remote WFS layer has no filter that the set's own names would fit.
FILTERED = ("demo", "world", "broken", "mixed", "postgres")

XML = {"Content-Type": "text/xml"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class Case:
    """One request, with {vector} and so on for the names of the set's layers."""

    id: str
    query: str
    #: What the body must hold, so that two equal errors are not taken for success.
    holds: bytes
    sets: tuple[str, ...] = ALL
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/ows/"
    status: int = 200


PNG, JPEG, PDF = b"\x89PNG\r\n", b"\xff\xd8\xff", b"%PDF-"
#: Pictures that a plain QGIS 3.40 itself draws in two ways, at random, in one process: which of
#: several labels that fit equally well is placed. Ours must be one of those.
SEVERAL = {"tile-degrees"}
WMS = "SERVICE=WMS&VERSION=1.3.0"
MAP_OF = "LAYERS={vector}&STYLES=&CRS=EPSG:4326&WIDTH=400&HEIGHT=200"
WORLD_BOX = "BBOX=-90,-180,90,180"
INFO = (
    f"{WMS}&REQUEST=GetFeatureInfo&QUERY_LAYERS={{vector}}&{MAP_OF}"
    "&BBOX=40,-110,60,-70&{pixel}&FEATURE_COUNT=5&INFO_FORMAT="
)
GET_FEATURE = "SERVICE=WFS&VERSION=%s&REQUEST=GetFeature&TYPENAME={vector}"
EQUAL = (
    "<Filter><PropertyIsEqualTo><PropertyName>{field}</PropertyName><Literal>{value}</Literal>"
    "</PropertyIsEqualTo></Filter>"
)
TILE = "SERVICE=WMTS&VERSION=1.0.0&LAYER={project}&STYLE=&TILEMATRIXSET=EPSG:%s"
PRINT = (
    f"{WMS}&REQUEST=GetPrint&TEMPLATE={{layout}}&CRS=EPSG:4326&map0:EXTENT=40,-10,60,30"
    "&map0:LAYERS={vector},{other}&DPI=96&FORMAT="
)

CASES = [
    Case("wms-1.3.0-capabilities", f"{WMS}&REQUEST=GetCapabilities", b"<WMS_Capabilities"),
    Case(
        "wms-1.1.1-capabilities",
        "SERVICE=WMS&VERSION=1.1.1&REQUEST=GetCapabilities",
        b"<WMT_MS_Capabilities",
    ),
    Case("wms-project-settings", f"{WMS}&REQUEST=GetProjectSettings", b"LayerDrawingOrder"),
    Case("wms-context", f"{WMS}&REQUEST=GetContext", b"<OWSContext"),
    Case("map-png", f"{WMS}&REQUEST=GetMap&{MAP_OF}&{WORLD_BOX}&FORMAT=image/png", PNG),
    Case("map-png-8bit", f"{WMS}&REQUEST=GetMap&{MAP_OF}&{WORLD_BOX}&FORMAT=image/png; mode=8bit",
         PNG),
    Case("map-jpeg", f"{WMS}&REQUEST=GetMap&{MAP_OF}&{WORLD_BOX}&FORMAT=image/jpeg", JPEG),
    Case(
        "map-transparent-europe",
        f"{WMS}&REQUEST=GetMap&LAYERS={{other}},{{vector}}&STYLES=,&CRS=EPSG:4326&WIDTH=300&HEIGHT=300"
        "&BBOX=35,-10,65,30&FORMAT=image/png&TRANSPARENT=TRUE",
        PNG,
    ),
    Case(
        "map-mercator",
        f"{WMS}&REQUEST=GetMap&LAYERS={{other}}&STYLES=&CRS=EPSG:3857&WIDTH=256&HEIGHT=256"
        "&BBOX=0,0,10018754,10018754&FORMAT=image/png",
        PNG,
    ),
    Case(
        "map-1.1.1",
        "SERVICE=WMS&VERSION=1.1.1&REQUEST=GetMap&LAYERS={vector}&STYLES=&SRS=EPSG:4326"
        "&WIDTH=200&HEIGHT=100&BBOX=-120,20,-60,60&FORMAT=image/png&DPI=180",
        PNG,
    ),
    Case(
        "map-raster",
        f"{WMS}&REQUEST=GetMap&LAYERS={{raster}},{{other}}&STYLES=,&CRS=EPSG:4326&WIDTH=300"
        "&HEIGHT=150&BBOX=-60,-120,60,120&FORMAT=image/png",
        PNG,
        (*RASTER, "remote"),
    ),
    Case(
        "map-selection",
        f"{WMS}&REQUEST=GetMap&{MAP_OF}&{WORLD_BOX}&FORMAT=image/png&SELECTION={{vector}}:1,2,3",
        PNG,
    ),
    Case(
        "map-filter",
        f"{WMS}&REQUEST=GetMap&{MAP_OF}&BBOX=50,-10,75,40&FORMAT=image/png"
        "&FILTER={vector}:\"{field}\" = '{value}'",
        PNG,
        FILTERED,
    ),
    Case("map-form", "", PNG, body=f"{WMS}&REQUEST=GetMap&{MAP_OF}&{WORLD_BOX}&FORMAT=image/png",
         headers=FORM),
    Case("map-no-such-layer", f"{WMS}&REQUEST=GetMap&LAYERS=absent&STYLES=&CRS=EPSG:4326&WIDTH=9"
         f"&HEIGHT=9&{WORLD_BOX}&FORMAT=image/png", b"LayerNotDefined", status=400),
    Case("info-json", INFO + "application/json", b'"Feature"'),
    Case("info-xml", INFO + "text/xml", b"<Feature "),
    Case("info-html", INFO + "text/html", b"<TABLE"),
    Case("info-text", INFO + "text/plain", b"Feature "),
    Case("info-gml", INFO + "application/vnd.ogc.gml", b"gml:featureMember"),
    Case(
        "info-by-filter",
        f"{WMS}&REQUEST=GetFeatureInfo&QUERY_LAYERS={{vector}}&LAYERS={{vector}}&CRS=EPSG:4326"
        "&WIDTH=100&HEIGHT=100&INFO_FORMAT=application/json&WITH_GEOMETRY=TRUE"
        "&FILTER={vector}:\"{field}\" = '{value}'",
        b"{value}",
        FILTERED,
    ),
    Case("legend-png", f"{WMS}&REQUEST=GetLegendGraphic&LAYER={{vector}}&FORMAT=image/png", PNG),
    Case("legend-json", f"{WMS}&REQUEST=GetLegendGraphic&LAYERS={{vector}},{{other}}"
         "&FORMAT=application/json", b'"nodes"'),
    Case("legend-in-view", f"{WMS}&REQUEST=GetLegendGraphic&LAYERS={{vector}}&FORMAT=image/png"
         "&CRS=EPSG:4326&BBOX=40,-10,60,30&SRCWIDTH=200&SRCHEIGHT=100", PNG),
    Case("styles", f"{WMS}&REQUEST=GetStyles&LAYERS={{vector}},{{other}}",
         b"StyledLayerDescriptor"),
    Case("describe-layer", f"{WMS}&REQUEST=DescribeLayer&LAYERS={{vector}}&SLD_VERSION=1.1.0",
         b"DescribeLayerResponse"),
    Case("print-pdf", PRINT + "pdf", PDF, LAYOUT),
    Case("print-png", PRINT + "png", PNG, LAYOUT),
    Case("wfs-1.0-capabilities", "SERVICE=WFS&VERSION=1.0.0&REQUEST=GetCapabilities",
         b"<WFS_Capabilities"),
    Case("wfs-1.1-capabilities", "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetCapabilities",
         b"<WFS_Capabilities"),
    Case("wfs-1.0-schema", "SERVICE=WFS&VERSION=1.0.0&REQUEST=DescribeFeatureType"
         "&TYPENAME={vector}", b"AbstractFeatureType"),
    Case("wfs-1.1-schema", "SERVICE=WFS&VERSION=1.1.0&REQUEST=DescribeFeatureType"
         "&TYPENAME={vector},{other}", b"AbstractFeatureType"),
    Case("features-gml2", GET_FEATURE % "1.0.0" + "&MAXFEATURES=20&OUTPUTFORMAT=GML2",
         b"<gml:featureMember"),
    Case("features-gml3", GET_FEATURE % "1.1.0" + "&MAXFEATURES=20&OUTPUTFORMAT=GML3",
         b"<gml:featureMember"),
    Case("features-json", GET_FEATURE % "1.1.0" + "&MAXFEATURES=20&OUTPUTFORMAT=application/json",
         b'"Feature"'),
    Case("features-all-json", GET_FEATURE % "1.1.0" + "&OUTPUTFORMAT=application/json",
         b'"Feature"'),
    Case("features-all-gml3", GET_FEATURE % "1.1.0", b"<gml:featureMember"),
    Case("features-hits", GET_FEATURE % "1.1.0" + "&RESULTTYPE=hits", b"numberOfFeatures"),
    Case("features-page", GET_FEATURE % "1.1.0" + "&STARTINDEX=10&MAXFEATURES=5"
         "&OUTPUTFORMAT=application/json", b'"Feature"'),
    Case("features-bbox", GET_FEATURE % "1.1.0" + "&BBOX=50,-120,65,-60,EPSG:4326"
         "&OUTPUTFORMAT=application/json", b'"FeatureCollection"'),
    Case("features-filter", GET_FEATURE % "1.1.0" + f"&FILTER={EQUAL}"
         "&OUTPUTFORMAT=application/json", b"{value}", FILTERED),
    Case("features-exp-filter", GET_FEATURE % "1.0.0" + "&EXP_FILTER=\"{field}\" = '{value}'",
         b"{value}", FILTERED),
    Case("features-srs", GET_FEATURE % "1.1.0" + "&MAXFEATURES=3&SRSNAME=EPSG:3857",
         b"EPSG:3857"),
    Case(
        "features-post-xml",
        "",
        b"{value}",
        FILTERED,
        body='<wfs:GetFeature service="WFS" version="1.1.0" xmlns:wfs="http://www.opengis.net/wfs"'
        ' xmlns:ogc="http://www.opengis.net/ogc"><wfs:Query typeName="{vector}"><ogc:Filter>'
        "<ogc:PropertyIsEqualTo><ogc:PropertyName>{field}</ogc:PropertyName>"
        "<ogc:Literal>{value}</ogc:Literal></ogc:PropertyIsEqualTo></ogc:Filter></wfs:Query>"
        "</wfs:GetFeature>",
        headers=XML,
    ),
    Case("features-no-such-type", "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=absent",
         b"Exception", status=400),
    Case("wcs-capabilities", "SERVICE=WCS&VERSION=1.0.0&REQUEST=GetCapabilities",
         b"<WCS_Capabilities", (*RASTER, "remote")),
    Case("wcs-describe", "SERVICE=WCS&VERSION=1.0.0&REQUEST=DescribeCoverage&COVERAGE={raster}",
         b"<CoverageOffering>", RASTER),
    Case("wcs-coverage", "SERVICE=WCS&VERSION=1.0.0&REQUEST=GetCoverage&COVERAGE={raster}"
         "&CRS=EPSG:4326&BBOX=-10,30,30,60&WIDTH=80&HEIGHT=60&FORMAT=GTiff", b"II*\0", RASTER),
    Case("wmts-capabilities", "SERVICE=WMTS&VERSION=1.0.0&REQUEST=GetCapabilities",
         b"<TileMatrixSet"),
    Case("tile-mercator", TILE % 3857 + "&REQUEST=GetTile&TILEMATRIX=1&TILEROW=0&TILECOL=1"
         "&FORMAT=image/png", PNG),
    Case("tile-degrees", TILE % 4326 + "&REQUEST=GetTile&TILEMATRIX=1&TILEROW=0&TILECOL=2"
         "&FORMAT=image/png", PNG),
    Case("api-landing-json", "", b'"links"', path="/wfs3/.json"),
    Case("api-landing", "", b'"links"', path="/wfs3", headers={"Accept": "application/json"}),
    Case("api-landing-html", "", b"<html", path="/wfs3.html"),
    Case("api-conformance", "", b"conformsTo", path="/wfs3/conformance.json"),
    Case("api-openapi", "", b'"openapi"', path="/wfs3/api.openapi3"),
    Case("api-collections", "", b'"collections"', path="/wfs3/collections.json"),
    Case("api-collections-html", "", b"<html", path="/wfs3/collections.html"),
    Case("api-collection", "", b'"extent"', path="/wfs3/collections/{vector}.json"),
    Case("api-items", "limit=5", b'"Feature"', path="/wfs3/collections/{vector}/items.json"),
    Case("api-items-bbox", "bbox=-120,50,-60,65&limit=50", b'"FeatureCollection"',
         path="/wfs3/collections/{other}/items.json"),
    Case("api-items-html", "limit=3", b"<html", path="/wfs3/collections/{vector}/items.html"),
    Case("api-no-such-collection", "", b"", path="/wfs3/collections/absent.json", status=404),
]  # fmt: skip

#: Sets where a request gives something else, the same with a plain server.
PAIRS = [
    pytest.param(name, case, id=f"{name}-{case.id}")
    for name in ALL
    for case in CASES
    if name in case.sets
]


def names_of(project: ProjectSet, title: str) -> dict[str, str]:
    """What stands in for {vector} and so on."""
    return {
        "vector": project.vector,
        "other": project.other,
        "raster": project.raster,
        "layout": project.layout,
        "field": project.field,
        "value": project.value,
        "project": title,
        "pixel": project.pixel,
    }


TITLES = {
    "demo": "world", "world": "World", "broken": "Broken", "mixed": "Mixed providers",
    "postgres": "PostgreSQL", "remote": "Remote sources",
}  # fmt: skip


def ask_both(
    daemon: Daemon, reference: Reference, project: ProjectSet, case: Case, title: str
) -> None:
    """One case, to qgisd and to a plain server."""
    names = names_of(project, title)
    query = "&".join(filter(None, (f"MAP={project.name}", case.query.format_map(names))))
    query = query.replace(" ", "%20").replace('"', "%22").replace("<", "%3C").replace(">", "%3E")
    path, body = case.path.format_map(names), case.body.format_map(names)
    target = f"{path}?{query}"
    if case.body:
        ours = daemon.request("POST", target, body.encode(), case.headers)
    else:
        ours = daemon.get(target, headers=case.headers)

    def ask_plain() -> Response:
        if case.headers == FORM:  # documented: a form becomes the GET it stands for
            return reference.ask(project.path, f"{target}&{body}", "GET", b"", case.headers)
        method = "POST" if body else "GET"
        return reference.ask(project.path, target, method, body.encode(), case.headers)

    plain = ask_plain()
    assert ours.status == case.status, ours.body[:500]
    expected = case.holds.replace(b"{value}", project.value.encode())
    if expected in (PNG, JPEG, PDF, b"II*\0"):
        assert ours.body.startswith(expected), ours.body[:500]
    else:
        assert expected.lower() in ours.body.lower(), ours.body[:500]
    if case.id in SEVERAL:
        tries = iter(range(20))
        while plain.body != ours.body and next(tries, None) is not None:
            plain = ask_plain()
    if project.name.startswith("remote/") and case.id.startswith("features-"):
        ours, plain = without_box(ours), without_box(plain)
    assert_same(ours, plain)


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_an_answer_is_that_of_a_plain_server(
    one_worker: Daemon,
    references: StartReference,
    request: pytest.FixtureRequest,
    name: str,
    case: Case,
) -> None:
    project: ProjectSet = request.getfixturevalue(name)
    ask_both(one_worker, references(name), project, case, TITLES[name])


@pytest.mark.parametrize("name", ["demo", "world"])
def test_a_print_in_a_fork_is_that_of_a_plain_server_every_time(
    one_worker: Daemon, references: StartReference, request: pytest.FixtureRequest, name: str
) -> None:
    """WebKit's scavenger thread stood beside the fork (fork.HARMLESS_THREADS)."""
    project: ProjectSet = request.getfixturevalue(name)
    case = next(case for case in CASES if case.id == "print-png")
    for _ in range(3):
        ask_both(one_worker, references(name), project, case, TITLES[name])


def test_a_coverage_has_the_size_asked_for(one_worker: Daemon, demo: ProjectSet) -> None:
    """Guards the comparison: the bytes compared above are a picture with something in it."""
    answer = one_worker.ows(
        demo.name, SERVICE="WMS", VERSION="1.3.0", REQUEST="GetMap", LAYERS="countries", STYLES="",
        CRS="EPSG:4326", BBOX="-90,-180,90,180", WIDTH=400, HEIGHT=200, FORMAT="image/png",
    )  # fmt: skip
    assert struct.unpack(">II", answer.body[16:24]) == (400, 200)
    assert len(answer.body) > 10_000
