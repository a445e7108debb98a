"""Errors as clients see them: well-formed in every form, of the right version, and safe."""

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgisd import errors
from qgisd.http.errors import ows_form, render, status_of

FORMS = ["wms-1.3", "wms-1.1", "wfs-1.0", "ows-1.0", "ows-1.1"]
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.RequestError)
    and kind is not errors.RequestError
]


def make(kind: type[errors.RequestError], message: str) -> errors.RequestError:
    if issubclass(kind, errors.MethodNotAllowed):
        return kind(message, ("GET", "POST"))
    return kind(message)


OGC, OWS, OWS11 = (
    "{http://www.opengis.net/ogc}",
    "{http://www.opengis.net/ows}",
    "{http://www.opengis.net/ows/1.1}",
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("form", [*FORMS, ""])
def test_every_error_has_an_answer_in_every_form(
    kind: type[errors.RequestError], form: str
) -> None:
    status, headers, body = render(make(kind, "because"), form, "id-1")
    assert 400 <= status <= 599 and status == status_of(make(kind, "x"))
    text = body.decode()
    assert "because" in text and "id-1" in text
    if form:
        assert dict(headers)["Content-Type"].endswith("charset=utf-8")
        ElementTree.fromstring(body)
    else:
        assert dict(headers)["Content-Type"] == "application/problem+json"
        problem = json.loads(body)
        assert problem["status"] == status and problem["title"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.BadRequest, 400),
        (errors.Forbidden, 403),
        (errors.ProjectNotFound, 404),
        (errors.MethodNotAllowed, 405),
        (errors.BodyTooLarge, 413),
        (errors.UrlTooLong, 414),
        (errors.ProjectUnusable, 422),
        (errors.WorkerLost, 502),
        (errors.Unavailable, 503),
        (errors.DeadlineExceeded, 504),
    ],
)
def test_each_error_has_its_status(kind: type[errors.RequestError], status: int) -> None:
    assert status_of(make(kind, "x")) == status


@pytest.mark.parametrize(
    ("form", "root", "version", "path"),
    [
        ("wms-1.3", f"{OGC}ServiceExceptionReport", "1.3.0", f"{OGC}ServiceException"),
        ("wms-1.1", "ServiceExceptionReport", "1.1.1", "ServiceException"),
        ("wfs-1.0", f"{OGC}ServiceExceptionReport", "1.2.0", f"{OGC}ServiceException"),
        ("ows-1.0", f"{OWS}ExceptionReport", "1.0.0", f"{OWS}Exception/{OWS}ExceptionText"),
        ("ows-1.1", f"{OWS11}ExceptionReport", "1.1.0", f"{OWS11}Exception/{OWS11}ExceptionText"),
    ],
)
def test_each_form_has_its_root_namespace_and_version(
    form: str, root: str, version: str, path: str
) -> None:
    _, _, body = render(errors.ProjectNotFound('a <b> & "c"'), form, "id-1")
    tree = ElementTree.fromstring(body)
    assert tree.tag == root and tree.get("version") == version
    assert tree.findtext(path) == 'a <b> & "c" (request id-1)'
    codes = [node.get("code") or node.get("exceptionCode") for node in tree]
    assert codes == ["ProjectNotFound"]


@pytest.mark.parametrize(
    ("service", "version", "form"),
    [
        ("WMS", "1.3.0", "wms-1.3"),
        ("wms", "1.1.1", "wms-1.1"),
        ("WMS", "", "wms-1.3"),
        ("", "", "wms-1.3"),
        ("WFS", "1.0.0", "wfs-1.0"),
        ("WFS", "1.1.0", "ows-1.0"),
        ("wfs", "", "ows-1.0"),
        ("WCS", "1.0.0", "ows-1.0"),
        ("WMTS", "1.0.0", "ows-1.1"),
    ],
)
def test_the_form_follows_service_and_version(service: str, version: str, form: str) -> None:
    assert ows_form(service, version) == form


@pytest.mark.parametrize("form", FORMS)
def test_whatever_the_message_holds_the_xml_is_well_formed(form: str) -> None:
    @given(st.text(st.characters()))
    def check(message: str) -> None:
        _, _, body = render(errors.BadRequest(message), form, "id")
        ElementTree.fromstring(body)

    check()


@given(st.text(st.characters()))
def test_whatever_the_message_holds_the_json_is_json(message: str) -> None:
    _, _, body = render(errors.BadRequest(message), "", "id")
    assert json.loads(body)["detail"] == message


def test_retry_after_is_sent_where_it_is_known() -> None:
    assert ("Retry-After", "7") in render(errors.Unavailable("x", 7), "", "id")[1]
    assert ("Retry-After", "5") in render(errors.Unavailable("x"), "wms-1.3", "id")[1]
    assert "Retry-After" not in dict(render(errors.BadRequest("x"), "", "id")[1])


def test_the_methods_that_a_url_takes_are_named() -> None:
    error = errors.MethodNotAllowed("x", ("GET", "POST"))
    assert ("Allow", "GET, POST") in render(error, "", "id")[1]
