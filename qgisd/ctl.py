"""`qgisd ctl` as a client: calls of the REST API over a Unix socket or TCP, and its events."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from qgisd.errors import QgisdError

#: Seconds to connect.
_CONNECT_S = 10.0
#: Silence after which a daemon hangs that is asked what it knows, or for events (feed.py beats more
#: often). What it is told to do may take as long as a load does.
SILENCE_S = 60.0


class CtlError(QgisdError):
    """The daemon refused. `code` is the exit code that says so."""

    code = 1


class NoDaemon(CtlError):
    """Nobody answers there."""

    code = 3


class NotAllowed(CtlError):
    """No token, the wrong one, or one that may only look."""

    code = 4


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_CONNECT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(admin: str) -> http.client.HTTPConnection:
    if admin.startswith("unix:"):
        return _UnixConnection(admin[5:])
    if admin.startswith("https://"):
        return http.client.HTTPSConnection(admin[8:].rstrip("/"), timeout=_CONNECT_S)
    return http.client.HTTPConnection(admin.removeprefix("http://").rstrip("/"), timeout=_CONNECT_S)


@contextmanager
def _answer(
    admin: str, method: str, path: str, token: str, query: dict[str, str]
) -> Iterator[http.client.HTTPResponse]:
    target = path + ("?" + urlencode(query) if query else "")
    if not (token.isascii() and token.isprintable()):
        raise NotAllowed("the token has characters that no token has: is it the right file?")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection = None
    try:
        connection = _connection(admin)
        connection.connect()
        connection.sock.settimeout(SILENCE_S if method == "GET" else None)
        connection.request(method, target, headers=headers)
        yield connection.getresponse()
    except PermissionError:
        raise NotAllowed(
            f"{admin}: the file does not let you in. Be root, the daemon's own user, or in the "
            "group of the file; what you may do, admin.users and groups say"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise NoDaemon(
            f"no answer on {admin}: {error or type(error).__name__}. "
            "Does qgisd run? --admin names it"
        ) from None
    finally:
        if connection is not None:
            connection.close()


def call(admin: str, method: str, path: str, token: str = "", **query: str) -> tuple[int, Any]:
    """One call of the REST API: status and decoded JSON.

    admin: "unix:/path", "host:port", "http://host:port" or "https://host". Raises CtlError.
    """
    with _answer(admin, method, path, token, query) as response:
        return response.status, _decoded(admin, response)


def _decoded(admin: str, response: http.client.HTTPResponse) -> Any:
    content = response.read()
    try:
        return json.loads(content)
    except ValueError:
        raise CtlError(f"{admin} answered {response.status} without JSON: not qgisd?") from None


def _check(status: int, content: Any) -> None:
    """Raises what an answer that is an error says."""
    if status >= 400 and isinstance(content, dict) and "detail" in content and "ok" not in content:
        kind = NotAllowed if status in (401, 403) else CtlError
        raise kind(str(content["detail"]))


def fetch(admin: str, method: str, path: str, token: str = "", **query: str) -> Any:
    """Like `call`, where an error is a CtlError with the daemon's words.

    What an order came to, good or bad, is no error: a load that failed is told as it is.
    """
    status, content = call(admin, method, path, token, **query)
    _check(status, content)
    return content


def events(admin: str, token: str = "", **query: str) -> Iterator[tuple[str, Any]]:
    """Name and data of each event, as they come, until the daemon ends. Raises CtlError."""
    with _answer(admin, "GET", "/api/v1/events", token, query) as response:
        if response.status != 200:
            _check(response.status, _decoded(admin, response))
            raise CtlError(f"{admin} answered {response.status}: not qgisd?")
        name = ""
        while line := response.readline():
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


def project_path(name: str) -> str:
    """The REST path of a project."""
    return "/api/v1/projects/" + quote(name, safe="")
