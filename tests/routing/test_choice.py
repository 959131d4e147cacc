"""Which model of a route answers: the first that could begin at once, else the one with the fewest before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from accelerd.base.exits import Cause, Exit
from accelerd.config.model import ModelSpec, Route
from accelerd.memory.model import Forecast, in_ram
from accelerd.routing.choice import Decision, Now, Placement, known
from accelerd.routing.choice import decide as decide_now
from accelerd.routing.directory import Directory
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import ModelRecord, Snapshot, snapshot

GPU, NPU = "0000:c1:00.0", "0000:c2:00.1"
ROUTE = Route("assistant", ("big", "small"))


def seen(name: str, device: str = GPU, slots: int = 1, **now: Any) -> Snapshot:
    spec = ModelSpec(name, path="/m.gguf", parallel=slots)
    plain = snapshot(ModelRecord(spec, Forecast((in_ram(1, "test"),))), 0.0, ())
    return replace(plain, **{"device": device, "state": State.READY, **now})


def fits(name: str) -> tuple[bool, str]:
    return True, "it fits beside what is loaded now"


def decide(
    route: Route, snapshots: Sequence[Snapshot], placement: Placement, routes: Sequence[Route] = (), **more: Any
) -> Decision:
    models = [ModelSpec(name, path="/m") for name in (*route.members, *(m for one in routes for m in one.members))]
    plan = Directory(models, [route, *routes]).plan(route)
    long = more.pop("long", False)
    return decide_now(plan, Now(known(snapshots), placement, **more), long=long)


def chosen(*snapshots: Snapshot, lacking: dict[str, str] | None = None, route: Route = ROUTE) -> Decision:
    return decide(route, snapshots, fits, lacking=lacking or {})


def test_the_first_while_it_is_free() -> None:
    decision = chosen(seen("big"), seen("small", NPU))
    assert (decision.model, decision.reason) == ("big", "big is free")
    assert [look.free for look in decision.looks] == [True, True]


def test_the_npu_while_the_gpu_is_busy() -> None:
    decision = chosen(seen("big", leases=1), seen("small", NPU))
    assert decision.model == "small"
    assert "big has no free slot" in decision.reason
    assert "small is free" in decision.reason


def test_the_gpu_while_the_npu_is_busy() -> None:
    route = Route("other-way", ("small", "big"))
    assert chosen(seen("big"), seen("small", NPU, leases=1), route=route).model == "big"
    assert chosen(seen("big"), seen("small", NPU), route=route).model == "small"


@pytest.mark.parametrize("what", ["leases", "queue"])
def test_a_free_slot_does_not_help_while_another_model_works_on_the_device(what: str) -> None:
    decision = chosen(seen("big", slots=4), seen("small", NPU), seen("coder", **{what: 1}))
    assert decision.model == "small"
    assert "requests of coder" in decision.reason
    assert chosen(seen("big", slots=4), seen("small", NPU), seen("coder", NPU, **{what: 1})).model == "big"


def test_its_own_requests_leave_free_slots_free() -> None:
    assert chosen(seen("big", slots=4, leases=3), seen("small", NPU)).model == "big"
    assert chosen(seen("big", slots=4, leases=3, queue=1), seen("small", NPU)).model == "small"


def test_when_all_are_busy_the_shortest_queue_and_of_equals_the_first() -> None:
    assert chosen(seen("big", leases=1, queue=2), seen("small", NPU, leases=1)).model == "small"
    assert chosen(seen("big", leases=1, queue=1), seen("small", NPU, leases=1, queue=1)).model == "big"
    decision = chosen(seen("big", leases=1, queue=2), seen("small", NPU, leases=1))
    assert "1 request is before it at small" in decision.reason


def test_what_is_not_loaded_is_loaded_when_its_device_is_free() -> None:
    decision = chosen(seen("big", state=State.STOPPED), seen("small", NPU))
    assert (decision.model, decision.reason) == ("big", "big is not loaded, and its device is free")


def test_what_leaves_is_waited_for_only_when_there_is_nothing_better() -> None:
    assert chosen(seen("big", state=State.DRAINING), seen("small", NPU)).model == "small"
    assert chosen(seen("big", state=State.STOPPING), seen("small", NPU, leases=1, queue=1)).model == "big"


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ({"state": State.FAILED, "error": Exit(Cause.NO_PROGRAM, "flm is not installed")}, "flm is not installed"),
        ({"state": State.BACKOFF, "retry_in": 12.0}, "12 s"),
        ({"state": State.KILLING}, "does not end"),
    ],
)
def test_what_cannot_answer_is_left_out_even_when_the_other_is_busy(now: dict[str, Any], why: str) -> None:
    decision = chosen(seen("big", **now), seen("small", NPU, leases=1, queue=9))
    assert decision.model == "small"
    assert why in decision.looks[0].why
    assert decision.looks[0].ahead is None


def test_what_has_waited_out_its_failure_is_tried_again() -> None:
    assert chosen(seen("big", state=State.BACKOFF, retry_in=0.0), seen("small", NPU)).model == "big"


def test_what_has_no_room_or_is_yielded_is_left_out() -> None:
    def placement(name: str) -> tuple[bool, str]:
        return name != "big", "the memory it needs is yielded: GameMode"

    decision = decide(ROUTE, [seen("big", state=State.STOPPED), seen("small", NPU)], placement)
    assert decision.model == "small"
    assert "GameMode" in decision.reason


def test_what_cannot_do_it_is_left_out() -> None:
    assert chosen(seen("big"), seen("small", NPU), lacking={"big": "cannot use tools"}).model == "small"


def test_when_none_can_answer_the_first_says_why() -> None:
    decision = chosen(seen("big", state=State.FAILED), seen("small", NPU, state=State.FAILED))
    assert decision.model == "big"
    assert decision.reason.startswith("none of them can answer")


STATES = st.sampled_from([State.STOPPED, State.STARTING, State.READY, State.DRAINING, State.STOPPING, State.KILLING])
SEEN = st.builds(
    lambda device, slots, leases, queue, state: {
        "device": device, "slots": slots, "leases": min(leases, slots), "queue": queue, "state": state,
    },
    st.sampled_from([GPU, NPU, "cpu"]), st.integers(1, 4), st.integers(0, 4), st.integers(0, 3), STATES,
)  # fmt: skip


@given(st.lists(SEEN, min_size=1, max_size=5))
def test_nobody_waits_while_a_model_of_the_route_could_begin(states: list[dict[str, Any]]) -> None:
    snapshots = [seen(f"m{index}", **state) for index, state in enumerate(states)]
    decision = chosen(*snapshots, route=Route("r", tuple(s.spec.name for s in snapshots)))
    by_name = {look.model: look for look in decision.looks}
    first = next((look.model for look in decision.looks if look.free), None)
    best = by_name[decision.model]
    if first is not None:
        assert decision.model == first
    elif best.ahead is None:
        assert all(look.ahead is None for look in decision.looks)
    else:
        assert best.ahead == min(look.ahead for look in decision.looks if look.ahead is not None)
    assert decision.reason


def test_requests_that_wait_inside_an_engine_are_before_a_new_one() -> None:
    """An engine that batches takes what it is sent, and may have no room for it."""
    models = [seen("big", slots=8, leases=4), seen("small", NPU)]
    decision = decide(ROUTE, models, fits, inside=lambda name: 3 if name == "big" else 0)
    assert decision.model == "small"
    assert "big has 3 requests that wait in its engine" in decision.reason
    assert decide(ROUTE, models, fits, inside=lambda name: 0).model == "big"
