"""Behind the real nginx with the shipped etc/nginx/qgisd.conf: what it passes on and what it must
not, and that nothing is lost when either of the two is reloaded or restarted under load.
"""

import base64
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.nginx import Nginx, nginx
from tests.process.test_systemd import activated, has_served
from tests.process.tools import TRANSACTION, XML, Raw, background, busy, path
from tests.support import Daemon, eventually, marked, start_daemon, write_fake_project

Start = Callable[..., Daemon]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of daemon and nginx, with projects."""
    folder = tmp_path_factory.mktemp("behind")
    write_fake_project(folder / "projects" / "a.qgs", text="hello")
    (folder / "nginx").mkdir()
    return folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Daemon]:
    """One for all that do not restart it."""
    daemon = start_daemon(folder / "daemon", folder / "projects", pool="workers = 2\nqueue = 1")
    yield daemon
    assert daemon.stop() == 0
    eventually(lambda: not marked(daemon.mark), timeout=5)


@pytest.fixture(scope="module")
def proxy(folder: Path, daemon: Daemon) -> Iterator[Nginx]:
    with nginx(folder / "nginx", daemon.listen) as running:
        yield running


@pytest.fixture(scope="module")
def front(daemon: Daemon, proxy: Nginx) -> Daemon:
    """The daemon as clients see it."""
    return proxy.front(daemon)


def test_what_qgisd_is_told_is_the_truth(front: Daemon, proxy: Nginx) -> None:
    forged = {
        "X-Forwarded-Host": "evil.example.org",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/evil",
        "X-Forwarded-Port": "666",
        "X-Forwarded-For": "6.6.6.6",
        "Forwarded": "host=evil.example.org",
        "X-Request-Id": "evil",
        "X-Qgis-Project": "evil",
        "X-Qgis-Service-Url": "http://evil.example.org",
        "X-Qgis-WMS-Service-Url": "http://evil.example.org",
        "X-Lizmap-User": "evil",
        "X-Lizmap-User-Groups": "evil",
        "X-Lizmap-Override-Filter": "evil",
    }
    answer = front.get(path("a", do="show"), headers=forged)
    assert (answer.status, b"evil" in answer.body) == (200, False)
    seen = answer.json()
    # The port that the client used is part of it.
    assert seen["url"] == f"http://{proxy.at}/ows/?MAP=a&do=show"
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert not any(name.startswith("x-qgis") for name in headers)
    # To Lizmap's plugin they are nobody, which is less than not being asked.
    lizmap = {name: value for name, value in headers.items() if "lizmap" in name}
    assert lizmap == {"x-lizmap-user": "", "x-lizmap-user-groups": ""}
    assert dict(seen["headers"])["X-Forwarded-For"] == "127.0.0.1"


def test_nobody_says_who_they_are_in_parameters(front: Daemon) -> None:
    for name in ("LIZMAP_USER", "%4CIZMAP_USER", "lizmap_user_groups"):
        for seen in (
            front.get(path("a", do="show") + f"&{name}=evil"),
            front.request("POST", "/ows/", f"MAP=a&do=show&{name}=evil".encode(), FORM),
        ):
            assert (seen.status, b"evil" in seen.body) == (200, False)
    body = TRANSACTION.replace(b"/>", b"><!-- LIZMAP_USER=evil --></wfs:Transaction>")
    assert front.request("POST", path("a", do="show"), body, XML).status == 400
    assert front.get("/ows/?do=show", headers={"X-Qgis-Project": "a"}).status == 400


def test_one_id_is_in_the_answer_and_in_both_logs(
    front: Daemon, daemon: Daemon, proxy: Nginx
) -> None:
    answer = front.get(path("a", do="text"))
    identity = answer.headers["X-Request-Id"]
    assert len(identity) == 32
    eventually(lambda: identity in daemon.log())
    eventually(lambda: f'{identity} "GET /ows/?MAP=a&do=text HTTP/1.1" 200' in proxy.log())
    other = front.get(path("missing"))
    assert other.status == 404
    assert other.headers["X-Request-Id"].encode() in other.body


def test_the_admin_side_is_not_there(front: Daemon, tmp_path: Path) -> None:
    targets = ("/api/v1/stats", "/api/v1/reload", "/metrics", "/ui/", "/ui")
    assert front.get("/api/v1/stats", admin=True).status == 200
    # Nor would it be, if somebody pointed the upstream at its socket.
    with nginx(tmp_path, front.admin) as wrong:
        for server in (front, wrong.front(front)):
            assert server.get("/healthz").status == 200
            for target in targets:
                for method in ("GET", "POST"):
                    assert server.request(method, target).status == 404, (method, target)


def test_health_and_readiness_come_through(front: Daemon) -> None:
    assert front.get("/healthz").status == front.get("/readyz").status == 200


@pytest.mark.parametrize("trick", ["crash&after=head", "break"])
def test_an_answer_that_is_cut_stays_an_error(front: Daemon, proxy: Nginx, trick: str) -> None:
    done = subprocess.run(
        ["curl", "-sS", "-m", "20", f"http://{proxy.at}/ows/?MAP=a&do={trick}"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (18, 52, 56), done
    assert front.get(path("a", do="text")).status == 200


def test_a_large_answer_for_a_slow_client_comes_whole(front: Daemon) -> None:
    with Raw(front, buffer=4096) as slow:
        slow.get(path("a", do="chunks", n=8, size=1 << 20), headers="Connection: close\r\n")
        head = slow.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        body, end = slow.rest()
    assert (end, body.endswith(b"0\r\n\r\n")) == ("closed", True)
    assert body.count(b"H") >= 1 << 20


def test_limits_are_those_of_qgisd(front: Daemon) -> None:
    target = path("a", do="echo")
    document = TRANSACTION + b" " * ((15 << 20) - len(TRANSACTION))
    assert front.request("POST", target, document, XML).body == document
    assert front.request("POST", target, document + b" " * (2 << 20), XML).status == 413
    # A URL that qgisd takes, nginx takes; for one that is too long both have the same answer.
    assert front.get(f"/ows/p/a?do=text&x={'y' * 60_000}").status == 200
    assert front.get(f"/ows/p/a?do=text&x={'y' * 70_000}").status == 414


def test_a_503_is_an_answer_and_takes_nothing_out(front: Daemon, daemon: Daemon) -> None:
    with background() as clients:
        running = [clients.ows(daemon, "a", do="text", s=1.5) for _ in range(2)]
        busy(daemon, 1)  # of one project, workers - 1
        eventually(lambda: daemon.api("GET", "/api/v1/stats")[0]["queued"] == 1)
        refused = [front.ows("a", do="text") for _ in range(5)]
        assert {answer.status for answer in refused} == {503}
        assert all(answer.headers["Retry-After"] for answer in refused)
        assert {front.get("/healthz").status for _ in range(5)} == {200}
        assert [answer.result().status for answer in running] == [200, 200]
    # Nothing was taken out for the ten seconds that are nginx's default.
    assert {front.ows("a", do="text").status for _ in range(5)} == {200}


class Load:
    """Clients that ask all the time, until `stop`; a fifth of it posts."""

    def __init__(self, front: Daemon, clients: int = 5) -> None:
        self._over = threading.Event()
        self._front = front
        self._background = background()
        started = self._background.__enter__()
        self._runs = [started.run(self._client, number == 0) for number in range(clients)]

    def _client(self, post: bool) -> list[Any]:
        outcomes: list[Any] = []
        while not self._over.is_set():
            target = path("a", do="text", s=0.01)
            try:
                answer = (
                    self._front.request("POST", target, TRANSACTION, XML)
                    if post
                    else self._front.get(target)
                )
            except OSError as error:
                outcomes.append(repr(error))
            else:
                good = answer.complete and answer.body == b"hello"
                outcomes.append("good" if good else (answer.status, answer.body))
        return outcomes

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._background.__exit__(None, None, None)

    def outcomes(self) -> list[Any]:
        """All of them, after the end."""
        return [outcome for run in self._runs for outcome in run.result()]


def test_reloads_of_nginx_and_of_qgisd_and_restarts_lose_nothing(
    daemons: Start, fake_roots: Path, tmp_path: Path
) -> None:
    place = tmp_path / "nginx"
    place.mkdir()
    with closing(socket.socket(socket.AF_UNIX)) as owned, ExitStack() as stack:
        owned.bind(str(tmp_path / "public"))
        owned.listen(4096)

        def start() -> Daemon:
            return daemons(
                fake_roots, listen=f"unix:{tmp_path}/public", wait=False, **activated("http", owned)
            )

        current = start()
        eventually(current.ready)
        proxy = stack.enter_context(nginx(place, f"unix:{tmp_path}/public"))
        with Load(proxy.front(current)) as load:
            eventually(partial(has_served, current, 30))
            for _ in range(2):
                proxy.reload()
            done = current.ctl("reload")
            assert done.returncode == 0, done.stdout + done.stderr
            for _ in range(2):
                before = len(proxy.log().splitlines())
                assert current.stop() == 0
                current = start()
                eventually(partial(has_served, current, 30))
                assert len(proxy.log().splitlines()) > before
        outcomes = load.outcomes()
    assert [outcome for outcome in outcomes if outcome != "good"] == []
    assert len(outcomes) > 90


def test_the_cache_keeps_the_answers_of_people_apart(daemon: Daemon, tmp_path: Path) -> None:
    def login(name: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"{name}:x".encode()).decode()}

    with nginx(tmp_path, daemon.listen, cache=True) as cached:
        front = cached.front(daemon)
        target = path("a", do="show")
        ann = front.get(target, headers=login("ann"))
        assert ann.headers["X-Cache"] == "MISS"
        again = front.get(target, headers=login("ann"))
        assert (again.headers["X-Cache"], again.body) == ("HIT", ann.body)
        for headers in (
            login("bob"),
            {},
            {"Cookie": "session=1"},
            {"Cookie": "session=2"},
            # An API of OGC answers as JSON or HTML, by this.
            {"Accept": "text/html"},
            {"Accept": "application/json"},
        ):
            other = front.get(target, headers=headers)
            assert (other.headers["X-Cache"], other.body == ann.body) == ("MISS", False)
        # What is no map of now is not kept.
        for _ in range(2):
            missing = front.get(path("missing"))
            assert (missing.status, missing.headers["X-Cache"]) == (404, "MISS")
