"""The page of the parity suite: made of what was kept, and a difference shows in it."""

import io
import zlib
from http.client import HTTPMessage
from pathlib import Path

import pytest
from PIL import Image

from tests.parity import table
from tests.parity.cases import CASES, MERCATOR, cases_of
from tests.parity.runner import LETTERS, TRIES, Result, compare, draws_too
from tests.parity.sources import BY_NAME, SOURCES
from tests.support import Response


def test_the_page_is_made_of_the_kept_results() -> None:
    assert table.PAGE.read_text() == table.page(table.kept_versions())


def test_a_difference_shows_with_its_cause(tmp_path: Path) -> None:
    same, other, named = CASES[0], CASES[1], CASES[2]
    results = [
        Result(same, "", ""),
        Result(other, "bytes", ""),
        Result(named, "", "", cause="on purpose"),
    ]
    table.keep(tmp_path, "3.22.16", {("cold", "gpkg"): results})
    table.keep(tmp_path, "3.22.16", {("loaded", "gpkg"): results[:1]})
    (kept,) = table.kept_versions(tmp_path)
    text = table.page([kept])
    assert "| gpkg | 1/3 C, 1 L |" in text
    assert "| not explained | 1 | gpkg |" in text
    assert "| on purpose | 1 | gpkg |" in text


def test_every_case_is_asked_of_some_source_and_named_once() -> None:
    asked = {case.id for source in SOURCES for case in cases_of(source, "urn:3857")}
    assert asked == {case.id for case in CASES}
    assert len({case.id for case in CASES}) == len(CASES)
    assert not [
        case.id
        for source in SOURCES
        for case in cases_of(source, "urn:3857")
        if MERCATOR in case.query
    ]


def answer(kind: str, body: bytes) -> Response:
    headers = HTTPMessage()
    headers["Content-Type"] = kind
    return Response(200, headers, body)


def pdf(drawing: str, place: int = 100) -> bytes:
    packed = zlib.compress(drawing.encode())
    return (
        b"%%PDF-1.4\n1 0 obj\n<<\n/Length 2 0 R\n>>\nstream\n%b\nendstream\nendobj\n"
        b"2 0 obj\n%d\nendobj\nxref\n0 3\n%010d 00000 n \ntrailer\n<<>>\nstartxref\n%d\n%%%%EOF\n"
        % (packed, len(packed), place, place)
    )


def png(shade: int, width: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 4), (shade, 200, 200)).save(file, "PNG")
    return file.getvalue()


PLAIN_PDF = pdf("216.680227 45.4514704 m\n216.42 46.1742423 l")


@pytest.mark.parametrize(
    ("kind", "ours", "plain", "cause"),
    [
        ("application/pdf", pdf("216.664628 45.4514704 m\n216.41 46.1742423 l", 97), PLAIN_PDF,
         LETTERS),
        ("application/pdf", pdf("216.580227 45.4514704 m\n216.42 46.1742423 l"), PLAIN_PDF, ""),
        ("application/pdf", pdf("216.680227 45.4514704 m"), PLAIN_PDF, ""),
        ("application/pdf", pdf("216.680227 45.4514704 l\n216.42 46.1742423 l"), PLAIN_PDF, ""),
        ("image/png", png(100), png(108), LETTERS),
        ("image/png", png(100), png(109), ""),
        ("image/png", png(100, 5), png(100), ""),
        ("text/xml", b"<a>1.01</a>", b"<a>1.02</a>", ""),
    ],
)  # fmt: skip
def test_letters_may_be_drawn_otherwise_in_random_order_and_nothing_else(
    kind: str, ours: bytes, plain: bytes, cause: str
) -> None:
    case, gpkg = CASES[0], BY_NAME["gpkg"]
    found = compare(gpkg, case, answer(kind, ours), answer(kind, plain), shuffled=True)
    assert found.cause == cause and bool(found.difference) == (not cause)
    in_order = compare(gpkg, case, answer(kind, ours), answer(kind, plain))
    assert in_order.difference and not in_order.cause


def test_a_picture_that_a_plain_server_draws_now_and_then_is_its_own() -> None:
    ours, other = answer("image/png", png(1)), answer("image/png", png(99))
    now_and_then = iter([other] * (TRIES - 1) + [answer("image/png", png(1))])
    assert draws_too(lambda: next(now_and_then), ours)
    asked = iter([other] * TRIES)
    assert not draws_too(lambda: next(asked), ours)
    assert next(asked, None) is None
