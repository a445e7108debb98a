"""What is too much is refused at once, in the form of the protocol, and costs nobody else."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from tests.process.tools import GET_FEATURE, XML, Raw, background, busy, path, state
from tests.support import Daemon, Response, eventually

Start = Callable[..., Daemon]


def queued(daemon: Daemon, project: str, count: int) -> None:
    """Wait until so many requests of the project wait."""
    eventually(lambda: daemon.projects().get(project, {}).get("queued") == count)


# queues


#: What is asked for → the element that tells of an error.
PROTOCOLS = [
    ({"SERVICE": "WMS", "VERSION": "1.3.0"}, "{http://www.opengis.net/ogc}ServiceException"),
    ({"SERVICE": "WMS", "VERSION": "1.1.1"}, "ServiceException"),
    ({"SERVICE": "WFS", "VERSION": "1.0.0"}, "{http://www.opengis.net/ogc}ServiceException"),
    ({"SERVICE": "WFS", "VERSION": "1.1.0"}, "{http://www.opengis.net/ows}Exception"),
    ({"SERVICE": "WCS", "VERSION": "1.0.0"}, "{http://www.opengis.net/ows}Exception"),
    ({"SERVICE": "WMTS", "VERSION": "1.0.0"}, "{http://www.opengis.net/ows/1.1}Exception"),
]


def test_a_full_queue_is_said_at_once_and_in_the_protocol_of_the_asker(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="workers = 1\nproject_queue = 2")
    daemon.ows("a", do="text")
    with background() as clients:
        running = [clients.ows(daemon, "a", do="text", s=1.5)]
        busy(daemon)
        running += [clients.ows(daemon, "a", do="text") for _ in range(2)]
        queued(daemon, "a.qgs", 2)
        begun = time.monotonic()
        answers = [daemon.ows("a", do="text", **asked) for asked, _ in PROTOCOLS]
        assert time.monotonic() - begun < 1
        assert not running[0].done()
        assert [answer.result().body for answer in running] == [b"hello"] * 3
    for refused, (_, root) in zip(answers, PROTOCOLS, strict=True):
        assert refused.status == 503
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert ElementTree.fromstring(refused.body)[0].tag == root
        assert refused.headers["X-Request-Id"].encode() in refused.body


def test_a_full_queue_is_json_to_an_api(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="workers = 1\nproject_queue = 1")
    daemon.ows("a", do="text")
    with background() as clients:
        running = clients.ows(daemon, "a", do="text", s=0.4)
        busy(daemon)
        waiting = clients.ows(daemon, "a", do="text")
        queued(daemon, "a.qgs", 1)
        refused = daemon.get("/wfs3/collections?MAP=a&do=text")
        assert {running.result().status, waiting.result().status} == {200}
    assert refused.status == 503
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.json()["status"] == 503
    assert refused.headers["X-Request-Id"] in refused.json()["instance"]


def test_the_queue_of_one_project_does_not_fill_that_of_another(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, pool="workers = 2\nproject_queue = 1\nrequest_timeout_s = 1")
    daemon.ows("a", do="text")
    daemon.ows("b", do="text")
    with background() as clients:
        hanging = clients.ows(daemon, "a", do="hang")
        busy(daemon)
        # As a print it may wait for longer than the other may hang.
        waiting = clients.ows(daemon, "a", do="text", SERVICE="WMS", REQUEST="GetPrint")
        queued(daemon, "a.qgs", 1)
        assert daemon.ows("a", do="text").status == 503
        # project_workers is one less than workers: there is always one for somebody else.
        for _ in range(3):
            begun = time.monotonic()
            assert daemon.ows("b", do="text").body == b"other"
            assert time.monotonic() - begun < 0.5
        assert not hanging.done()
        assert hanging.result().status == 504
        assert waiting.result().body == b"hello"


def test_the_queue_of_the_pool_is_bounded_too(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="workers = 1\nqueue = 3")
    daemon.ows("a", do="text")
    with background() as clients:
        answers = [clients.ows(daemon, "a", do="text", s=0.5)]
        busy(daemon)
        answers += [clients.ows(daemon, name, do="text") for name in "aab"]
        eventually(lambda: daemon.api("GET", "/api/v1/stats")[0]["queued"] == 3)
        refused = daemon.ows("b", do="text")
        assert (refused.status, int(refused.headers["Retry-After"]) >= 1) == (503, True)
        assert {answer.result().status for answer in answers} == {200}


def test_no_more_than_project_workers_work_on_one_project(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="workers = 4\nproject_workers = 2")
    daemon.ows("a", do="text")
    most = 0
    with background() as clients:
        answers = [clients.ows(daemon, "a", do="text", s=0.15) for _ in range(8)]
        while not all(answer.done() for answer in answers):
            most = max(most, [row["state"] for row in daemon.workers()].count("busy"))
        assert {answer.result().body for answer in answers} == {b"hello"}
    assert most == 2
    assert state(daemon, "a.qgs")["forks"] == 2


def test_a_request_that_waited_too_long_is_told_so(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="workers = 1\nrequest_timeout_s = 0.5\nprint_timeout_s = 1.5")
    daemon.ows("a", do="text")
    with background() as clients:
        printing = clients.ows(daemon, "a", do="text", s=1.2, SERVICE="WMS", REQUEST="GetPrint")
        busy(daemon)
        begun = time.monotonic()
        late = daemon.ows("a", do="text", SERVICE="WMS")
        assert 0.4 < time.monotonic() - begun < 1
        assert late.status == 503
        assert int(late.headers["Retry-After"]) >= 1
        assert b"<ServiceExceptionReport" in late.body
        assert printing.result().body == b"hello"


def test_the_projects_take_turns(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, pool="workers = 1")
    daemon.ows("a", do="text")
    daemon.ows("b", do="text")
    with background() as clients:
        flood = [clients.ows(daemon, "a", do="text", s=0.1) for _ in range(12)]
        busy(daemon)
        eventually(lambda: state(daemon, "a.qgs")["queued"] >= 8)
        begun = time.monotonic()
        assert daemon.ows("b", do="text").body == b"other"
        assert time.monotonic() - begun < 0.5
        assert not all(answer.done() for answer in flood)
        assert {answer.result().status for answer in flood} == {200}


# sizes


def test_a_body_over_the_limit_is_413(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, http='max_body = "100KiB"')
    fits = b"<GetFeature>" + b" " * 100_000 + b"</GetFeature>"
    assert daemon.request("POST", path("a", do="echo"), fits, XML).body == fits
    large = b"<GetFeature>" + b" " * 200_000 + b"</GetFeature>"
    for service, root in (("WMS", b"<ServiceExceptionReport"), ("WFS", b"<ExceptionReport")):
        answer = daemon.request("POST", path("a", SERVICE=service), large, XML)
        assert answer.status == 413
        assert root in answer.body
        assert answer.headers["X-Request-Id"].encode() in answer.body
    assert "a.qgs" in daemon.projects()
    assert state(daemon, "a.qgs")["requests"] == 1


def test_a_chunked_body_over_the_limit_is_413_and_the_connection_goes_on(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, http='max_body = "100KiB"')
    head = (
        f"POST {path('a', do='echo')} HTTP/1.1\r\nHost: t\r\nContent-Type: text/xml\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    piece = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    with Raw(daemon) as client:
        client.sock.sendall(head + piece * 30 + b"0\r\n\r\n")
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 413 ")
        client.until(b"</ServiceExceptionReport>\n")
        document = b"<GetFeature/>"
        client.sock.sendall(head + b"d\r\n" + document + b"\r\n0\r\n\r\n")
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        client.until(document)


def test_who_asks_before_sending_too_much_is_answered_before_it_is_sent(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, http='max_body = "100KiB"')
    head = f"POST {path('a', do='echo')} HTTP/1.1\r\nHost: t\r\nContent-Type: text/xml\r\n"
    with Raw(daemon) as client:
        client.sock.sendall(
            f"{head}Content-Length: 200000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 413 ")
    with Raw(daemon) as client:
        size = len(GET_FEATURE)
        client.sock.sendall(
            f"{head}Content-Length: {size}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.sock.sendall(GET_FEATURE)
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        client.until(GET_FEATURE)


def test_a_body_of_no_sane_size_is_not_read(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, http='max_body = "100KiB"')
    with Raw(daemon) as client:
        client.sock.sendall(
            b"POST /ows/?MAP=a HTTP/1.1\r\nHost: t\r\nContent-Length: 9999999999\r\n\r\n"
        )
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_a_url_over_the_limit_is_414_in_the_protocol_of_the_asker(
    daemons: Start, fake_roots: Path
) -> None:
    daemon = daemons(fake_roots, http='max_url = "2KiB"')
    answer = daemon.ows("a", SERVICE="WFS", VERSION="1.1.0", FILTER="x" * 3000)
    assert answer.status == 414
    assert b"<ExceptionReport" in answer.body
    # The same as a form is taken.
    form = f"do=text&FILTER={'x' * 3000}".encode()
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert daemon.request("POST", path("a"), form, kind).body == b"hello"
    # Far over it as well, up to what is read at all.
    assert daemon.ows("a", FILTER="x" * 1_000_000).status == 414


# paths and methods


def test_what_is_served_nowhere_is_404_in_json(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    for target in ("/", "/owsx", "/favicon.ico", "/api/v1/stats", "/lizmap/x"):
        answer = daemon.get(target)
        assert answer.status == 404, target
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert json.loads(answer.body)["title"] == "Not found"
        assert answer.headers["X-Request-Id"]


def test_an_api_path_that_looks_like_ows_is_answered_in_json(
    daemons: Start, fake_roots: Path
) -> None:
    answer = daemons(fake_roots).get("/wfs3/collections/ows/items?MAP=missing")
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_methods_that_a_path_does_not_take_are_405(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    for method, target in (("DELETE", path("a")), ("PUT", path("a")), ("POST", "/healthz")):
        answer = daemon.request(method, target)
        assert answer.status == 405
        # RFC 9110, 15.5.6: must say what is allowed.
        assert "GET" in answer.headers["Allow"]
        assert "DELETE" not in answer.headers["Allow"]
    assert daemon.projects() == {}


def test_options_answers_preflights(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    asks = {
        "Origin": "https://maps.example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-lizmap-user",
    }
    answer = daemon.request("OPTIONS", path("a"), headers=asks)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Allow"] == "GET, HEAD, POST, OPTIONS"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "content-type, x-lizmap-user"
    assert daemon.projects() == {}
    # A cache gives the answer to those who come with an Origin, too.
    assert daemon.get("/healthz").headers["Access-Control-Allow-Origin"] == "*"


def test_origins_are_allowed_as_configured(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots, http='cors_origins = ["https://maps.example.org"]')
    friend = daemon.get(path("a"), headers={"Origin": "https://maps.example.org"})
    assert friend.headers["Access-Control-Allow-Origin"] == "https://maps.example.org"
    assert friend.headers["Vary"] == "Origin"
    stranger = daemon.get(path("a"), headers={"Origin": "https://evil.example.org"})
    assert stranger.headers["Access-Control-Allow-Origin"] is None
    assert stranger.headers["Vary"] == daemon.get("/healthz").headers["Vary"] == "Origin"
    # Errors can be read by the friend as well.
    missing = daemon.get(path("missing"), headers={"Origin": "https://maps.example.org"})
    assert missing.status == 404
    assert missing.headers["Access-Control-Allow-Origin"] == "https://maps.example.org"


def test_requests_that_are_malformed_are_400(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(fake_roots)
    for target in (
        "/ows/?SERVICE=WMS",
        "/ows/?MAP=a&MAP=b",
        "/ows/?MAP=a&X=%zz",
        "/ows/?MAP=a&X=%ff",
        "/ows/?MAP=a%00",
    ):
        answer = daemon.get(target)
        assert answer.status == 400, target
        assert b"<ServiceExceptionReport" in answer.body
    for body in (b"<open>", b'<!DOCTYPE x [<!ENTITY e "x">]><x>&e;</x>', b"no xml"):
        assert daemon.request("POST", path("a"), body, XML).status == 400
    assert daemon.projects() == {}


def test_a_length_in_other_digits_is_400(daemons: Start, fake_roots: Path) -> None:
    """Python takes a superscript for a digit, and for no number."""
    daemon = daemons(fake_roots)
    answer = daemon.request("POST", path("a"), headers={"Content-Length": "\xb2"})
    assert answer.status == 400
    assert "Traceback" not in daemon.log()


# what our own workers ask for


def test_only_a_worker_of_ours_has_a_slot_of_its_own(daemons: Start, fake_roots: Path) -> None:
    token = "0123456789abcdef" * 4
    daemon = daemons(
        fake_roots, pool="workers = 1\nlend_after_s = 60",
        environment={"QGISD_HTTP__NESTING_TOKEN": token},
    )  # fmt: skip
    target = path("a", do="text")
    daemon.get(target)

    def ask(agent: str) -> Response:
        return daemon.get(target, headers={"User-Agent": f"Mozilla/5.0 {agent}"})

    with background() as clients:
        running = clients.ows(daemon, "b", do="text", s=1.5)
        busy(daemon)
        forged = [clients.run(lambda agent=agent: ask(agent)) for agent in (
            "qgisd-depth/1", "qgisd-depth/2 (0123456789abcdef)")]  # fmt: skip
        queued(daemon, "a.qgs", 2)
        assert ask(f"qgisd-depth/1 ({token})").body == b"hello"
        assert not running.done() and not any(answer.done() for answer in forged)
        # A loop is one over any number of daemons.
        assert ask("qgisd-depth/3").status == 508
        assert [answer.result().body for answer in forged] == [b"hello"] * 2
    assert token not in daemon.log()
    assert token not in daemon.ctl("config").stdout
