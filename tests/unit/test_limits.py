"""Limits in front: sizes, layers, what a client may make the server fetch, numbers of features."""

from urllib.parse import parse_qsl

import pytest

from qgisd.errors import BadRequest, Forbidden
from qgisd.http.limits import Limits, check, clamp_items, clamp_query, clamp_xml, lists_items
from qgisd.http.ows import inspect_xml

LIMITS = Limits(1_000_000, 300, 3, 100, external_sld=False, external_wms=False)
NONE = Limits(0, 0, 0, 0, external_sld=True, external_wms=True)


@pytest.mark.parametrize(
    "parameters",
    [
        {}, {"WIDTH": "1000", "HEIGHT": "1000"}, {"WIDTH": "1000000"},
        {"WIDTH": "x", "HEIGHT": "9"},
        {"DPI": "300"}, {"LAYERS": "a,b,c"}, {"SLD": ""}, {"SLD_BODY": "<x/>"},
        {"LAYERS": ""}, {"LAYERS": "a,b,c", "MAP0:LAYERS": "a,b,c", "MAP1:LAYERS": "a,b,c"},
        {"REQUEST": "GetLegendGraphic", "SYMBOLWIDTH": "264", "BOXSPACE": "x"},
        {"REQUEST": "GetMap", "SYMBOLWIDTH": "265"},
    ],
)  # fmt: skip
def test_what_is_within_the_limits_passes(parameters: dict[str, str]) -> None:
    assert check(parameters, LIMITS) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"WIDTH": "1001", "HEIGHT": "1000"}, "1001 x 1000"),
        ({"WIDTH": " +1001 ", "HEIGHT": "1000"}, "1001 x 1000"),
        ({"WIDTH": "600", "HEIGHT": "600", "DPI": "192"}, "192 dpi"),
        ({"DPI": "301"}, "DPI is 301"),
        ({"LAYERS": "a,b,c,d"}, "4 layers"),
        ({"LAYER": "a,b,c,d"}, "4 layers"),
        ({"LAYER": "a,b", "LAYERS": "c,d"}, "4 layers"),
        ({"LAYERS": "a", "MAP0:LAYERS": "a,b,c,d"}, "4 layers"),
        ({"REQUEST": "GetLegendGraphic", "SYMBOLWIDTH": "265"}, "SYMBOLWIDTH is 265; at most 265"),
        ({"REQUEST": "GetLegendGraphics", "BOXSPACE": "2e3", "DPI": "300"}, "BOXSPACE .* most 85"),
    ],
)
def test_what_is_over_a_limit_is_refused_and_named(parameters: dict[str, str], named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        check(parameters, LIMITS)
    check(parameters, NONE)


@pytest.mark.parametrize(
    "parameters",
    [
        {"SLD": "http://evil/"},
        {"LAYERS": "a, external_wms:x"},
        {"LAYER": "EXTERNAL_WMS:x"},
        {"LAYERS": "a", "LAYER": "EXTERNAL_WMS:x"},
        {"MAP0:LAYERS": "a,EXTERNAL_WMS:x"},
    ],
)
def test_what_makes_the_server_fetch_is_forbidden(parameters: dict[str, str]) -> None:
    with pytest.raises(Forbidden):
        check(parameters, LIMITS)
    check(parameters, NONE)


def count_of(query: str) -> dict[str, str]:
    parameters = {name.upper(): value for name, value in parse_qsl(query)}
    return dict(parse_qsl(clamp_query(query, parameters, 100)))


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("REQUEST=GetFeature", {"COUNT": "100"}),
        ("REQUEST=getfeature&VERSION=1.1.0", {"MAXFEATURES": "100"}),
        ("REQUEST=GetFeature&COUNT=7", {"COUNT": "7"}),
        ("REQUEST=GetFeature&COUNT=700", {"COUNT": "100"}),
        ("REQUEST=GetFeature&maxFeatures=-1", {"maxFeatures": "100"}),
        ("REQUEST=GetFeature&COUNT=", {"COUNT": "100"}),
        ("REQUEST=GetFeature&COUNT=7&MAXFEATURES=1e9", {"COUNT": "7", "MAXFEATURES": "100"}),
    ],
)
def test_a_get_feature_has_at_most_so_many_features(query: str, count: dict[str, str]) -> None:
    got = {k: v for k, v in count_of(query).items() if k.upper() in ("COUNT", "MAXFEATURES")}
    assert got == count


