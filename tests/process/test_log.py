"""The log of a real daemon: a line for each request, whatever became of it, with all its fields."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.process.tools import Raw, background, busy, idle, path
from tests.support import Daemon, eventually, start_daemon, write_fake_project


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that writes JSON."""
    folder = tmp_path_factory.mktemp("log")
    write_fake_project(folder / "projects" / "a.qgs", text="hello")
    write_fake_project(folder / "projects" / "slow.qgs", text="slow", load_s=0.5)
    write_fake_project(folder / "projects" / "bad.qgs", fail="no database")
    write_fake_project(
        folder / "projects" / "says.qgs", text="x", say="11:12:13 WARNING PostGIS[7]: no such table"
    )
    started = start_daemon(
        folder / "daemon",
        folder / "projects",
        pool="workers = 2\nproject_workers = 1\nproject_queue = 1\nrequest_timeout_s = 1.5\n"
        "stream_timeout_s = 0.5\ndisconnect_grace_s = 0.1\nbreaker_failures = 100\n"
        "class_slow_s = { print = 0.01 }",
        extra='[log]\nformat = "json"',
    )
    yield started
    assert started.stop() == 0


def lines(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.log().splitlines()]


def line_of(daemon: Daemon, request_id: str) -> dict[str, Any]:
    """The one line of a request, once it is there."""

    def found() -> list[dict[str, Any]]:
        rows = [row for row in lines(daemon) if row["logger"] == "qgisd.http"]
        return [row for row in rows if row.get("request_id") == request_id]

    (row,) = eventually(found)
    return dict(row)


def ask(daemon: Daemon, request_id: str, project: str = "a", **parameters: object) -> int:
    headers = {"X-Request-Id": request_id}
    return daemon.get(path(project, **parameters), headers=headers).status


