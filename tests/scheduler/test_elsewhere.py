"""Models of servers elsewhere: always loaded, in nobody's way, and nothing that concerns memory concerns them."""

from __future__ import annotations

from typing import Any

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.engines.remote.engine import NOTHING
from accelerd.memory.model import RAM, Forecast
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, model


def far(name: str, **settings: Any) -> ModelSpec:
    return model(name, engine="remote", remote="mac", memory=None, **settings)


def bench(*specs: ModelSpec, max_loaded: int | None = None, limit: int = MIB) -> Bench:
    rules = SchedulerSettings(min_resident=0, linger=0, max_loaded=max_loaded)
    nothing = {spec.name: Forecast((NOTHING,)) for spec in specs if spec.elsewhere}
    table = Bench(list(specs), rules, SharedLimits(limit, "test", max_loaded), forecasts=nothing)
    for spec in specs:
        if spec.elsewhere:
            table.ready(spec.name)
    return table


def test_it_is_loaded_as_soon_as_it_is_configured() -> None:
    table = bench(far("far"))
    assert table.state("far") is State.READY
    reasons = [step.reason for step in table.core.snapshot("far").history]
    assert reasons == ["a server elsewhere has it"] * 2, "nobody has asked to load it, and nobody has loaded it"
    assert table.request("far").lease is not None


def test_no_rule_for_what_is_loaded_counts_it() -> None:
    alone = model("alone", exclusive=True, group="g")
    table = bench(far("far", group="g", exclusive=True), alone, max_loaded=1)
    table.loaded("alone")
    assert (table.state("far"), table.state("alone")) == (State.READY, State.READY)
    assert table.core.memory_held() == MIB


def test_it_does_not_leave_for_others_nor_when_it_is_idle_or_memory_is_short() -> None:
    table = bench(far("far", idle_timeout=5.0), model("a"), model("b"))
    table.loaded("a")
    table.pass_time(60.0)
    table.request("b")
    assert (table.state("far"), table.state("a")) == (State.READY, State.STOPPING)
    table.core.memory.make_room(RAM, 1 << 40, "pressure", busy=True)
    table.core.memory.yield_memory(None, None, "a game", now=True)
    assert table.state("far") is State.READY
    assert table.request("far").lease is not None


def test_it_needs_no_look_at_memory_and_no_timer() -> None:
    table = bench(far("far", idle_timeout=5.0))
    assert (table.looks, table.core.next_deadline()) == (0, float("inf"))
    lease = table.request("far").lease
    assert lease is not None
    table.core.release(lease, True)
    assert table.core.next_deadline() == float("inf")


def test_failures_and_a_sleep_of_the_machine_are_no_reason_to_ask_it() -> None:
    table = bench(far("far"))
    for _ in range(5):
        lease = table.request("far").lease
        assert lease is not None
        table.core.release(lease, False)
    table.core.devices.slept()
    assert table.probed == []
    assert table.request("far").lease is not None


def test_one_that_a_person_unloaded_comes_with_the_next_request() -> None:
    table = bench(far("far"))
    table.core.begin_unload("far", force=False, done=lambda: None)
    table.gone("far", Cause.STOPPED)
    assert table.state("far") is State.STOPPED
    waiting = table.request("far")
    assert table.state("far") is State.STARTING
    table.ready("far")
    assert waiting.lease is not None
