"""What `ctl` prints: columns that fit, and nothing that steers a terminal."""

import shlex
from typing import Any

import pytest

from qgisd import tables

ROWS = [
    {"project": "a-very/long/path/to/some/project.qgs", "state": "serving", "queued": 0},
    {"project": "short.qgs", "state": "failed", "queued": 12},
]


def test_what_nobody_looks_at_is_not_cut() -> None:
    lines = tables.table(ROWS, ("project", "state", "queued")).splitlines()
    assert lines[1].split() == ["a-very/long/path/to/some/project.qgs", "serving", "0"]


@pytest.mark.parametrize("width", [30, 40, 48, 200])
def test_a_table_fits_and_the_widest_is_cut(width: int) -> None:
    lines = tables.table(ROWS, ("project", "state", "queued"), width).splitlines()
    assert max(map(len, lines)) <= width
    assert [line.split()[1:] for line in lines[1:]] == [["serving", "0"], ["failed", "12"]]
    assert lines[1].split()[0].endswith("project.qgs")  # the end of a path tells more


def test_columns_are_not_cut_to_nothing() -> None:
    lines = tables.table(ROWS, ("project", "state", "queued"), 5).splitlines()
    assert lines[1].split()[0] == "…ect.qgs"


def test_a_text_keeps_its_start() -> None:
    assert tables.cut("the zygote ended", 9) == "the zygo…"


def test_what_steers_a_terminal_does_not_get_there() -> None:
    evil = "a\x1b[2J\x07\u202eb\r\n"
    assert tables.plain(evil) == "a?[2J??b??"
    assert "\x1b" not in tables.table([{"project": evil}], ("project",))
    event = {"time": 0.0, "kind": "x", "pool": evil, "project": evil, "text": evil,
             "request_id": evil}  # fmt: skip
    assert "\x1b" not in tables.event_line(event) and "\n" not in tables.event_line(event)


def test_nothing_is_said_as_such() -> None:
    assert tables.table([], ("project",)) == "none"
    assert tables.cell(None) == tables.cell("") == "-"


def story(**changes: Any) -> dict[str, Any]:
    return {
        "pool": "p", "state": "ended", "request_id": "r1", "when": 0.0, "project": "a.qgs",
        "generation": 2, "request_class": "map", "method": "GET", "url": "http://x/ows/",
        "outcome": "timeout", "status": 504, "queue_ms": 1.0, "load_ms": 0.0, "render_ms": 20000.0,
        "total_ms": 20001.0, "bytes": 0, "worker": 7, "attempts": 1, "reason": "deadline",
        "detail": "ended after 20.0 s without an answer",
    } | changes  # fmt: skip


def test_a_story_says_where_the_time_went_and_why_it_ended() -> None:
    text = tables.story_text(story())
    assert "map of a.qgs generation 2" in text
    assert "timeout, status 504, 0 bytes" in text
    assert "20,000.0 ms  worker 7, and that worker ended: deadline" in text
    assert "ended after 20.0 s without an answer" in text


def test_a_story_that_goes_on_says_so() -> None:
    text = tables.story_text(story(state="queued", outcome="under_way", status=0, worker=0,
                                   reason="", detail="", generation=0))  # fmt: skip
    assert "queued now, 0 bytes" in text and "no worker had it" in text


def test_headings_are_cut_before_what_is_below_them() -> None:
    rows = [{"pool": "default", "project": "town/streets.qgs", "requests": 12, "errors": 0}]
    header, row = tables.table(rows, ("pool", "project", "requests", "errors"), 32).splitlines()
    assert row.split() == ["town/streets.qgs", "12", "0"]
    assert header.split() == ["PROJECT", "REQUE…", "ERRORS"]


def test_the_pool_is_named_where_there_are_several_and_in_pipes() -> None:
    rows = [{"pool": "one", "id": 1}, {"pool": "two", "id": 2}]
    assert "POOL" in tables.table(rows, ("pool", "id"), 80)
    assert "POOL" not in tables.table(rows[:1], ("pool", "id"), 80)
    assert "POOL" in tables.table(rows[:1], ("pool", "id"))


def test_a_crash_is_repeated_without_reading_files_of_the_operator() -> None:
    """A body of "@/etc/shadow" would be that file to --data-binary, sent to a Host of the client's
    choice; brackets in a URL would be many."""
    seen = {
        "request_id": "7", "method": "POST", "url": "http://h/wfs3/[1-9]",
        "headers": [("Content-Type", "text/xml")], "body": "@/etc/shadow",
    }  # fmt: skip
    crash = {
        "project": "a.qgs", "worker": 3, "when": 0.0, "reason": "crash", "detail": "signal 11",
        "requests": [seen], "stack": "",
    }  # fmt: skip
    command = tables.crash_text(crash).splitlines()[2]
    words = shlex.split(command)
    assert words[:2] == ["curl", "-gsS"]
    assert words[words.index("--data-raw") + 1] == "@/etc/shadow"
    assert "Content-Type: text/xml" in words and "--data-binary" not in words
