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


def test_what_the_operator_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTION, "WAL")
    with writes.keeping_the_journal(writes=True):
        assert os.environ[OPTION] == "WAL"
    assert os.environ[OPTION] == "WAL"
