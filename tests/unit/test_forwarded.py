"""Whom to believe: trusted peers, which headers pass, and the address the client wrote."""

import pytest
from tornado.httputil import HTTPHeaders

from qgisd.http.forwarded import Trust, believed, depth, identifies, public_base, request_id


def headers(*pairs: tuple[str, str]) -> HTTPHeaders:
    made = HTTPHeaders()
    for name, value in pairs:
        made.add(name, value)
    return made


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("127.0.0.1", True), ("127.0.0.2", False), ("10.1.2.3", True), ("11.1.2.3", False),
        ("::1", True), ("::2", False), ("unix", True), ("fe80::1%eth0", True), ("fe81::1", False),
        ("::ffff:10.1.2.3", True), ("::ffff:11.1.2.3", False),
    ],
)  # fmt: skip
def test_peers_are_trusted_by_address_network_and_socket(peer: str, trusted: bool) -> None:
    trust = Trust(["127.0.0.1", "::1", "10.0.0.0/8", "unix", "fe80::/16"])
    assert trust.trusts(peer) is trusted
    assert trust.trusts(peer) is trusted, "and remembered"


def test_nobody_is_trusted_by_an_empty_list() -> None:
    trust = Trust([])
    assert not trust.trusts("unix") and not trust.trusts("127.0.0.1")


def test_a_network_may_have_host_bits() -> None:
    assert Trust(["10.1.2.3/8"]).trusts("10.9.9.9")


BASE = "https://maps.example:81/prefix"
#: What a peer that is not trusted is to Lizmap, whatever it says.
ANONYMOUS = [("X-Lizmap-User", ""), ("X-Lizmap-User-Groups", "")]
IDENTITY = [
    ("X-Lizmap-User", "admin"),
    ("X-Lizmap-User-Groups", ""),
    ("x-qgis-project", "world"),
    ("X-Forwarded-Host", "evil.example"),
    ("Forwarded", "host=evil.example"),
    ("X-Request-Id", "abc"),
]


def test_headers_of_identity_pass_from_trusted_peers_only() -> None:
    given = headers(*IDENTITY, ("Accept", "text/xml"), ("Authorization", "Basic abc"))
    names = {name.lower() for name, _ in IDENTITY}
    assert believed(given, False, False, BASE) == [
        ("Accept", "text/xml"), ("Authorization", "Basic abc"), *ANONYMOUS,
        ("Host", "maps.example:81"),
    ]  # fmt: skip
    passed = {name.lower() for name, _ in believed(given, True, True, BASE)}
    others = {"accept", "authorization", "host"}
    in_the_url = {"x-forwarded-host", "forwarded"}
    assert passed == (names | others) - in_the_url


def test_an_empty_header_passes_as_an_empty_header() -> None:
    assert ("X-Lizmap-User-Groups", "") in believed(headers(*IDENTITY), True, True, BASE)


def test_headers_that_are_given_twice_pass_twice() -> None:
    given = headers(("Cookie", "a=1"), ("Cookie", "b=2"))
    kept = believed(given, True, True, BASE)
    assert kept == [("Cookie", "a=1"), ("Cookie", "b=2"), ("Host", "maps.example:81")]


def test_the_host_is_said_once_and_as_in_the_url() -> None:
    given = headers(("Host", "inside:7080"), ("X-Forwarded-Host", "maps.example:81"))
    assert believed(given, True, True, BASE) == [("Host", "maps.example:81")]


@pytest.mark.parametrize("name", ["X_Lizmap_User", "x_qgis-project", "X-Forwarded_For"])
def test_a_header_of_identity_cannot_be_disguised_by_underscores(name: str) -> None:
    assert believed(headers((name, "x")), False, False, BASE)[:-1] == ANONYMOUS


