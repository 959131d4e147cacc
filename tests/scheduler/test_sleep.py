"""Models that sleep: who does and when, what counts meanwhile, how they are woken up, and what ends them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.memory.model import RAM, Forecast
from accelerd.scheduler.lifecycle import WARM, State
from tests.scheduler.bench import Request, model, refusal
from tests.scheduler.test_pools import APU, CARD, GIB, SETTINGS, Machine, on


def sleepy(pool: str, size: float, weights: float) -> Forecast:
    """A model that can sleep in so much of main memory."""
    return replace(on(pool, size), asleep={RAM: int(weights * GIB)})


def machine(
    models: dict[str, Forecast] | None = None, settings: SchedulerSettings = SETTINGS, **specs: ModelSpec
) -> Machine:
    return Machine(models or {"a": sleepy(CARD, 20, 12), "b": sleepy(CARD, 20, 12)}, settings, **specs)


def fall_asleep(bench: Machine, name: str, left: float = 0.5) -> None:
    """A model that was told to sleep does, and leaves so much on its device."""
    assert bench.state(name) is State.OFFLOADING, bench.core.snapshot(name).reason
    bench.slept(name)
    bench.used[name] = {RAM: 13 * GIB, CARD: int(left * GIB)}
    bench.pass_time(1)


def idle_for(bench: Machine, name: str) -> None:
    spec = bench.core.snapshot(name).spec
    assert spec.idle_timeout is not None
    bench.pass_time(spec.idle_timeout + 1)


def asleep(bench: Machine, name: str = "a", left: float = 0.5) -> None:
    bench.loaded(name)
    bench.used[name] = {RAM: GIB, CARD: 20 * GIB}
    bench.pass_time(1)
    idle_for(bench, name)
    fall_asleep(bench, name, left)
    assert bench.state(name) is State.ASLEEP


def in_pool(bench: Machine, pool: str) -> float:
    balance = next(one for one in bench.core.memory.ledger().balances() if one.pool.id == pool)
    return balance.held / GIB


def test_an_idle_model_sleeps_its_weights_are_in_main_memory_and_its_device_is_free() -> None:
    bench = machine()
    bench.loaded("a")
    bench.used["a"] = {RAM: GIB, CARD: 19 * GIB}
    bench.pass_time(1)
    assert (in_pool(bench, CARD), in_pool(bench, RAM)) == (19, 1)
    idle_for(bench, "a")
    assert bench.state("a") is State.OFFLOADING
    assert (in_pool(bench, CARD), in_pool(bench, RAM)) == (19, 13), "both, until it is seen to be back"
    bench.slept("a")
    bench.pass_time(1)
    assert bench.state("a") is State.OFFLOADING, "its engine says so, but nobody has seen it"
    bench.used["a"] = {RAM: 12 * GIB, CARD: GIB // 2}
    bench.pass_time(1)
    assert bench.state("a") is State.ASLEEP
    assert (in_pool(bench, CARD), in_pool(bench, RAM)) == (0.5, 13)
    assert bench.core.snapshot("a").reason == "asleep: idle for 600 s"
    assert bench.stopped == []


def test_a_request_wakes_it_up_and_is_served_without_a_load() -> None:
    bench = machine()
    asleep(bench)
    request = bench.request("a")
    assert (bench.state("a"), request.lease) == (State.WAKING, None)
    assert (in_pool(bench, CARD), in_pool(bench, RAM)) == (20, 13)
    bench.woke("a")
    assert (bench.state("a"), bench.loads()) == (State.READY, ["a"])
    assert request.lease is not None
    assert in_pool(bench, RAM) == 1


def test_what_sleep_takes_of_main_memory_is_not_learned_as_a_need() -> None:
    bench = machine()
    asleep(bench)
    bench.request("a")
    bench.pass_time(1)
    bench.woke("a")
    bench.used["a"] = {RAM: GIB, CARD: 20 * GIB}
    bench.pass_time(1)
    assert bench.peaks["a"] == {RAM: GIB, CARD: 20 * GIB}


def test_two_models_take_turns_on_one_card_without_a_second_load() -> None:
    bench = machine()
    for turn, (name, other) in enumerate([("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")]):
        request = bench.request(name)
        bench.pass_time(2)
        if bench.state(other) is State.OFFLOADING:
            fall_asleep(bench, other)
        bench.used[name] = {RAM: GIB, CARD: 20 * GIB}
        assert bench.state(name) is (State.STARTING if turn < 2 else State.WAKING)
        (bench.ready if turn < 2 else bench.woke)(name)
        bench.pass_time(1)
        assert request.lease is not None
        bench.end(request)
    assert bench.loads() == ["a", "b"]
    assert bench.stopped == []


def test_a_model_that_works_finishes_before_it_sleeps() -> None:
    bench = machine()
    bench.loaded("a")
    working = bench.request("a")
    bench.request("b")
    bench.pass_time(SETTINGS.max_overtake + 1)
    assert bench.state("a") is State.DRAINING
    bench.end(working)
    assert bench.state("a") is State.OFFLOADING


@pytest.mark.parametrize(
    ("models", "why"),
    [
        ({"a": sleepy(CARD, 20, 12), "big": on(RAM, 110)}, "which has 128 GiB"),
        ({"a": sleepy(APU, 20, 12)}, "its device has no memory of its own"),
        ({"a": sleepy(RAM, 20, 12)}, "its device has no memory of its own"),
    ],
)
def test_without_main_memory_of_its_own_it_is_stopped_and_nobody_leaves_for_it(
    models: dict[str, Forecast], why: str
) -> None:
    bench = machine(models, big=model("big", idle_timeout=None))
    for name in models:
        bench.loaded(name)
    bench.end(bench.request("a"))
    idle_for(bench, "a")
    assert bench.state("a") is State.STOPPING
    assert "it cannot sleep" in bench.core.snapshot("a").reason
    assert why in bench.core.snapshot("a").reason
    assert all(bench.state(name) is State.READY for name in models if name != "a")


def test_it_does_not_sleep_where_the_other_model_needs_that_main_memory() -> None:
    bench = machine({"a": sleepy(CARD, 20, 12), "b": on(CARD, 10, **{RAM: 115})})
    bench.loaded("a")
    bench.request("b")
    bench.pass_time(2)
    assert bench.state("a") is State.STOPPING


def test_memory_of_the_device_that_does_not_come_back_has_it_stopped() -> None:
    bench = machine()
    bench.loaded("a")
    bench.used["a"] = {RAM: GIB, CARD: 20 * GIB}
    bench.pass_time(1)
    idle_for(bench, "a")
    fall_asleep(bench, "a", left=15)
    assert bench.state("a") is State.OFFLOADING
    bench.pass_time(11)
    assert bench.state("a") is State.STOPPING
    assert "15.0 GiB of its device's memory did not come back" in bench.core.snapshot("a").reason


def test_an_engine_that_does_not_go_to_sleep_is_stopped() -> None:
    bench = machine()
    bench.loaded("a")
    bench.pass_time(1)
    idle_for(bench, "a")
    bench.slept("a", "status 500 to /sleep")
    assert bench.state("a") is State.STOPPING
    assert "does not go to sleep: status 500" in bench.core.snapshot("a").reason


def test_a_model_that_does_not_wake_up_is_started_anew_while_its_request_waits() -> None:
    bench = machine()
    asleep(bench)
    request = bench.request("a")
    bench.woke("a", "CUDA out of memory")
    assert (bench.state("a"), request.error) == (State.STOPPING, None)
    bench.gone("a")
    bench.used.clear()
    assert (bench.state("a"), bench.loads()) == (State.STARTING, ["a", "a"])
    bench.ready("a")
    assert request.lease is not None


def test_a_crash_in_its_sleep_is_noticed_and_the_next_request_starts_it() -> None:
    bench = machine()
    asleep(bench)
    bench.gone("a", Cause.SIGNALED, "it was killed")
    assert bench.state("a") is State.STOPPED
    assert bench.core.snapshot("a").reason == "it was killed"
    assert (in_pool(bench, CARD), in_pool(bench, RAM)) == (0, 0)
    bench.request("a")
    assert bench.loads() == ["a", "a"]


def test_a_crash_while_it_wakes_up_costs_no_request() -> None:
    bench = machine()
    asleep(bench)
    request = bench.request("a")
    bench.gone("a", Cause.EXITED, "it exited with 1")
    bench.ready("a")
    assert request.lease is not None


def test_its_sleep_ends_for_a_model_that_needs_main_memory_even_if_somebody_waits_for_it() -> None:
    bench = machine({"a": sleepy(CARD, 20, 12), "big": on(RAM, 115)})
    asleep(bench)
    bench.request("big")
    bench.pass_time(1)
    assert bench.state("a") is State.STOPPING
    assert bench.core.snapshot("a").reason.startswith("made room for big: it needs 115 GiB of main memory")
    bench.gone("a")
    bench.ready("big")
    assert bench.state("big") is State.READY


@pytest.mark.parametrize(("pool", "leaves"), [(RAM, True), (CARD, True), (APU, False)])
def test_pressure_ends_a_sleep_that_it_gains_from(pool: str, leaves: bool) -> None:
    bench = machine()
    asleep(bench)
    assert (bench.core.memory.make_room(pool, GIB // 4, "a game", busy=False) > 0) is leaves
    assert (bench.state("a") is State.STOPPING) is leaves


def test_pressure_on_the_device_has_a_model_sleep_and_pressure_on_main_memory_has_it_stopped() -> None:
    for pool, after in ((CARD, State.OFFLOADING), (RAM, State.STOPPING)):
        bench = machine()
        bench.loaded("a")
        bench.used["a"] = {RAM: GIB, CARD: 20 * GIB}
        bench.pass_time(1)
        bench.core.memory.make_room(pool, GIB, "a game", busy=False)
        assert bench.state("a") is after


def test_what_is_falling_asleep_is_no_main_memory_that_comes_back() -> None:
    bench = machine({"a": sleepy(CARD, 20, 12), "b": on(RAM, 20)})
    bench.loaded("b")
    bench.loaded("a")
    bench.pass_time(1)
    bench.core.memory.make_room(CARD, GIB, "a game", busy=False)
    assert bench.core.memory.make_room(RAM, 5 * GIB, "a browser", busy=False) >= 5 * GIB
    assert bench.state("b") is State.STOPPING


def test_it_sleeps_no_longer_than_its_limit() -> None:
    bench = machine(a=model("a", sleep_timeout=100.0))
    asleep(bench)
    bench.pass_time(98)
    assert bench.state("a") is State.ASLEEP
    bench.pass_time(2)
    assert bench.state("a") is State.STOPPING
    assert bench.core.snapshot("a").reason == "asleep for 100 s"


def test_a_pinned_model_is_not_ended_in_its_sleep() -> None:
    bench = machine({"a": sleepy(CARD, 20, 12), "big": on(RAM, 125)})
    asleep(bench)
    bench.core.holds.hold("a", "me", load=False)
    refused = bench.request("big")
    bench.pass_time(1)
    assert refusal(refused)[0] == "does_not_fit"
    assert bench.state("a") is State.ASLEEP
    bench.core.holds.hold("a", "me", load=True)
    assert bench.state("a") is State.WAKING, "a pin that wants it loaded wakes it up"


@pytest.mark.parametrize("state", sorted(WARM))
@pytest.mark.parametrize("what", ["unload", "reload", "remove", "yield", "device lost", "shutdown"])
def test_in_every_state_of_sleep_it_can_be_ended(state: State, what: str) -> None:
    bench = machine()
    bench.loaded("a")
    bench.used["a"] = {RAM: GIB, CARD: 20 * GIB}
    bench.pass_time(1)
    idle_for(bench, "a")
    if state is not State.OFFLOADING:
        fall_asleep(bench, "a")
    if state is State.WAKING:
        bench.request("a")
    assert bench.state("a") is state
    done: list[bool] = []
    if what == "unload":
        bench.core.begin_unload("a", force=False, done=lambda: done.append(True))
    elif what == "reload":
        bench.configure([model("a", context=77), model("b")])
    elif what == "remove":
        bench.configure([model("b")])
    elif what == "yield":
        bench.core.memory.yield_memory(None, None, "a person", now=False)
    elif what == "device lost":
        bench.core.devices.lost("a", Cause.DEVICE_REMOVED, "the card is gone")
    else:
        bench.core.shutdown()
        bench.core.begin_stop_all()
    assert bench.state("a") is State.STOPPING
    bench.gone("a", Cause.DEVICE_REMOVED if what == "device lost" else Cause.STOPPED)
    assert done == ([True] if what == "unload" else [])
    assert in_pool(bench, RAM) == 0
    assert any(snapshot.spec.name == "a" for snapshot in bench.core.snapshots()) is (what != "remove")


def test_an_unload_that_waits_for_a_request_does_not_end_in_sleep() -> None:
    bench = machine()
    bench.loaded("a")
    working = bench.request("a")
    bench.core.begin_unload("a", force=False, done=lambda: None)
    bench.end(working)
    assert bench.state("a") is State.STOPPING


def test_rules_for_what_is_loaded_do_not_count_what_sleeps() -> None:
    specs = {"a": model("a", group="g"), "b": model("b", group="g", exclusive=True)}
    bench = machine({"a": sleepy(CARD, 12, 8), "b": sleepy(CARD, 4, 2)}, **specs)
    bench.core.configure(
        [(spec, bench.forecasts[spec.name]) for spec in specs.values()],
        SETTINGS,
        replace(bench.limits, max_loaded=1),
    )
    bench.loaded("a")
    bench.used["a"] = {CARD: 12 * GIB}
    bench.pass_time(1)
    request = bench.request("b")
    bench.pass_time(1)
    fall_asleep(bench, "a")
    bench.ready("b")
    assert (request.lease is not None, bench.state("a")) == (True, State.ASLEEP)
    bench.end(request)
    bench.pass_time(1)
    bench.request("a")
    bench.pass_time(1)
    assert bench.state("b") is State.OFFLOADING, "but to be awake they count again"


def test_a_model_that_waits_to_wake_up_keeps_its_turn() -> None:
    bench = machine({"a": sleepy(CARD, 20, 12), "b": on(CARD, 20), "c": on(CARD, 20)})
    asleep(bench)
    bench.loaded("b")
    working = bench.request("b")
    waits = bench.request("a")
    later = bench.request("c")
    bench.pass_time(SETTINGS.max_overtake + 1)
    bench.end(working)
    bench.gone("b")
    bench.pass_time(1)
    assert (bench.state("a"), bench.state("c")) == (State.WAKING, State.STOPPED)
    bench.woke("a")
    assert waits.lease is not None
    assert later.lease is None


def test_routes_and_people_are_told_what_waking_up_would_take() -> None:
    bench = machine({"a": sleepy(CARD, 20, 12), "b": on(CARD, 20)}, b=model("b", pin=True))
    asleep(bench)
    assert bench.core.placement("a") == (True, "it fits beside what is loaded now")
    bench.loaded("b")
    fits, why = bench.core.placement("a")
    assert not fits
    assert "held by b" in why
    assert bench.core.displaced_by("a") == ()


def test_a_sleeping_model_is_taken_over_with_what_it_holds_in_its_sleep() -> None:
    bench = machine()
    assert bench.core.adopt("b", "found", fits=True)
    assert bench.core.adopt("a", "found", fits=True, asleep=True)
    assert (in_pool(bench, CARD), in_pool(bench, RAM)) == (20, 12), "beside b there is no room for it awake"
    bench.ready("b")
    bench.ready("a")
    assert (bench.state("a"), bench.state("b")) == (State.ASLEEP, State.READY)
    assert bench.core.snapshot("a").reason.endswith("asleep")
    request: Request = bench.request("a")
    bench.pass_time(SETTINGS.max_overtake + 1)
    fall_asleep(bench, "b")
    bench.woke("a")
    assert request.lease is not None


def test_a_sleeping_model_without_main_memory_any_more_is_ended_at_the_take_over() -> None:
    bench = machine({"a": sleepy(CARD, 20, 12), "big": on(RAM, 115)})
    assert bench.core.adopt("big", "found", fits=True)
    assert bench.core.adopt("a", "found", fits=True, asleep=True)
    assert bench.state("a") is State.STOPPING
