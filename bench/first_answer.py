"""The first answer of a freshly forked worker, beside those that it gives once it is warm.

A worker of the heavy project is killed; the spare one that takes its place is asked for a few
maps. Whoever waits for a fork waits for the fork as well: that is in the table of kills.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench import client
from bench.processes import log
from bench.servers import Qgisd
from bench.work import HEAVY, HEAVY_LAYERS, check_png, maps

LEVELS = ("off", "capabilities", "map")
FORKS = 15
#: Answers of a worker after its first that count as warm.
_WARM = 6


@dataclass
class First:
    """With one kind of warm-up."""

    level: str
    #: `ctl projects`: what was done.
    detail: str = ""
    load_ms: float = 0.0
    #: Milliseconds, a fork each.
    firsts: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    #: MiB of private memory of a worker after all its answers.
    private: list[float] = field(default_factory=list)


class Warmed(Qgisd):
    """One worker, always there; `level` is `pool.warmup`."""

    level = "off"

    def environment(self) -> dict[str, str]:
        return {
            "QGISD_POOL__WARMUP": self.level,
            "QGISD_POOL__PROJECTS__PINNED": f'["{HEAVY.rpartition(".")[0]}"]',
        }


def run(server: Warmed, level: str, forks: int = FORKS) -> First:
    """So many forks, one after the other, each asked 1 + 6 maps of places of its own."""
    server.level = level
    found = First(level)
    log(f"first answers with warmup = {level}")
    server.start()
    try:
        pid = _fresh_worker(server, 0)
        generation = _generation(server)
        found.detail, found.load_ms = generation["warmup_detail"], generation["load_ms"]
        places = maps(HEAVY_LAYERS)(11)
        for _ in range(forks):
            os.kill(pid, signal.SIGKILL)
            pid = _fresh_worker(server, pid)
            found.firsts.append(_ask(server, places))
            found.warm += [_ask(server, places) for _ in range(_WARM)]
            found.private.append(_private_mib(pid))
    finally:
        server.stop()
    return found


def _generation(server: Qgisd) -> dict[str, object]:
    from qgisd import ctl

    [project] = ctl.fetch(server.admin, "GET", "/api/v1/projects")
    return dict(project["generations"][0])


def _fresh_worker(server: Qgisd, before: int) -> int:
    """The pid of the worker that waits for its first request."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        rows = server.worker_rows(HEAVY)
        if len(rows) == 1 and rows[0]["state"] == "idle" and rows[0]["pid"] != before:
            time.sleep(0.2)  # the machine is quiet again: as for a request out of the blue
            return int(rows[0]["pid"])
        time.sleep(0.01)
    raise SystemExit(f"no fresh worker:\n{server.log()}")


def _ask(server: Qgisd, queries: Iterator[str]) -> float:
    begin = time.monotonic()
    answer = client.get(server.port, server.target(HEAVY, next(queries)))
    took = (time.monotonic() - begin) * 1000
    wrong = check_png(answer.content_type, answer.body)
    if answer.status != 200 or wrong:
        raise SystemExit(f"{answer.status} {wrong}: {answer.body[:300]!r}")
    return took


def _private_mib(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024


def rows(found: Sequence[First]) -> list[list[str]]:
    """For the table."""
    return [
        [
            one.level,
            f"{median(one.firsts):.0f} ms ({min(one.firsts):.0f}–{max(one.firsts):.0f})",
            f"{median(one.warm):.0f} ms",
            f"{median(one.firsts) / median(one.warm):.1f}",
            f"{median(one.private):.0f} MiB",
            f"{one.load_ms / 1000:.1f} s",
            one.detail,
        ]
        for one in found
    ]
