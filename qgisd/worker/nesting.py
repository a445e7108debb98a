"""Marking what workers fetch, so that projects that draw each other do not wait for ever.

The mark is in the User-Agent: QGIS reads that setting for each request it makes, in whatever
thread. (QgsNetworkAccessManager.setRequestPreprocessor would be the place for a header, but its
Python function needs the GIL, which the thread that waits for the request holds: it hangs.)

Nearly all requests come from clients, and what is fetched for them has depth 1: set once in the
zygote. Only for a nested request a worker says otherwise, in a settings file of its own, since
that of the zygote is shared by all workers.
"""

import os
import re
import shutil
from pathlib import Path

from qgis.core import QgsSettings
from qgis.PyQt.QtCore import QSettings

from qgisd import wire

_KEY = "qgis/networkAndProxy/userAgent"
_MARK = re.compile(wire.DEPTH_AGENT + r"/(\d{1,3})")
_marked = 1
_token = ""


def start(token: str) -> None:
    """In the zygote. token: by which the daemon knows its own workers."""
    global _token
    _token = token
    mark(1)


def mark(depth: int) -> None:
    """From now on QGIS's own requests say `depth`."""
    global _marked
    QgsSettings().setValue(_KEY, f"Mozilla/5.0 {wire.DEPTH_AGENT}/{depth} ({_token})")
    _marked = depth


def enter(headers: wire.Headers) -> None:
    """A request begins: what is fetched for it is one deeper than itself."""
    agent = next((value for name, value in headers if name.lower() == "user-agent"), "")
    match = _MARK.search(agent)
    depth = int(match[1]) + 1 if match else 1
    if depth == _marked:
        return
    _own_settings()
    mark(depth)


def _own_settings() -> None:
    """Move this worker's settings to a copy of its own; `pool.py` removes it with the worker."""
    home = Path(os.environ["HOME"]) / wire.WORKER_FOLDERS / str(os.getpid())
    if home.exists():
        return
    shared = Path(QgsSettings().fileName())
    own = home / shared.parent.name / shared.name
    own.parent.mkdir(parents=True)
    if shared.exists():
        shutil.copyfile(shared, own)
    QSettings.setPath(QSettings.IniFormat, QSettings.UserScope, str(home))
