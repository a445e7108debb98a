"""What is measured with one server alone: memory, the loss of a worker, more workers.

Alone, because PSS depends on who else maps the same libraries.
"""

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from bench import client, processes
from bench.processes import log
from bench.servers import Qgisd, Server
from bench.work import HEAVY, HEAVY_LAYERS, check_png, maps

CONNECTIONS = 4
_KILL_AT_S = 5.0
#: The rate after the kill is that of so many seconds.
_AFTER_S = 10.0


@dataclass
class Killed:
    """The kill test of one server."""

    #: MiB of all processes, after load.
    pss: float = 0.0
    #: What under_kill.py printed, a run each.
    runs: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Scaled:
    """From one worker to many."""

    workers: int
    #: Seconds from the first of `workers` requests at once until there were so many workers,
    #: and until each of them had answered.
    all_there_s: float
    all_served_s: float
    #: MiB of all processes after load, with one worker and with all.
    pss_before: float
    pss: float
    failed: int


def _load(server: Server, connections: int, seconds: float) -> client.Measured:
    return client.load(
        server.port,
        (server.target(HEAVY, query) for query in maps(HEAVY_LAYERS)(7)),
        check_png,
        connections,
        seconds,
    )


def kill(server: Server, runs: int, seconds: float) -> Killed:
    """Load on the heavy project, a worker killed in the middle, as often as `runs` says."""
    found = Killed()
    query = next(maps(HEAVY_LAYERS)(0))
    server.start()
    try:
        for number in range(runs):
            log(f"{server.name} alone: loads {HEAVY}")
            server.warm(HEAVY, query)
            _load(server, CONNECTIONS, seconds)
            if not found.pss:
                found.pss = processes.pss(server.pids())
            victim = server.worker_pids(HEAVY)[0]
            found.runs.append(_under_kill(server, victim))
            log(f"{server.name} kill {number + 1}: {json.dumps(found.runs[-1])}")
    finally:
        server.stop()
    return found


def _under_kill(server: Server, victim: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{server.port}{server.target(HEAVY, '').rstrip('&')}"
    command = [
        sys.executable, str(server.shared / "bench" / "under_kill.py"),
        "--url", url, "--layers", HEAVY_LAYERS, "--connections", str(CONNECTIONS),
        "--kill", str(victim), "--kill-at", str(_KILL_AT_S),
        "--seconds", str(_KILL_AT_S + _AFTER_S + 1),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if result.returncode:
        raise SystemExit(f"under_kill.py failed: {result.stderr[-1000:]}")
    return dict(json.loads(result.stdout))


def scale(server: Qgisd, seconds: float) -> Scaled:
    """From one worker to all that it may have, under as many connections."""
    server.start()
    try:
        log(f"{server.name} alone, {server.workers} workers: loads {HEAVY}")
        _first_answer(server)
        _load(server, 1, seconds)
        pss_before = processes.pss(server.pids())
        begin = time.monotonic()
        loads: list[client.Measured] = []
        crowd = threading.Thread(
            target=lambda: loads.append(_load(server, server.workers, max(5.0, seconds)))
        )
        crowd.start()
        there = served = float("nan")
        while crowd.is_alive():
            rows = [row for row in server.worker_rows(HEAVY) if row["state"] in ("idle", "busy")]
            if len(rows) >= server.workers and there != there:
                there = time.monotonic() - begin
            if sum(row["served"] > 0 for row in rows) >= server.workers:
                served = time.monotonic() - begin
                break
            time.sleep(0.01)
        crowd.join()
        pss = processes.pss(server.pids())
        return Scaled(server.workers, there, served, pss_before, pss, loads[0].failed)
    finally:
        server.stop()


def _first_answer(server: Server) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            found = client.get(server.port, server.target(HEAVY, next(maps(HEAVY_LAYERS)(0))))
        except (OSError, client.Broken):
            found = None
        if found is not None and found.status == 200:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"{server.title} does not serve {HEAVY}:\n{server.log()}")
        time.sleep(0.2)
