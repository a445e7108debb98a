"""Capabilities are answered without a worker as long as a generation serves; nothing else is."""

from collections.abc import Callable
from pathlib import Path

from tests.process.tools import Raw, busy, path
from tests.support import Daemon, eventually, write_fake_project

ASK = {"SERVICE": "WMS", "REQUEST": "GetCapabilities", "do": "pid"}


def served(daemon: Daemon) -> int:
    return sum(int(worker["served"]) for worker in daemon.workers())


def test_capabilities_are_kept_for_the_generation(
    daemons: Callable[..., Daemon], fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    first = daemon.ows("a", **ASK)
    again = [daemon.ows("a", **ASK) for _ in range(5)]
    assert {answer.body for answer in again} == {first.body}
    assert {answer.headers["ETag"] for answer in again} == {first.headers["ETag"]}
    assert len({answer.headers["X-Request-Id"] for answer in again}) == 5
    assert served(daemon) == 1
    project = daemon.projects()["a.qgs"]
    assert (project["requests"], project["cached"]) == (6, 5)


def test_the_answer_for_a_client_that_has_left_is_kept_for_the_next(
    daemons: Callable[..., Daemon], fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="disconnect_grace_s = 10")
    daemon.ows("a", do="text")
    ask = ASK | {"do": "text", "s": 0.5}
    with Raw(daemon) as client:
        client.get(path("a", **ask))
        busy(daemon)
    eventually(lambda: served(daemon) == 2)
    assert daemon.get(path("a", **ask), headers={"Host": "t"}).body == b"hello"
    assert daemon.projects()["a.qgs"]["cached"] == 1


def test_another_file_is_another_answer(daemons: Callable[..., Daemon], fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    ask = ASK | {"do": "text"}
    assert daemon.ows("a", **ask).body == b"hello"
    write_fake_project(fake_roots / "a.qgs", text="changed")
    eventually(lambda: daemon.ows("a", **ask).body == b"changed")


def test_whoever_asks_and_from_where_is_part_of_the_key(
    daemons: Callable[..., Daemon], fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    target = "/ows/?MAP=a&SERVICE=WMS&REQUEST=GetCapabilities&do=show"
    for headers in (
        {"X-Lizmap-User": "anna"},
        {"X-Lizmap-User": ""},
        {"X-Forwarded-Host": "maps.example"},
        {"Authorization": "Basic eA=="},
        {"Cookie": "a=b"},
        {},
    ):
        for _ in range(2):
            answer = daemon.get(target, headers=headers)
            seen = {name.lower(): value for name, value in answer.json()["headers"]}
            assert {name.lower() for name in headers} - {"x-forwarded-host"} <= set(seen)
            assert seen.get("x-lizmap-user") == headers.get("X-Lizmap-User")
            assert ("maps.example" in answer.json()["url"]) == ("X-Forwarded-Host" in headers)
    assert served(daemon) == 6


def test_who_has_it_already_is_told_so(daemons: Callable[..., Daemon], fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    tag = daemon.ows("a", **ASK).headers["ETag"]
    target = "/ows/?MAP=a&SERVICE=WMS&REQUEST=GetCapabilities&do=pid"
    same = daemon.get(target, headers={"If-None-Match": tag})
    assert (same.status, same.body, same.headers["ETag"]) == (304, b"", tag)
    other = daemon.get(target, headers={"If-None-Match": '"something else"'})
    assert other.status == 200 and other.body


def test_maps_posts_and_errors_are_not_kept(
    daemons: Callable[..., Daemon], fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    for _ in range(2):
        assert "ETag" not in daemon.ows("a", SERVICE="WMS", REQUEST="GetMap", do="text").headers
        error = daemon.ows("a", SERVICE="WMS", REQUEST="GetCapabilities", do="nothing")
        assert (error.status, "ETag" in error.headers) == (400, False)
    assert served(daemon) == 4


def test_a_cache_of_no_size_keeps_nothing(daemons: Callable[..., Daemon], fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool='cache = "0B"')
    for _ in range(3):
        assert daemon.ows("a", **ASK).status == 200
    assert served(daemon) == 3
