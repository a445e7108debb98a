"""Whatever a client sends: a clear error in the form of its protocol, and no worker lost.

`unharmed` looks, around each test, that the same workers are alive and none was replaced.
"""

import contextlib
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPMessage
from pathlib import Path
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import pytest

from tests.e2e.helpers import EXAMPLES, ProjectSet, crashes, worker_pids
from tests.support import Daemon, Response, UnixConnection, eventually

StartDaemon = Callable[..., Daemon]
KEY = "demo/world.qgs"

#: SERVICE and VERSION as asked → root element and version of the error document.
FORMS = {
    "wms-1.3.0": ("SERVICE=WMS&VERSION=1.3.0", "ServiceExceptionReport", "1.3.0"),
    "wms-1.1.1": ("SERVICE=WMS&VERSION=1.1.1", "ServiceExceptionReport", "1.1.1"),
    "wms": ("SERVICE=WMS", "ServiceExceptionReport", "1.3.0"),
    "lower-case": ("service=wms&version=1.1.1", "ServiceExceptionReport", "1.1.1"),
    "no-service": ("", "ServiceExceptionReport", "1.3.0"),
    "wfs-1.0.0": ("SERVICE=WFS&VERSION=1.0.0", "ServiceExceptionReport", "1.2.0"),
    "wfs-1.1.0": ("SERVICE=WFS&VERSION=1.1.0", "ExceptionReport", "1.0.0"),
    "wcs": ("SERVICE=WCS&VERSION=1.0.0", "ExceptionReport", "1.0.0"),
    "wmts": ("SERVICE=WMTS&VERSION=1.0.0", "ExceptionReport", "1.1.0"),
}


