"""OWS requests: parsing of queries, forms and XML, what is refused, and the class of each."""

import tracemalloc
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgisd.errors import BadRequest
from qgisd.http.ows import (
    by_name,
    check_api,
    check_identity,
    classify,
    inspect_xml,
    parse,
    parse_query,
)
from qgisd.words import RequestClass

C = RequestClass
FORM = "application/x-www-form-urlencoded"
XML = "text/xml"


def get(query: str, trusted: bool = True) -> tuple[dict[str, str], RequestClass]:
    request = parse("GET", query, "", b"", trusted)
    return request.parameters, request.cls


def test_names_are_upper_case_and_values_as_they_are() -> None:
    parameters, cls = get("Service=wms&request=getmap&LAYERS=a%20b,%C3%A9&empty=&x=1+2")
    assert parameters == {
        "SERVICE": "wms", "REQUEST": "getmap", "LAYERS": "a b,é", "EMPTY": "", "X": "1 2",
    }  # fmt: skip
    assert cls is C.MAP


def test_the_query_is_passed_on_as_the_client_wrote_it() -> None:
    query = "MAP=/a%2Fb&Service=WMS&&x=%e9%20".replace("%e9", "%C3%a9")
    assert parse("GET", query, "", b"", True).query == query


def test_a_parameter_given_twice_is_taken_if_both_are_the_same() -> None:
    assert get("MAP=a&map=a")[0] == {"MAP": "a"}


@pytest.mark.parametrize("query", ["MAP=a&MAP=b", "MAP=a&map=b", "MAP=&Map=b"])
def test_a_parameter_given_twice_with_two_values_is_refused(query: str) -> None:
    with pytest.raises(BadRequest, match="MAP is given more than once"):
        get(query)


@pytest.mark.parametrize("query", ["a=%", "a=%4", "a=%zz", "%=1", "a=100%&b=1", "a=%u0041"])
def test_a_broken_escape_is_refused(query: str) -> None:
    with pytest.raises(BadRequest, match="hexadecimal"):
        get(query)


@pytest.mark.parametrize("query", ["a=%FF", "a=%C3", "%E9=1"])
def test_what_is_not_utf8_is_refused(query: str) -> None:
    with pytest.raises(BadRequest, match="UTF-8"):
        get(query)


@pytest.mark.parametrize("query", ["a=%00", "%00=a", "a=\0"])
def test_a_nul_is_refused(query: str) -> None:
    with pytest.raises(BadRequest, match="NUL"):
        get(query)


@pytest.mark.parametrize("query", ["REQUEST=GetPrint#", "WIDTH=99999#&HEIGHT=9", "#"])
def test_a_fragment_is_refused(query: str) -> None:
    """QGIS cuts it off: REQUEST=GetPrint# is a print to it, and would not be one here."""
    with pytest.raises(BadRequest, match="%23"):
        get(query)
    with pytest.raises(BadRequest, match="%23"):
        parse("POST", "MAP=a", FORM, query.encode(), False)
    assert "#" in str(get(query.replace("#", "%23")))


def test_too_many_parameters_are_refused() -> None:
    assert len(parse_query("&".join(f"p{n}=1" for n in range(1000)))) == 1000
    with pytest.raises(BadRequest, match="1000"):
        get("&".join(f"p{n}=1" for n in range(1001)))


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(st.dictionaries(PLAIN, PLAIN, max_size=6))
def test_what_a_browser_encodes_is_decoded(pairs: dict[str, str]) -> None:
    assert parse_query(urlencode(pairs)) == list(pairs.items())


@given(st.text(max_size=60))
def test_any_query_is_parsed_or_refused(query: str) -> None:
    try:
        by_name(parse_query(query))
    except BadRequest as refusal:
        assert str(refusal)


def test_lizmap_parameters_count_from_trusted_peers_only() -> None:
    query = "MAP=a&LIZMAP_USER=admin&lizmap_user_groups=admins&X=%26"
    assert get(query, trusted=True)[0]["LIZMAP_USER"] == "admin"
    request = parse("GET", query, "", b"", False)
    assert request.parameters == {"MAP": "a", "X": "&"}
    assert parse_qsl(request.query) == [("MAP", "a"), ("X", "&")]
    form = parse("POST", "MAP=a", FORM, b"LIZMAP_USER=admin&SERVICE=WMS", False)
    assert form.parameters == {"MAP": "a", "SERVICE": "WMS"} and "LIZMAP" not in form.query


@pytest.mark.parametrize("kind", [FORM, FORM.upper(), f"{FORM}; charset=UTF-8"])
def test_a_form_is_a_get_in_all_but_name(kind: str) -> None:
    request = parse("POST", "MAP=a", kind, b"SERVICE=WMS&REQUEST=GetPrint&x=%C3%A9\r\n", True)
    assert (request.method, request.body, request.cls) == ("GET", b"", C.PRINT)
    assert request.parameters["X"] == "é" and request.parameters["MAP"] == "a"
    assert request.query == "MAP=a&SERVICE=WMS&REQUEST=GetPrint&x=%C3%A9"


