"""Decisions that are arithmetic: numbers in, a number or a yes out. Pure.

Nothing here sees a process, a clock or a live record's owner.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase

from qgisd.supervisor.model import Limits
from qgisd.wire import BadLayer

#: Weight of the newest measurement in a moving average of request costs.
_NEWEST = 0.2
#: Seconds assumed for a class that has not run yet.
DEFAULT_COST_S = 0.1

#: Share of load_timeout_s for which a load leaves the processors to those who serve, if nobody
#: waits for it.
IN_BACKGROUND = 0.25


def backoff(failures: int, limit_s: float, jitter: float) -> float:
    """Seconds to wait after the `failures`-th failure in a row: 1, 2, 4 … up to `limit_s`.

    jitter: from 0 to 1; up to a fifth of the wait is added, so that what failed together is not
    tried again together.
    """
    wait = min(limit_s, 2.0 ** min(failures - 1, 30))
    return wait * (1 + 0.2 * jitter)


def layers_lost(before: Iterable[BadLayer], after: Iterable[BadLayer]) -> set[str]:
    """Names of the layers that do not open now and did before."""
    return {layer.name for layer in after} - {layer.name for layer in before}


def longest_data_pause(data_reload_s: float, load_s: float) -> float:
    """Seconds between loads for data that changes all the time: at least ten times what one takes,
    so that they cost a tenth of a core at most."""
    return max(data_reload_s, 10 * load_s)


def data_pause(loads: int, load_s: float, longest: float) -> float:
    """Seconds to wait after the `loads`-th load in a row for changed data."""
    return min(longest, max(1.0, load_s) * 2.0 ** min(loads - 1, 30))


def moving_average(known: float | None, measured: float) -> float:
    """The cost estimate after one more measurement, in seconds."""
    return measured if known is None else known + _NEWEST * (measured - known)


def retry_after(seconds: float) -> int:
    """What Retry-After says of so long a wait: whole seconds, 1 to 60."""
    return max(1, min(60, math.ceil(seconds)))


#: Providers whose source may be down now and up again later, while the project file is the same.
_REMOTE = {
    "postgres", "postgresraster", "oracle", "mssql", "hana", "wms", "wcs", "WFS", "OAPIF",
    "arcgismapserver", "arcgisfeatureserver", "vectortile",
}  # fmt: skip


def may_heal(bad_layers: Iterable[BadLayer]) -> bool:
    """Whether loading the project again may bring back a layer that did not open."""
    return any(layer.provider in _REMOTE for layer in bad_layers)


def default_project_workers(workers: int) -> int:
    """All but one: a single project must not hold the whole pool."""
    return max(1, workers - 1)


def default_max_loads(cores: int) -> int:
    """Half the cores: loads are CPU-bound and must leave room for rendering."""
    return max(1, cores // 2)


def snapshot_value(rate: float, unused_s: float, load_s: float, size: int) -> float:
    """What a snapshot is worth for its memory: the load time it is likely to save, per MiB.

    rate: requests a second over its life; unused_s: since the last one; size: bytes.
    """
    likely = rate / (1 + unused_s / 60)
    return likely * load_s / max(1, size >> 20)


def effective_budget(configured: int, cgroup: int | None, share: float = 1.0) -> int:
    """Bytes a pool may have: its own limit, and no more than its share of nine tenths of the
    cgroup's, as reaching that one gets a process killed that we did not choose."""
    return configured if cgroup is None else min(configured, int(cgroup * 9 // 10 * share))


def project_limits(key: str, limits: Limits) -> tuple[int, int]:
    """Workers a project may have busy, and requests waiting: the first override that fits."""
    for pattern, workers, queue in limits.overrides:
        if fnmatchcase(key, pattern):
            return workers or limits.project_workers, queue or limits.project_queue
    return limits.project_workers, limits.project_queue


def served_enough(served: int, limit: int, worker: int) -> bool:
    """Whether a worker has answered its `limit` of requests (0: none), less up to a tenth by its
    number, so that workers forked together are not replaced together."""
    return limit > 0 and served >= limit - (worker * 7919) % (limit // 10 + 1)


def workers_wanted(queued: int, live: int, free: int, cap: int) -> int:
    """How many more workers a project should fork now.

    One per waiting request that no worker takes that is `free`, now or soon, within `cap` live
    ones.
    """
    return max(0, min(queued - free, cap - live))
