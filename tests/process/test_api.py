"""The REST API against a real daemon: what operators see, and what they end."""

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tornado.httputil import url_concat

from tests.process.tools import Raw, background, busy
from tests.support import (
    Daemon,
    Response,
    UnixConnection,
    eventually,
    marked,
    start_daemon,
    write_fake_project,
)

Start = Callable[..., Daemon]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("projects")
    for name in ("a", "b", "deep/er/c d"):
        write_fake_project(root / f"{name}.qgs", text=name)
    write_fake_project(root / "bad.qgs", fail="no good")
    return root


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, roots: Path) -> Iterator[Daemon]:
    """One daemon with two pools, for tests that leave it as it was."""
    daemon = start_daemon(
        tmp_path_factory.mktemp("shared"),
        roots,
        pool="slow_s = 0.3\nmemory_interval_s = 0.5",
        extra='[pools.main]\nroute = ""\n[pools.other]\nroute = "/other"\nworkers = 2',
    )
    yield daemon
    daemon.stop()
    eventually(lambda: not marked(daemon.mark), timeout=5)


def call(daemon: Daemon, method: str, path: str, status: int = 200, **query: object) -> Any:
    """The decoded answer of one operation."""
    target = url_concat("/api/v1" + path, {name: str(value) for name, value in query.items()})
    answer = daemon.request(method, target, admin=True)
    assert answer.status == status, answer.body
    return answer.json()


def project_path(name: str) -> str:
    return "/projects/" + quote(name, safe="")


# looking


def test_it_says_who_it_is(shared: Daemon) -> None:
    root = call(shared, "GET", "/")
    assert (root["role"], root["qgis"]) == ("admin", "fake")
    assert root["pools"] == [{"pool": "main", "route": ""}, {"pool": "other", "route": "/other"}]
    assert 0 < root["uptime_s"] < 600 and abs(time.time() - root["started"]) < 600
    (other,) = call(shared, "GET", "/pools", pool="other")
    assert (other["pool"], other["slots"], other["zygote"]) == ("other", 2, "up")
    sampled = eventually(lambda: (row := call(shared, "GET", "/pools")[0])["memory_bytes"] and row)
    assert 1 << 20 < sampled["memory_bytes"] < sampled["memory_limit_bytes"]
    assert "no pool 'x'" in call(shared, "GET", "/pools", 404, pool="x")["detail"]


def test_a_name_with_slashes_and_spaces_is_a_name(shared: Daemon) -> None:
    key = "deep/er/c d.qgs"
    assert call(shared, "POST", project_path(key), pool="main")["ok"]
    for path in (project_path(key), "/projects/deep/er/c%20d"):
        assert call(shared, "GET", path)["project"] == key
    assert call(shared, "DELETE", project_path(key))["detail"] == "dropped"
    assert "is not loaded" in call(shared, "GET", project_path(key), 404)["detail"]


def test_a_load_that_fails_is_an_outcome_and_no_error(shared: Daemon) -> None:
    result = call(shared, "POST", "/projects/bad", 422, pool="main")
    assert (result["ok"], result["detail"]) == (False, "no good")
    assert call(shared, "GET", "/projects/bad")["state"] == "failed"
    call(shared, "DELETE", "/projects/bad")


def test_a_project_is_shown_with_its_layers(shared: Daemon, roots: Path) -> None:
    write_fake_project(roots / "layered.qgs", text="x", layers=250)
    call(shared, "POST", "/projects/layered", pool="main")
    detail = call(shared, "GET", "/projects/layered")
    assert [layer["id"] for layer in detail["contents"]] == [f"id{n}" for n in range(250)]
    assert detail["contents"][0] == {
        "id": "id0", "name": "layer 0", "provider": "fake", "valid": True, "load_ms": 1.5,
    }  # fmt: skip
    assert detail["generations"][0]["layers"] == 250
    call(shared, "DELETE", "/projects/layered")


def test_pins_come_and_go(shared: Daemon) -> None:
    def pinned() -> bool:
        return bool(call(shared, "GET", "/projects/b", pool="main")["pinned"])

    assert call(shared, "PUT", "/projects/b/pin", pool="main")["ok"]
    assert pinned()
    assert call(shared, "DELETE", "/projects/b/pin", pool="main")["detail"] == "no longer pinned"
    assert not pinned()
    assert call(shared, "DELETE", "/projects/b/pin", pool="main")["detail"] == "was not pinned"
    assert call(shared, "PUT", "/projects/nothing/pin", 404)["detail"]
    assert call(shared, "DELETE", "/projects/deep/pin", 404)["detail"]
    call(shared, "DELETE", "/projects/b")


