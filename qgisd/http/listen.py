"""Sockets to listen on: from "127.0.0.1:7080" or "unix:/run/qgisd/http.sock", or from systemd."""

import contextlib
import logging
import os
import socket
import stat
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from qgisd.errors import StartError

_log = logging.getLogger("qgisd.http")
_BACKLOG = 1024
#: Number of the first descriptor that systemd hands over (sd_listen_fds(3)).
_FIRST = 3
_NAMES = ("http", "admin")


#: For one connection too many: read by nobody, answered all the same.
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class Server(HTTPServer):
    """Tornado's, that tells whether a client is connected, and forgets none when it stops."""

    #: Connections at once. Without a descriptor left to accept one more, the loop would turn
    #: without rest, and no worker could be forked.
    most = sys.maxsize

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        if len(self._connections) < self.most:
            super()._handle_connection(connection, address)
            return
        _log.error("%d connections are open, one more is refused: raise LimitNOFILE", self.most)
        with connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.send(_FULL)

    def stop(self) -> None:
        """Stop listening. Who has connected by now is served: the kernel would reset those whom
        nobody had accepted yet."""
        for listener in self._sockets.values():
            for _ in range(_BACKLOG):
                try:
                    connection, address = listener.accept()
                except OSError:
                    break
                self._handle_connection(connection, address)
        super().stop()

    @property
    def connected(self) -> bool:
        """Some connection is open; a request may be on its way on it."""
        return bool(self._connections)


def handed_over(
    environment: MutableMapping[str, str], first: int = _FIRST
) -> dict[str, list[socket.socket]]:
    """The sockets of socket activation, by FileDescriptorName: "http", "admin".

    They are systemd's: it listens on them before us and after us, and no file of theirs is ours to
    remove. Takes its variables out of `environment`, as they are not meant for processes of ours.
    Raises StartError for what is no listening stream socket, or has another name.
    """
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if environment.pop("LISTEN_PID", "") != str(os.getpid()) or not count.isdigit():
        return {}
    found: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        if name not in _NAMES:
            raise StartError(
                f"systemd hands over a socket by the name {name!r}: write FileDescriptorName=http "
                "(or admin) into its .socket unit"
            )
        try:
            os.set_inheritable(first + index, False)
            handed = socket.socket(fileno=first + index)
            listening = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise StartError(f"socket {name!r} of systemd: {error.strerror}") from None
        if handed.type != socket.SOCK_STREAM or not listening:
            raise StartError(f"socket {name!r} of systemd is not one that listens (ListenStream=)")
        handed.setblocking(False)
        found.setdefault(name, []).append(handed)
    return found


def address_of(listener: socket.socket) -> str:
    """Its address as the configuration writes it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"


def bind(address: str) -> list[socket.socket]:
    """Bound and listening. Raises StartError, saying which address and why.

    A Unix socket is made for its owner and group. A stale socket file of a daemon that died is
    replaced; one that somebody answers on is not.
    """
    try:
        if address.startswith("unix:"):
            return [_bind_unix(Path(address[5:]))]
        host, _, port = address.rpartition(":")
        return bind_sockets(int(port), host.strip("[]"), backlog=_BACKLOG)
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror or error}") from None


def _bind_unix(path: Path) -> socket.socket:
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()
            else:
                raise StartError(f"cannot listen on {path}: another process does")
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    old = os.umask(0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.setblocking(False)
    listener.listen(_BACKLOG)
    return listener


def forget(address: str) -> None:
    """Remove the file of a Unix socket."""
    if address.startswith("unix:"):
        Path(address[5:]).unlink(missing_ok=True)
