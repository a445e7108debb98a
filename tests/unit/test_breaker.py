"""The breaker: opens on failures close together, lets one probe through, closes on its success."""

from hypothesis import given
from hypothesis import strategies as st

from qgisd.supervisor.breaker import Breaker, BreakerState


def opened() -> Breaker:
    """One that has just opened at time 0."""
    breaker = Breaker(3, 60.0, 10.0, 40.0)
    assert [breaker.failed(0.0, number) for number in (1, 2, 3)] == [False, False, True]
    return breaker


def test_a_new_breaker_lets_everything_pass() -> None:
    assert Breaker(3, 60.0, 10.0, 40.0).refuses(0.0, 9) is None


def test_failures_far_apart_do_not_open_it() -> None:
    breaker = Breaker(3, 60.0, 10.0, 40.0)
    assert not any(breaker.failed(31.0 * number, number) for number in range(1, 5))
    assert breaker.state is BreakerState.CLOSED


def test_an_open_one_refuses_and_says_for_how_long() -> None:
    breaker = opened()
    assert breaker.refuses(0.0, 9) == 10 and breaker.refuses(7.0, 9) == 3
    assert breaker.refuses(9.9, 9) == 1, "never 0: that would be at once"


def test_after_the_pause_one_request_passes_as_a_probe() -> None:
    breaker = opened()
    assert breaker.refuses(10.0, 10) is None
    assert breaker.refuses(10.0, 11) == 1 and breaker.refuses(11.0, 12) == 1


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    breaker.refuses(10.0, 10)
    assert breaker.succeeded()
    assert breaker.refuses(10.0, 11) is None and breaker.state is BreakerState.CLOSED
    assert not breaker.failed(10.1, 12), "it counts from the start"


def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_the_longest() -> None:
    breaker, now = opened(), 0.0
    for number, pause in enumerate((10, 20, 40, 40), 10):
        assert breaker.refuses(now, number) == pause
        now += pause
        assert breaker.refuses(now, number) is None
        assert breaker.failed(now, number)


def test_a_probe_that_tells_nothing_lets_another_one_pass() -> None:
    breaker = opened()
    assert breaker.refuses(10.0, 10) is None
    breaker.abandoned(9)
    assert breaker.refuses(10.1, 11) == 1, "that was not the probe"
    breaker.abandoned(10)
    assert breaker.refuses(10.5, 11) is None


def test_what_began_before_it_opened_changes_nothing() -> None:
    breaker = opened()
    assert not breaker.succeeded() and not breaker.failed(1.0, 8)
    assert breaker.refuses(1.0, 9) == 9


def test_a_reset_forgets_everything() -> None:
    breaker = opened()
    breaker.reset()
    assert breaker.refuses(0.0, 9) is None and not breaker.failed(0.0, 9)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "fail", "succeed", "abandon", "reset"]), st.floats(0, 20)
        ),
        max_size=100,
    )
)
def test_whatever_happened_it_closes_once_its_requests_succeed(
    steps: list[tuple[str, float]],
) -> None:
    breaker, now, probes = Breaker(3, 60.0, 10.0, 40.0), 0.0, list[int]()
    for number, (what, pause) in enumerate(steps, 1):
        now += pause
        if what == "ask":
            wait = breaker.refuses(now, number)
            assert wait is None or 1 <= wait <= 40
            probes += [number] if wait is None else []
        elif what == "fail":
            breaker.failed(now, number)
        elif what == "succeed":
            breaker.succeeded()
        elif what == "abandon" and probes:
            breaker.abandoned(probes.pop())
        elif what == "reset":
            breaker.reset()
    for number in probes:
        breaker.abandoned(number)
    assert breaker.refuses(now + 40, 1000) is None
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_a_request_that_is_tried_twice_counts_once() -> None:
    breaker = Breaker(3, 60.0, 10.0, 40.0)
    assert not any(breaker.failed(0.0, number) for number in (1, 1, 2, 2))
    assert breaker.failed(0.0, 3)


def test_two_requests_that_are_tried_twice_side_by_side_count_as_two() -> None:
    breaker = Breaker(3, 60.0, 10.0, 40.0)
    assert not any(breaker.failed(0.0, number) for number in (1, 2, 1, 2))


def test_a_few_failures_among_many_that_succeed_do_not_open_it() -> None:
    breaker = Breaker(3, 60.0, 10.0, 40.0)
    for number in range(10):
        assert not breaker.failed(0.1 * number, number)
        breaker.succeeded()
        breaker.succeeded()