@pytest.fixture(scope="module")
def bad_roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a good project, and with much that is none."""
    top = tmp_path_factory.mktemp("bad")
    roots = top / "roots"
    shutil.copytree(EXAMPLES / "world", roots / "demo")
    shutil.copytree(EXAMPLES / "world", top / "outside")
    (roots / "out.qgs").symlink_to(top / "outside" / "world.qgs")
    (roots / "outdir").symlink_to(top / "outside")
    (roots / "dangling.qgs").symlink_to(roots / "absent.qgs")
    (roots / "loop.qgs").symlink_to(roots / "loop.qgs")
    (roots / "folder.qgs").mkdir()
    (roots / "device.qgs").symlink_to("/dev/zero")
    whole = (roots / "demo" / "world.qgs").read_bytes()
    (roots / "truncated.qgs").write_bytes(whole[:4000])
    (roots / "empty.qgs").write_bytes(b"")
    (roots / "text.qgs").write_text("this is not a project")
    (roots / "xml.qgs").write_text("<?xml version='1.0'?><html><body/></html>")
    (roots / "binary.qgs").write_bytes(bytes(range(256)) * 100)
    (roots / "text.qgz").write_text("this is not an archive")
    (roots / "truncated.qgz").write_bytes(b"PK\x03\x04" + whole[:100])
    return roots


@pytest.fixture(scope="module")
def daemon(session_daemons: StartDaemon, bad_roots: Path) -> Daemon:
    """Two workers of the good project, that stay."""
    return session_daemons(
        bad_roots, pool="workers = 2\nidle_worker_s = 600", projects='pinned = ["demo/world"]'
    )


@pytest.fixture(autouse=True)
def unharmed(daemon: Daemon) -> Iterator[None]:
    """The workers are the same afterwards, and serve."""
    before = eventually(lambda: worker_pids(daemon, KEY))
    yield
    answer = daemon.ows("demo/world", SERVICE="WMS", REQUEST="GetCapabilities")
    assert (answer.status, answer.body[:5]) == (200, b"<?xml")
    assert before <= worker_pids(daemon, KEY)
    assert crashes(daemon) == {}


def assert_ows_error(
    answer: Response, statuses: int | tuple[int, ...], root: str = "", version: str = ""
) -> str:
    """An error document of OGC with one of these statuses; its text."""
    assert answer.complete
    statuses = (statuses,) if isinstance(statuses, int) else statuses
    assert answer.status in statuses, answer.body[:1000]
    assert "xml" in answer.headers["Content-Type"]
    document = ElementTree.fromstring(answer.body)
    name = document.tag.rpartition("}")[2]
    assert name in ("ServiceExceptionReport", "ExceptionReport")
    assert (name, document.get("version")) == (root or name, version or document.get("version"))
    assert answer.headers["X-Request-Id"]
    text = " ".join(filter(None, (part.strip() for part in document.itertext())))
    assert text
    return text


def assert_problem(answer: Response, status: int) -> str:
    """An error document of RFC 7807; its text."""
    assert answer.status == status, answer.body[:1000]
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert answer.headers["X-Request-Id"]
    return str(problem["detail"])


# MAP


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_project_is_told_in_the_form_asked_for(daemon: Daemon, form: str) -> None:
    parameters, root, version = FORMS[form]
    answer = daemon.get(f"/ows/?MAP=absent&{parameters}&REQUEST=GetCapabilities")
    assert_ows_error(answer, 404, root, version)
    answer = daemon.get(f"/ows/p/absent?{parameters}&REQUEST=GetCapabilities")
    assert_ows_error(answer, 404, root, version)
    answer = daemon.get(f"/ows/?{parameters}&REQUEST=GetCapabilities")
    assert_ows_error(answer, 400, root, version)


FORBIDDEN = [
    "absent", "../world", "demo/../../outside/world", "demo/../demo/world", "..", ".", "/", "%20",
    "/etc/passwd", "demo", "demo/world.gpkg", "demo/world.qgs~", "demo/./world", "folder",
    "folder.qgs", "out", "out.qgs", "outdir/world", "dangling", "loop", "device", "demo\\world",
    "http://127.0.0.1:9/world.qgs", "https://example.org/world.qgs", "file:///etc/passwd",
    "/vsicurl/http://127.0.0.1:9/world.qgs", "/vsizip/demo/world.qgz", "geopackage:demo/x?p",
    "postgresql://u:p@127.0.0.1:9?dbname=x&schema=y&project=z", "postgresql:?service=x",
    "d" * 5000, "demo/" * 300 + "world", "wörld", "demo/world.qgs|layername=x",
    "demo/world.qgs?x", "demo/world.qgs\n",
]  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN, ids=lambda name: name[:40])
def test_a_map_that_is_no_project_below_the_roots_is_not_found(daemon: Daemon, name: str) -> None:
    query = f"MAP={quote(name, safe='')}&SERVICE=WMS&REQUEST=GetCapabilities"
    text = assert_ows_error(daemon.get(f"/ows/?{query}"), 404)
    absent = assert_ows_error(daemon.ows("absent", SERVICE="WMS", REQUEST="GetCapabilities"), 404)
    # The same words for all of them: the answer must not tell which files exist.
    assert text.rpartition("(request")[0] == absent.rpartition("(request")[0]
    assert_problem(daemon.get(f"/wfs3/collections.json?MAP={quote(name, safe='')}"), 404)


def test_the_absolute_path_of_a_project_is_not_found(daemon: Daemon, bad_roots: Path) -> None:
    for path in (bad_roots / "demo" / "world.qgs", bad_roots.parent / "outside" / "world.qgs"):
        answer = daemon.ows(str(path), SERVICE="WMS", REQUEST="GetCapabilities")
        assert str(bad_roots) not in assert_ows_error(answer, 404)


def test_a_nul_in_map_is_refused(daemon: Daemon) -> None:
    for name in ("%00", "demo/world.qgs%00.png", "demo%00/world"):
        answer = daemon.get(f"/ows/?MAP={name}&SERVICE=WMS&REQUEST=GetCapabilities")
        assert_ows_error(answer, (400, 404))
        answer = daemon.get(f"/ows/p/{name}?SERVICE=WMS&REQUEST=GetCapabilities")
        assert_ows_error(answer, (400, 404))


@pytest.mark.parametrize(
    "name",
    ["truncated", "empty", "text", "xml", "binary", "text.qgz", "truncated.qgz"],
)
def test_what_is_no_project_cannot_be_served_and_says_so(
    daemon: Daemon, bad_roots: Path, name: str
) -> None:
    for _ in range(2):  # the second from memory
        answer = daemon.ows(name, SERVICE="WMS", VERSION="1.3.0", REQUEST="GetCapabilities")
        text = assert_ows_error(answer, 422)
        assert str(bad_roots) not in text
        assert_problem(daemon.get(f"/wfs3/collections.json?MAP={name}"), 422)
    key = name if name.endswith(".qgz") else f"{name}.qgs"
    project = daemon.projects()[key]
    assert (project["state"], project["generations"]) == ("failed", [])
    assert project["error"]
    assert f"{key}: " in daemon.ctl("projects").stdout


# what is asked for


REQUESTS = {
    "unknown-request": "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetLost",
    "no-request": "SERVICE=WMS&VERSION=1.3.0",
    "unknown-wfs-request": "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetLost",
    "unknown-wcs-request": "SERVICE=WCS&VERSION=1.0.0&REQUEST=GetLost",
    "unknown-wmts-request": "SERVICE=WMTS&VERSION=1.0.0&REQUEST=GetLost",
    "wms-request-of-wfs": "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetMap",
    "map-without-anything": "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap",
    "unknown-layer": "{map}&LAYERS=absent",
    "layer-with-quotes": "{map}&LAYERS=%27%22%3B--",
    "no-width": "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&LAYERS=lakes&CRS=EPSG:4326&HEIGHT=9"
    "&BBOX=0,0,1,1&FORMAT=image/png&STYLES=",
    "width-of-letters": "{map}&LAYERS=lakes&WIDTH=abc",
    "negative-width": "{map}&LAYERS=lakes&WIDTH=-5",
    "huge": "{map}&LAYERS=lakes&WIDTH=100000&HEIGHT=100000",
    "bbox-of-letters": "{map}&LAYERS=lakes&BBOX=a,b,c,d",
    "bbox-of-three": "{map}&LAYERS=lakes&BBOX=1,2,3",
    "unknown-crs": "{map}&LAYERS=lakes&CRS=EPSG:999999",
    "crs-of-letters": "{map}&LAYERS=lakes&CRS=abc",
    "unknown-format": "{map}&LAYERS=lakes&FORMAT=image/abc",
    "unknown-style": "{map}&LAYERS=lakes&STYLES=absent",
    "broken-filter": "{map}&LAYERS=lakes&FILTER=lakes:%28%28%28",
    "info-outside": "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetFeatureInfo&QUERY_LAYERS=absent"
    "&LAYERS=absent&CRS=EPSG:4326&BBOX=0,0,1,1&WIDTH=9&HEIGHT=9&I=5&J=5&INFO_FORMAT=text/xml",
    "legend-of-nothing": "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetLegendGraphic&FORMAT=image/png",
    "print-without-template": "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetPrint&FORMAT=pdf",
    "print-of-unknown-template": "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetPrint&FORMAT=pdf"
    "&TEMPLATE=absent&CRS=EPSG:4326&map0:EXTENT=0,0,1,1",
    "features-of-nothing": "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature",
    "features-unknown-type": "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=absent",
    "features-broken-filter": "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=lakes"
    "&FILTER=%3CFilter%3E",
    "features-broken-expression": "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=lakes"
    "&EXP_FILTER=%28%28%28",
    "features-limit-of-letters": "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=lakes"
    "&MAXFEATURES=abc",
    "features-two-filters": "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=lakes"
    "&BBOX=a,b,c,d",
    "coverage-of-nothing": "SERVICE=WCS&VERSION=1.0.0&REQUEST=GetCoverage",
    "coverage-unknown": "SERVICE=WCS&VERSION=1.0.0&REQUEST=GetCoverage&COVERAGE=absent"
    "&CRS=EPSG:4326&BBOX=0,0,1,1&WIDTH=9&HEIGHT=9&FORMAT=GTiff",
    "coverage-negative": "SERVICE=WCS&VERSION=1.0.0&REQUEST=GetCoverage&COVERAGE=relief"
    "&CRS=EPSG:4326&BBOX=0,0,1,1&WIDTH=-9&HEIGHT=9&FORMAT=GTiff",
    "tile-of-nothing": "SERVICE=WMTS&VERSION=1.0.0&REQUEST=GetTile",
    "tile-outside": "SERVICE=WMTS&VERSION=1.0.0&REQUEST=GetTile&LAYER=world&STYLE="
    "&TILEMATRIXSET=EPSG:3857&TILEMATRIX=1&TILEROW=99999&TILECOL=-1&FORMAT=image/png",
}  # fmt: skip
GET_MAP = {
    "SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetMap", "STYLES": "", "CRS": "EPSG:4326",
    "BBOX": "0,0,1,1", "WIDTH": "9", "HEIGHT": "9", "FORMAT": "image/png",
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_makes_no_sense_is_an_error_of_the_client(daemon: Daemon, name: str) -> None:
    query = REQUESTS[name]
    if query.startswith("{map}"):
        given = dict(pair.split("=", 1) for pair in query.split("&")[1:])
        query = "&".join(f"{key}={value}" for key, value in (GET_MAP | given).items())
    answer = daemon.get(f"/ows/?MAP=demo/world&{query}")
    assert_ows_error(answer, (400, 401, 403, 404, 422, 501))


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SERVICE=ABC&REQUEST=GetCapabilities", "Service unknown or unsupported"),
        ("", "Service unknown or unsupported"),
        ("REQUEST=GetFeature", "Service unknown or unsupported"),
        ("REQUEST=GetMap", ""),  # some releases of QGIS take it for WMS, and miss the VERSION
    ],
    ids=["unknown", "nothing", "no-service", "no-service-of-a-map"],
)
def test_an_unknown_service_is_an_error_of_the_client(
    daemon: Daemon, query: str, told: str
) -> None:
    """QGIS reports it with status 200."""
    assert told in assert_ows_error(daemon.get(f"/ows/?MAP=demo/world&{query}"), (400, 501))


ITEMS = "/wfs3/collections/lakes/items"


@pytest.mark.parametrize(
    "path",
    [
        "/wfs3/collections/absent", "/wfs3/collections/absent/items.json",
        f"{ITEMS}.json?limit=abc", f"{ITEMS}.json?limit=-1", f"{ITEMS}.json?bbox=a,b,c,d",
        "/wfs3/collections/%27%22/items.json",
    ],
)  # fmt: skip
def test_a_wrong_name_or_parameter_of_the_api_is_an_error_of_the_client(
    daemon: Daemon, path: str
) -> None:
    joint = "&" if "?" in path else "?"
    answer = daemon.get(f"{path}{joint}MAP=demo/world")
    assert 400 <= answer.status < 500, answer.body[:500]
    assert json.loads(answer.body)


@pytest.mark.parametrize("item", ["999999", "abc"])
def test_an_item_that_is_not_there_is_not_found(daemon: Daemon, item: str) -> None:
    """QGIS 3.22 calls it an internal error of its own."""
    answer = daemon.get(f"{ITEMS}/{item}.json?MAP=demo/world")
    assert answer.status == 404, answer.body[:500]
    assert item in answer.body.decode()


# how it is sent


def test_a_body_of_100_megabytes_is_too_large(daemon: Daemon) -> None:
    target = "/ows/?MAP=demo/world&SERVICE=WFS&VERSION=1.1.0"
    answer = daemon.request("POST", target, b" " * 100_000_000, {"Content-Type": "text/xml"})
    assert_ows_error(answer, 413, "ExceptionReport", "1.0.0")
    answer = daemon.request("POST", "/wfs3/collections/lakes/items?MAP=demo/world",
                            b" " * 100_000_000, {"Content-Type": "application/json"})  # fmt: skip
    assert_problem(answer, 413)


def test_a_chunked_body_of_100_megabytes_is_too_large(daemon: Daemon) -> None:
    with contextlib.closing(daemon.connection()) as connection:
        connection.request(
            "POST", "/ows/?MAP=demo/world&SERVICE=WFS&VERSION=1.1.0",
            (b" " * 1_000_000 for _ in range(100)), {"Content-Type": "text/xml"},
            encode_chunked=True,
        )  # fmt: skip
        answer = connection.getresponse()
        assert_ows_error(Response(answer.status, answer.headers, answer.read()), 413)


def test_a_body_refused_beforehand_is_not_sent(daemon: Daemon) -> None:
    """Expect: 100-continue gets its 413 at once."""
    connection = daemon.connection(timeout=30)
    assert isinstance(connection, UnixConnection)
    connection.connect()
    with contextlib.closing(connection), connection.sock.makefile("rb") as received:
        connection.sock.sendall(
            b"POST /ows/?MAP=demo/world&SERVICE=WFS HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: text/xml\r\nContent-Length: 100000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert received.readline().startswith(b"HTTP/1.1 413 ")


def test_a_query_of_a_megabyte_is_too_long(daemon: Daemon) -> None:
    query = "MAP=demo/world&SERVICE=WMS&VERSION=1.1.1&REQUEST=GetMap&LAYERS=" + "x" * 1_000_000
    assert_ows_error(daemon.get(f"/ows/?{query}"), 414, "ServiceExceptionReport", "1.1.1")
    assert_problem(daemon.get(f"/wfs3/?{query}"), 414)


def test_a_form_of_a_megabyte_is_taken(daemon: Daemon) -> None:
    """What is too long for a URL may come in a body."""
    query = "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities&X=" + "x" * 1_000_000
    answer = daemon.request(
        "POST", "/ows/?MAP=demo/world", query.encode(),
        {"Content-Type": "application/x-www-form-urlencoded"},
    )  # fmt: skip
    assert answer.status == 200, answer.body[:300]


BODIES = {
    "garbage": b"\x00\xff\xfe garbage <",
    "text": b"hello",
    "truncated": b'<GetFeature service="WFS" version="1.1.0"><Query typeName="lakes">',
    "not-utf8": b"<?xml version='1.0' encoding='utf-8'?><GetFeature>\xff\xfe</GetFeature>",
    "unknown-encoding": b"<?xml version='1.0' encoding='abc'?><GetFeature/>",
    "unknown-root": b"<nonsense/>",
    "bombs": b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b'<GetFeature service="WFS" version="1.1.0">&b;</GetFeature>',
    "external": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><GetFeature>&a;</GetFeature>',
    "transaction-on-nothing": b'<Transaction service="WFS" version="1.1.0"'
    b' xmlns="http://www.opengis.net/wfs"><Delete typeName="absent"/></Transaction>',
    "transaction-not-allowed": b'<Transaction service="WFS" version="1.1.0"'
    b' xmlns="http://www.opengis.net/wfs"><Delete typeName="lakes"/></Transaction>',
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("kind", ["text/xml", "application/octet-stream", ""])
def test_a_body_that_makes_no_sense_is_an_error_of_the_client(
    daemon: Daemon, name: str, kind: str
) -> None:
    target = "/ows/?MAP=demo/world&SERVICE=WFS&VERSION=1.1.0"
    headers = {"Content-Type": kind} if kind else {}
    answer = daemon.request("POST", target, BODIES[name], headers)
    if answer.status == 200 and name.startswith("transaction"):
        assert b"Exception" in answer.body or b"FAILED" in answer.body
        assert b"totalDeleted>1<" not in answer.body
    else:
        assert_ows_error(answer, (400, 401, 403, 404, 501))


DEEP = "<Not>" * 100_000 + "</Not>" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        '<GetFeature service="WFS"><Query typeName="lakes"><Filter>'
        f"{DEEP}</Filter></Query></GetFeature>",
    ],
    ids=["all", "filter"],
)  # fmt: skip
def test_xml_nested_without_end_is_refused(daemon: Daemon, body: str) -> None:
    """QGIS walks it by recursion, and dies of it."""
    target = "/ows/?MAP=demo/world&SERVICE=WFS&VERSION=1.1.0"
    answer = daemon.request("POST", target, body.encode(), {"Content-Type": "text/xml"})
    assert_ows_error(answer, 400, "ExceptionReport", "1.0.0")


def test_a_filter_nested_without_end_in_a_form_is_refused(daemon: Daemon) -> None:
    form = urlencode({
        "SERVICE": "WFS", "VERSION": "1.1.0", "REQUEST": "GetFeature", "TYPENAME": "lakes",
        "FILTER": f"<Filter>{'<And>' * 20_000}{'</And>' * 20_000}</Filter>",
    })  # fmt: skip
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = daemon.request("POST", "/ows/?MAP=demo/world", form.encode(), kind)
    assert_ows_error(answer, 400, "ExceptionReport", "1.0.0")


@pytest.mark.parametrize("broken", ["%", "%2", "%zz", "%C3%28", "%FF", "%00"])
def test_broken_percent_encoding_is_refused(daemon: Daemon, broken: str) -> None:
    for query in (f"LAYERS={broken}", f"{broken}=1"):
        answer = daemon.get(f"/ows/?MAP=demo/world&SERVICE=WMS&REQUEST=GetCapabilities&{query}")
        assert_ows_error(answer, 400)
        assert_problem(daemon.get(f"/wfs3/collections.json?MAP=demo/world&{query}"), 400)
        form = f"SERVICE=WMS&REQUEST=GetCapabilities&{query}".encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        assert_ows_error(daemon.request("POST", "/ows/?MAP=demo/world", form, kind), 400)


def test_a_parameter_given_twice_with_two_values_is_refused(daemon: Daemon) -> None:
    base = "/ows/?MAP=demo/world&SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities"
    for extra in ("REQUEST=GetMap", "request=getmap", "MAP=absent", "map=absent", "Service=WFS"):
        assert_ows_error(daemon.get(f"{base}&{extra}"), 400)
    for extra in ("REQUEST=GetCapabilities", "map=demo/world"):
        assert daemon.get(f"{base}&{extra}").status == 200
    many = "&".join(f"x{number}=1" for number in range(2000))
    assert_ows_error(daemon.get(f"{base}&{many}"), 400)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "get"])
def test_a_method_that_a_path_does_not_take_is_refused(daemon: Daemon, method: str) -> None:
    answer = daemon.request(method, "/ows/?MAP=demo/world&SERVICE=WMS&REQUEST=GetCapabilities")
    assert_ows_error(answer, 405)
    assert answer.headers["Allow"] == "GET, HEAD, POST, OPTIONS"
    assert_problem(daemon.request(method, "/healthz"), 405)


def test_a_path_where_nothing_is_served_is_not_found(daemon: Daemon) -> None:
    for path in ("/", "/index.html", "/wfs3x", "/api/v1/workers", "/metrics"):
        assert_problem(daemon.get(f"{path}?MAP=demo/world"), 404)
    for path in ("/owsx", "//ows/", "/%2e%2e/ows/", "/ows/p"):
        answer = daemon.get(f"{path}?MAP=demo/world")  # in which form is anybody's guess
        assert answer.status == 404, (path, answer.body)
        assert answer.headers["X-Request-Id"]


def exchange(daemon: Daemon, data: bytes) -> bytes:
    """Raw bytes out, whatever comes back until the connection closes or 5 s pass."""
    connection = daemon.connection(timeout=5)
    assert isinstance(connection, UnixConnection)
    connection.connect()
    received = b""
    with contextlib.closing(connection), contextlib.suppress(TimeoutError, ConnectionError):
        connection.sock.sendall(data)
        connection.sock.shutdown(socket.SHUT_WR)
        while piece := connection.sock.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /healthz\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /ows/?MAP=demo/world HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /ows/?MAP=demo/world HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 6\r\n\r\nhello",
        b"POST /ows/?MAP=demo/world HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /ows/?MAP=demo/world HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
        b"POST /ows/?MAP=demo/world HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nshort",
        b"GET /ows/?MAP=demo/world&SERVICE=WMS HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 5_000_000,
    ],
    ids=range(11),
)
def test_what_is_not_http_gets_no_success(daemon: Daemon, data: bytes) -> None:
    received = exchange(daemon, data)
    assert received == b"" or received.startswith(b"HTTP/1.1 4"), received[:300]
    assert daemon.get("/healthz").status == 200


# OPTIONS and HEAD


EVERYTHING = {
    "capabilities": "/ows/?MAP=demo/world&SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities",
    "by-path": "/ows/p/demo/world?SERVICE=WFS&VERSION=1.1.0&REQUEST=GetCapabilities",
    "map": "/ows/?MAP=demo/world&SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&LAYERS=lakes&STYLES="
    "&CRS=EPSG:4326&BBOX=-90,-180,90,180&WIDTH=100&HEIGHT=50&FORMAT=image/png",
    "features": "/ows?MAP=demo/world&SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=lakes"
    "&MAXFEATURES=3",
    "stream": "/ows?MAP=demo/world&SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=states",
    "api": "/wfs3/collections.json?MAP=demo/world",
    "api-items": "/wfs3/collections/lakes/items.json?MAP=demo/world&limit=2",
    "api-by-its-new-name": "/ogcapi/collections.json?MAP=demo/world",
    "healthz": "/healthz",
    "readyz": "/readyz",
    "no-project": "/ows/?MAP=absent&SERVICE=WMS&REQUEST=GetCapabilities",
    "no-project-api": "/wfs3/collections.json?MAP=absent",
    "no-path": "/absent",
    "qgis-error": "/ows/?MAP=demo/world&SERVICE=WMS&VERSION=1.3.0&REQUEST=GetLost",
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYTHING)
def test_head_has_the_headers_of_get_and_no_body(daemon: Daemon, name: str) -> None:
    numbered = {"X-Request-Id": "test-head", "Origin": "http://example.org"}

    def compared(headers: HTTPMessage) -> list[tuple[str, str]]:
        # How a body that is not there would be framed may be left out (RFC 9110, 9.3.2).
        return sorted(item for item in headers.items() if item[0] != "Transfer-Encoding")

    target = EVERYTHING[name]
    got = daemon.get(target, headers=numbered)
    with contextlib.closing(daemon.connection()) as connection:
        for _ in range(2):  # the second on the same connection: the first left nothing on it
            connection.request("HEAD", target, headers=numbered)
            head = connection.getresponse()
            assert head.read() == b""
            assert head.status == got.status
            assert compared(head.headers) == compared(got.headers)
        connection.request("GET", target, headers=numbered)
        again = connection.getresponse()
        assert (again.status, len(again.read())) == (got.status, len(got.body))


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "no-path"])
def test_options_tells_the_methods_and_answers_preflights(daemon: Daemon, name: str) -> None:
    asked = {
        "Origin": "http://example.org",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "Authorization, X-Custom",
    }
    answer = daemon.request("OPTIONS", EVERYTHING[name], headers=asked)
    assert (answer.status, answer.body) == (200, b"")
    assert {"GET", "HEAD", "OPTIONS"} <= set(answer.headers["Allow"].split(", "))
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Access-Control-Allow-Headers"] == "Authorization, X-Custom"
    assert "GET" in answer.headers["Access-Control-Allow-Methods"]


def test_options_without_a_project_is_answered(daemon: Daemon) -> None:
    for path in ("/ows/", "/ows", "/wfs3", "/wfs3/collections", "/ogcapi", "/ows/p/absent"):
        answer = daemon.request("OPTIONS", path)
        assert (answer.status, answer.body) == (200, b"")


def test_a_good_request_among_all_this_is_served(daemon: Daemon, demo: ProjectSet) -> None:
    """Guards the fixture: the project that everything above is asked of does answer."""
    answer = daemon.get(EVERYTHING["map"])
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")


def test_no_form_of_a_request_gets_around_the_limits(daemon: Daemon) -> None:
    """To QGIS attributes of a body's root are parameters, and what says SERVICE is OWS anywhere."""

    def get_map(width: int) -> dict[str, str]:
        return {
            "SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetMap", "STYLES": "",
            "LAYERS": "countries", "CRS": "EPSG:4326", "BBOX": "-90,-180,90,180",
            "WIDTH": str(width), "HEIGHT": "30", "FORMAT": "image/png",
        }  # fmt: skip

    def body(width: int) -> bytes:
        return ("<x " + " ".join(f'{k}="{v}"' for k, v in get_map(width).items()) + "/>").encode()

    xml = {"Content-Type": "text/xml"}
    drawn = daemon.request("POST", "/ows/p/demo/world", body(60), xml)
    assert (drawn.status, drawn.body[:4]) == (200, b"\x89PNG")
    for answer in (
        daemon.request("POST", "/ows/p/demo/world", body(60_000_000), xml),
        # QGIS takes what follows a # for no part of the URL.
        daemon.get(f"/ows/p/demo/world?{urlencode(get_map(60))}&WIDTH=60000000#"),
        daemon.get(f"/ows/p/demo/world?{urlencode(get_map(60))}#"),
        daemon.get("/wfs3/collections/countries/items#x?MAP=demo/world"),
        daemon.get(f"/wfs3/?MAP=demo/world&{urlencode(get_map(60))}"),
        daemon.request("POST", "/wfs3/collections?MAP=demo/world", body(60), xml),
    ):
        assert answer.status == 400, answer.body


