"""Who somebody is and where a service lives: believed of trusted peers, and of nobody else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest

from tests.process.tools import TRANSACTION, XML, Raw, path
from tests.support import (
    Daemon,
    Response,
    eventually,
    free_port,
    start_daemon,
    write_fake_project,
)

Start = Callable[..., Daemon]
STRANGER = "trusted_proxies = []"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SHOW = path("a", do="show")
IDENTITY = {
    "X-Qgis-Project": "b",
    "X-Qgis-Service-Url": "https://evil.example.org/",
    "X-Qgis-WMS-Service-Url": "https://evil.example.org/",
    "X-Lizmap-User": "admin",
    "X-Lizmap-User-Groups": "admins",
    "X-Lizmap-Override-Filter": "1",
    "X-Forwarded-Host": "evil.example.org",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-For": "10.1.1.1",
    "Forwarded": "host=evil.example.org;proto=https",
    "X-Request-Id": "mine",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    """A daemon that trusts us and one that does not: nothing here changes them."""
    folder = tmp_path_factory.mktemp("headers")
    write_fake_project(folder / "roots/a.qgs", text="hello")
    write_fake_project(folder / "roots/b.qgs", text="other")
    started = {
        "trusting": start_daemon(folder / "trusting", folder / "roots"),
        "wary": start_daemon(folder / "wary", folder / "roots", http=STRANGER),
    }
    yield started
    for daemon in started.values():
        assert daemon.stop() == 0


@pytest.fixture
def daemon(shared: dict[str, Daemon]) -> Daemon:
    """It believes us."""
    return shared["trusting"]


@pytest.fixture
def wary(shared: dict[str, Daemon]) -> Daemon:
    """We are a stranger to it."""
    return shared["wary"]


ANONYMOUS = [("X-Lizmap-User", ""), ("X-Lizmap-User-Groups", "")]


class Seen:
    """A request as the worker sees it."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.method: str = content["method"]
        self.url: str = content["url"]
        self.headers: list[tuple[str, str]] = [(name, value) for name, value in content["headers"]]

    @property
    def names(self) -> set[str]:
        """Names of its headers, in lower case."""
        return {name.lower() for name, _ in self.headers}

    @property
    def query(self) -> dict[str, str]:
        """Its parameters."""
        return dict(parse_qsl(urlsplit(self.url).query, keep_blank_values=True))


def show(daemon: Daemon, target: str = SHOW, method: str = "GET", **options: Any) -> Seen:
    """Ask, and return what the worker saw."""
    answer = daemon.request(method, target, **options)
    assert answer.status == 200, answer.body
    return Seen(answer.json())


# identity


def test_headers_of_a_trusted_peer_reach_qgis_empty_ones_included(daemon: Daemon) -> None:
    given = {
        "X-Lizmap-User": "",
        "X-Lizmap-User-Groups": "Stadt, Änderer".encode("latin-1").decode("latin-1"),
        "X-Lizmap-Override-Filter": "No",
        "Authorization": "Basic c2VjcmV0",
        "Cookie": "a=b",
        "Accept-Language": "de-AT",
    }
    seen = show(daemon, headers=given)
    for name, value in given.items():
        assert (name, value) in seen.headers


def test_a_header_given_twice_reaches_qgis_twice(daemon: Daemon) -> None:
    with Raw(daemon) as client:
        headers = "X-Lizmap-User: one\r\nX-Lizmap-User: two\r\nConnection: close\r\n"
        client.get(SHOW, headers=headers)
        data, _ = client.rest()
    assert b'"one"' in data.replace(b", ", b",")
    assert b'"two"' in data


def test_headers_of_the_connection_do_not_reach_qgis(daemon: Daemon) -> None:
    given = {"Connection": "keep-alive", "Keep-Alive": "timeout=5", "TE": "trailers"}
    seen = show(daemon, headers=given)
    assert seen.names.isdisjoint({"connection", "keep-alive", "te", "transfer-encoding"})


@pytest.mark.parametrize("over_tcp", [False, True])
def test_a_stranger_cannot_say_who_he_is_or_where_we_live(
    daemons: Start, fake_roots: Path, over_tcp: bool
) -> None:
    listen = f"127.0.0.1:{free_port()}" if over_tcp else ""
    daemon = daemons(fake_roots, http=STRANGER, listen=listen)
    answer = daemon.get(SHOW, headers=IDENTITY | {"Host": "good.example.org"})
    seen = Seen(answer.json())
    left = [
        (name, value)
        for name, value in seen.headers
        if name.lower().startswith(("forwarded", "x-qgis-", "x-lizmap-", "x-forwarded-"))
    ]
    # Anonymous to Lizmap: a stranger of whom nothing is said would be shown everything.
    assert left == ANONYMOUS
    assert ("X-Request-Id", "mine") not in seen.headers
    assert answer.headers["X-Request-Id"] != "mine"
    assert seen.url.startswith("http://good.example.org/ows/?")
    # Odd spelling does not help.
    odd = {"x-lizmap-USER": "admin", "X_LIZMAP_USER": "admin", "fORWARDED": "host=evil"}
    seen = show(daemon, headers=odd)
    assert seen.names.isdisjoint({"forwarded", "x_lizmap_user"})
    assert [row for row in seen.headers if "lizmap" in row[0].lower()] == ANONYMOUS