@pytest.mark.parametrize("trusted", [True, False])
def test_headers_of_one_connection_never_pass(trusted: bool) -> None:
    given = headers(
        ("Connection", "close"), ("Keep-Alive", "1"), ("Transfer-Encoding", "chunked"),
        ("Content-Length", "3"), ("TE", "trailers"), ("Upgrade", "h2c"), ("Expect", "100-continue"),
        ("Proxy-Authorization", "Basic x"), ("Host", "here"),
    )  # fmt: skip
    nobody = [] if trusted else ANONYMOUS
    assert believed(given, trusted, trusted, BASE) == [*nobody, ("Host", "maps.example:81")]


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ([], "http://fallback:7080"),
        ([("Host", "maps.example")], "http://maps.example"),
        ([("Host", "maps.example:8080")], "http://maps.example:8080"),
        ([("X-Forwarded-Host", "a.example")], "http://a.example"),
        ([("X-Forwarded-Host", "a.example, proxy")], "http://a.example"),
        ([("Host", "h"), ("X-Forwarded-Proto", "https")], "https://h"),
        ([("Host", "h"), ("X-Forwarded-Proto", "https,http")], "https://h"),
        ([("Host", "h"), ("X-Forwarded-Prefix", "/maps/")], "http://h/maps"),
        ([("Host", "h"), ("X-Forwarded-Port", "8443")], "http://h:8443"),
        ([("Host", "h"), ("X-Forwarded-Port", "80")], "http://h"),
        ([("Host", "h"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Port", "443")], "https://h"),
        ([("Host", "h:1"), ("X-Forwarded-Port", "8443")], "http://h:1"),
        ([("Host", "[::1]"), ("X-Forwarded-Port", "8443")], "http://[::1]:8443"),
        ([("Host", "[::1]:5"), ("X-Forwarded-Port", "8443")], "http://[::1]:5"),
        ([("Host", "h"), ("X-Forwarded-Port", "evil")], "http://h"),
        ([("Host", "h"), ("Forwarded", "for=1.2.3.4;Host=b.example;proto=https")],
         "https://b.example"),
        ([("Host", "h"), ("Forwarded", 'host="b.example:81", host=c')], "http://b.example:81"),
        ([("X-Forwarded-Host", "a"), ("Forwarded", "host=b;proto=https")], "https://a"),
    ],
)  # fmt: skip
def test_the_address_is_the_one_the_client_wrote(given: list[tuple[str, str]], base: str) -> None:
    assert public_base(headers(*given), True, "http", "fallback:7080") == base


def test_a_peer_that_is_not_trusted_says_only_its_host() -> None:
    given = headers(
        ("Host", "h"), ("X-Forwarded-Host", "evil"), ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/x"), ("X-Forwarded-Port", "1"), ("Forwarded", "host=evil"),
    )  # fmt: skip
    assert public_base(given, False, "http", "fallback") == "http://h"


@pytest.mark.parametrize(
    ("given", "trusted", "used"),
    [
        ("abc-1.2:3/4", True, "abc-1.2:3/4"),
        ("abc", False, "fresh"),
        ("", True, "fresh"),
        ("x" * 128, True, "x" * 128),
        ("x" * 129, True, "fresh"),
        ("a b", True, "fresh"),
        ("<script>", True, "fresh"),
    ],
)
def test_a_request_id_is_taken_from_trusted_peers_if_it_is_harmless(
    given: str, trusted: bool, used: str
) -> None:
    assert request_id(headers(("X-Request-Id", given)), trusted, "fresh") == used


def test_a_trusted_proxy_may_say_that_it_vouches_for_nobody() -> None:
    given = headers(
        ("X-Qgisd-Identity", "none"), ("X-Lizmap-User", "evil"), ("X-Qgis-Project", "evil"),
        ("X-Forwarded-For", "10.0.0.1"), ("X-Request-Id", "7"),
    )  # fmt: skip
    assert not identifies(given, True)
    assert believed(given, True, identifies(given, True), BASE) == [
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Request-Id", "7"),
        *ANONYMOUS,
        ("Host", "maps.example:81"),
    ]
    # Nobody becomes somebody by it.
    assert not identifies(headers(("X-Qgisd-Identity", "all")), False)
    assert identifies(headers(("X-Qgisd-Identity", "all")), True)
    assert identifies(headers(), True)
    for both in (("none", "all"), ("all", "none"), ("all, None", "")):
        assert not identifies(headers(*(("X-Qgisd-Identity", one) for one in both)), True)
    assert not identifies(headers(), False)


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        ("Mozilla/5.0 qgisd-depth/1 (ours)", (1, True)),
        ("Mozilla/5.0 qgisd-depth/2 (ours) QGIS/32216", (2, True)),
        ("qgisd-depth/1 (theirs)", (1, False)),
        ("qgisd-depth/1 ()", (1, False)),
        ("qgisd-depth/3", (3, False)),
        ("qgisd-depth/1 (ours", (1, False)),
        ("Mozilla/5.0", (0, False)),
    ],
)
def test_depth_is_read_and_who_tells_it(agent: str, told: tuple[int, bool]) -> None:
    assert depth(headers(("User-Agent", agent)), "ours") == told
    assert depth(headers(), "ours") == (0, False)
