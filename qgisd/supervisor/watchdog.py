"""Measuring what the processes of a pool use. Blocking; runs in a thread, off the loop.

Private memory (USS) counts for a worker and PSS for a pool: RSS would count the shared project
once per worker. Source: /proc/PID/smaps_rollup, by psutil.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from qgisd import wire
from qgisd.supervisor import policy
from qgisd.supervisor.events import MemorySampled

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Usage:
    """Bytes of one process."""

    private: int
    pss: int


def measure(pids: Mapping[str, int]) -> dict[str, Usage]:
    """Usage by the names of `pids`; what has ended meanwhile is left out."""
    found = {}
    for name, pid in pids.items():
        try:
            memory = psutil.Process(pid).memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
        found[name] = Usage(memory.uss, memory.pss)
    return found


def by_kind(
    used: Mapping[str, Usage],
) -> tuple[dict[int, int], dict[tuple[str, int], int]]:
    """Private memory by worker, PSS by project and generation of its snapshot."""
    workers: dict[int, int] = {}
    snapshots: dict[tuple[str, int], int] = {}
    for token, usage in used.items():
        if token.startswith("worker "):
            workers[wire.parse_worker_token(token)] = usage.private
        elif token.startswith("snapshot "):
            generation, project = wire.parse_snapshot_token(token)
            snapshots[project, generation] = usage.pss
    return workers, snapshots


def cgroup_limit(root: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The lowest memory limit of this process's cgroup and those above it, or None.

    Version 2: memory.max and memory.high; version 1: memory.limit_in_bytes.
    """
    limits = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _limits_above(root, path, ("memory.max", "memory.high"))
        elif "memory" in controllers.split(","):
            limits += _limits_above(root / "memory", path, ("memory.limit_in_bytes",))
    # Version 1 writes "no limit" as a huge number.
    limits = [limit for limit in limits if limit < 1 << 60]
    return min(limits, default=None)


def _limits_above(root: Path, path: str, names: tuple[str, ...]) -> list[int]:
    found = []
    folder = root / path.lstrip("/")
    while True:
        for name in names:
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit():
                found.append(int(text))
        if folder in (root, folder.parent):
            return found
        folder = folder.parent


def look(
    pids: Mapping[str, int], total: int, share: float
) -> tuple[dict[str, tuple[int, int]], MemorySampled]:
    """Token → private bytes and PSS of all processes of a pool, and what the machine is told.

    total: PSS that they may have together; less if their share of the cgroup's limit is lower.
    """
    used = measure(pids)
    workers, snapshots = by_kind(used)
    pss = sum(usage.pss for usage in used.values())
    budget = policy.effective_budget(total, cgroup_limit(), share)
    figures = {token: (usage.private, usage.pss) for token, usage in used.items()}
    return figures, MemorySampled(workers, snapshots, pss, budget)