def test_a_trusted_network_is_believed_over_tcp(daemons: Start, fake_roots: Path) -> None:
    daemon = daemons(
        fake_roots, http='trusted_proxies = ["127.0.0.0/8"]', listen=f"127.0.0.1:{free_port()}"
    )
    seen = show(daemon, headers={"X-Lizmap-User": "admin"})
    assert ("X-Lizmap-User", "admin") in seen.headers


@pytest.mark.parametrize("name", ["LIZMAP_USER", "lizmap_user_groups", "%4CIZMAP_OVERRIDE_FILTER"])
def test_a_stranger_cannot_say_it_in_a_parameter_either(wary: Daemon, name: str) -> None:
    tail = f"&{name}=admin&KEPT=1"
    form = f"MAP=a&do=show{tail}".encode()
    for seen in (
        show(wary, SHOW + tail),
        show(wary, "/ows/", "POST", body=form, headers=FORM),
        show(wary, SHOW + tail, "POST", body=TRANSACTION, headers=XML),
        show(wary, f"/ows/p/a?do=show{tail}"),
        show(wary, f"/wfs3/collections?MAP=a&do=show{tail}"),
    ):
        assert not [name for name in seen.query if name.upper().startswith("LIZMAP")], seen.url
        assert seen.query["KEPT"] == "1"


def test_parameters_of_a_trusted_peer_reach_qgis(daemon: Daemon) -> None:
    assert show(daemon, SHOW + "&LIZMAP_USER=jo").query["LIZMAP_USER"] == "jo"


def test_the_project_header_counts_from_trusted_peers(daemon: Daemon, wary: Daemon) -> None:
    assert daemon.get("/ows/?do=text", headers={"X-Qgis-Project": "b"}).body == b"other"
    assert daemon.get(path("a", do="text"), headers={"X-Qgis-Project": "b"}).body == b"hello"
    assert wary.get("/ows/?do=text", headers={"X-Qgis-Project": "b"}).status == 400


# request ids


def test_a_request_id_of_a_trusted_peer_is_kept_everywhere(daemon: Daemon) -> None:
    targets = {
        SHOW: 200,
        path("a", do="chunks"): 200,
        path("missing"): 404,
        path("a", do="crash"): 502,
        "/nowhere": 404,
        "/healthz": 200,
        "/ows/": 400,
    }
    for number, (target, status) in enumerate(targets.items()):
        mine = f"client-{number}/abc=="
        answer = daemon.get(target, headers={"X-Request-Id": mine})
        assert (answer.status, answer.headers["X-Request-Id"]) == (status, mine)
        if status >= 400:
            assert mine.encode() in answer.body
        eventually(lambda mine=mine: mine in daemon.log())


@pytest.mark.parametrize("given", ["a b", "x" * 200, "<script>", 'a"b', ""])
def test_a_request_id_that_could_do_harm_is_replaced(daemon: Daemon, given: str) -> None:
    first, second = (daemon.get(path("no"), headers={"X-Request-Id": given}) for _ in range(2))
    assert first.headers["X-Request-Id"] not in (given, second.headers["X-Request-Id"])
    assert len(first.headers["X-Request-Id"]) >= 8


# where we live


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({}, "http://inside:8000"),
        ({"X-Forwarded-Host": "maps.example.org"}, "http://maps.example.org"),
        (
            {"X-Forwarded-Host": "maps.example.org", "X-Forwarded-Proto": "https"},
            "https://maps.example.org",
        ),
        (
            {"X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/gis/"},
            "https://inside:8000/gis",
        ),
        (
            {"X-Forwarded-Host": "maps.example.org, proxy.internal", "X-Forwarded-Port": "8443"},
            "http://maps.example.org:8443",
        ),
        (
            {
                "X-Forwarded-Host": "maps.example.org",
                "X-Forwarded-Port": "443",
                "X-Forwarded-Proto": "https",
            },
            "https://maps.example.org",
        ),
        (
            {"Forwarded": 'for=1.2.3.4;host="maps.example.org";proto=https, host=inner'},
            "https://maps.example.org",
        ),
    ],
)
def test_the_url_is_the_one_that_the_client_used(
    daemon: Daemon, headers: dict[str, str], base: str
) -> None:
    seen = show(daemon, headers={"Host": "inside:8000"} | headers)
    assert seen.url.partition("/ows/")[0] == base
    assert urlsplit(seen.url).path.endswith("/ows/")
    assert seen.query == {"MAP": "a", "do": "show"}


