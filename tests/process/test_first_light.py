"""One request the whole way, with the fake backend."""

from collections.abc import Callable
from pathlib import Path

from tests.support import Daemon, eventually


def test_a_request_is_answered_by_a_fork_of_its_project(
    daemons: Callable[..., Daemon], fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    answer = daemon.ows("a", do="text")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["X-Request-Id"]
    assert [worker["state"] for worker in daemon.workers()] == ["idle"]
    assert daemon.projects()["a.qgs"]["generations"][0]["mode"] == "forked"


def test_nothing_is_left_when_the_daemon_is_killed(
    daemons: Callable[..., Daemon], fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    assert len(daemon.pids()) == 3  # zygote, snapshot, worker
    daemon.kill()
    eventually(lambda: not daemon.pids(), timeout=2)
    for name in ("http.sock", "admin.sock", "run/workers/workers.sock"):
        (daemon.folder / name).unlink(missing_ok=True)