def test_the_story_of_a_request_while_it_runs_and_after(shared: Daemon) -> None:
    with background() as clients:
        headers = {"X-Request-Id": "story-1"}
        target = "/ows/?MAP=a&do=text&s=0.6&SERVICE=WMS&REQUEST=GetMap&PASSWORD=hidden"
        answer = clients.run(lambda: shared.get(target, headers=headers))
        story = eventually(lambda: running(shared, "story-1"))
        assert (story["pool"], story["project"], story["outcome"]) == ("main", "a.qgs", "under_way")
        assert (story["request_class"], story["attempts"]) == ("map", 1)
        assert "hidden" not in json.dumps(story)
        worker = call(shared, "GET", "/workers", project="a.qgs")[0]
        assert (worker["id"], worker["request_id"]) == (story["worker"], "story-1")
        assert answer.result().status == 200
    ended = call(shared, "GET", "/requests/story-1")
    assert (ended["state"], ended["outcome"], ended["status"]) == ("ended", "ok", 200)
    assert (ended["bytes"], ended["worker"]) == (1, story["worker"])
    assert ended["render_ms"] >= 600 and ended["total_ms"] >= ended["render_ms"]
    assert call(shared, "GET", "/requests") == []
    assert "nobody-asked" in call(shared, "GET", "/requests/nobody-asked", 404)["detail"]
    assert [slow["request_id"] for slow in call(shared, "GET", "/slowlog")][-1] == "story-1"


def running(daemon: Daemon, request_id: str, state: str = "running") -> Any:
    """The story of a request, once a worker has it."""
    found = [row for row in call(daemon, "GET", "/requests") if row["request_id"] == request_id]
    return found[0] if found and found[0]["state"] == state else None


def test_what_is_slow_is_in_the_slow_log_before_it_ends(shared: Daemon) -> None:
    def mine() -> list[tuple[str, bool]]:
        rows = [row for row in call(shared, "GET", "/slowlog") if row["request_id"] == "slow-1"]
        return [(row["outcome"], row["seconds"] >= 0.3) for row in rows]

    with background() as clients:
        target = "/ows/?MAP=a&do=text&s=1.5&SERVICE=WMS&REQUEST=GetMap"
        begun = time.monotonic()
        answer = clients.run(lambda: shared.get(target, headers={"X-Request-Id": "slow-1"}))
        eventually(lambda: mine() == [("running", True)], timeout=1.4)
        assert time.monotonic() - begun >= 0.3
        assert not answer.done()
        assert answer.result().status == 200
    assert mine() == [("answered", True)]


# ending


def test_a_request_is_ended_and_its_client_told(shared: Daemon) -> None:
    with background() as clients:
        headers = {"X-Request-Id": "stuck-1"}
        target = "/ows/?MAP=a&do=hang&SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap"
        answer = clients.run(lambda: shared.get(target, headers=headers))
        story = eventually(lambda: running(shared, "stuck-1"))
        # By now the process has read what it was sent, and hangs.
        eventually(lambda: running(shared, "stuck-1")["render_ms"] > 300)
        (killed,) = call(shared, "DELETE", "/requests/stuck-1")
        assert (killed["worker"], killed["detail"]) == (story["worker"], "it was running")
        told = answer.result()
    assert told.status == 503
    assert b"ServiceExceptionReport" in told.body
    assert b"an operator of this server ended the request" in told.body
    assert "Retry-After" not in told.headers
    # The process is gone, and what it was doing is kept.
    slow = eventually(lambda: [row for row in call(shared, "GET", "/slowlog")
                               if row["outcome"] == "killed by an operator"])  # fmt: skip
    assert (slow[0]["request_id"], slow[0]["worker"]) == ("stuck-1", story["worker"])
    assert "_hang" in slow[0]["stack"]
    ids = [worker["id"] for worker in call(shared, "GET", "/workers")]
    assert story["worker"] not in ids
    after = call(shared, "GET", "/requests/stuck-1")
    assert (after["outcome"], after["reason"], after["attempts"]) == ("failed", "operator", 1)
    assert call(shared, "DELETE", "/requests/stuck-1", 404)["detail"]
    assert shared.ows("a", do="text").body == b"a"


