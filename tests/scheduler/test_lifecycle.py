"""The table, over the whole product of states and events, and the picture made of it."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from accelerd.base.errors import InternalError
from accelerd.scheduler.lifecycle import LEAVING, OCCUPIED, TABLE, Event, State, step

DOC = Path(__file__).parents[2] / "docs" / "lifecycle.md"


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_pair_is_a_transition_or_a_bug(state: State, event: Event) -> None:
    if (state, event) in TABLE:
        assert step(state, event) is TABLE[state, event]
    else:
        with pytest.raises(InternalError, match=f"{event} is not allowed in state {state}"):
            step(state, event)


@pytest.mark.parametrize(("state", "event"), list(TABLE))
def test_nothing_that_occupies_memory_is_forgotten_without_proof(state: State, event: Event) -> None:
    """Memory comes off the ledger only by an event that means proven gone."""
    if state in OCCUPIED and TABLE[state, event] not in OCCUPIED:
        assert event in (Event.GONE, Event.OUT_OF_MEMORY, Event.BACK_OFF, Event.GIVE_UP)


@pytest.mark.parametrize(("state", "event"), list(TABLE))
def test_what_leaves_does_not_come_back(state: State, event: Event) -> None:
    if state in LEAVING:
        assert TABLE[state, event] not in (State.STARTING, State.READY)


def mermaid() -> str:
    """The table as a mermaid state diagram, for docs/lifecycle.md."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.STOPPED}"]
    lines += [f"    {before} --> {after}: {event}" for (before, event), after in TABLE.items()]
    return "\n".join(lines)


def test_every_state_can_be_reached_and_left() -> None:
    assert set(TABLE.values()) == set(State)
    assert {before for before, _ in TABLE} == set(State)


def test_every_state_has_a_way_back_to_stopped() -> None:
    home = {State.STOPPED}
    while True:
        more = {before for (before, _), after in TABLE.items() if after in home} | home
        if more == home:
            break
        home = more
    assert home == set(State)


def test_the_documented_diagram_is_the_table() -> None:
    assert mermaid() in DOC.read_text(), "docs/lifecycle.md is stale: paste what mermaid() returns"