FEATURES = "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=countries"
WFS_BODY = (
    '<wfs:GetFeature xmlns:wfs="http://www.opengis.net/wfs" service="WFS" version="1.1.0" {}>'
    '<wfs:Query typeName="countries"/></wfs:GetFeature>'
)


def test_no_form_of_a_request_gets_more_features_than_allowed(
    session_daemons: StartDaemon, bad_roots: Path
) -> None:
    """Five of nine."""
    daemon = session_daemons(bad_roots, pool="workers = 1", extra="[limits]\nfeatures = 5")
    path = "/ows/p/demo/world"
    xml = {"Content-Type": "text/xml"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answers = [
        daemon.get(f"{path}?{FEATURES}"),
        daemon.get(f"{path}?{FEATURES}&MAXFEATURES=9"),
        daemon.get(f"{path}?{FEATURES}&C%4FUNT=9&MAXFEATURES=-1"),
        daemon.request("POST", path, f"{FEATURES}&MAXFEATURES=9".encode(), form),
        daemon.request("POST", path, WFS_BODY.format("").encode(), xml),
        daemon.request("POST", path, WFS_BODY.format('maxFeatures="9"').encode(), xml),
        daemon.request("POST", f"{path}?MAXFEATURES=9", WFS_BODY.format("").encode(), xml),
    ]
    counts = [answer.body.count(b"<gml:featureMember>") for answer in answers]
    assert counts == [5] * len(answers)
    names = ("items", "items/", "items.json", "item%73", "items.geojson")
    collection = "/wfs3/collections/countries"
    items = [daemon.get(f"{collection}/{name}?MAP=demo/world&limit=9") for name in names]
    items.append(daemon.get(f"{collection}/items?MAP=demo/world"))
    assert [len(answer.json()["features"]) for answer in items] == [5] * len(items)
    few = daemon.get(f"{collection}/items?MAP=demo/world&limit=2")
    assert len(few.json()["features"]) == 2


@pytest.mark.parametrize(
    "layers",
    [
        "REQUEST=GetMap&LAYERS=countries&LAYER=EXTERNAL_WMS:x&STYLES=&WIDTH=9&HEIGHT=9",
        "REQUEST=GetPrint&TEMPLATE=A4&map0:EXTENT=-90,-180,90,180&map0:LAYERS=EXTERNAL_WMS:x",
    ],
)
def test_no_parameter_makes_the_server_fetch_a_map(daemon: Daemon, layers: str) -> None:
    query = f"SERVICE=WMS&VERSION=1.3.0&CRS=EPSG:4326&BBOX=-90,-180,90,180&FORMAT=png&{layers}"
    answer = daemon.get(f"/ows/p/demo/world?{query}&x:url=http://127.0.0.1:9/&x:layers=a")
    assert "EXTERNAL_WMS" in assert_ows_error(answer, 403)


def test_a_legend_of_an_endless_size_is_refused(daemon: Daemon) -> None:
    query = "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetLegendGraphic&LAYER=countries&FORMAT=image/png"
    assert daemon.get(f"/ows/p/demo/world?{query}&SYMBOLWIDTH=20").body[:4] == b"\x89PNG"
    answer = daemon.get(f"/ows/p/demo/world?{query}&SYMBOLWIDTH=20000&SYMBOLHEIGHT=20000")
    assert "SYMBOLWIDTH" in assert_ows_error(answer, 400)