def test_a_worker_is_killed_by_its_number(shared: Daemon) -> None:
    for route in ("", "/other"):
        assert shared.get(f"{route}/ows/?MAP=a&do=text").status == 200
    workers = call(shared, "GET", "/workers", pool="other")
    number = workers[-1]["id"]
    in_both = number in [worker["id"] for worker in call(shared, "GET", "/workers", pool="main")]
    if in_both:
        assert "main, other" in call(shared, "DELETE", f"/workers/{number}", 409)["detail"]
    killed = call(shared, "DELETE", f"/workers/{number}", pool="other")
    assert (killed["pool"], killed["worker"], killed["request_id"]) == ("other", number, "")
    eventually(lambda: not Path(f"/proc/{workers[-1]['pid']}").exists())
    ended = call(shared, "GET", "/projects/a", pool="other")["ended"]
    assert ended == {"operator": 1}
    assert call(shared, "DELETE", "/workers/9999", 404)["detail"]
    assert "integer" in call(shared, "DELETE", "/workers/one", 400)["detail"]


def test_an_answer_under_way_is_cut_and_not_ended(shared: Daemon) -> None:
    with background() as clients:
        headers = {"X-Request-Id": "stream-1"}
        target = "/ows/?MAP=a&do=chunks&n=1000&size=1000&pause=0.05"
        answer = clients.run(lambda: shared.get(target, headers=headers))
        eventually(lambda: running(shared, "stream-1", "streaming"))
        assert call(shared, "DELETE", "/requests/stream-1")[0]["detail"] == "it was streaming"
        assert answer.result().complete is False


def test_what_a_slow_client_still_takes_can_be_cut(shared: Daemon) -> None:
    with Raw(shared, buffer=4096) as client:
        target = "/ows/?MAP=a&do=chunks&n=20&size=1000000"
        client.get(target, headers="X-Request-Id: slow-client\r\n")
        eventually(lambda: running(shared, "slow-client", "sending"))
        (killed,) = call(shared, "DELETE", "/requests/slow-client")
        assert (killed["worker"], killed["detail"]) == (None, "it was being sent")
        body, _ = client.rest()
        assert not body.endswith(b"0\r\n\r\n")
    assert call(shared, "GET", "/requests/slow-client")["outcome"] == "aborted"


def test_drain_finishes_what_runs_and_refuses_the_rest(shared: Daemon) -> None:
    with background() as clients:
        answer = clients.run(lambda: shared.ows("a", do="text", s=1))
        busy(shared)
        states = call(shared, "POST", "/drain")
        assert [(row["pool"], row["draining"], row["busy"]) for row in states] == [
            ("main", True, 1),
            ("other", True, 0),
        ]
        refused = shared.ows("a", do="text")
        assert refused.status == 503 and int(refused.headers["Retry-After"]) > 0
        assert b"draining" in refused.body
        ready = shared.get("/readyz")
        assert (ready.status, b"draining" in ready.body) == (503, True)
        assert shared.get("/healthz").status == 200
        call(shared, "POST", "/undrain", pool="main")
        assert shared.ows("a", do="text").status == 200
        assert shared.get("/other/ows/?MAP=a&do=text").status == 503
        call(shared, "POST", "/undrain")
        assert answer.result().body == b"a"
    assert shared.get("/readyz").status == 200


# events


class Listener:
    """A client of /events."""

    def __init__(self, daemon: Daemon, **query: object) -> None:
        self.connection = UnixConnection(daemon.folder / "admin.sock", 10)
        target = url_concat("/api/v1/events", {name: str(value) for name, value in query.items()})
        self.connection.request("GET", target)
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200
        assert self.answer.headers["Content-Type"] == "text/event-stream"

    def next(self) -> tuple[str, Any]:
        """Name and data of the next one."""
        fields: dict[str, str] = {}
        while True:
            line = self.answer.readline().decode().rstrip("\n")
            if line.startswith(":"):
                continue
            if not line and fields:
                return fields["event"], json.loads(fields["data"])
            name, _, value = line.partition(": ")
            fields[name] = value

    def until(self, kind: str) -> dict[str, Any]:
        """The next event of this kind."""
        for _ in range(200):
            name, data = self.next()
            if name == "event" and data["kind"] == kind:
                return dict(data)
        raise AssertionError(f"no {kind}")


