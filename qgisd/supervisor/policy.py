"""Decisions that are arithmetic: numbers in, a number or a yes out. Pure.

Nothing here sees a process, a clock or a live record's owner.
"""

import math

#: Weight of the newest measurement in a moving average of request costs.
_NEWEST = 0.2
#: Seconds assumed for a class that has not run yet.
DEFAULT_COST_S = 0.1


def backoff(failures: int, limit_s: float, jitter: float) -> float:
    """Seconds to wait after the `failures`-th failure in a row: 1, 2, 4 … up to `limit_s`.

    jitter: from 0 to 1; up to a fifth of the wait is added, so that what failed together is not
    tried again together.
    """
    wait = min(limit_s, 2.0 ** min(failures - 1, 30))
    return wait * (1 + 0.2 * jitter)


def moving_average(known: float | None, measured: float) -> float:
    """The cost estimate after one more measurement, in seconds."""
    return measured if known is None else known + _NEWEST * (measured - known)


def retry_after(queued: int, cost_s: float, workers: int) -> int:
    """Whole seconds until a queue of `queued` is worked off by `workers`; 1 to 60."""
    return max(1, min(60, math.ceil(queued * cost_s / max(1, workers))))


def default_project_workers(workers: int) -> int:
    """All but one: a single project must not hold the whole pool."""
    return max(1, workers - 1)


def default_max_loads(cores: int) -> int:
    """Half the cores: loads are CPU-bound and must leave room for rendering."""
    return max(1, cores // 2)


def workers_wanted(queued: int, live: int, starting: int, cap: int) -> int:
    """How many more workers a project should fork now.

    One per waiting request that no worker on its way will take, within `cap` live ones.
    """
    return max(0, min(queued - starting, cap - live))