def test_a_line_tells_who_did_what_and_where_the_time_went(daemon: Daemon) -> None:
    ask(daemon, "warm")
    target = path("a", do="text", s=0.3, SERVICE="WMS", REQUEST="GetMap", TOKEN="hunter2")
    assert daemon.get(target, headers={"X-Request-Id": "one"}).status == 200
    row = line_of(daemon, "one")
    (worker,) = [entry for entry in daemon.workers() if entry["project"] == "a.qgs"]
    expected = {
        "level": "info", "pool": "default", "project": "a.qgs", "request_class": "map",
        "method": "GET", "outcome": "ok", "status": 200, "bytes": 5, "worker": worker["id"],
        "generation": worker["generation"], "attempts": 1, "reason": "", "load_ms": 0.0,
        "detail": "",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert 300 <= row["render_ms"] <= row["total_ms"]
    assert "hunter2" not in json.dumps(row)
    assert re.match(r"one GET a\.qgs map ok 200 5 bytes in [\d.]+ ms \(queue ", row["message"])


def test_the_wait_for_a_load_is_told_apart(daemon: Daemon) -> None:
    assert ask(daemon, "loads", "slow") == 200
    row = line_of(daemon, "loads")
    assert row["load_ms"] >= 500 and row["queue_ms"] < 400


def test_a_wait_in_the_queue_is_told_apart(daemon: Daemon) -> None:
    ask(daemon, "before")
    with background() as clients:
        first = clients.run(lambda: ask(daemon, "runs", do="text", s=0.6))
        busy(daemon)
        assert ask(daemon, "waits") == 200
        assert first.result() == 200
    row = line_of(daemon, "waits")
    assert row["queue_ms"] > 100 and row["render_ms"] < row["queue_ms"]


def test_an_answer_from_the_cache_is_told_as_such(daemon: Daemon) -> None:
    query = {"SERVICE": "WMS", "REQUEST": "GetCapabilities"}
    for name in ("first", "second"):
        assert ask(daemon, name, **query) == 200
    assert line_of(daemon, "first")["outcome"] == "ok"
    row = line_of(daemon, "second")
    assert (row["outcome"], row["attempts"], row["bytes"]) == ("cached", 0, 5)
    assert row["generation"] == line_of(daemon, "first")["generation"]


def test_errors_are_told_with_their_reasons(daemon: Daemon) -> None:
    assert ask(daemon, "nonsense", do="nonsense") == 400
    assert ask(daemon, "bad", "bad") == 422
    assert ask(daemon, "dies", do="exit", code=3) == 502
    assert ask(daemon, "hangs", do="hang") == 504
    told = [line_of(daemon, name) for name in ("nonsense", "bad", "dies", "hangs")]
    assert [(row["outcome"], row["status"]) for row in told] == [
        ("error", 400), ("refused", 422), ("failed", 502), ("timeout", 504),
    ]  # fmt: skip
    assert [row["attempts"] for row in told] == [1, 0, 2, 1]
    assert told[1]["detail"] == "the project cannot be loaded"
    assert told[2]["reason"] == "crash"


def test_who_finds_the_queue_full_is_refused(daemon: Daemon) -> None:
    ask(daemon, "idle")
    with background() as clients:
        running = clients.run(lambda: ask(daemon, "r1", do="text", s=0.7))
        busy(daemon)
        waiting = clients.run(lambda: ask(daemon, "r2"))
        eventually(lambda: daemon.projects()["a.qgs"]["queued"] == 1)
        assert ask(daemon, "r3") == 503
        assert running.result() == waiting.result() == 200
    row = line_of(daemon, "r3")
    assert (row["outcome"], row["worker"]) == ("refused", 0)


def test_what_is_cut_off_is_told_as_such(daemon: Daemon) -> None:
    ask(daemon, "again")
    idle(daemon)
    with Raw(daemon) as client:
        client.get(path("a", do="break"), headers="X-Request-Id: breaks\r\n")
        client.rest()
    row = line_of(daemon, "breaks")
    assert (row["outcome"], row["status"], row["detail"]) == ("aborted", 200, "told to break")


def test_a_client_that_leaves_is_told_as_such(daemon: Daemon) -> None:
    ask(daemon, "before-leaving")
    with Raw(daemon) as client:
        client.get(path("a", do="text", s=1), headers="X-Request-Id: leaves\r\n")
        busy(daemon)
    row = line_of(daemon, "leaves")
    assert (row["outcome"], row["status"]) == ("disconnected", 0)
    assert 0 < row["render_ms"] < 1000


def test_what_never_reached_a_pool_has_its_line_too(daemon: Daemon) -> None:
    headers = {"X-Request-Id": "nowhere"}
    assert daemon.get("/nothing?token=hunter2", headers=headers).status == 404
    row = line_of(daemon, "nowhere")
    assert (row["status"], row["path"]) == (404, "/nothing")
    assert ask(daemon, "nobody", "nobody") == 404
    assert line_of(daemon, "nobody")["status"] == 404
    assert "project" not in line_of(daemon, "nobody")


def test_slow_is_a_matter_of_class(daemon: Daemon) -> None:
    for kind in ("GetMap", "GetPrint"):
        assert ask(daemon, kind, do="text", s=0.05, SERVICE="WMS", REQUEST=kind) == 200
    names = [row["request_id"] for row in daemon.api("GET", "/api/v1/slowlog")]
    assert "GetPrint" in names and "GetMap" not in names


# what the processes write


def heard(daemon: Daemon, text: str, count: int = 1) -> list[dict[str, Any]]:
    """The lines of processes with this text, once there are so many."""

    def found() -> list[dict[str, Any]]:
        rows = [row for row in lines(daemon) if row["logger"] == "qgisd.qgis.default"]
        return [row for row in rows if text in row["message"]]

    return list(eventually(lambda: rows if len(rows := found()) >= count else []))


def test_what_qgis_says_is_told_with_the_request(daemon: Daemon) -> None:
    say = "11:12:13 CRITICAL PostGIS[7]: connection lost, password=hunter2"
    assert ask(daemon, "says", do="text", say=say) == 200
    (row,) = heard(daemon, "connection lost")
    expected = {
        "level": "error", "request_id": "says", "pool": "default", "project": "a.qgs",
        "tag": "PostGIS", "worker": line_of(daemon, "says")["worker"],
        "message": "says a.qgs: PostGIS: connection lost, password=***",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_each_message_goes_with_its_own_request(daemon: Daemon) -> None:
    for number in range(40):
        name = f"own-{'abcdefghij'[number % 10]}{'klmn'[number // 10]}"
        assert ask(daemon, name, do="text", say=f"said by {name}") == 200
    rows = heard(daemon, "said by own-", 40)
    assert len(rows) == 40
    assert all(row["message"].endswith(f"said by {row['request_id']}") for row in rows)


def test_the_last_words_of_a_worker_go_with_the_request_it_died_over(daemon: Daemon) -> None:
    assert (
        ask(daemon, "last-words", do="exit", code=3, say="Fatal Python error: out of luck") == 502
    )
    rows = heard(daemon, "out of luck", 2)
    assert {row["request_id"] for row in rows} == {"last-words"}
    assert {row["level"] for row in rows} == {"error"}
    assert len({row["worker"] for row in rows}) == 2, "both workers that it was given to"


def test_what_is_said_while_a_project_loads_goes_with_the_project(daemon: Daemon) -> None:
    assert ask(daemon, "loads-and-says", "says") == 200
    (row,) = heard(daemon, "no such table")
    assert (row["project"], row["level"], row["tag"]) == ("says.qgs", "warning", "PostGIS")
    assert row["generation"] == line_of(daemon, "loads-and-says")["generation"]
    assert "request_id" not in row


def test_a_flood_of_messages_is_counted_and_holds_nobody_up(daemon: Daemon) -> None:
    with background() as clients:
        flood = clients.run(
            lambda: ask(daemon, "flood", do="text", say="drip " + "x" * 500, times=300)
        )
        assert ask(daemon, "beside", "slow") == 200
        assert flood.result() == 200
    assert len(heard(daemon, "drip ", 10)) == 10
    assert line_of(daemon, "beside")["render_ms"] < 1000


def test_each_line_is_json_and_no_request_has_two(daemon: Daemon) -> None:
    rows = [row for row in lines(daemon) if row["logger"] == "qgisd.http" and "status" in row]
    names = [row["request_id"] for row in rows if not row.get("path", "").endswith("readyz")]
    assert names and len(names) == len(set(names))