@contextmanager
def listening(daemon: Daemon, **query: object) -> Iterator[Listener]:
    listener = Listener(daemon, **query)
    with closing(listener.connection):
        yield listener


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def test_events_tell_the_life_of_a_project(shared: Daemon) -> None:
    before = descriptors(shared)
    with listening(shared, stats="false") as listener:
        call(shared, "POST", "/projects/b", pool="other")
        begun = listener.until("load_begun")
        assert (begun["pool"], begun["project"], begun["reason"]) == ("other", "b.qgs", "boot")
        switched = listener.until("switched")
        assert switched["generation"] == begun["generation"]
        assert switched["id"] > begun["id"]
        shared.get("/other/ows/?MAP=b&do=text&s=0.4", headers={"X-Request-Id": "slow-b"})
        assert listener.until("worker_started")["worker"]
        assert listener.until("request_slow")["request_id"] == "slow-b"
        call(shared, "DELETE", "/projects/b", pool="other")
        assert listener.until("project_dropped")["level"] == "info"
        assert listener.until("worker_ended")["reason"] == "stop"
    eventually(lambda: descriptors(shared) <= before)


def test_what_was_missed_comes_first(shared: Daemon) -> None:
    with listening(shared, stats="false") as listener:
        call(shared, "POST", "/projects/b", pool="main")
        begun = listener.until("load_begun")
    call(shared, "DELETE", "/projects/b", pool="main")
    with listening(shared, stats="false", since=begun["id"]) as listener:
        assert listener.next()[1]["id"] == begun["id"] + 1
        listener.until("project_dropped")


def test_pictures_come_about_each_second(shared: Daemon) -> None:
    shared.ows("a", do="text")
    with listening(shared) as listener:
        name, first = listener.next()
        assert name == "stats"
        assert [pool["pool"] for pool in first["pools"]] == ["main", "other"]
        (project,) = [row for row in first["pools"][0]["projects"] if row["project"] == "a.qgs"]
        assert project["state"] == "serving" and project["answered"] >= 1
        second = next(data for name, data in iter(listener.next, None) if name == "stats")
        assert 0.5 < second["time"] - first["time"] < 5


def test_a_client_that_does_not_listen_is_cut_off(shared: Daemon) -> None:
    call(shared, "POST", "/projects/b", pool="main")
    admin = shared.folder / "admin.sock"
    with socket.socket(socket.AF_UNIX) as deaf, closing(UnixConnection(admin, 10)) as other:
        deaf.connect(str(admin))
        deaf.sendall(b"GET /api/v1/events?stats=false HTTP/1.1\r\nHost: localhost\r\n\r\n")
        gone = select.poll()
        gone.register(deaf, 0)  # hang-ups are told in any case
        for _ in range(3000):
            for verb in ("PUT", "DELETE"):
                other.request(verb, "/api/v1/projects/b/pin?pool=main")
                assert other.getresponse().read()
            if gone.poll(0):
                break
        assert gone.poll(0)
    call(shared, "DELETE", "/projects/b", pool="main")


def test_a_client_that_listens_does_not_hold_up_the_end(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    with listening(daemon) as listener:
        listener.next()
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 5
        assert "Traceback" not in daemon.log()


# the description


def test_head_of_events_has_an_end(shared: Daemon) -> None:
    answer: Response = shared.request("HEAD", "/api/v1/events", admin=True)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")


def test_what_a_provider_complains_of_tells_no_secret(daemons: Start, tmp_path: Path) -> None:
    root = tmp_path / "projects"
    source = "cannot open dbname=gis sslpassword=hunter2 https://anna:hunter2@tiles/"
    write_fake_project(root / "bad.qgs", bad=source)
    write_fake_project(root / "broken.qgs", fail=source)
    daemon = daemons(root)
    assert daemon.ows("bad", do="text").status == 200
    assert daemon.ows("broken", do="text").status == 422
    shown = [
        daemon.request("GET", f"/api/v1/{at}", admin=True).body.decode()
        for at in ("stats", "projects", "projects/bad", "projects/broken")
    ]
    assert all("dbname=gis" in text and "hunter2" not in text for text in shown)
    assert "hunter2" not in daemon.log()
