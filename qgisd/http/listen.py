"""Sockets to listen on, from "127.0.0.1:7080" or "unix:/run/qgisd/http.sock"."""

import os
import socket
import stat
from pathlib import Path

from tornado.netutil import bind_sockets

from qgisd.errors import StartError

_BACKLOG = 1024


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
