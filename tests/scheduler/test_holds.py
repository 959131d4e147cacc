"""Models that are held: what leaves them alone, what takes them all the same, and how they come back."""

from __future__ import annotations

from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import SchedulerSettings
from accelerd.memory.model import RAM, Forecast, MemoryRequirement, MemorySnapshot, Pool
from accelerd.scheduler.events import HoldsDropped
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, model

CARD, OTHER = "card", "other"


def bench(*names: str, limit: int | None = 2, **settings: Any) -> Bench:
    specs = [model(name, idle_timeout=30.0) for name in names or ("a", "b")]
    rules = SchedulerSettings(min_resident=0, linger=0, cool_down=5.0, **settings)
    return Bench(specs, rules, SharedLimits(limit * MIB if limit else None, "test", None))


def test_a_held_model_is_not_evicted_and_is_evicted_when_let_go() -> None:
    table = bench("a", "b", limit=1)
    table.loaded("a")
    assert table.core.holds.hold("a", "me", load=False) == "a"
    refused = table.request("b")
    assert refused.error is not None
    assert refused.error.code == "does_not_fit"
    assert "held by a" in refused.error.message
    assert table.core.holds.unhold("a", "me") is True
    table.request("b")
    assert table.state("a") is State.STOPPING


def test_who_waited_for_the_place_gets_it_when_the_hold_ends() -> None:
    table = bench("a", "b", "c", limit=2)
    table.loaded("a")
    table.loaded("b")
    busy = table.request("b")
    table.core.holds.hold("a", "me", load=False)
    waiting = table.request("c")
    table.pass_time(5.0)
    assert table.state("a") is State.READY
    table.core.holds.unhold("a", "me")
    table.pass_time(1.0)
    assert table.state("a") is State.STOPPING
    assert (busy.error, waiting.error) == (None, None)


def test_each_key_counts_once_and_every_key_must_let_go() -> None:
    table = bench("a")
    table.loaded("a")
    for key in ("x", "y", "x"):
        table.core.holds.hold("a", key, load=False)
    assert table.core.snapshot("a").holds == ("x", "y")
    assert table.core.snapshot("a").unevictable
    assert table.core.holds.unhold("a", "x")
    table.pass_time(100.0)
    assert table.state("a") is State.READY
    assert table.core.holds.unhold("a", "x") is False
    assert table.core.holds.unhold("nobody", "x") is False
    assert table.core.holds.unhold("a", "y")
    assert not table.core.snapshot("a").unevictable
    table.pass_time(0.1)
    assert table.state("a") is State.STOPPING, "it was idle for longer than its time"


def test_pressure_leaves_it_alone() -> None:
    table = bench("a", "b", limit=None)
    for name in ("a", "b"):
        table.loaded(name)
    table.core.holds.hold("a", "me", load=False)
    table.core.memory.seen(MemorySnapshot(table.clock.now, (Pool(RAM, "main memory", 16 * MIB),), {}))
    table.core.memory.make_room(RAM, 9 * MIB, "a browser", busy=True)
    assert (table.state("a"), table.state("b")) == (State.READY, State.STOPPING)


@pytest.mark.parametrize("load", [True, False])
def test_memory_that_is_given_up_takes_it_and_it_comes_back(load: bool) -> None:
    table = bench("a")
    table.loaded("a")
    table.core.holds.hold("a", "me", load=load)
    table.core.memory.yield_memory(None, None, "a game", now=True)
    assert table.state("a") is State.STOPPING
    table.gone("a")
    assert table.core.snapshot("a").displaced
    table.pass_time(60.0)
    assert table.state("a") is State.STOPPED
    table.core.memory.resume()
    assert table.state("a") is State.STARTING


def test_what_nobody_holds_any_more_does_not_come_back() -> None:
    table = bench("a")
    table.loaded("a")
    table.core.holds.hold("a", "me", load=False)
    table.core.memory.yield_memory(None, None, "a game", now=True)
    table.gone("a")
    table.core.holds.unhold("a", "me")
    assert not table.core.snapshot("a").displaced
    table.core.memory.resume()
    table.pass_time(60.0)
    assert table.loads() == ["a"]


def test_a_hold_that_loads_while_memory_is_given_up_waits_for_it() -> None:
    table = bench("a")
    table.core.memory.yield_memory(None, None, "a game", now=True)
    table.core.holds.hold("a", "me", load=True)
    assert (table.state("a"), table.core.snapshot("a").displaced) == (State.STOPPED, True)
    table.core.memory.resume()
    assert table.state("a") is State.STARTING


def test_a_person_who_unloads_it_wins_and_the_hold_is_still_there() -> None:
    table = bench("a")
    table.core.holds.hold("a", "me", load=True)
    table.ready("a")
    table.core.begin_unload("a", force=False, done=lambda: None)
    table.gone("a")
    table.pass_time(100.0)
    assert table.state("a") is State.STOPPED
    assert table.core.snapshot("a").holds == ("me",)
    table.loaded("a")
    table.pass_time(100.0)
    assert table.state("a") is State.READY, "held from its next load on"


def test_a_hold_that_loads_brings_the_model_back_after_a_crash() -> None:
    table = bench("a")
    table.core.holds.hold("a", "me", load=True)
    table.ready("a")
    table.gone("a", Cause.SIGNALED)
    assert table.state("a") is State.BACKOFF
    table.pass_time(30.0)
    assert table.state("a") is State.STARTING


