"""Loading: once for all who wait, beside what serves, and never to its harm."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.tools import Raw, alive, background, busy, frozen, idle, named, path, state, the
from tests.support import Daemon, Response, eventually, write_fake_project

Start = Callable[..., Daemon]


def old(file: Path) -> None:
    """Give a file a modification time of long ago."""
    os.utime(file, (1_000_000_000, 1_000_000_000))


def settled(daemon: Daemon, project: str, wanted: str) -> dict[str, object]:
    """The project, once its state is `wanted`."""

    def look() -> dict[str, object] | None:
        found = daemon.projects().get(project)
        return found if found and found["state"] == wanted else None

    return eventually(look)


# who waits, and who does not


def test_twenty_first_requests_cost_one_load(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=0.5, text="slow")
    daemon = daemons(fake_roots)
    with background() as clients:
        answers = [clients.ows(daemon, "slow", do="text") for _ in range(20)]
        results = [(answer.result().status, answer.result().body) for answer in answers]
    assert results == [(200, b"slow")] * 20
    assert state(daemon, "slow.qgs")["loads"] == 1


def test_a_slow_load_does_not_touch_another_project(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=1.5, text="slow")
    daemon = daemons(fake_roots, pool="workers = 2")
    daemon.ows("b", do="text")
    with background() as clients:
        slow = clients.ows(daemon, "slow", do="text")
        settled(daemon, "slow.qgs", "loading")
        for _ in range(5):
            begun = time.monotonic()
            assert daemon.ows("b", do="text").body == b"other"
            assert time.monotonic() - begun < 0.5
        assert not slow.done()
        assert slow.result().body == b"slow"


def test_no_more_than_max_loads_load_at_once(daemons: Start, fake_roots: Path) -> None:
    names = [f"slow{number}" for number in range(4)]
    for name in names:
        write_fake_project(fake_roots / f"{name}.qgs", load_s=0.2, text=name)
    daemon = daemons(fake_roots, pool="max_loads = 1")
    most = 0
    with background() as clients:
        answers = [clients.ows(daemon, name, do="text") for name in names]
        while not all(answer.done() for answer in answers):
            generations = [one for row in daemon.projects().values() for one in row["generations"]]
            most = max(most, [one["state"] for one in generations].count("loading"))
        assert [answer.result().body.decode() for answer in answers] == names
    assert most == 1


def test_a_request_waits_for_a_load_no_longer_than_it_may(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=1, text="slow")
    daemon = daemons(fake_roots, pool="request_timeout_s = 0.4")
    begun = time.monotonic()
    answer = daemon.ows("slow", do="text", SERVICE="WFS", VERSION="1.1.0")
    assert time.monotonic() - begun < 0.9
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert b"<ExceptionReport" in answer.body
    # The load goes on, and whoever comes back finds it.
    settled(daemon, "slow.qgs", "serving")
    eventually(lambda: daemon.ows("slow", do="text").body == b"slow", timeout=3)
    assert state(daemon, "slow.qgs")["loads"] == 1


# loads that come to nothing


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"hang": 1}, "load_timeout_s"),
        ({"crash": 1}, "signal 11"),
        ({"fail": "layer tables missing"}, "layer tables missing"),
        ({}, "not a project"),
    ],
)
def test_a_project_that_does_not_load_is_422_for_all_who_wait(
    daemons: Start, fake_roots: Path, content: dict[str, object], error: str
) -> None:
    write_fake_project(fake_roots / "bad.qgs", **content)
    daemon = daemons(fake_roots, pool="load_timeout_s = 0.5")
    with background() as clients:
        answers = [clients.ows(daemon, "bad", do="text") for _ in range(5)]
        results = [answer.result() for answer in answers]
    for answer in results:
        assert answer.status == 422
        assert b"<ServiceExceptionReport" in answer.body
        assert answer.headers["X-Request-Id"].encode() in answer.body
        assert error.encode() not in answer.body
        assert str(fake_roots).encode() not in answer.body
    project = state(daemon, "bad.qgs")
    # A load whose process dies is tried once more, as a request would be.
    assert (project["state"], project["loads"]) == ("failed", 2 if "crash" in content else 1)
    assert error in project["error"]
    assert error in daemon.ctl("projects").stdout
    eventually(lambda: not named(daemon, "snapshot"))
    assert daemon.ows("a", do="text").body == b"hello"


def test_a_broken_project_is_not_loaded_for_each_request_and_picked_up_once_fixed(
    daemons: Start, fake_roots: Path
) -> None:
    bad = fake_roots / "bad.qgs"
    bad.write_text("<not a project>")
    daemon = daemons(fake_roots)
    statuses = {daemon.ows("bad", do="text").status for _ in range(20)}
    assert statuses == {422}
    assert state(daemon, "bad.qgs")["loads"] == 1
    write_fake_project(bad, text="fixed")
    begun = time.monotonic()
    eventually(lambda: daemon.ows("bad", do="text").body == b"fixed", timeout=3)
    assert time.monotonic() - begun < 0.9, "not by the change of the file but by the next attempt"
    project = state(daemon, "bad.qgs")
    assert (project["state"], project["error"]) == ("serving", "")


def test_a_broken_project_is_tried_again_later_and_ever_later(
    daemons: Start, fake_roots: Path
) -> None:
    (fake_roots / "bad.qgs").write_text("")
    daemon = daemons(fake_roots)
    begun = time.monotonic()

    def again() -> bool:
        assert daemon.ows("bad", do="text").status == 422
        return state(daemon, "bad.qgs")["loads"] == 2

    eventually(again, timeout=5)
    assert 0.9 < time.monotonic() - begun < 2.5
    over = time.monotonic() + 1.2
    while time.monotonic() < over:
        assert daemon.ows("bad", do="text").status == 422
    assert state(daemon, "bad.qgs")["loads"] == 2


# files that change


@pytest.mark.parametrize("backwards", [False, True])
def test_a_changed_file_is_a_new_generation(
    daemons: Start, fake_roots: Path, backwards: bool
) -> None:
    daemon = daemons(fake_roots)
    assert daemon.ows("a", do="text").body == b"hello"
    write_fake_project(fake_roots / "a.qgs", text="new text")
    if backwards:
        old(fake_roots / "a.qgs")
    eventually(lambda: daemon.ows("a", do="text").body == b"new text", timeout=3)
    eventually(lambda: len(state(daemon, "a.qgs")["generations"]) == 1)
    (generation,) = state(daemon, "a.qgs")["generations"]
    assert generation["number"] > 1
    assert generation["reason"] == "reload"
    assert state(daemon, "a.qgs")["loads"] == 2
    assert the(daemon, "snapshot")


def test_a_file_of_same_size_and_time_is_a_new_generation(daemons: Start, fake_roots: Path) -> None:
    old(fake_roots / "a.qgs")
    daemon = daemons(fake_roots)
    assert daemon.ows("a", do="text").body == b"hello"
    write_fake_project(fake_roots / "fresh.qgs", text="HELLO")
    old(fake_roots / "fresh.qgs")
    (fake_roots / "fresh.qgs").replace(fake_roots / "a.qgs")
    eventually(lambda: daemon.ows("a", do="text").body == b"HELLO", timeout=3)


def test_what_runs_finishes_on_the_generation_it_began_on(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    with background() as clients:
        before = clients.ows(daemon, "a", do="text", s=1)
        (pid,) = busy(daemon)
        write_fake_project(fake_roots / "a.qgs", text="new")
        eventually(lambda: daemon.ows("a", do="text").body == b"new", timeout=3)
        assert not before.done()
        assert before.result().body == b"hello"
    eventually(lambda: not alive(pid))


def test_a_file_that_changes_while_it_loads_is_loaded_anew(
    daemons: Start, fake_roots: Path
) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=1, text="old")
    daemon = daemons(fake_roots)
    with background() as clients:
        answer = clients.ows(daemon, "slow", do="text")
        eventually(lambda: named(daemon, "snapshot"))
        write_fake_project(fake_roots / "slow.qgs", text="new")
        assert (answer.result().status, answer.result().body) == (200, b"new")
    the(daemon, "snapshot")


def test_changes_under_load_lose_nothing(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    over = time.monotonic() + 2

    def client() -> list[Response]:
        answers = []
        while time.monotonic() < over:
            answers.append(daemon.ows("a", do="text", s=0.01))
        return answers

    with background() as clients:
        runs = [clients.run(client) for _ in range(4)]
        change = 0
        while time.monotonic() < over:
            change += 1
            write_fake_project(fake_roots / "a.qgs", text=f"hello {change}")
            time.sleep(0.25)  # the rate of changes, not a wait
        answers = [answer for run in runs for answer in run.result()]
    assert {answer.status for answer in answers} == {200}
    assert all(answer.body.startswith(b"hello") for answer in answers)
    assert len({answer.body for answer in answers}) > 2
    eventually(lambda: daemon.ows("a", do="text").body == f"hello {change}".encode(), timeout=3)
    eventually(lambda: len(state(daemon, "a.qgs")["generations"]) == 1)
    the(daemon, "snapshot")


@pytest.mark.parametrize(
    ("content", "error"),
    [({}, "not a project"), ({"crash": 1}, "signal 11"), ({"hang": 1}, "load_timeout_s")],
)
def test_a_file_replaced_by_a_broken_one_leaves_the_old_generation_serving(
    daemons: Start, fake_roots: Path, content: dict[str, object], error: str
) -> None:
    daemon = daemons(fake_roots, pool="load_timeout_s = 0.4")
    pid = daemon.ows("a", do="pid").body
    write_fake_project(fake_roots / "a.qgs", **content)
    stale = settled(daemon, "a.qgs", "stale")
    assert error in str(stale["error"])
    text = daemon.ctl("projects").stdout
    assert "stale" in text
    assert error in text
    assert daemon.ows("a", do="text").body == b"hello"
    assert daemon.ows("a", do="pid").body == pid
    # A worker of the old generation that dies is replaced as ever.
    os.kill(int(pid), signal.SIGKILL)
    assert daemon.ows("a", do="text").body == b"hello"
    write_fake_project(fake_roots / "a.qgs", text="mended")
    eventually(lambda: daemon.ows("a", do="text").body == b"mended", timeout=3)
    assert state(daemon, "a.qgs")["state"] == "serving"


def test_a_deleted_project_drains_and_is_gone_and_comes_back(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    with background() as clients:
        running = clients.ows(daemon, "a", do="text", s=0.8)
        busy(daemon)
        (fake_roots / "a.qgs").unlink()
        eventually(lambda: daemon.ows("a", do="text").status == 404, timeout=3)
        assert not running.done()
        assert (running.result().status, running.result().body) == (200, b"hello")
    eventually(lambda: "a.qgs" not in daemon.projects())
    eventually(lambda: len(daemon.pids()) == 1, timeout=3)  # the zygote
    write_fake_project(fake_roots / "a.qgs", text="back")
    assert daemon.ows("a", do="text").body == b"back"


def test_a_project_that_was_never_there_leaves_no_trace(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    answers = [daemon.ows(name, do="text") for name in ("no", "../a", "/etc/passwd", "a.qgz", "")]
    assert [answer.status for answer in answers] == [404, 404, 404, 404, 400]
    assert daemon.projects() == {}


# threads


def test_a_project_whose_threads_stay_is_loaded_by_each_worker(
    daemons: Start, fake_roots: Path
) -> None:
    write_fake_project(fake_roots / "threads.qgs", thread="stay", text="threads")
    daemon = daemons(fake_roots, pool="quiesce_s = 0.1")
    assert daemon.ows("threads", do="text").body == b"threads"
    (generation,) = state(daemon, "threads.qgs")["generations"]
    assert generation["mode"] == "loaded"
    assert "threads stay" in generation["why"]
    assert "threads stay" in daemon.ctl("projects").stdout
    eventually(lambda: not named(daemon, "snapshot"))
    with background() as clients:
        answer = clients.ows(daemon, "threads", do="text", s=0.5)
        (pid,) = busy(daemon)
        os.kill(pid, signal.SIGSEGV)
        assert (answer.result().status, answer.result().body) == (200, b"threads")
    project = state(daemon, "threads.qgs")
    assert (project["retried"], project["loads"]) == (1, 1)
    write_fake_project(fake_roots / "threads.qgs", thread="stay", text="changed")
    eventually(lambda: daemon.ows("threads", do="text").body == b"changed", timeout=5)


def test_threads_that_end_in_time_do_not_forbid_the_fork(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "threads.qgs", thread=0.3, text="threads")
    daemon = daemons(fake_roots, pool="quiesce_s = 5")
    assert daemon.ows("threads", do="text").body == b"threads"
    (generation,) = state(daemon, "threads.qgs")["generations"]
    assert (generation["mode"], generation["why"]) == ("forked", "")


def test_without_snapshots_each_worker_loads(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="snapshot = false")
    assert daemon.ows("a", do="text").body == b"hello"
    (generation,) = state(daemon, "a.qgs")["generations"]
    assert (generation["mode"], generation["why"]) == ("loaded", "pool.snapshot is false")


# pinned


def test_a_pinned_project_is_loaded_at_start_with_a_spare_worker(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="idle_worker_s = 0.2", projects='pinned = ["a"]')
    pid = idle(daemon)
    assert state(daemon, "a.qgs")["pinned"] is True
    assert state(daemon, "a.qgs")["requests"] == 0
    assert daemon.ows("a", do="pid").body == str(pid).encode()
    daemon.ows("b", do="text")
    # What is not pinned loses its idle workers; the spare one stays.
    eventually(lambda: [row["project"] for row in daemon.workers()] == ["a.qgs"], timeout=3)
    assert daemon.ows("a", do="pid").body == str(pid).encode()
    os.kill(pid, signal.SIGKILL)
    assert idle(daemon, other_than=pid, timeout=2)


def test_only_loaded_projects_are_served_without_on_demand(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, projects='pinned = ["a"]\non_demand = false')
    assert daemon.ows("a", do="text").body == b"hello"
    refused = daemon.ows("b", do="text", SERVICE="WMS")
    assert refused.status == 404
    assert b"<ServiceExceptionReport" in refused.body
    assert daemon.ctl("load", "b").returncode == 0
    assert daemon.ows("b", do="text").body == b"other"


def test_a_pinned_project_that_is_missing_does_not_stop_the_daemon(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, projects='pinned = ["missing", "a"]')
    assert daemon.ows("a", do="text").body == b"hello"
    assert state(daemon, "a.qgs")["pinned"] is True
    assert "missing" in daemon.log()


def test_a_pinned_project_that_is_broken_is_loaded_once_it_is_mended(
    daemons: Start, fake_roots: Path
) -> None:
    (fake_roots / "bad.qgs").write_text("")
    daemon = daemons(fake_roots, projects='pinned = ["bad"]', wait=False)

    def up() -> bool:
        try:
            return daemon.get("/healthz").status == 200
        except OSError:
            return False

    eventually(up)
    settled(daemon, "bad.qgs", "failed")
    ready = daemon.get("/readyz")
    assert ready.status == 503
    assert "bad.qgs" in ready.json()["missing"][0]
    assert daemon.ows("a", do="text").body == b"hello"
    write_fake_project(fake_roots / "bad.qgs", text="mended")
    eventually(daemon.ready, timeout=3)
    assert state(daemon, "bad.qgs")["requests"] == 0


# snapshots and zygotes that die


def test_a_snapshot_that_dies_is_replaced_while_its_workers_go_on(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    with background() as clients:
        running = clients.ows(daemon, "a", do="text", s=0.6)
        busy(daemon)
        os.kill(the(daemon, "snapshot"), signal.SIGKILL)
        assert daemon.ows("a", do="text").body == b"hello"
        assert (running.result().status, running.result().body) == (200, b"hello")

    def reasons() -> list[str]:
        return [one["reason"] for one in state(daemon, "a.qgs")["generations"]]

    eventually(lambda: reasons() == ["crash"])
    assert daemon.ows("a", do="text").body == b"hello"
    project = state(daemon, "a.qgs")
    assert (project["errors"], project["state"]) == (0, "serving")


def test_requests_that_need_a_worker_of_a_snapshot_that_just_died_are_answered(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    daemon.ows("a", do="text")
    snapshot = the(daemon, "snapshot")
    with Raw(daemon) as one, Raw(daemon) as two, Raw(daemon) as three:
        clients = (one, two, three)
        for client in clients:
            client.get(path("a", do="text"))
            client.until(b"hello")
        with frozen(daemon):
            # One worker is idle; the other requests need forks, and it is too late for them.
            for client in clients:
                client.get(path("a", do="text", s=0.2), headers="Connection: close\r\n")
            os.kill(snapshot, signal.SIGKILL)
        answers = [client.rest()[0] for client in clients]
    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * 3
    assert all(answer.endswith(b"hello") for answer in answers)


def test_a_zygote_that_dies_is_replaced_while_serving_goes_on(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    pid = daemon.ows("a", do="pid").body
    zygote = the(daemon, "zygote")
    os.kill(zygote, signal.SIGKILL)
    eventually(lambda: daemon.get("/readyz").status == 503, timeout=2)
    assert daemon.ows("a", do="pid").body == pid
    # Forks of the snapshot need no zygote either.
    os.kill(int(pid), signal.SIGKILL)
    assert daemon.ows("a", do="text").body == b"hello"
    # A load waits for the new one.
    assert daemon.ows("b", do="text").body == b"other"
    assert the(daemon, "zygote") != zygote
    assert daemon.ready()
    for name in ("a", "b"):
        assert state(daemon, f"{name}.qgs")["errors"] == 0


def test_a_load_under_way_survives_its_zygote(daemons: Start, fake_roots: Path) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=0.8, text="slow")
    daemon = daemons(fake_roots)
    with background() as clients:
        answer = clients.ows(daemon, "slow", do="text")
        the(daemon, "snapshot")
        os.kill(the(daemon, "zygote"), signal.SIGKILL)
        assert (answer.result().status, answer.result().body) == (200, b"slow")
    assert state(daemon, "slow.qgs")["loads"] == 1


def test_a_load_that_the_zygote_did_not_begin_is_begun_by_the_next(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    zygote = the(daemon, "zygote")
    os.kill(zygote, signal.SIGSTOP)
    with background() as clients:
        answers = [clients.ows(daemon, name, do="text") for name in "aabb"]
        eventually(lambda: len(daemon.projects()) == 2)
        os.kill(zygote, signal.SIGKILL)
        results = [(answer.result().status, answer.result().body) for answer in answers]
    assert results == [(200, b"hello")] * 2 + [(200, b"other")] * 2


def test_a_load_ordered_from_a_zygote_that_just_died_is_begun_by_the_next(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    zygote = the(daemon, "zygote")
    with Raw(daemon) as client:
        client.get(path("a", do="text"))
        client.until(b"hello")
        daemon.api("DELETE", "/api/v1/projects/a")
        eventually(lambda: not daemon.projects())
        with frozen(daemon):
            client.get(path("a", do="text"))
            os.kill(zygote, signal.SIGKILL)
        client.until(b"hello")
    assert state(daemon, "a.qgs")["errors"] == 0


def test_workers_that_load_themselves_survive_the_death_of_the_zygote(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="snapshot = false")
    with Raw(daemon) as client, Raw(daemon) as second:
        for one in (client, second):
            one.get(path("a", do="text"))
            one.until(b"hello")
        zygote = the(daemon, "zygote")
        with frozen(daemon):
            client.get(path("a", do="text", s=0.2))
            second.get(path("a", do="text", s=0.2))
            os.kill(zygote, signal.SIGKILL)
        for one in (client, second):
            head = one.until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            one.until(b"hello")
    project = state(daemon, "a.qgs")
    assert (project["state"], project["errors"]) == ("serving", 0)
    assert daemon.ows("b", do="text").body == b"other"


def test_a_zygote_that_dies_again_and_again_comes_back(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="backoff_limit_s = 0.2")
    daemon.ows("a", do="text")
    for _ in range(3):
        zygote = the(daemon, "zygote")
        os.kill(zygote, signal.SIGKILL)
        eventually(lambda zygote=zygote: the(daemon, "zygote") != zygote, timeout=5)
        eventually(daemon.ready, timeout=5)
        assert daemon.ows("a", do="text").body == b"hello"
    write_fake_project(fake_roots / "c.qgs", text="late")
    assert daemon.ows("c", do="text").body == b"late"


def test_a_snapshot_killed_while_it_loads_costs_nobody_an_answer(
    daemons: Start, fake_roots: Path
) -> None:
    write_fake_project(fake_roots / "slow.qgs", load_s=1, text="slow")
    daemon = daemons(fake_roots, pool="backoff_limit_s = 0.2")
    with background() as clients:
        answer = clients.ows(daemon, "slow", do="text")
        os.kill(the(daemon, "snapshot"), signal.SIGKILL)
        assert answer.result().body == b"slow"
    assert state(daemon, "slow.qgs")["loads"] == 2


@pytest.mark.parametrize("trouble", ["boot_hang", "boot_crash"])
def test_workers_that_never_come_up_fail_the_project_and_no_other(
    daemons: Start, fake_roots: Path, trouble: str
) -> None:
    daemon = daemons(fake_roots, pool="boot_timeout_s = 0.3")
    write_fake_project(fake_roots / "lame.qgs", **{trouble: 1})
    answer = daemon.ows("lame", do="text", SERVICE="WMS")
    assert answer.status == 422 and b"ServiceException" in answer.body
    project = daemon.projects()["lame.qgs"]
    assert project["ended"]["boot"] == 3
    assert "its workers do not start" in project["error"]
    assert daemon.ows("a", do="text").body == b"hello"


def test_a_new_generation_whose_workers_never_come_up_leaves_the_old_one_serving(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="boot_timeout_s = 0.3")
    assert daemon.ows("a", do="text").body == b"hello"
    write_fake_project(fake_roots / "a.qgs", text="new", boot_hang=1)
    eventually(lambda: daemon.projects()["a.qgs"]["state"] == "stale", timeout=5)
    assert daemon.ows("a", do="text").body == b"hello"


# the restart file


def test_each_touch_of_the_restart_file_is_followed_by_a_reload(
    daemons: Start, fake_roots: Path, tmp_path: Path
) -> None:
    """Also one that comes while a reload is under way: that may have read what was before it."""
    touched = tmp_path / "restart"
    touched.touch()
    daemon = daemons(
        fake_roots,
        pool=f'restart_file = "{touched}"',
        environment={"QGISD_FAKE_START": "1"},
    )
    assert daemon.ows("a", do="text").status == 200

    def is_up(number: int) -> bool:
        return f"zygote {number} is up" in daemon.log()

    old(touched)
    eventually(lambda: "was touched" in daemon.log())
    assert not is_up(2), "under way"
    touched.touch()
    eventually(lambda: is_up(3), timeout=20)
    assert daemon.log().count("was touched") == 2
    # A file that is taken away is not touched.
    touched.unlink()
    write_fake_project(fake_roots / "a.qgs", text="changed")
    eventually(lambda: daemon.ows("a", do="text").body == b"changed")
    assert daemon.log().count("was touched") == 2 and not is_up(4)
