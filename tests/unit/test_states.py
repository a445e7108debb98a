"""The state tables: what is legal, that no state is dead, and that the rest is refused by name."""

from enum import Enum
from typing import Any

import pytest

from qgisd.errors import IllegalTransition
from qgisd.supervisor import states
from qgisd.supervisor.breaker import BREAKER, BreakerState
from qgisd.supervisor.states import (
    GENERATION,
    JOB,
    WORKER,
    ZYGOTE,
    GenerationState,
    JobState,
    WorkerState,
    ZygoteState,
    advance,
)

Table = dict[tuple[Any, str], Any]
#: table, its states, where it begins, where it ends (None: never).
TABLES: list[tuple[Table, type[Enum], Enum, Enum | None]] = [
    (ZYGOTE, ZygoteState, ZygoteState.STARTING, ZygoteState.ENDED),
    (GENERATION, GenerationState, GenerationState.PENDING, GenerationState.ENDED),
    (WORKER, WorkerState, WorkerState.STARTING, WorkerState.ENDED),
    (JOB, JobState, JobState.QUEUED, JobState.DONE),
    (BREAKER, BreakerState, BreakerState.CLOSED, None),
]
NAMES = [states_.__name__ for _, states_, _, _ in TABLES]
LIVE = [state for state in WorkerState if state is not WorkerState.ENDED]


def reachable(table: Table, start: Enum) -> set[Enum]:
    """All states that can follow `start`, itself included."""
    found, waiting = {start}, [start]
    while waiting:
        state = waiting.pop()
        for (before, _), after in table.items():
            if before is state and after not in found:
                found.add(after)
                waiting.append(after)
    return found


@pytest.mark.parametrize(("table", "kind", "first", "last"), TABLES, ids=NAMES)
def test_every_state_can_be_reached(
    table: Table, kind: type[Enum], first: Enum, last: Enum | None
) -> None:
    assert reachable(table, first) == set(kind)


@pytest.mark.parametrize(("table", "kind", "first", "last"), TABLES, ids=NAMES)
def test_every_state_leads_to_the_end_and_nothing_follows_it(
    table: Table, kind: type[Enum], first: Enum, last: Enum | None
) -> None:
    target = last or first
    assert all(target in reachable(table, state) for state in kind)
    assert last is None or reachable(table, last) == {last}


@pytest.mark.parametrize(("table", "kind", "first", "last"), TABLES, ids=NAMES)
def test_every_move_is_between_states_of_the_same_kind(
    table: Table, kind: type[Enum], first: Enum, last: Enum | None
) -> None:
    assert {type(state) for (before, _), after in table.items() for state in (before, after)} == {
        kind
    }


@pytest.mark.parametrize("state", LIVE)
def test_a_worker_may_end_in_any_live_state(state: WorkerState) -> None:
    assert advance(WORKER, state, "exit", 1) is WorkerState.ENDED


@pytest.mark.parametrize("state", [s for s in LIVE if s is not WorkerState.KILLING])
def test_a_worker_may_be_killed_in_any_live_state(state: WorkerState) -> None:
    assert advance(WORKER, state, "kill", 1) is WorkerState.KILLING


def test_only_an_idle_worker_is_given_a_request() -> None:
    takers = [before for (before, event) in WORKER if event == "assign"]
    assert takers == [WorkerState.IDLE]


def test_a_request_whose_head_is_out_never_runs_again() -> None:
    assert JobState.QUEUED not in reachable(JOB, JobState.STREAMING)


def test_a_generation_that_failed_or_retired_never_serves() -> None:
    for state in (GenerationState.FAILED, GenerationState.RETIRED):
        assert GenerationState.SERVING not in reachable(GENERATION, state)


def test_a_generation_serves_only_after_it_was_loaded() -> None:
    before = [state for (state, _), after in GENERATION.items() if after is GenerationState.SERVING]
    assert before == [GenerationState.WARMING]


@pytest.mark.parametrize(("table", "kind", "first", "last"), TABLES, ids=NAMES)
def test_whatever_the_table_does_not_list_is_refused(
    table: Table, kind: type[Enum], first: Enum, last: Enum | None
) -> None:
    events = {event for _, event in table} | {"nonsense"}
    refused = 0
    for state in kind:
        for event in events:
            if (state, event) not in table:
                refused += 1
                with pytest.raises(IllegalTransition):
                    advance(table, state, event)
    assert refused > len(kind)


def test_a_refusal_names_who_and_what_and_in_which_state() -> None:
    with pytest.raises(IllegalTransition, match=r"worker 7: 'assign' in state 'busy'"):
        states.advance(WORKER, WorkerState.BUSY, "assign", "worker 7")
