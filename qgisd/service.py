"""The daemon as a service of systemd: what it tells of itself, and a reload by SIGHUP.

sd_notify(3) has the words, systemd/qgisd.service the unit that listens.
"""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence

from qgisd import sdnotify
from qgisd.supervisor.pool import Pool
from qgisd.supervisor.stats import PoolView

_log = logging.getLogger("qgisd.systemd")
#: Seconds between two looks at what there is to tell.
_LOOK_S = 2.0
#: What systemd is asked to wait further while something loads: many looks, so that a machine that
#: is slow does not cost the start; below WatchdogSec, which it would stretch as well.
EXTEND_S = 20.0
_ON_THEIR_WAY = ("pending", "loading", "warming")
#: Names in a status line.
_NAMED = 3


class SystemdUnit:
    """Of a running daemon; does nothing that shows where no systemd listens."""

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = pools
        self._said = ""
        self._ready = False
        self._wanted = False
        self._reload: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to tell; on the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._report()))
        interval = sdnotify.watchdog_s(os.environ) / 2
        if interval:
            self._tasks.append(loop.create_task(_beat(interval)))

    def ready(self) -> None:
        """All that was to be loaded at the start is, or failed."""
        self._ready = True
        self._said = status_of([pool.view() for pool in self._pools.values()])
        sdnotify.notify("READY=1", f"STATUS={self._said}")

    def stopping(self, limit_s: float) -> None:
        """The end has begun, and takes up to `limit_s` seconds. Beats go on until `close`."""
        self._ready = False
        if self._reload is not None:
            self._reload.cancel()
        line = "stopping: what runs is finished"
        self._said = line
        sdnotify.notify("STOPPING=1", f"STATUS={line}", sdnotify.extend(limit_s + EXTEND_S))

    def close(self) -> None:
        """No more to tell."""
        for task in self._tasks:
            task.cancel()

    def hangup(self) -> None:
        """SIGHUP: reload QGIS, plugins and all projects. One that comes meanwhile means again."""
        if not self._ready:
            return  # all is read anew anyway, or for nothing
        self._wanted = True
        if self._reload is None or self._reload.done():
            self._reload = asyncio.get_running_loop().create_task(self._reload_all())

    async def _reload_all(self) -> None:
        while self._wanted:
            self._wanted = False
            sdnotify.reloading("reloading")
            _log.info("reloading")
            for pool in self._pools.values():
                for row in await pool.orders.reload(None):
                    if not row.ok:
                        what = row.project or "the zygote"
                        _log.error("pool %s: reload of %s: %s", pool.name, what, row.detail)
            _log.info("reloaded")
            self.ready()

    async def _report(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(_LOOK_S)

    def _tell(self) -> None:
        lines = []
        views = [pool.view() for pool in self._pools.values()]
        if any(view.zygote == "starting" or _on_their_way(view) for view in views):
            lines.append(sdnotify.extend(EXTEND_S))
        status = status_of(views)
        if self._ready and status != self._said:
            self._said = status
            lines.append(f"STATUS={status}")
        elif not self._ready and not self._said:
            lines.append(f"STATUS=starting: {status}")
        if lines:
            sdnotify.notify(*lines)


async def _beat(interval_s: float) -> None:
    # On the loop and nowhere else: a loop that does not turn must not look alive.
    while True:
        sdnotify.notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)


def _on_their_way(view: PoolView) -> list[str]:
    return [
        project.project
        for project in view.projects
        if any(generation.state in _ON_THEIR_WAY for generation in project.generations)
    ]


def status_of(views: Sequence[PoolView]) -> str:
    """One line for `systemctl status`: projects, workers, queue, and what is not well."""
    projects = [project for view in views for project in view.projects]
    serving = sum(project.state in ("serving", "stale") for project in projects)
    workers = [worker for view in views for worker in view.workers]
    busy = sum(view.busy for view in views)
    queued = sum(view.queued for view in views)
    parts = [f"projects {serving}, workers {len(workers)} ({busy} busy), queued {queued}"]
    parts += [f"pool {view.pool}: zygote {view.zygote}" for view in views if view.zygote != "up"]
    for what, names in (
        ("loading", [name for view in views for name in _on_their_way(view)]),
        ("failed", [one.project for one in projects if one.state in ("failed", "stale")]),
    ):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            parts.append(f"{what}: {', '.join(names[:_NAMED])}{more}")
    return "; ".join(parts)