def test_other_requests_are_left_as_they_are() -> None:
    assert clamp_query("REQUEST=GetMap&x=%2f", {"REQUEST": "GetMap"}, 100) == "REQUEST=GetMap&x=%2f"
    assert clamp_query("x=%2f", {"REQUEST": "GetFeature"}, 0) == "x=%2f"
    assert clamp_items("x=%2f", 0) == "x=%2f"


def test_items_have_at_most_so_many_features() -> None:
    assert clamp_items("f=json", 100) == "f=json&limit=100"
    assert clamp_items("limit=5", 100) == "limit=5"
    assert clamp_items("limit=5000&f=json", 100) == "limit=100&f=json"


@pytest.mark.parametrize(
    "name", ["items", "items/", "items.json", "items.geojson", "item%73", "items.html"]
)
def test_items_are_known_in_every_form_that_qgis_takes(name: str) -> None:
    assert lists_items(f"/wfs3/collections/lakes/{name}")
    assert not lists_items(f"/wfs3/collections/lakes/{name}/7")


def clamped(body: bytes) -> dict[str, str]:
    """The attributes of the root afterwards."""
    _, attributes = inspect_xml(body)
    return inspect_xml(clamp_xml(body, attributes, 100))[1]


@pytest.mark.parametrize(
    ("body", "name", "count"),
    [
        (b"<GetFeature/>", "maxFeatures", "100"),
        (b'<GetFeature version="2.0.0"><Query/></GetFeature>', "count", "100"),
        (b'<GetFeature maxFeatures="7"/>', "maxFeatures", "7"),
        (b"<GetFeature maxFeatures = '700'/>", "maxFeatures", "100"),
        (b'<GetFeature version="2.0.0" count="700"/>', "count", "100"),
        (b'<GetFeature handle="a>b" count="-1"/>', "count", "100"),
        (b'<GetFeature MAXFEATURES="700"/>', "MAXFEATURES", "100"),
        (b'<GetFeature xmlns:a="b" a:count="700"/>', "b count", "100"),
        (b'<?xml version="1.0"?><!-- no <tag> --><GetFeature/>', "maxFeatures", "100"),
    ],
)  # fmt: skip
def test_an_xml_get_feature_has_at_most_so_many_features(
    body: bytes, name: str, count: str
) -> None:
    assert clamped(body)[name] == count


def test_an_xml_get_feature_with_both_counts_has_both_bounded() -> None:
    attributes = clamped(b'<GetFeature version="2.0.0" maxFeatures="1" count="1000000"/>')
    assert int(attributes["count"]) <= 100 and int(attributes["maxFeatures"]) <= 100


def test_an_xml_get_feature_that_cannot_be_bounded_is_refused() -> None:
    body = '<?xml version="1.0" encoding="utf-16"?><GetFeature/>'.encode("utf-16")
    with pytest.raises(BadRequest, match="UTF-8"):
        clamp_xml(body, {}, 100)
    assert clamp_xml(body, {"maxFeatures": "7"}, 100) == body
    assert clamp_xml(body, {}, 0) == body


SYMBOL = "<se:ExternalGraphic><se:OnlineResource xlink:href={}/></se:ExternalGraphic>"


@pytest.mark.parametrize("name", ["SLD_BODY", "HIGHLIGHT_SYMBOL", "MAP0:HIGHLIGHT_SYMBOL"])
@pytest.mark.parametrize(
    "href",
    [
        '"http://10.0.0.1/x.svg"', "'https://h/x.svg'", '"&#104;ttp://h/x.svg"', '"file:///x.svg"',
        '"/etc/x.svg"', '" \n//h/x.svg"', '"../x.svg"', '"a/../../x.svg"', '"c:\\x.svg"',
        '"\\\\h\\x.svg"', '"/vsicurl/http://h/x"',
    ],
)  # fmt: skip
def test_a_symbol_may_not_have_a_graphic_from_elsewhere(name: str, href: str) -> None:
    with pytest.raises(Forbidden, match=f"{name} has a graphic at"):
        check({name: SYMBOL.format(href)}, LIMITS)
    check({name: SYMBOL.format(href)}, NONE)


@pytest.mark.parametrize("href", ['"arrows/Arrow_01.svg"', "'star.svg'", '"base64:PHN2Zy8+"', '""'])
def test_a_symbol_may_have_a_graphic_of_qgis_or_its_own(href: str) -> None:
    check({"SLD_BODY": SYMBOL.format(href)}, LIMITS)


def test_a_symbol_may_not_define_entities() -> None:
    text = '<!DOCTYPE a [<!ENTITY u "http://h/x.svg">]>' + SYMBOL.format('"&u;"')
    with pytest.raises(Forbidden, match="document type"):
        check({"SLD_BODY": text}, LIMITS)
