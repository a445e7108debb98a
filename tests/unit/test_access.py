"""The line of a request, without a daemon: what the journal is told of one that reached a pool."""

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qgisd import log
from qgisd.http import access
from qgisd.http.access import Access
from qgisd.supervisor.recorder import story_of
from qgisd.words import Outcome
from tests.unit.test_log import FakeJournal, journald, root_logger
from tests.unit.test_story import exchange

__all__ = ["journald", "root_logger"]


def connection(**changes: Any) -> Any:
    """What a line needs of one."""
    fields = {
        "request_id": "id-1", "method": "GET", "path": "/ows/", "status": 200,
        "request_class": "map", "started": time.monotonic(), "service": SimpleNamespace(name="p"),
    }  # fmt: skip
    return SimpleNamespace(**(fields | changes))


def test_the_journal_has_a_field_for_each_thing_to_ask_for(
    root_logger: logging.Logger, journald: FakeJournal
) -> None:
    log.configure("info", "journald", socket=journald.path)
    it = exchange()
    it.outcome, it.job.worker, it.job.generation, it.job.waited = Outcome.OK, 7, 3, 0.25
    Access().ended(connection(), 12, "", story_of(it, 12.0))
    entry = journald.entry()
    expected = {
        "REQUEST_ID": "id-1", "QGISD_POOL": "p", "QGISD_PROJECT": "a.qgs", "QGISD_GENERATION": "3",
        "QGISD_REQUEST_CLASS": "map", "QGISD_METHOD": "GET", "QGISD_OUTCOME": "ok",
        "QGISD_STATUS": "200", "QGISD_QUEUE_MS": "250.0", "QGISD_LOAD_MS": "0.0",
        "QGISD_RENDER_MS": "0.0", "QGISD_BYTES": "12", "QGISD_WORKER": "7",
        "QGISD_ATTEMPTS": "0", "QGISD_REASON": "", "PRIORITY": "6", "QGISD_LOGGER": "qgisd.http",
    }  # fmt: skip
    assert {name: entry.get(name) for name in expected} == expected


def test_below_the_level_nothing_is_written_and_all_is_counted(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("warning", "text")
    access = Access()
    for status in (200, 200, 404, 0):
        access.ended(connection(status=status), 0, "", None)
    assert capsys.readouterr().err == ""
    assert access.answers == {200: 2, 404: 1, 0: 1}


def test_neither_path_nor_reason_shows_a_secret_or_forges_a_line(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("text", "json"):
        log.configure("info", form)
        path = "/x;token=hunter2\nforged"
        Access().ended(connection(path=path), 0, "password=hunter2", None)
        (line,) = capsys.readouterr().err.splitlines()
        assert "hunter2" not in line


def test_the_page_about_logs_names_every_field() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "logs.md").read_text()
    it = exchange()
    fields = access._fields(connection(), 12, 1.0, "", story_of(it, 12.0))
    assert [name for name in fields if f"`{name}`" not in page and name != "method"] == []
