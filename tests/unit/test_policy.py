"""The arithmetic: backoff, averages, Retry-After, how many workers, what a snapshot is worth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgisd.config import Config, Pool
from qgisd.daemon import share_of
from qgisd.supervisor import policy


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60)])
def test_the_backoff_doubles_up_to_its_limit(failures: int, seconds: float) -> None:
    assert policy.backoff(failures, 60.0, 0.0) == seconds


@given(st.integers(1, 10_000), st.floats(1, 3600), st.floats(0, 1))
def test_the_backoff_is_positive_and_bounded(failures: int, limit: float, jitter: float) -> None:
    assert 0 < policy.backoff(failures, limit, jitter) <= limit * 1.2


def test_the_jitter_lengthens_the_backoff_by_up_to_a_fifth() -> None:
    assert policy.backoff(4, 60.0, 1.0) == pytest.approx(8 * 1.2)


def test_the_first_measurement_is_the_average() -> None:
    assert policy.moving_average(None, 3.0) == 3.0


@given(st.floats(0, 1e6), st.lists(st.floats(0, 1e6), min_size=1))
def test_an_average_stays_within_what_was_measured(first: float, others: list[float]) -> None:
    average = policy.moving_average(None, first)
    for measured in others:
        average = policy.moving_average(average, measured)
    low, high = min(first, *others), max(first, *others)
    assert low - 1e-6 <= average <= high + 1e-6


def test_an_average_follows_what_is_measured_now() -> None:
    average = 0.1
    for _ in range(30):
        average = policy.moving_average(average, 10.0)
    assert average > 9.9


@pytest.mark.parametrize(
    ("wait", "seconds"), [(0.0, 1), (0.004, 1), (2.5, 3), (3.0, 3), (60.1, 60), (10_000.0, 60)]
)
def test_retry_after_is_in_whole_seconds_between_1_and_60(wait: float, seconds: int) -> None:
    assert policy.retry_after(wait) == seconds


@pytest.mark.parametrize(("workers", "share"), [(1, 1), (2, 1), (4, 3), (16, 15)])
def test_a_project_may_have_all_workers_but_one(workers: int, share: int) -> None:
    assert policy.default_project_workers(workers) == share


@pytest.mark.parametrize(("cores", "loads"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8)])
def test_loads_take_half_the_cores(cores: int, loads: int) -> None:
    assert policy.default_max_loads(cores) == loads


def test_a_snapshot_is_worth_more_if_it_is_used_slow_to_load_and_small() -> None:
    value = policy.snapshot_value(1.0, 60.0, 5.0, 100 << 20)
    assert policy.snapshot_value(2.0, 60.0, 5.0, 100 << 20) > value
    assert policy.snapshot_value(1.0, 10.0, 5.0, 100 << 20) > value
    assert policy.snapshot_value(1.0, 60.0, 9.0, 100 << 20) > value
    assert policy.snapshot_value(1.0, 60.0, 5.0, 200 << 20) < value
    assert policy.snapshot_value(1.0, 60.0, 5.0, 0) > value, "not measured yet"


@pytest.mark.parametrize(
    ("configured", "cgroup", "budget"),
    [(1000, None, 1000), (1000, 2000, 1000), (1000, 1000, 900), (1000, 500, 450)],
)
def test_a_pool_stays_within_its_own_limit_and_nine_tenths_of_the_cgroup(
    configured: int, cgroup: int | None, budget: int
) -> None:
    assert policy.effective_budget(configured, cgroup) == budget


def test_all_pools_together_stay_within_the_cgroup() -> None:
    config = Config(pools={"a": Pool(memory="3GiB"), "b": Pool(memory="1GiB", route="/b")})  # type: ignore[arg-type]
    cgroup = 2 << 30
    budgets = [
        policy.effective_budget(pool.memory, cgroup, share_of(pool, config))
        for pool in config.all_pools().values()
    ]
    assert budgets == [cgroup * 9 // 10 * 3 // 4, cgroup * 9 // 10 // 4]
    assert share_of(Pool(), Config()) == 1


def test_a_worker_without_a_limit_of_requests_is_never_done() -> None:
    assert not policy.served_enough(10**9, 0, 7)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_a_worker_is_replaced_in_the_last_tenth_of_its_requests(limit: int, worker: int) -> None:
    done_at = next(n for n in range(limit + 1) if policy.served_enough(n, limit, worker))
    assert 0.9 * limit - 1 <= done_at <= limit and done_at > 0


def test_workers_forked_together_are_not_replaced_together() -> None:
    ends = {
        next(n for n in range(1001) if policy.served_enough(n, 1000, worker)) for worker in range(8)
    }
    assert len(ends) == 8
