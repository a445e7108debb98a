"""Deadlines by name: earliest first, moved and cancelled ones never fire, none is lost."""

from collections.abc import Hashable

from hypothesis import given
from hypothesis import strategies as st

from qgisd.supervisor.timers import Timers


def test_nothing_is_due_and_nothing_is_next_at_first() -> None:
    timers = Timers()
    assert timers.next() is None and list(timers.due(1e9)) == []


def test_deadlines_come_earliest_first_and_those_of_one_moment_in_the_order_of_setting() -> None:
    timers = Timers()
    for key, when in (("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0)):
        timers.set(key, when)
    assert list(timers.due(3.0)) == ["a", "b1", "b2", "c"]


def test_a_deadline_is_due_at_its_moment_and_not_before() -> None:
    timers = Timers()
    timers.set("a", 5.0)
    assert list(timers.due(4.999)) == []
    assert list(timers.due(5.0)) == ["a"]
    assert list(timers.due(6.0)) == [], "once"


def test_setting_a_key_again_moves_it_in_both_directions() -> None:
    timers = Timers()
    timers.set("later", 1.0)
    timers.set("later", 9.0)
    timers.set("sooner", 9.0)
    timers.set("sooner", 1.0)
    assert list(timers.due(2.0)) == ["sooner"]
    assert timers.next() == 9.0
    assert list(timers.due(9.0)) == ["later"]


def test_a_cancelled_deadline_does_not_fire_and_can_be_set_again() -> None:
    timers = Timers()
    timers.set("a", 1.0)
    timers.cancel("a")
    timers.cancel("never set")
    assert timers.next() is None
    timers.set("a", 1.0)
    assert list(timers.due(1.0)) == ["a"] and timers.next() is None


def test_what_is_cancelled_while_others_fire_does_not_fire() -> None:
    timers = Timers()
    for name in "abc":
        timers.set(name, 1.0)
    fired: list[Hashable] = []
    for key in timers.due(1.0):
        fired.append(key)
        timers.cancel("b")
    assert fired == ["a", "c"]


def test_what_is_set_while_others_fire_fires_only_if_it_is_due() -> None:
    timers = Timers()
    timers.set("a", 1.0)
    fired = []
    for key in timers.due(2.0):
        fired.append(key)
        if key == "a":
            timers.set("a", 9.0)
            timers.set("now", 2.0)
    assert fired == ["a", "now"] and timers.next() == 9.0


def test_moved_deadlines_do_not_pile_up() -> None:
    timers = Timers()
    for step in range(10_000):
        timers.set(step % 3, float(step))
    assert len(timers._heap) < 100
    assert sorted(map(str, timers.due(1e9))) == ["0", "1", "2"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "cancel", "due"]),
            st.integers(0, 5),
            st.floats(0, 100, allow_nan=False),
        ),
        max_size=200,
    )
)
def test_timers_do_the_same_as_a_plain_dictionary(steps: list[tuple[str, int, float]]) -> None:
    timers, model = Timers(), dict[int, float]()
    for what, key, when in steps:
        if what == "set":
            timers.set(key, when)
            model[key] = when
        elif what == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            due = {key for key, moment in model.items() if moment <= when}
            fired = list(timers.due(when))
            assert sorted(fired, key=str) == sorted(due)
            moments = [model.pop(int(str(key))) for key in fired]
            assert moments == sorted(moments)
        assert timers.next() == min(model.values(), default=None)