def test_a_form_that_contradicts_its_query_is_refused() -> None:
    with pytest.raises(BadRequest, match="more than once"):
        parse("POST", "MAP=a", FORM, b"MAP=b", True)


def test_a_form_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(BadRequest, match="ASCII"):
        parse("POST", "", FORM, "a=é".encode(), True)


def test_a_multipart_form_is_refused() -> None:
    with pytest.raises(BadRequest, match="multipart"):
        parse("POST", "", "multipart/form-data; boundary=x", b"--x--", True)


def test_a_post_without_a_body_is_a_get() -> None:
    request = parse("POST", "SERVICE=WMS&REQUEST=GetCapabilities", "", b"", True)
    assert (request.method, request.cls) == ("GET", C.CAPABILITIES)


TRANSACTION = (
    b'<?xml version="1.0"?>\n<!-- a comment <x> -->'
    b'<wfs:Transaction xmlns:wfs="http://www.opengis.net/wfs" service="WFS" version="1.1.0"/>'
)


@pytest.mark.parametrize("kind", [XML, "application/xml", "", FORM])
def test_an_xml_body_is_classified_by_its_root_and_passed_on(kind: str) -> None:
    request = parse("POST", "MAP=a", kind, TRANSACTION, True)
    assert request.cls is C.WRITE and not request.idempotent
    assert (request.method, request.body) == ("POST", TRANSACTION)
    assert request.parameters == {
        "MAP": "a", "SERVICE": "WFS", "VERSION": "1.1.0", "REQUEST": "Transaction",
    }  # fmt: skip


def test_a_write_cannot_hide_behind_a_parameter() -> None:
    assert parse("POST", "REQUEST=GetMap", XML, TRANSACTION, True).cls is C.WRITE
    feature = b"<GetFeature service='WFS'/>"
    assert parse("POST", "REQUEST=Transaction", XML, feature, True).cls is C.WRITE


@pytest.mark.parametrize(
    "body",
    [
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>',
        "<!DOCTYPE x><x/>".encode("utf-16"),
    ],
)
def test_a_document_type_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="document type"):
        inspect_xml(body)


@pytest.mark.parametrize(
    "body",
    [
        b"  ", b"<", b"<a>", b"<a></b>", b"<a/><b/>", b"text", b"<a>&undefined;</a>", b"<a b=c/>",
        b"\xff\xfe<a/>", b'<?xml version="1.0" encoding="klingon"?><a/>', b"<a>\x00</a>",
        b"<x:a/>",
        b'<?xml version="1.0" encoding="utf-7"?><a/>',
    ],
)  # fmt: skip
def test_xml_that_is_not_well_formed_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="XML body"):
        inspect_xml(body)


@given(st.binary(max_size=60))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    for document in (body, b"<a " + body + b"/>", b"<?xml" + body):
        try:
            root, attributes = inspect_xml(document)
        except BadRequest as refusal:
            assert str(refusal)
        else:
            assert root and isinstance(attributes, dict)


def test_the_root_is_found_without_its_namespace() -> None:
    body = b'<w:GetFeature xmlns:w="urn:w" service="WFS" w:x="1"><w:Query/></w:GetFeature>'
    root, attributes = inspect_xml(body)
    assert root == "GetFeature" and attributes["service"] == "WFS"


REQUESTS = {
    C.CAPABILITIES: [
        "GetCapabilities", "GetProjectSettings", "GetContext", "DescribeLayer",
        "DescribeFeatureType", "DescribeCoverage", "GetSchemaExtension",
    ],
    C.LEGEND: ["GetStyle", "GetStyles", "GetLegendGraphic", "GetLegendGraphics"],
    C.MAP: ["GetMap"],
    C.TILE: ["GetTile"],
    C.INFO: ["GetFeatureInfo"],
    C.FEATURE: ["GetFeature", "GetCoverage"],
    C.PRINT: ["GetPrint", "GetPrintAtlas"],
    C.WRITE: ["Transaction"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "cls"), [(name, cls) for cls, names in REQUESTS.items() for name in names]
)
def test_each_request_has_its_class_in_any_case(request_: str, cls: RequestClass) -> None:
    for spelling in (request_, request_.lower(), request_.upper()):
        assert classify({"SERVICE": "WMS", "REQUEST": spelling}) is cls
        assert classify({"REQUEST": spelling}) is cls


@pytest.mark.parametrize(
    ("service", "cls"),
    [
        ("WFS", C.FEATURE), ("wfs", C.FEATURE), ("WCS", C.FEATURE),
        ("WMS", C.CAPABILITIES), ("", C.CAPABILITIES),
    ],
)  # fmt: skip
def test_what_is_not_known_is_classified_by_its_service(service: str, cls: RequestClass) -> None:
    assert classify({"SERVICE": service, "REQUEST": "Unheard"}) is cls
    assert classify({"SERVICE": service}) is cls


