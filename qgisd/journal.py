"""systemd's journal, by its native protocol: one datagram per entry, fields by name.

Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/, and systemd.exec(5) on $JOURNAL_STREAM.
"""

import array
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"


def hears_stderr(environment: Mapping[str, str]) -> bool:
    """Standard error is connected to the journal: $JOURNAL_STREAM names it, as device:inode."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def encode(fields: Mapping[str, object]) -> bytes:
    """One entry. Names are of A-Z, 0-9 and _."""
    parts = []
    for name, value in fields.items():
        data = str(value).encode("utf-8", "replace")
        if b"\n" in data:
            size = len(data).to_bytes(8, "little")
            parts.append(name.encode() + b"\n" + size + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class Journal:
    """The way to it. Never waits: a journal that stands still must not hold up the daemon."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)

    def send(self, fields: Mapping[str, object]) -> None:
        """One entry. Raises OSError if the journal is not there, or does not keep up."""
        data = encode(fields)
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_in_file(data)

    def _send_in_file(self, data: bytes) -> None:
        """What is too large for a datagram goes in a sealed file in memory, by its descriptor."""
        descriptor = os.memfd_create("journal-entry", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = array.array("i", [descriptor])
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())]
            self._socket.sendmsg([], control, 0, self._path)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """No more."""
        self._socket.close()
