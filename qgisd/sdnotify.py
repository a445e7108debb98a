"""Telling systemd how we are (sd_notify(3)): one datagram, nothing if nobody asked."""

import logging
import os
import socket
import time
from collections.abc import Mapping

_log = logging.getLogger("qgisd.systemd")
#: Longest wait for systemd to take a datagram: it must not hold up the daemon.
_PATIENCE_S = 1.0


def notify(*lines: str) -> bool:
    """Send `lines` such as "READY=1" to $NOTIFY_SOCKET; False if there is none, or it took none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        end.settimeout(_PATIENCE_S)
        try:
            # Names of projects are in it: none begins a line of its own.
            end.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), address)
        except OSError as error:
            _log.warning("systemd does not hear us: %s", error)
            return False
    return True


def reloading(status: str) -> bool:
    """RELOADING=1, with the time that Type=notify-reload asks for; READY=1 ends it."""
    return notify(
        "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", f"STATUS={status}"
    )


def extend(seconds: float) -> str:
    """The line that keeps systemd from giving up on a start, a reload or a stop for so long."""
    return f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}"


def watchdog_s(environment: Mapping[str, str]) -> float:
    """Seconds of silence after which systemd takes us for hung (sd_watchdog_enabled(3)), or 0."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    usec = environment.get("WATCHDOG_USEC", "")
    return int(usec) / 1_000_000 if usec.isdigit() else 0.0