def test_only_a_write_may_not_run_twice() -> None:
    for names in REQUESTS.values():
        for name in names:
            request = parse("GET", f"REQUEST={name}", "", b"", True)
            assert request.idempotent is (name != "Transaction")


@pytest.mark.parametrize(
    "body",
    [
        b'<GetFeature LIZMAP_USER="root"/>',
        b'<GetFeature lizmap_user_groups="admins"/>',
        b"<a><![CDATA[&LIZMAP_USER=root&]]></a>",
        b"<a b='&#38;'>&amp;%4cIZMAP%5fuser=root</a>",
        "<a>&amp;l\u0131zmap_user=root</a>".encode(),
        b"<a>&amp;l%c4%B1zmap_user=root</a>",
    ],
)
def test_an_identity_in_a_body_is_taken_from_trusted_peers_only(body: bytes) -> None:
    """QGIS takes attributes of the root for parameters, and what it cannot read for a form."""
    assert parse("POST", "MAP=a", "text/xml", body, True).body == body
    with pytest.raises(BadRequest, match="trusted peers only"):
        parse("POST", "MAP=a", "text/xml", body, False)
    assert parse("POST", "MAP=a", "text/xml", b"<GetFeature lizmap='1'/>", False).method == "POST"


def test_a_body_of_escapes_is_not_taken_to_pieces() -> None:
    """Decoded as a whole, 16 MiB of them stop the loop for more than a second."""
    body = b"%41" * (1 << 20)
    tracemalloc.start()
    try:
        check_identity(body, False)
        assert tracemalloc.get_traced_memory()[1] < 6 * len(body)
    finally:
        tracemalloc.stop()


def test_a_name_that_only_qt_capitalises_to_ours_is_refused() -> None:
    """Measured: QGIS makes LIZMAP_USER of this attribute."""
    body = "<GetFeature l\u0131zmap_user='root'/>".encode()
    with pytest.raises(BadRequest, match="not ASCII"):
        parse("POST", "MAP=a", "text/xml", body, True)
    with pytest.raises(BadRequest, match="trusted peers only"):
        parse("POST", "MAP=a", "text/xml", body, False)


def test_attributes_of_the_root_are_parameters_over_those_of_the_query() -> None:
    """As to QGIS; else none of the limits would hold for them."""
    body = b'<GetMap xmlns:b="c" b:service="WMS" Width="9" SLD="http://x"/>'
    found = parse("POST", "MAP=a&REQUEST=GetFeature&WIDTH=1&HEIGHT=2", "text/xml", body, False)
    assert found.parameters == {
        "MAP": "a", "REQUEST": "GetMap", "SERVICE": "WMS", "WIDTH": "9", "HEIGHT": "2",
        "SLD": "http://x",
    }  # fmt: skip
    assert found.cls is RequestClass.MAP


def test_a_write_by_an_attribute_is_a_write() -> None:
    for body in (b'<x request="Transaction"/>', b'<Transaction request="x"/>'):
        assert not parse("POST", "MAP=a", "text/xml", body, False).idempotent


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'<GetMap WIDTH="1" width="2"/>', "more than once"),
        (b'<GetMap map="b"/>', "in the URL"),
        (b'<GetFeature FILTER="' + b"&lt;a>" * 600 + b'"/>', "deep"),
    ],
)
def test_attributes_that_nobody_can_mean_are_refused(body: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        parse("POST", "MAP=a", "text/xml", body, True)


@pytest.mark.parametrize(
    ("query", "kind", "body"),
    [
        ("service=WMS", "", b""),
        ("SERVICE", "application/json", b"{}"),
        ("", "text/plain", b"a=b&Service=WMS"),
        ("", "text/plain", b"\xef\xbb\xbf%53ERVICE=WMS"),
        ("", "text/plain", "\u017fervice=WMS".encode()),
        ("", "application/JSON", b"SERVICE=WMS"),
        ("", "", b'\xef\xbb\xbf <a xmlns:b="c" b:service="WMS"/>'),
    ],
)
def test_what_is_ows_to_qgis_is_no_request_to_an_api(query: str, kind: str, body: bytes) -> None:
    with pytest.raises(BadRequest, match="/ows/"):
        check_api(parse_query(query), [kind], body)
    with pytest.raises(BadRequest, match="/ows/"):
        check_api(parse_query(query), [kind, "application/json"], body or b"SERVICE=")


def test_what_an_api_takes_stays() -> None:
    check_api(parse_query("MAP=a&limit=3"), [], b"")
    check_api([], ["application/geo+json"], b'{"url": "https://h/?a&SERVICE=WMS"}')
    check_api([], ["text/plain"], b"NOSERVICE=WMS&a=SERVICE=")
