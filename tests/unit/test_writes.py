"""The journal option of GDAL is set for requests that write, and for no other."""

import os

import pytest

from qgisd.worker import writes

OPTION = "OGR_SQLITE_JOURNAL"


def test_it_is_set_while_a_request_writes_whatever_becomes_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(OPTION, raising=False)
    with writes.keeping_the_journal(writes=False):
        assert OPTION not in os.environ
    with pytest.raises(ValueError), writes.keeping_the_journal(writes=True):
        assert os.environ[OPTION] == "DELETE"
        raise ValueError
    assert OPTION not in os.environ


@pytest.mark.parametrize(
    ("query", "sets_one"),
    [
        ('SERVICE=WMS&REQUEST=GetMap&FILTER=a:"b" = 1', True),
        ("filter=x", True),
        ("SERVICE=WFS&EXP_FILTER=x", True),
        ("SERVICE=WMS&%46ILTER=x", True),
        ("SERVICE=WMS&REQUEST=GetMap&LAYERS=filter", False),
        ("FILTER_GEOM=POINT(0 0)", False),
    ],
)
def test_a_filter_is_told_by_its_parameter(query: str, sets_one: bool) -> None:
    assert writes.filters(f"http://host/ows/?MAP=a&{query}") is sets_one


def test_what_the_operator_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTION, "WAL")
    with writes.keeping_the_journal(writes=True):
        assert os.environ[OPTION] == "WAL"
    assert os.environ[OPTION] == "WAL"
