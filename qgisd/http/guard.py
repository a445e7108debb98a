"""Who may use the admin listener, and what for.

Over a Unix socket the kernel says who asks (SO_PEERCRED); over TCP a token does, and there is no
other way in. Two dangers come from browsers: a page of another site that sends requests here
(refused by Origin and Sec-Fetch-Site), and a name of another site that suddenly resolves to this
host (DNS rebinding, refused by Host). Both matter on a Unix socket as well, as `ssh -L` makes a
local port of one.
"""

import grp
import hmac
import ipaddress
import os
import pwd
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from urllib.parse import SplitResult, urlsplit

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError

from qgisd.config import Admin
from qgisd.errors import StartError

#: Methods that change nothing.
SAFE_METHODS = ("GET", "HEAD")
#: Linux, asm-generic/socket.h; Python has no name for it.
_SO_PEERGROUPS = 59
#: As many as Python's getsockopt can take: 1,024 bytes.
_MOST_GROUPS = 256


class Role(str, Enum):
    """What somebody may do."""

    ADMIN = "admin"
    #: Look, and nothing else.
    READ = "read"


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    role: Role
    #: For the log: "uid 1000", "token 1".
    name: str


class Guard:
    """Lets a request in, or says why not. Raises StartError if [admin] names unknown people."""

    def __init__(self, admin: Admin) -> None:
        self._tokens = [
            (token.get_secret_value().encode(), Caller(role, f"{word} {number}"))
            for role, word, tokens in (
                (Role.ADMIN, "token", admin.tokens),
                (Role.READ, "read-only token", admin.read_tokens),
            )
            for number, token in enumerate(tokens, 1)
        ]
        self._uids = _ids("admin.read_users", admin.read_users, _uid, Role.READ)
        self._uids |= _ids("admin.users", admin.users, _uid, Role.ADMIN)
        self._uids |= {0: Role.ADMIN, os.geteuid(): Role.ADMIN}
        self._gids = _ids("admin.read_groups", admin.read_groups, _gid, Role.READ)
        self._gids |= _ids("admin.groups", admin.groups, _gid, Role.ADMIN)
        self._hosts = {host.lower() for host in admin.hosts} | {"localhost"}

    def check_listeners(self, sockets: Iterable[socket.socket]) -> None:
        """Raises StartError for a TCP socket that nobody could, or everybody might, use."""
        for listener in sockets:
            if listener.family != socket.AF_UNIX and not self._tokens:
                raise StartError(
                    "the admin listener is on TCP, where only a token tells who asks: set "
                    "admin.tokens, or listen on a Unix socket"
                )

    def check_host(self, request: HTTPServerRequest) -> None:
        """Refuse names that are not ours. A number cannot be rebound, so any number will do."""
        host = _split(f"//{request.host}").hostname or ""
        if host in self._hosts:
            return
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise HTTPError(
                421,
                f"this is not {_plain(request.host)!r}: use an address, localhost, or admin.hosts",
            ) from None

    def check(self, request: HTTPServerRequest) -> Caller:
        """Who asks. Raises HTTPError 401, 403 or 421 if they may not."""
        self.check_host(request)
        caller = self._caller(request)
        if request.method not in SAFE_METHODS:
            if caller.role is not Role.ADMIN:
                raise HTTPError(403, f"{caller.name} may look, and change nothing")
            self._check_origin(request)
        return caller

    def _caller(self, request: HTTPServerRequest) -> Caller:
        given = request.headers.get("Authorization", "")
        if given:
            scheme, _, token = given.partition(" ")
            found = None
            for known, caller in self._tokens:  # all of them: no clock tells which one was close
                if hmac.compare_digest(known, token.strip().encode("utf-8", "replace")):
                    found = found or caller
            if found is None or scheme.lower() != "bearer":
                raise HTTPError(401, "this token is not one of admin.tokens")
            return found
        connection = request.connection
        assert isinstance(connection, HTTP1Connection)
        peer = connection.stream.socket
        if peer.family != socket.AF_UNIX:
            raise HTTPError(401, "a token is needed: Authorization: Bearer TOKEN")
        _, uid, gid = struct.unpack(
            "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        roles = {self._uids.get(uid)} | {self._gids.get(gid) for gid in {gid, *_groups(peer)}}
        for role in Role:  # the one who may most is first
            if role in roles:
                return Caller(role, f"uid {uid}")
        raise HTTPError(
            403, f"uid {uid} is in none of admin.users, groups, read_users, read_groups"
        )

    def _check_origin(self, request: HTTPServerRequest) -> None:
        site = request.headers.get("Sec-Fetch-Site", "none")
        origin = request.headers.get("Origin")
        if site not in ("none", "same-origin"):
            raise HTTPError(403, "a page of another site sent this")
        if origin is not None and _split(origin).netloc.lower() != request.host.lower():
            raise HTTPError(
                403,
                f"a page of {_plain(origin)!r} sent this to {_plain(request.host)!r}; "
                "a proxy in between must leave Host as it is",
            )


def _split(url: str) -> SplitResult:
    """Without parts if it is none, as "//[" is."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _plain(text: str) -> str:
    return text[:100].encode("ascii", "replace").decode()


def _ids(key: str, names: Iterable[str], find: Callable[[str], int], role: Role) -> dict[int, Role]:
    found = {}
    for name in names:
        try:
            found[int(name) if name.isdigit() else find(name)] = role
        except KeyError:
            raise StartError(f"{key}: there is no {name!r} on this machine") from None
    return found


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _groups(peer: socket.socket) -> list[int]:
    """Supplementary groups of the process that connected."""
    try:
        packed = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:
        return []  # before Linux 4.13, or too many
    return [gid for (gid,) in struct.iter_unpack("I", packed)]
