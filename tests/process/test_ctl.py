"""`qgisd ctl` against a running daemon, as an operator or a script uses it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.tools import background, busy, idle, named, state, the
from tests.support import Daemon, Response, eventually, write_fake_project

Start = Callable[..., Daemon]
Ran = "subprocess.CompletedProcess[str]"


def run(*words: str, environment: dict[str, str] | None = None) -> Ran:
    """`qgisd …` with no daemon in mind."""
    command = [sys.executable, "-m", "qgisd", *words]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | (environment or {}),
    )


def done(ran: Ran) -> str:
    """What a command that must succeed wrote."""
    assert (ran.returncode, ran.stderr) == (0, "")
    return str(ran.stdout)


def refused(ran: Ran, code: int = 1) -> str:
    """What a command that must fail wrote, on standard error and in no traceback."""
    assert ran.returncode == code
    assert "Traceback" not in ran.stderr
    return str(ran.stderr)


# looking


def test_it_shows_pools_projects_and_workers(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    pid = daemon.ows("a", do="pid").body.decode()
    (pool,) = json.loads(done(daemon.ctl("--json", "stats")))
    assert (pool["pool"], pool["zygote"], pool["qgis"]) == ("default", "up", "fake")
    assert (pool["busy"], pool["queued"], len(pool["workers"])) == (0, 0, 1)
    (worker,) = json.loads(done(daemon.ctl("--json", "workers")))
    assert (worker["pool"], worker["project"], worker["state"]) == ("default", "a.qgs", "idle")
    assert (str(worker["pid"]), worker["served"], worker["generation"]) == (pid, 1, 1)
    (project,) = json.loads(done(daemon.ctl("--json", "projects")))
    assert (project["project"], project["state"], project["requests"]) == ("a.qgs", "serving", 1)
    one = json.loads(done(daemon.ctl("--json", "project", "a")))
    assert (one["project"], one["loads"], one["forks"]) == ("a.qgs", 1, 1)
    assert "default" in done(daemon.ctl("stats"))
    assert pid in done(daemon.ctl("workers"))
    for words in (("projects",), ("project", "a.qgs")):
        header, row, *_ = done(daemon.ctl(*words)).splitlines()
        assert header.split()[:3] == ["POOL", "PROJECT", "STATE"]
        assert row.split()[:3] == ["default", "a.qgs", "serving"]


def test_it_shows_what_a_worker_works_on(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    with background() as clients:
        target = "/ows/?MAP=a&do=text&s=1.5&SERVICE=WMS&REQUEST=GetMap"
        headers = {"X-Request-Id": "my-request-1"}
        answer = clients.run(lambda: daemon.get(target, headers=headers))
        busy(daemon)
        row = done(daemon.ctl("workers")).splitlines()[1].split()
        assert {"busy", "map", "my-request-1"} <= set(row)
        assert answer.result().status == 200


def test_it_shows_the_configuration_and_where_it_came_from(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(
        fake_roots,
        environment={"QGISD_POOL__WORKERS": "3"},
        projects='[pool.qgis]\nenv = { PGPASSWORD = "geheim" }',
    )
    text = done(daemon.ctl("--json", "config"))
    content = json.loads(text)
    assert content["config"]["pool"]["workers"] == 3
    assert content["sources"]["pool.workers"] == "environment QGISD_POOL__WORKERS"
    assert content["sources"]["http.listen"].startswith("file ")
    table = done(daemon.ctl("config"))
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert rows["pool.workers"] == ["3", "environment", "QGISD_POOL__WORKERS"]
    assert rows["pool.queue"] == ["200", "default"]
    for shown in (text, table):
        assert "PGPASSWORD" in shown
        assert "geheim" not in shown


def test_projects_of_nobody_are_told_as_such(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    assert done(daemon.ctl("projects")) == "none\n"
    assert json.loads(done(daemon.ctl("--json", "workers"))) == []
    assert "a.qgs is not loaded" in refused(daemon.ctl("project", "a"))
    for words in (("project", "no"), ("load", "no"), ("reload", "no"), ("drop-project", "no")):
        assert "no such project" in refused(daemon.ctl(*words)), words
    assert "a.qgs is not loaded" in refused(daemon.ctl("reload", "a"))
    assert "a.qgs is not loaded" in refused(daemon.ctl("drop-project", "a"))


def test_no_daemon_is_told_as_such(tmp_path: Path) -> None:
    nobody = f"unix:{tmp_path / 'admin.sock'}"
    assert "Does qgisd run?" in refused(run("ctl", "--admin", nobody, "stats"), 3)
    assert "Does qgisd run?" in refused(run("ctl", "--admin", "127.0.0.1:1", "stats"), 3)
    assert "No such command" in refused(run("ctl", "--admin", nobody, "nonsense"), 2)
    assert "Missing argument" in refused(run("ctl", "--admin", nobody, "load"), 2)


# loading, dropping


def test_load_returns_when_the_project_is_loaded(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=0.5, text="slow", layers=7)
    daemon = daemons(fake_roots, pool="idle_worker_s = 0.2")
    (row,) = [json.loads(done(daemon.ctl("--json", "load", "slow")))]
    assert (row["project"], row["ok"], row["generation"]) == ("slow.qgs", True, 1)
    assert "7 layers" in row["detail"]
    assert state(daemon, "slow.qgs")["pinned"] is False
    assert "already loaded" in done(daemon.ctl("load", "slow.qgs"))
    assert daemon.workers() == []
    done(daemon.ctl("load", "--pin", "slow"))
    assert state(daemon, "slow.qgs")["pinned"] is True
    assert state(daemon, "slow.qgs")["loads"] == 1
    pid = idle(daemon)
    assert daemon.ows("slow", do="pid").body == str(pid).encode()


def test_a_load_that_fails_says_why(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "bad.qgs", fail="no database")
    daemon = daemons(fake_roots)
    ran = daemon.ctl("load", "bad")
    assert ran.returncode == 1
    assert "FAILED" in ran.stdout
    assert "no database" in ran.stdout
    assert json.loads(daemon.ctl("--json", "load", "bad").stdout)["ok"] is False


def test_drop_unloads_what_the_next_request_loads_again(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    with background() as clients:
        running = clients.ows(daemon, "a", do="text", s=1)
        busy(daemon)
        assert "dropped" in done(daemon.ctl("drop-project", "a"))
        assert not running.done()
        # In the middle of it, a new one beside the old.
        assert daemon.ows("a", do="text").body == b"hello"
        assert running.result().body == b"hello"
    done(daemon.ctl("drop-project", "a.qgs"))
    eventually(lambda: not named(daemon, "snapshot") and not daemon.workers())


def test_a_project_dropped_and_wanted_at_once_is_served_each_time(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="idle_worker_s = 0.05")
    daemon.api("POST", "/api/v1/projects/a")
    for _ in range(15):
        assert daemon.api("DELETE", "/api/v1/projects/a")["ok"]
        answer = daemon.ows("a", do="text")
        assert (answer.status, answer.body) == (200, b"hello")
        eventually(lambda: not daemon.workers(), period=0.005)
    assert the(daemon, "snapshot")


def test_a_project_dropped_while_it_loads_is_loaded_for_those_who_wait(
    daemons: Start, fake_roots: Path
) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=0.5, text="slow")
    daemon = daemons(fake_roots)
    with background() as clients:
        answer = clients.ows(daemon, "slow", do="text")
        the(daemon, "snapshot")
        assert daemon.api("DELETE", "/api/v1/projects/slow")["ok"]
        assert (answer.result().status, answer.result().body) == (200, b"slow")
    the(daemon, "snapshot")


def test_an_unpinned_daemon_forgets_what_it_dropped(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, projects='pinned = ["a"]')
    idle(daemon)
    done(daemon.ctl("drop-project", "a"))
    eventually(lambda: daemon.projects() == {})
    assert daemon.get("/readyz").status == 200


# reloading


def test_reload_of_a_project_is_done_when_it_returns(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    write_fake_project(fake_roots / "a.qgs", load_s=0.3, text="new")
    rows = json.loads(done(daemon.ctl("--json", "reload", "a")))
    assert [(row["project"], row["ok"]) for row in rows] == [("a.qgs", True)]
    assert daemon.ows("a", do="text").body == b"new"
    before = state(daemon, "a.qgs")
    assert "ok" in done(daemon.ctl("reload", "a.qgs"))
    after = state(daemon, "a.qgs")
    assert after["generations"][0]["number"] > before["generations"][0]["number"]
    assert after["loads"] == before["loads"] + 1


def test_a_reload_that_fails_says_so_and_the_old_one_serves(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    daemon.ows("b", do="text")
    write_fake_project(fake_roots / "a.qgs", fail="no database")
    ran = daemon.ctl("reload", "a")
    assert ran.returncode == 1
    assert "FAILED" in ran.stdout
    assert "no database" in ran.stdout
    assert daemon.ows("a", do="text").body == b"hello"
    # The whole pool: a row for each, and 1 if one of them fails.
    ran = daemon.ctl("--json", "reload")
    assert ran.returncode == 1
    rows = {row["project"]: row["ok"] for row in json.loads(ran.stdout)}
    assert rows == {"": True, "a.qgs": False, "b.qgs": True}
    assert (daemon.ows("a", do="text").body, daemon.ows("b", do="text").body) == (
        b"hello",
        b"other",
    )


def test_reload_of_all_starts_a_new_zygote_and_new_generations(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    for name in ("a", "b"):
        daemon.ows(name, do="text")
    zygote = the(daemon, "zygote")

    def serving() -> list[int]:
        rows = [state(daemon, name)["generations"] for name in ("a.qgs", "b.qgs")]
        return [number["number"] for number, *_ in rows]

    before = serving()
    text = done(daemon.ctl("reload"))
    assert [line.split()[1] for line in text.splitlines()[1:]] == ["ok"] * 3
    assert the(daemon, "zygote") != zygote
    assert all(new > old for new, old in zip(serving(), before, strict=True))
    assert [state(daemon, name)["loads"] for name in ("a.qgs", "b.qgs")] == [2, 2]
    assert (daemon.ows("a", do="text").body, daemon.ows("b", do="text").body) == (
        b"hello",
        b"other",
    )
    eventually(lambda: len(named(daemon, "snapshot")) == 2)


def test_reload_of_all_loads_what_failed_as_well(daemons: Start, fake_roots: Path) -> None:
    (fake_roots / "bad.qgs").write_text("")
    daemon = daemons(fake_roots)
    assert daemon.ows("bad", do="text").status == 422
    rows = json.loads(daemon.ctl("--json", "reload").stdout)
    assert {row["project"]: row["ok"] for row in rows} == {"": True, "bad.qgs": False}


def test_reloads_under_load_lose_nothing(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    for name in ("a", "b"):
        daemon.ows(name, do="text")
    going = True

    def client(number: int) -> list[Response]:
        answers = []
        while going:
            answers.append(daemon.ows("ab"[number % 2], do="text", s=0.01))
        return answers

    with background() as clients:
        runs = [clients.run(client, number) for number in range(4)]
        try:
            for _ in range(3):
                assert all(row["ok"] for row in daemon.api("POST", "/api/v1/reload"))
                assert all(row["ok"] for row in daemon.api("POST", "/api/v1/reload?project=a"))
        finally:
            going = False
        outcomes = [
            (answer.status, answer.body, number % 2)
            for number, run in enumerate(runs)
            for answer in run.result()
        ]
    assert len(outcomes) > 40
    assert set(outcomes) == {(200, b"hello", 0), (200, b"other", 1)}
    the(daemon, "zygote")
    eventually(lambda: len(named(daemon, "snapshot")) == 2)


def test_two_reloads_at_once_both_return(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    with background() as clients:
        orders = [
            clients.run(daemon.api, "POST", f"/api/v1/reload{query}")
            for query in ("", "", "?project=a", "?project=a")
        ]
        results = [order.result() for order in orders]
    assert all(row["ok"] for rows in results for row in rows)
    assert daemon.ows("a", do="text").body == b"hello"
    the(daemon, "zygote")
    the(daemon, "snapshot")


def test_reloads_leave_no_descriptors_behind(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")

    def reload() -> None:
        assert all(row["ok"] for row in daemon.api("POST", "/api/v1/reload"))
        eventually(lambda: len(daemon.pids()) == 3)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

    reload()
    before = descriptors()
    for _ in range(6):
        reload()
    # Some are open for a moment, as for a look at the memory.
    eventually(lambda: descriptors() <= before + 1)


def test_a_reload_whose_zygote_is_killed_comes_to_an_end(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, environment={"QGISD_FAKE_START": "0.5"})
    daemon.ows("a", do="text")
    first = the(daemon, "zygote")
    with background() as clients:
        order = clients.run(daemon.api, "POST", "/api/v1/reload")
        fresh = eventually(lambda: [pid for pid in named(daemon, "zygote") if pid != first])
        os.kill(fresh[0], signal.SIGKILL)
        (row,) = order.result()
    assert (row["project"], row["ok"]) == ("", False)
    assert "signal 9" in row["detail"]
    assert the(daemon, "zygote") == first
    assert daemon.ows("b", do="text").body == b"other"


# configuration


def test_all_that_is_wrong_with_a_configuration_is_said_at_once(tmp_path: Path) -> None:
    config = tmp_path / "qgisd.toml"
    config.write_text(
        '[http]\nlisten = "nonsense"\nmax_body = 5\n'
        '[pool]\nworkers = 0\ncolour = "red"\nload_timeout_s = "soon"\n'
    )
    environment = {"QGISD_POOL__QUEUE": "-1"}
    ran = run("serve", "-c", str(config), environment=environment)
    text = refused(ran, 2)
    for key in ("http.listen", "http.max_body", "pool.workers", "pool.colour",
                "pool.load_timeout_s", "environment QGISD_POOL__QUEUE"):  # fmt: skip
        assert key in text
    assert str(config) in text
    assert len(text.splitlines()) == 6
    assert refused(run("check", "-c", str(config), environment=environment), 2) == text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[http\n", "is not TOML"),
        (None, "cannot be read"),
        ('[http]\nlisten = "unix:/tmp/x"\n[admin]\nlisten = "unix:/tmp/x"\n', "same as"),
        ("[pool]\nworkers = 2\nproject_workers = 3\n", "more than workers"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, content: str | None, words: str
) -> None:
    config = tmp_path / "qgisd.toml"
    if content is not None:
        config.write_text(content)
    begun = time.monotonic()
    assert words in refused(run("serve", "-c", str(config)), 2)
    assert time.monotonic() - begun < 5
