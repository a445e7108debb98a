"""Telling systemd how we are (sd_notify(3)): one datagram, nothing if nobody asked."""

import os
import socket


def notify(*lines: str) -> bool:
    """Send `lines` such as "READY=1" to $NOTIFY_SOCKET; False if there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        end.sendto("\n".join(lines).encode(), address)
    return True
