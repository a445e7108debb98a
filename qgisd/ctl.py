"""`qgisd ctl` as a client: calls of the REST API over a Unix socket or TCP, and its events."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from qgisd.errors import QgisdError

#: Seconds to connect; an answer may take as long as a load does.
_CONNECT_S = 10.0


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
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection = _connection(admin)
    try:
        connection.connect()
        connection.sock.settimeout(None)
        connection.request(method, target, headers=headers)
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise NoDaemon(
            f"no answer on {admin}: {error or type(error).__name__}. "
            "Does qgisd run? --admin names it"
        ) from None
    finally:
        connection.close()


def call(admin: str, method: str, path: str, token: str = "", **query: str) -> tuple[int, Any]:
    """One call of the REST API: status and decoded JSON.

    admin: "unix:/path", "host:port", "http://host:port" or "https://host". Raises CtlError.
    """
    with _answer(admin, method, path, token, query) as response:
        content = response.read()
    try:
        return response.status, json.loads(content)
    except ValueError:
        raise CtlError(f"{admin} answered {response.status} without JSON: not qgisd?") from None


def fetch(admin: str, method: str, path: str, token: str = "", **query: str) -> Any:
    """Like `call`, where an error is a CtlError with the daemon's words.

    What an order came to, good or bad, is no error: a load that failed is told as it is.
    """
    status, content = call(admin, method, path, token, **query)
    if status >= 400 and isinstance(content, dict) and "detail" in content and "ok" not in content:
        kind = NotAllowed if status in (401, 403) else CtlError
        raise kind(str(content["detail"]))
    return content


def events(admin: str, token: str = "", **query: str) -> Iterator[tuple[str, Any]]:
    """Name and data of each event, as they come, until the daemon ends. Raises CtlError."""
    with _answer(admin, "GET", "/api/v1/events", token, query) as response:
        if response.status != 200:
            content = json.loads(response.read())
            kind = NotAllowed if response.status in (401, 403) else CtlError
            raise kind(str(content.get("detail", response.status)))
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
