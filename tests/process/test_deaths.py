"""Workers die in every way there is; requests are answered rightly all the same."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.tools import (
    GET_FEATURE,
    TRANSACTION,
    XML,
    Raw,
    background,
    busy,
    idle,
    path,
    state,
)
from tests.support import Daemon, Response, eventually, free_port, write_fake_project

Start = Callable[..., Daemon]
LIMITS = (
    "request_timeout_s = 1\nstream_timeout_s = 1\nping_interval_s = 0.2\nping_timeout_s = 0.3\n"
    "workers = 4\nbreaker_failures = 1000\n"
)
WMS = {"SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetMap"}


@pytest.fixture
def daemon(daemons: Start, fake_roots: Path) -> Daemon:
    """One with short deadlines and a worker of project a."""
    started = daemons(fake_roots, pool=LIMITS)
    assert started.ows("a", do="text").body == b"hello"
    return started


def assert_serves(daemon: Daemon, within: float = 0.9) -> None:
    """Project a is answered rightly, and soon."""
    begun = time.monotonic()
    answer = daemon.ows("a", do="text")
    assert (answer.status, answer.body) == (200, b"hello")
    assert time.monotonic() - begun < within


def assert_at_rest(daemon: Daemon) -> None:
    """No request is counted that is not there, and no worker is left that does not serve."""
    eventually(lambda: all(row["state"] == "idle" for row in daemon.workers()), timeout=3)
    (pool,) = daemon.api("GET", "/api/v1/stats")
    assert (pool["busy"], pool["queued"]) == (0, 0)


# before the head


def test_a_request_whose_worker_crashes_is_answered_by_another(daemon: Daemon) -> None:
    with background() as clients:
        answer = clients.ows(daemon, "a", do="text", s=0.4)
        (pid,) = busy(daemon)
        os.kill(pid, signal.SIGSEGV)
        assert (answer.result().status, answer.result().body) == (200, b"hello")
    project = state(daemon, "a.qgs")
    assert (project["retried"], project["errors"], project["ended"]) == (1, 0, {"crash": 1})
    assert "signal 11" in daemon.log()
    assert_at_rest(daemon)


def test_a_read_by_post_is_repeated_with_its_body(daemon: Daemon) -> None:
    # Stopped and then killed, the worker has certainly not answered.
    with background() as clients:
        (pid,) = [row["pid"] for row in daemon.workers()]
        os.kill(pid, signal.SIGSTOP)
        target = path("a", do="echo")
        answer = clients.run(daemon.request, "POST", target, GET_FEATURE, XML)
        eventually(lambda: [row for row in daemon.workers() if row["state"] == "busy"])
        os.kill(pid, signal.SIGKILL)
        assert (answer.result().status, answer.result().body) == (200, GET_FEATURE)
    assert state(daemon, "a.qgs")["retried"] == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_request_that_crashes_two_workers_is_refused(daemon: Daemon, number: int) -> None:
    answer = daemon.ows("a", do="crash", signal=int(number), **WMS)
    assert answer.status == 502
    assert answer.headers["Content-Type"].startswith("text/xml")
    assert b"<ServiceExceptionReport" in answer.body
    assert answer.headers["X-Request-Id"].encode() in answer.body
    project = state(daemon, "a.qgs")
    assert (project["retried"], project["errors"], project["ended"]) == (1, 1, {"crash": 2})
    assert_serves(daemon)


def test_a_write_is_not_repeated(daemon: Daemon) -> None:
    answer = daemon.request("POST", path("a", do="crash"), TRANSACTION, XML)
    assert answer.status == 502
    assert b"<ExceptionReport" in answer.body
    project = state(daemon, "a.qgs")
    assert (project["retried"], project["ended"]) == (0, {"crash": 1})
    assert_serves(daemon)


def test_a_worker_that_leaves_politely_in_the_middle_is_lost_all_the_same(daemon: Daemon) -> None:
    assert daemon.ows("a", do="exit", code=0).status == 502
    assert state(daemon, "a.qgs")["ended"] == {"crash": 2}
    assert "exit code 0" in daemon.log()
    assert_serves(daemon)


def test_a_worker_that_talks_nonsense_is_killed(daemon: Daemon) -> None:
    begun = time.monotonic()
    assert daemon.ows("a", do="garbage").status == 502
    assert time.monotonic() - begun < 0.9, "found by its deadline only"
    assert state(daemon, "a.qgs")["ended"] == {"crash": 2}
    assert_serves(daemon)


def test_a_crash_does_not_touch_the_request_beside_it(daemon: Daemon) -> None:
    with background() as clients:
        beside = clients.ows(daemon, "a", do="text", s=0.5)
        busy(daemon)
        assert daemon.ows("a", do="crash").status == 502
        assert (beside.result().status, beside.result().body) == (200, b"hello")
    assert_at_rest(daemon)


def test_many_crashes_at_once_leave_a_pool_at_rest(daemon: Daemon) -> None:
    with background() as clients:
        answers = [clients.ows(daemon, "a", do="crash", timeout=20) for _ in range(12)]
        statuses = [answer.result().status for answer in answers]
    # Those for whom the second was not long enough were told to come back.
    assert set(statuses) <= {502, 503}
    assert statuses.count(502) >= 6
    assert_serves(daemon)
    assert_at_rest(daemon)


def test_workers_killed_at_random_cost_no_wrong_answer(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="request_timeout_s = 10\nbreaker_failures = 1000")
    daemon.ows("a", do="text")
    over = time.monotonic() + 2
    killed = 0

    def client(number: int) -> list[Response]:
        answers = []
        while time.monotonic() < over:
            answers.append(daemon.ows("ab"[number % 2], do="text", s=0.03))
        return answers

    with background() as clients:
        runs = [clients.run(client, number) for number in range(6)]
        dice = random.Random(1)
        while time.monotonic() < over:
            rows = daemon.workers()
            if rows:
                pid = dice.choice(rows)["pid"]
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(0.08)  # the rate of killing, not a wait
        answers = [(number, one) for number, run in enumerate(runs) for one in run.result()]
    assert killed > 3
    good = {0: b"hello", 1: b"other"}
    assert {one.status for _, one in answers} <= {200, 502}
    right = [one for number, one in answers if one.status == 200 and one.body == good[number % 2]]
    assert len(right) == sum(one.status == 200 for _, one in answers)
    assert len(right) > len(answers) * 0.8
    assert_at_rest(daemon)


# after the head


def test_an_answer_whose_worker_crashes_is_cut_and_not_ended(daemon: Daemon) -> None:
    answer = daemon.ows("a", do="crash", after="head")
    assert answer.status == 200
    assert not answer.complete
    with Raw(daemon) as client:
        client.get(path("a", do="crash", after="head"))
        client.until(b"\r\n\r\n")
        body, _ = client.rest()
    assert body == b"a\r\nhalf of it\r\n", "or an end that looks like one"
    project = state(daemon, "a.qgs")
    assert (project["retried"], project["ended"]) == (0, {"crash": 2})
    assert_serves(daemon)


@pytest.mark.parametrize("trick", [{"do": "crash", "after": "head"}, {"do": "break"}])
def test_over_tcp_a_cut_is_a_reset(daemons: Start, fake_roots: Path, trick: dict[str, str]) -> None:
    daemon = daemons(fake_roots, pool=LIMITS, listen=f"127.0.0.1:{free_port()}")
    with Raw(daemon) as client:
        client.get(path("a", **trick))
        head_and_body, ending = client.rest()
    assert ending == "reset"
    assert not head_and_body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("trick", [{"do": "crash", "after": "head"}, {"do": "break"}])
def test_to_http_1_0_a_broken_answer_is_an_error_and_no_half(
    daemon: Daemon, trick: dict[str, str]
) -> None:
    """It ends what has no length by closing, as a cut would: nothing is sent before all is here."""
    with Raw(daemon) as client:
        client.get(path("a", **trick), "1.0")
        data, _ = client.rest()
    assert data.startswith((b"HTTP/1.1 502 ", b"HTTP/1.0 502 "))
    assert b"half of it" not in data


def test_an_answer_that_breaks_is_cut_and_its_worker_stays(daemon: Daemon) -> None:
    pid = daemon.ows("a", do="pid").body
    answer = daemon.ows("a", do="break")
    assert (answer.status, answer.complete) == (200, False)
    assert daemon.ows("a", do="pid").body == pid
    assert state(daemon, "a.qgs")["errors"] == 1


def test_an_answer_that_stops_half_way_is_cut_after_stream_timeout(daemon: Daemon) -> None:
    begun = time.monotonic()
    answer = daemon.ows("a", do="chunks", n=2, pause=5)
    assert (answer.status, answer.complete) == (200, False)
    assert 0.9 < time.monotonic() - begun < 2
    eventually(lambda: state(daemon, "a.qgs")["ended"] == {"deadline": 1}, timeout=2)
    assert_serves(daemon)


def test_an_answer_that_is_slow_but_moves_is_not_cut(daemon: Daemon) -> None:
    answer = daemon.ows("a", do="chunks", n=5, size=2, pause=0.4)
    assert (answer.status, answer.body, answer.complete) == (200, b"AABBCCDDEE", True)


# workers at rest


def test_a_worker_killed_at_rest_is_replaced_at_once(daemon: Daemon) -> None:
    pid = idle(daemon)
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    fresh = idle(daemon, other_than=pid, timeout=2)
    assert time.monotonic() - begun < 0.5
    assert daemon.ows("a", do="pid").body == str(fresh).encode()
    assert state(daemon, "a.qgs")["ended"] == {"crash": 1}


def test_a_worker_stopped_at_rest_is_found_by_ping(daemon: Daemon) -> None:
    pid = idle(daemon)
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: state(daemon, "a.qgs")["ended"] == {"ping": 1}, timeout=3)
    idle(daemon, other_than=pid, timeout=1)
    assert_serves(daemon)


def test_workers_at_rest_answer_their_pings(daemon: Daemon) -> None:
    pid = idle(daemon)
    age = next(row["age_s"] for row in daemon.workers())
    # Some pings later it is the same one.
    eventually(lambda: daemon.workers()[0]["age_s"] > age + 1.2)
    assert daemon.ows("a", do="pid").body == str(pid).encode()
    assert state(daemon, "a.qgs")["ended"] == {}


def test_a_request_to_a_worker_stopped_at_rest_ends_by_its_deadline(daemon: Daemon) -> None:
    os.kill(idle(daemon), signal.SIGSTOP)
    assert daemon.ows("a", do="text").status == 504
    assert_serves(daemon)


# deadlines


@pytest.mark.parametrize("trick", ["hang", "stubborn", "stop"])
def test_a_worker_that_does_not_answer_is_killed_by_the_deadline(
    daemon: Daemon, trick: str
) -> None:
    begun = time.monotonic()
    answer = daemon.ows("a", do=trick, **WMS)
    assert 0.9 < time.monotonic() - begun < 1.9
    assert answer.status == 504
    assert b"<ServiceExceptionReport" in answer.body
    assert answer.headers["X-Request-Id"].encode() in answer.body
    assert_serves(daemon)
    eventually(lambda: state(daemon, "a.qgs")["ended"] == {"deadline": 1}, timeout=2)
    assert state(daemon, "a.qgs")["retried"] == 0
    assert_at_rest(daemon)


def test_prints_have_a_deadline_of_their_own(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="request_timeout_s = 0.4\nprint_timeout_s = 20")
    daemon.ows("a", do="text")
    assert daemon.ows("a", do="text", s=0.8, SERVICE="WMS", REQUEST="GetPrint").status == 200
    assert daemon.ows("a", do="text", s=0.8, SERVICE="WMS", REQUEST="GetMap").status == 504


def test_while_one_hangs_the_others_are_served(daemon: Daemon) -> None:
    with background() as clients:
        hanging = clients.ows(daemon, "a", do="hang")
        busy(daemon)
        for _ in range(5):
            assert_serves(daemon)
        assert hanging.result().status == 504


# the breaker


def test_a_project_whose_workers_fail_again_and_again_is_refused_for_a_while(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="breaker_failures = 2\nbreaker_pause_s = 2")
    daemon.ows("b", do="text")
    assert [daemon.ows("a", do="crash").status for _ in range(2)] == [502, 502]
    refused = daemon.ows("a", do="text", **WMS)
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) in (1, 2)
    assert b"<ServiceExceptionReport" in refused.body
    assert daemon.ows("b", do="text").status == 200
    assert eventually(lambda: daemon.ows("a", do="text").status == 200, timeout=5)
    assert [daemon.ows("a", do="text").status for _ in range(5)] == [200] * 5
    assert "the breaker closed" in daemon.log()


def test_a_probe_that_fails_keeps_the_breaker_open(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="breaker_failures = 1\nbreaker_pause_s = 1")
    assert daemon.ows("a", do="crash").status == 502
    assert daemon.ows("a", do="text").status == 503
    eventually(lambda: daemon.ows("a", do="crash").status == 502, timeout=5)
    assert daemon.ows("a", do="text").status == 503
    eventually(lambda: daemon.ows("a", do="text").status == 200, timeout=8)


def test_a_few_failures_among_many_good_answers_refuse_nobody(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="breaker_failures = 2")
    for _ in range(3):
        assert [daemon.ows("a", do="text").status for _ in range(3)] == [200] * 3
        assert daemon.ows("a", do="crash").status == 502
    assert daemon.ows("a", do="text").status == 200


def test_a_changed_file_closes_the_breaker(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="breaker_failures = 1\nbreaker_pause_s = 60")
    assert daemon.ows("a", do="crash").status == 502
    assert daemon.ows("a", do="text").status == 503
    write_fake_project(fake_roots / "a.qgs", text="mended")
    eventually(lambda: daemon.ows("a", do="text").body == b"mended", timeout=5)