def test_what_shall_be_tried_again_while_memory_is_given_up_waits_for_it() -> None:
    table = bench("a")
    table.core.holds.hold("a", "me", load=True)
    table.ready("a")
    table.gone("a", Cause.SIGNALED)
    table.core.memory.yield_memory(None, None, "a game", now=True)
    table.pass_time(30.0)
    assert (table.state("a"), table.core.snapshot("a").displaced) == (State.STOPPED, True)
    table.core.memory.resume()
    assert table.state("a") is State.STARTING


def test_a_hold_makes_room_for_its_load() -> None:
    table = bench("a", "b", limit=1)
    table.loaded("b")
    table.core.holds.hold("a", "me", load=True)
    table.pass_time(1.0)
    assert table.state("b") is State.STOPPING
    table.gone("b")
    assert table.state("a") is State.STARTING


def test_holds_outlive_a_new_configuration_and_a_changed_model() -> None:
    table = bench("a")
    table.core.holds.hold("a", "me", load=True)
    table.ready("a")
    table.configure([model("a", idle_timeout=30.0, context=512)])
    assert table.state("a") is State.STOPPING
    table.gone("a")
    assert table.state("a") is State.STARTING
    assert table.core.snapshot("a").holds == ("me",)
    table.ready("a")
    table.pass_time(100.0)
    assert table.state("a") is State.READY


def test_a_removed_model_drops_them_and_says_why() -> None:
    table = bench("a", "b")
    dropped: list[tuple[str, tuple[str, ...], str]] = []
    table.events.subscribe(HoldsDropped, lambda event: dropped.append((event.model, event.keys, event.reason)))
    table.loaded("a")
    table.core.holds.hold("a", "x", load=True)
    table.core.holds.hold("a", "y", load=False)
    table.configure([model("b")])
    assert dropped == [("a", ("x", "y"), "it was removed from the configuration")]
    with pytest.raises(AccelError, match="removed from the configuration"):
        table.core.holds.hold("a", "z", load=False)
    table.gone("a")
    assert table.core.holds.unhold("a", "x") is False
    assert len(dropped) == 1


def test_models_that_exclude_each_other_cannot_both_be_held() -> None:
    table = Bench([model("a", group="g"), model("b", group="g"), model("c")])
    table.core.holds.hold("a", "me", load=False)
    with pytest.raises(AccelError) as error:
        table.core.holds.hold("b", "me", load=False)
    assert error.value.code == "pin_conflict"
    assert "group g" in error.value.message
    assert table.core.snapshot("b").holds == ()
    table.core.holds.hold("c", "me", load=True)


def test_a_conflict_is_found_by_places_not_by_sums() -> None:
    """Two cards of 4 MiB: three models of 3 MiB find no way, two do, whichever card each likes best."""
    either = Forecast(
        (MemoryRequirement({CARD: 3 * MIB}, "test", (CARD,)), MemoryRequirement({OTHER: 3 * MIB}, "test", (OTHER,)))
    )
    one = Forecast((MemoryRequirement({CARD: 3 * MIB}, "test", (CARD,)),))
    table = Bench(
        [model("free"), model("bound"), model("third")],
        forecasts={"free": either, "bound": one, "third": either},
    )
    pools = tuple(Pool(name, name, 4 * MIB, foreign=3 * MIB) for name in (CARD, OTHER))
    table.core.memory.seen(MemorySnapshot(table.clock.now, pools, {}))
    table.core.holds.hold("free", "me", load=False)  # what others have now passes
    table.core.holds.hold("bound", "me", load=False)
    with pytest.raises(AccelError) as error:
        table.core.holds.hold("third", "me", load=False)
    assert error.value.code == "pin_conflict"


def test_a_load_that_nobody_wants_any_more_is_ended() -> None:
    table = bench("a", "b")
    request_load = table.request_load("a")
    assert table.core.holds.abandon("a", "cancelled") is False, "somebody waits"
    assert request_load.waiter is not None
    table.core.cancel("a", request_load.waiter)
    table.core.holds.hold("a", "me", load=False)
    assert table.core.holds.abandon("a", "cancelled") is False, "somebody holds it"
    table.core.holds.unhold("a", "me")
    assert table.core.holds.abandon("a", "cancelled") is True
    assert (table.state("a"), table.core.snapshot("a").reason) == (State.STOPPING, "cancelled")
    assert table.core.holds.abandon("b", "cancelled") is False


def test_what_is_stopped_while_it_loads_keeps_its_reservation_on_a_device() -> None:
    """It may go on allocating until it hears that it is to end."""
    table = Bench([model("a")], forecasts={"a": Forecast((MemoryRequirement({CARD: 4 * MIB}, "test", (CARD,)),))})
    table.request_load("a")
    table.core.memory.seen(
        MemorySnapshot(table.clock.now, (Pool(CARD, "a card", 8 * MIB),), {table.instance("a"): {CARD: MIB}})
    )
    table.core.begin_unload("a", force=True, done=lambda: None)
    assert table.state("a") is State.STOPPING
    assert table.core.snapshot("a").held == {CARD: 4 * MIB}
