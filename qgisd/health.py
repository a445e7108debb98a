"""How the daemon itself is: whether its loop turns, and whether it runs out of descriptors."""

import asyncio
import itertools
import logging
import os
import resource
import socket
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

_log = logging.getLogger("qgisd.health")
_TICK_S = 0.1
#: Lag that is worth a line in the log: no callback may take that long.
_WORTH_SAYING_S = 0.25
#: Ticks remembered: a minute.
_REMEMBERED = 600
#: Ticks from one look at folder and descriptors to the next.
_LOOK_EVERY = 10
#: Share of the descriptors that may be in use before that is worth a line in the log.
_MANY = 0.9


class Health:
    """Watches from inside the loop; `report` says what it saw."""

    def __init__(self, folder: Path, listeners: Sequence[socket.socket]) -> None:
        self._folder = folder
        self._listeners = listeners
        self._lags: deque[float] = deque(maxlen=_REMEMBERED)
        self._complaints: set[str] = set()

    async def watch(self) -> None:
        """Runs as long as the daemon."""
        loop = asyncio.get_running_loop()
        for tick in itertools.count():
            if tick % _LOOK_EVERY == 0:
                self._look()
            due = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            lag = loop.time() - due
            self._lags.append(lag)
            if lag > _WORTH_SAYING_S:
                _log.warning("the event loop was held up for %.0f ms", lag * 1000)

    def _look(self) -> None:
        """Say once what is wrong, and again if it is so once more."""
        complaints = set()
        if not self._folder.is_dir():
            complaints.add(
                f"{self._folder} is gone, no worker can connect: start qgisd anew, and keep what "
                "cleans up away from daemon.runtime_dir"
            )
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            used = len(os.listdir("/proc/self/fd"))
        except OSError:
            used = limit  # there is none to count them by
        if used > _MANY * limit:
            complaints.add(f"over {_MANY:.0%} of {limit} descriptors are in use: raise LimitNOFILE")
        for complaint in complaints - self._complaints:
            _log.error("%s", complaint)
        self._complaints = complaints

    def report(self) -> dict[str, object]:
        """Lag of the loop in the last minute, descriptors, connections that wait to be accepted,
        and whether the socket folder is there.

        Workers connect through that folder: without it (a cleaner of /tmp) no worker comes up.
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return {
            "loop_lag_ms": round(max(self._lags, default=0.0) * 1000, 1),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "descriptor_limit": soft,
            "socket_folder": self._folder.is_dir(),
            "backlog": max((_backlog(listener) for listener in self._listeners), default=0),
        }


def _backlog(listener: socket.socket) -> int:
    """Connections that wait to be accepted; of a listening TCP socket, tcpi_unacked says so."""
    if listener.family == socket.AF_UNIX:
        return 0  # the kernel does not tell
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    return int.from_bytes(info[24:28], sys.byteorder)


def raise_descriptor_limit() -> int:
    """As many descriptors as we may have: each connection, worker and snapshot needs some. How many
    that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
