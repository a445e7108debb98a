"""A control channel: whole messages and descriptors over a SOCK_SEQPACKET socketpair.

Plain blocking or non-blocking socket calls, no thread, no loop: it must be usable between a
fork and the next one. What the messages mean is in `wire.py`.
"""

import array
import os
import socket
from collections.abc import Iterable

from qgisd import wire
from qgisd.errors import WireError

_FD_SPACE = socket.CMSG_SPACE(4 * array.array("i").itemsize)


class ChannelClosed(Exception):
    """The other end is gone."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; neither survives an exec unless passed on purpose."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, message: wire.Message, descriptors: Iterable[int] = ()) -> None:
    """Send one message, with copies of `descriptors`.

    Raises ChannelClosed if the other end is gone, WireError if the message is too large.
    """
    data = wire.encode(message)
    if len(data) > wire.MAX_CONTROL:
        raise WireError(f"a control message of {len(data)} bytes")
    fds = array.array("i", descriptors)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
    try:
        end.sendmsg([data], rights, socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError, OSError) as error:
        if isinstance(error, BlockingIOError):
            raise
        raise ChannelClosed(str(error)) from None


def receive(end: socket.socket) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it, close-on-exec.

    Raises ChannelClosed at the end, BlockingIOError if the socket does not block and has none.
    """
    try:
        data, ancillary, flags, _ = end.recvmsg(
            wire.MAX_CONTROL + 1, _FD_SPACE, socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        raise ChannelClosed("reset") from None
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(content) - len(content) % descriptors.itemsize
            descriptors.frombytes(content[:whole])
    if not data:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ChannelClosed("closed")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in descriptors:
            os.close(descriptor)
        raise WireError("a control message was cut off")
    return data, list(descriptors)