def test_a_project_in_the_path_stays_in_the_path(daemon: Daemon) -> None:
    seen = show(daemon, "/ows/p/a?do=show", headers={"Host": "here"})
    assert seen.url == "http://here/ows/p/a?do=show"
    assert show(daemon, "/ows/p/a.qgs?do=show").query == {"do": "show"}


@pytest.mark.parametrize(
    "evil", ["a b", "x/y?z=", "evil.org/?LIZMAP_USER=admin&", "a#b", "a@b", "<x>", "a\\b", "[::1"]
)
def test_a_header_cannot_smuggle_a_url(daemon: Daemon, evil: str) -> None:
    # What stands before the path is parsed with it: parameters there would count.
    for name in ("Host", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix"):
        answer = daemon.get(SHOW, headers={name: evil})
        if answer.status == 200:
            seen = Seen(answer.json())
            assert evil not in seen.url, name
            assert seen.query == {"MAP": "a", "do": "show"}, name
        else:
            assert answer.status == 400


# what is asked


def test_a_form_becomes_the_query_that_it_is(daemon: Daemon) -> None:
    parameters = {"SERVICE": "WMS", "FILTER": "a = 'ä & b'", "EMPTY": "", "PLUS": "1+1"}
    body = urlencode({"MAP": "a", "do": "show"} | parameters).encode()
    seen = show(daemon, "/ows/", "POST", body=body, headers=FORM)
    assert seen.method == "GET"
    assert seen.query == {"MAP": "a", "do": "show"} | parameters
    # A part in the URL, a part in the form.
    seen = show(daemon, SHOW, "POST", body=urlencode(parameters).encode(), headers=FORM)
    assert seen.query == {"MAP": "a", "do": "show"} | parameters


def test_a_document_stays_a_post(daemon: Daemon) -> None:
    seen = show(daemon, method="POST", body=TRANSACTION, headers=XML)
    assert seen.method == "POST"
    assert ("Content-Type", "text/xml") in seen.headers
    # Also one whose sender calls it a form, as curl does.
    echo = daemon.request("POST", path("a", do="echo"), TRANSACTION, FORM)
    assert echo.body == TRANSACTION


def test_the_query_reaches_qgis_as_it_was_written(daemon: Daemon) -> None:
    query = f"MAP=a&do=show&LAYERS=b%C3%A4r,x&FILTER={quote('a:' + chr(34) + 'n' + chr(34))}&X=1+2"
    assert show(daemon, f"/ows/?{query}").url.endswith(f"/ows/?{query}")


def test_head_reaches_qgis_as_get(daemon: Daemon) -> None:
    shown = daemon.get(SHOW)
    answer = daemon.request("HEAD", SHOW)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(shown.body))


# answers


def headed(daemon: Daemon, **given: object) -> Response:
    """What a client gets if a plugin answers with this header, and this status."""
    return daemon.ows("a", do="head", **({"name": "X-Name", "value": "plain"} | given))


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ("plain", b"plain"),
        ("Änderung.pdf", "Änderung.pdf".encode()),
        ("東京.pdf", "東京.pdf".encode()),
        ("two\r\nlines", b"two  lines"),
        ("a\x01b\x7f", b"a b"),
        ("  spaced\t", b"spaced"),
    ],
)
def test_a_header_of_an_answer_arrives_whatever_is_in_it(
    daemon: Daemon, value: str, arrives: bytes
) -> None:
    answer = headed(daemon, value=value)
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["X-Name"].encode("latin-1") == arrives


@pytest.mark.parametrize("name", ["X Name", "Ä", "a:b", "a\n"])
def test_a_header_without_a_proper_name_is_left_out(daemon: Daemon, name: str) -> None:
    answer = headed(daemon, name=name)
    assert (answer.status, answer.body) == (200, b"hello")
    assert "plain" not in answer.headers.values()


def test_an_answer_that_may_have_no_body_has_none(daemon: Daemon) -> None:
    for status in (204, 304):
        for stream in ("", "1"):
            with Raw(daemon) as client:
                client.get(path("a", do="head", name="A", value="b", status=status, stream=stream))
                assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 %d " % status)
                client.get("/healthz")
                assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 "), "it goes on"


@pytest.mark.parametrize("status", [0, 99, 100, 600])
def test_a_status_that_is_none_is_an_internal_error(daemon: Daemon, status: int) -> None:
    for stream in ("", "1"):
        answer = headed(daemon, status=status, stream=stream)
        assert answer.status == 500 and b"internal error" in answer.body
    assert daemon.ows("a", do="text").body == b"hello"
