"""Whom to believe, and the address under which the client knows us.

Headers that say who somebody is or where a service lives count only from trusted peers, which
are those of `http.trusted_proxies`. An empty header counts as much as a full one: Lizmap's
plugin opens the data where the header of an anonymous user is missing.
"""

import re
import secrets
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from tornado.httputil import HTTPHeaders

from qgisd.errors import BadRequest
from qgisd.wire import DEPTH_AGENT

#: Taken from nobody: they concern one connection, not the request.
_HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade", "expect", "content-length",
}  # fmt: skip
_IN_THE_URL = {
    "host", "forwarded", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port",
    "x-forwarded-prefix",
}  # fmt: skip
_IDENTITY_PREFIXES = ("x-qgis-", "x-lizmap-")
_PROXY_PREFIXES = ("forwarded", "x-forwarded-", "x-request-id")
#: By this a trusted proxy says that it passes on what anybody sends: the address of the service and
#: of the client are its word, who the user is is not.
_IDENTITY = "X-Qgisd-Identity"
#: What Lizmap says of somebody who is not logged in. Nothing at all means to its plugin that no
#: rights are asked about, and it opens the data.
_ANONYMOUS = [("X-Lizmap-User", ""), ("X-Lizmap-User-Groups", "")]
_DEPTH = re.compile(DEPTH_AGENT + r"/(\d{1,3})(?: \(([^)]*)\))?")
_HOST = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?$")
_PREFIX = re.compile(r"^(/[A-Za-z0-9._~%!$&'()*+,;=:@-]+)*$")
_REQUEST_ID = re.compile(r"^[A-Za-z0-9_.:@/+=-]{1,128}$")


class Trust:
    """Peers whose word counts: addresses, networks, and "unix" for Unix sockets."""

    def __init__(self, peers: Iterable[str]) -> None:
        peers = set(peers)
        self._unix = "unix" in peers
        self._networks = [ip_network(peer, strict=False) for peer in peers if peer != "unix"]
        self._answers: dict[str, bool] = {}

    def trusts(self, peer: str) -> bool:
        """peer: an IP address, or "unix"."""
        if peer == "unix":
            return self._unix
        known = self._answers.get(peer)
        if known is None:
            known = self._is_listed(peer)
            if len(self._answers) < 1024:
                self._answers[peer] = known
        return known

    def _is_listed(self, peer: str) -> bool:
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        # A client that comes by IPv4 to a listener for both.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


def identifies(headers: HTTPHeaders, trusted: bool) -> bool:
    """Whether the peer may say who a user is, and which project is meant: trusted, and unless it
    says itself that it cannot vouch for that ("X-Qgisd-Identity: none")."""
    said = ",".join(headers.get_list(_IDENTITY)).lower().replace(" ", "")
    return trusted and "none" not in said.split(",")


def believed(
    headers: HTTPHeaders, trusted: bool, identified: bool, base: str
) -> list[tuple[str, str]]:
    """The headers that QGIS may see, in canonical case, empty ones included.

    identified: as `identifies` says. Without it, one is anonymous to Lizmap's plugin, whatever one
    says of oneself.
    Host is that of `base`, what `public_base` says: QGIS builds addresses from its URL and from
    headers, and reads Forwarded in its own way; here they say the same, and it is said once.
    """
    kept = []
    for name, value in headers.get_all():
        # With underscores too: whoever reads headers as CGI does takes them for the same.
        lower = name.lower().replace("_", "-")
        if lower in _HOP_BY_HOP or lower in _IN_THE_URL or lower == _IDENTITY.lower():
            continue
        if not trusted and lower.startswith(_PROXY_PREFIXES):
            continue
        if not identified and lower.startswith(_IDENTITY_PREFIXES):
            continue
        kept.append((name, value))
    if not identified:
        kept += _ANONYMOUS
    kept.append(("Host", base.partition("://")[2].partition("/")[0]))
    return kept


def public_base(headers: HTTPHeaders, trusted: bool, scheme: str, fallback_host: str) -> str:
    """scheme://host[:port][prefix] of this service, as the client wrote it.

    Raises BadRequest if a part is no host, scheme or path: with a "?" in it, it would smuggle
    parameters past all checks, for QGIS sees the URL as one text.
    """
    host = headers.get("Host", "") or fallback_host
    prefix = ""
    if trusted:
        forwarded = _forwarded(headers.get("Forwarded", ""))
        host = _first(headers.get("X-Forwarded-Host", "")) or forwarded.get("host", "") or host
        scheme = (
            _first(headers.get("X-Forwarded-Proto", "")) or forwarded.get("proto", "") or scheme
        )
        prefix = _first(headers.get("X-Forwarded-Prefix", "")).rstrip("/")
        port = _first(headers.get("X-Forwarded-Port", ""))
        if port.isdigit() and ":" not in host.rpartition("]")[2]:
            if port != {"http": "80", "https": "443"}.get(scheme):
                host = f"{host}:{port}"
    if not (_HOST.match(host) and scheme in ("http", "https") and _PREFIX.match(prefix)):
        raise BadRequest("the Host of the request, or a forwarded one, is malformed")
    return f"{scheme}://{host}{prefix}"


def request_id(headers: HTTPHeaders, trusted: bool, fresh: str) -> str:
    """X-Request-Id of a trusted peer if it is printable and short, else `fresh`."""
    given = headers.get("X-Request-Id", "") if trusted else ""
    return given if _REQUEST_ID.match(given) else fresh


def depth(headers: HTTPHeaders, token: str) -> tuple[int, bool]:
    """How deep a request says it is nested, and whether a worker of ours says so (nesting.py)."""
    match = _DEPTH.search(headers.get("User-Agent", ""))
    if match is None:
        return 0, False
    return int(match[1]), secrets.compare_digest((match[2] or "").encode(), token.encode())


def _first(value: str) -> str:
    """The client's end of a chain of proxies."""
    return value.partition(",")[0].strip()


def _forwarded(value: str) -> dict[str, str]:
    """host and proto of the first element of a Forwarded header (RFC 7239)."""
    pairs = (pair.partition("=") for pair in _first(value).split(";"))
    return {name.strip().lower(): text.strip().strip('"') for name, _, text in pairs}
