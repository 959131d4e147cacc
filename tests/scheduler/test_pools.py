"""Models on real pools: who fits where, who leaves for whom, who waits for memory that others have."""

from __future__ import annotations

import math
from typing import Any

import pytest

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.memory.model import RAM, Forecast, MemoryRequirement, MemorySnapshot, Pool
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import Bench, Watched, model, refusal

GIB = 1 << 30
APU, CARD, NPU = "0000:c1:00.0", "0000:03:00.0", "0000:c2:00.1"
SETTINGS = SchedulerSettings(min_resident=0, cool_down=30, memory_wait=20)


def on(pool: str, size: float, **more: float) -> Forecast:
    """A model that has one place."""
    devices = () if pool == RAM else (pool,)
    amounts = {pool: int(size * GIB), **{id: int(s * GIB) for id, s in more.items()}}
    return Forecast((MemoryRequirement(amounts, "estimated", devices),))


class Machine(Watched):
    """A bench whose memory somebody looks at."""

    def __init__(self, models: dict[str, Forecast], settings: SchedulerSettings = SETTINGS, **more: ModelSpec) -> None:
        specs = [more.get(name) or model(name) for name in models]
        super().__init__(specs, settings, forecasts=models)
        self.somebody_looks = True
        self.foreign: dict[str, int] = {}
        self.used: dict[str, dict[str, int]] = {}
        self.look_now()

    def look_now(self) -> None:
        """Somebody looks, and tells."""
        used = {}
        for snapshot in self.core.snapshots():
            if snapshot.instance is not None and snapshot.spec.name in self.used:
                used[snapshot.instance] = self.used[snapshot.spec.name]
        foreign = {id: size * GIB for id, size in self.foreign.items()}
        pools = (
            Pool(RAM, "main memory", 128 * GIB, 8 * GIB, foreign.get(RAM, 0)),
            Pool(APU, "Radeon 8060S", 116 * GIB, GIB, foreign.get(APU, 0), backed_by=RAM, own=GIB),
            Pool(CARD, "RX 7900", 24 * GIB, GIB, foreign.get(CARD, 0)),
            Pool(NPU, "NPU", 128 * GIB, 0, foreign.get(NPU, 0), backed_by=RAM),
        )
        self.events.publish(MemorySnapshot(self.clock.now, pools, used))


def test_what_fits_is_loaded_beside_what_is_there() -> None:
    bench = Machine({"a": on(CARD, 10), "b": on(CARD, 13)})
    bench.loaded("a")
    bench.loaded("b")
    assert bench.loads() == ["a", "b"]


def test_models_on_different_pools_never_make_each_other_leave() -> None:
    bench = Machine({"gpu": on(CARD, 20), "npu": on(NPU, 4), "big": on(CARD, 22), "ram": on(RAM, 30)})
    for name in ("gpu", "npu", "ram"):
        bench.loaded(name)
        bench.pass_time(1)
    bench.request("big")
    bench.pass_time(1)
    assert bench.state("gpu") is State.STOPPING
    assert bench.state("npu") is State.READY, "although it is idle and was used longest ago"
    assert bench.state("ram") is State.READY
    assert "made room for big: it needs 22.0 GiB of the memory of RX 7900 (estimated), which has 24.0 GiB" in (
        bench.core.snapshot("gpu").reason
    )


def test_a_model_that_waits_for_its_pool_keeps_nobody_from_another() -> None:
    bench = Machine({"a": on(CARD, 20), "b": on(CARD, 20), "npu": on(NPU, 4)})
    bench.request("a")
    bench.request("b")
    request = bench.request("npu")
    assert bench.loads() == ["a", "npu"], "b has to wait until a is loaded and can leave"
    bench.ready("npu")
    assert request.lease


def test_nobody_overtakes_on_the_same_pool() -> None:
    bench = Machine({"a": on(CARD, 12), "b": on(CARD, 20), "small": on(CARD, 5)})
    bench.request("a")
    bench.request("b")
    bench.clock.advance(0.1)
    bench.request("small")
    assert bench.loads() == ["a"], "small would fit, but b came first and needs the room"


def test_what_can_never_fit_is_refused_at_once_with_numbers_and_what_would() -> None:
    bench = Machine({"a": on(CARD, 30)})
    bench.offered = "it would fit with context = 16384"
    code, text = refusal(bench.request("a"))
    assert code == "does_not_fit"
    assert "it needs 30.0 GiB of the memory of RX 7900 (estimated), which has 24.0 GiB" in text
    assert "1.0 GiB kept free" in text
    assert "7.0 GiB are missing" in text
    assert text.endswith("it would fit with context = 16384")
    assert bench.offers[0][1][CARD] == 23 * GIB


def limited(memory: int | None = None, loaded: int | None = None) -> SharedLimits:
    return SharedLimits(memory * GIB if memory is not None else None, "scheduler.memory", loaded)


def test_advice_keeps_to_the_limit_that_is_in_the_way() -> None:
    bench = Machine(
        {"a": on(CARD, 20), "b": on(CARD, 14, ram=6), "pinned": on(RAM, 4)}, pinned=model("pinned", pin=True)
    )
    bench.offered = "it would fit with context = 4096"
    bench.loaded("pinned")
    bench.limits = limited(memory=14)
    bench.configure([model("a"), model("b"), model("pinned", pin=True)])
    code, text = refusal(bench.request("a"))
    assert (code, text.endswith("it would fit with context = 4096")) == ("does_not_fit", True)
    assert bench.offers[-1][1][CARD] == 10 * GIB, "not the 23 GiB of the card"
    refusal(bench.request("b"))
    room = bench.offers[-1][1]
    assert (room[CARD], room[RAM]) == (7 * GIB, 3 * GIB), "both together are what is left"


@pytest.mark.parametrize("rule", ["exclusive", "max_loaded", "group"])
def test_no_smaller_setting_is_advised_where_a_rule_is_in_the_way(rule: str) -> None:
    """It would not help, however small."""
    limits = limited(loaded=1) if rule == "max_loaded" else limited()
    settings: dict[str, Any] = {"group": "g"} if rule == "group" else {"exclusive": True} if rule == "exclusive" else {}
    specs = [model("pinned", pin=True, **settings), model("a", **({"group": "g"} if rule == "group" else {}))]
    bench = Machine({"pinned": on(RAM, 1), "a": on(CARD, 2)})
    bench.offered = "it would fit with context = 4096"
    bench.limits = limits
    bench.configure(specs)
    bench.loaded("pinned")
    code, text = refusal(bench.request("a"))
    assert code == "does_not_fit"
    assert "context" not in text
    assert bench.offers == []


def test_a_request_waits_a_while_for_memory_that_a_game_has() -> None:
    bench = Machine({"a": on(CARD, 20), "other": on(RAM, 1)})
    bench.foreign = {CARD: 10}
    bench.look_now()
    request, other = bench.request("a"), bench.request("other")
    assert bench.loads() == ["other"], "nobody behind it has to wait"
    assert request.error is None
    bench.pass_time(10)
    assert request.error is None
    bench.foreign = {}
    bench.pass_time(2)
    assert bench.loads() == ["other", "a"]
    bench.ready("a")
    assert request.lease
    assert other.error is None


def test_while_a_request_waits_for_memory_of_other_programs_it_has_somebody_look_again() -> None:
    bench = Machine({"a": on(CARD, 20)})
    bench.foreign = {CARD: 10}
    bench.look_now()
    request = bench.request("a")
    assert (bench.looks, request.error) == (0, None)
    for looks in (1, 2):
        Bench.pass_time(bench, 2.5)  # nobody looks without being asked
        assert bench.looks == looks
        bench.look_now()
    Bench.pass_time(bench, 2.5)
    bench.foreign = {}
    bench.look_now()
    assert bench.loads() == ["a"]


def test_after_a_while_it_is_refused_and_may_come_again() -> None:
    bench = Machine({"a": on(CARD, 20)})
    bench.foreign = {CARD: 10}
    bench.look_now()
    request = bench.request("a")
    bench.pass_time(21)
    code, text = refusal(request)
    assert code == "memory_in_use"
    assert "10.0 GiB in use by other programs: 7.0 GiB are missing" in text
    assert request.error
    assert request.error.retry_after == 20


def test_no_model_is_made_to_leave_in_vain() -> None:
    bench = Machine({"a": on(CARD, 4), "b": on(CARD, 22)})
    bench.loaded("a")
    bench.foreign = {CARD: 10}
    bench.pass_time(1)
    bench.request("b")
    bench.pass_time(5)
    assert bench.state("a") is State.READY, "b would not fit without it either"


def test_the_first_of_several_gpus_that_has_room_is_taken() -> None:
    ways = Forecast(
        (
            MemoryRequirement({CARD: 20 * GIB}, "estimated", (CARD,)),
            MemoryRequirement({APU: 20 * GIB}, "estimated", (APU,)),
        )
    )
    bench = Machine({"a": ways, "b": ways, "c": ways})
    bench.loaded("a")
    bench.loaded("b")
    assert (bench.placed["a"].devices, bench.placed["b"].devices) == ((CARD,), (APU,))
    assert bench.core.snapshot("b").device == APU
    bench.loaded("c")
    assert bench.placed["c"].devices == (APU,)


def test_when_all_gpus_are_full_the_cheapest_model_of_any_leaves() -> None:
    ways = Forecast(
        (
            MemoryRequirement({CARD: 20 * GIB}, "estimated", (CARD,)),
            MemoryRequirement({APU: 80 * GIB}, "estimated", (APU,)),
        )
    )
    bench = Machine({"used": on(CARD, 20), "unused": on(APU, 80), "new": ways})
    bench.loaded("unused")
    bench.loaded("used")
    for _ in range(20):
        bench.end(bench.request("used"))
        bench.pass_time(30)
    bench.request("new")
    bench.pass_time(1)
    assert bench.state("unused") is State.STOPPING
    bench.gone("unused")
    bench.ready("new")
    assert bench.placed["new"].devices == (APU,)
    assert bench.state("used") is State.READY


def test_a_split_over_two_cards_counts_on_both() -> None:
    split = Forecast((MemoryRequirement({CARD: 15 * GIB, APU: 15 * GIB}, "estimated", (CARD, APU)),))
    bench = Machine({"a": split, "b": on(CARD, 10)})
    bench.loaded("a")
    bench.request("b")
    bench.pass_time(1)
    assert bench.state("a") is State.STOPPING


def test_what_is_measured_counts_instead_of_what_was_estimated() -> None:
    bench = Machine({"a": on(CARD, 20), "b": on(CARD, 8)})
    bench.loaded("a")
    bench.used = {"a": {CARD: 14 * GIB, RAM: GIB}}
    bench.look_now()
    assert bench.core.snapshot("a").held == {CARD: 14 * GIB, RAM: GIB}
    bench.loaded("b")
    assert bench.loads() == ["a", "b"], "8 fit beside 14, not beside 20"
    bench.used = {"a": {CARD: 9 * GIB}}
    bench.look_now()
    assert bench.core.snapshot("a").held[CARD] == 14 * GIB, "it may take as much again"


def test_what_is_seen_while_it_loads_is_not_all_that_it_will_take() -> None:
    bench = Machine({"a": on(CARD, 20)})
    bench.request_load("a")
    bench.used = {"a": {CARD: 6 * GIB}}
    bench.look_now()
    assert bench.core.snapshot("a").held == {CARD: 20 * GIB}
    bench.clock.advance(1)
    bench.ready("a")
    assert bench.core.snapshot("a").held == {CARD: 20 * GIB}, "nobody has looked since"
    bench.core.begin_unload("a", force=True, done=lambda: None)
    assert bench.core.snapshot("a").held == {CARD: 20 * GIB}
    bench.gone("a")
    bench.request_load("a")
    bench.look_now()
    bench.core.begin_unload("a", force=True, done=lambda: None)
    assert bench.core.snapshot("a").held == {CARD: 20 * GIB}, "it may go on allocating until it hears of that"


def test_main_memory_that_was_not_touched_yet_stays_reserved() -> None:
    bench = Machine({"a": on(RAM, 20)})
    bench.loaded("a")
    bench.used = {"a": {RAM: 12 * GIB}}
    bench.look_now()
    assert bench.core.snapshot("a").held == {RAM: 20 * GIB}
    bench.used = {"a": {RAM: 25 * GIB}}
    bench.look_now()
    assert bench.core.snapshot("a").held == {RAM: 25 * GIB}


def test_a_start_waits_for_a_fresh_look_but_not_for_ever() -> None:
    bench = Machine({"a": on(RAM, 20)})
    bench.clock.advance(60)
    bench.request("a")
    assert (bench.loads(), bench.looks) == ([], 1)
    bench.look_now()
    assert bench.loads() == ["a"]
    bench.core.begin_unload("a", force=True, done=lambda: None)
    bench.gone("a")
    bench.clock.advance(60)
    bench.request("a")
    Bench.pass_time(bench, 1.9)
    assert bench.loads() == ["a"]
    Bench.pass_time(bench, 0.2)
    assert bench.loads() == ["a", "a"], "a driver that does not answer stops nobody"


def test_one_that_was_just_loaded_stays_as_long_as_its_load_took() -> None:
    settings = SchedulerSettings(max_overtake=60)
    bench = Machine({"a": on(CARD, 20), "b": on(CARD, 20)}, settings)
    bench.request_load("a")
    bench.pass_time(10)
    bench.ready("a")
    bench.request("b")
    bench.pass_time(9)
    assert bench.state("a") is State.READY
    bench.pass_time(2)
    assert bench.state("a") is State.STOPPING


def test_one_of_lower_priority_leaves_first() -> None:
    vip = model("vip", priority=5)
    bench = Machine({"vip": on(CARD, 10), "plain": on(CARD, 10), "new": on(CARD, 12)}, vip=vip)
    bench.loaded("vip")
    bench.loaded("plain")
    for _ in range(10):
        bench.end(bench.request("plain"))
        bench.pass_time(5)
    bench.request("new")
    bench.pass_time(1)
    assert bench.state("plain") is State.STOPPING, "although it is used more"
    assert bench.state("vip") is State.READY


# --- pressure ---


def test_under_pressure_idle_models_leave_the_largest_first() -> None:
    bench = Machine({"small": on(CARD, 4), "large": on(CARD, 10), "busy": on(CARD, 8), "ram": on(RAM, 40)})
    for name in ("small", "large", "busy", "ram"):
        bench.loaded(name)
    bench.request("busy")
    coming = bench.core.memory.make_room(CARD, 6 * GIB, "a game needs it", busy=False)
    assert coming == 10 * GIB
    assert bench.state("large") is State.STOPPING
    assert bench.core.snapshot("large").reason == "a game needs it"
    assert [bench.state(n) for n in ("small", "busy", "ram")] == [State.READY] * 3
    assert bench.core.memory.make_room(CARD, 8 * GIB, "more", busy=False) == 10 * GIB, "it is on its way already"
    assert bench.core.memory.make_room(CARD, 12 * GIB, "more", busy=False) == 14 * GIB
    assert bench.state("small") is State.STOPPING


def test_what_comes_back_is_what_was_in_use() -> None:
    bench = Machine({"a": on(RAM, 20), "b": on(RAM, 10)})
    bench.loaded("a")
    bench.loaded("b")
    bench.used = {"a": {RAM: 4 * GIB}, "b": {RAM: 6 * GIB}}
    bench.look_now()
    assert bench.core.memory.make_room(RAM, 5 * GIB, "a build needs it", busy=False) == 6 * GIB
    assert (bench.state("a"), bench.state("b")) == (State.READY, State.STOPPING)


def test_hard_pressure_drains_those_that_work_and_cuts_nobody() -> None:
    bench = Machine({"busy": on(CARD, 8), "pinned": on(CARD, 8)}, pinned=model("pinned", pin=True))
    bench.loaded("busy")
    bench.loaded("pinned")
    request = bench.request("busy")
    assert bench.core.memory.make_room(CARD, 20 * GIB, "a game needs it", busy=True) == 8 * GIB
    assert bench.state("busy") is State.DRAINING
    assert bench.state("pinned") is State.READY
    bench.pass_time(300)
    assert bench.state("busy") is State.DRAINING
    bench.end(request)
    assert bench.state("busy") is State.STOPPING


def test_pressure_on_main_memory_is_relieved_by_what_a_gpu_holds_there() -> None:
    bench = Machine({"a": on(APU, 60), "b": on(RAM, 20)})
    bench.loaded("a")
    bench.loaded("b")
    assert bench.core.memory.make_room(RAM, 30 * GIB, "a build needs it", busy=False) == 59 * GIB
    assert (bench.state("a"), bench.state("b")) == (State.STOPPING, State.READY)


def test_a_kept_model_comes_back_when_it_has_been_calm_for_a_while() -> None:
    bench = Machine({"a": on(CARD, 20)}, a=model("a", preload=True))
    bench.loaded("a")
    bench.foreign = {CARD: 10}
    bench.look_now()
    bench.core.memory.make_room(CARD, 7 * GIB, "a game needs it", busy=False)
    bench.gone("a")
    bench.pass_time(100)
    assert bench.loads() == ["a"], "no room yet"
    bench.foreign = {}
    bench.pass_time(6)
    assert bench.loads() == ["a", "a"]
    bench.ready("a")
    bench.core.memory.make_room(CARD, 7 * GIB, "a game needs it", busy=False)
    bench.gone("a")
    bench.pass_time(29)
    assert len(bench.loads()) == 2, "a short calm is no calm"
    bench.pass_time(3)
    assert len(bench.loads()) == 3


def test_a_displaced_model_that_a_request_loads_again_is_displaced_no_more() -> None:
    bench = Machine({"a": on(CARD, 20)}, a=model("a", preload=True))
    bench.loaded("a")
    bench.core.memory.make_room(CARD, 7 * GIB, "a game needs it", busy=False)
    bench.gone("a")
    assert bench.core.snapshot("a").displaced
    bench.request("a")
    assert not bench.core.snapshot("a").displaced
    bench.ready("a")
    bench.gone("a", Cause.DEVICE_RESET)
    assert bench.loads() == ["a", "a", "a"], "it comes back from a reset device at once, as any model to be kept loaded"


def test_a_model_that_a_person_unloads_while_it_is_away_stays_away() -> None:
    bench = Machine({"a": on(CARD, 20)}, a=model("a", preload=True))
    bench.loaded("a")
    bench.core.memory.make_room(CARD, GIB, "a game needs it", busy=False)
    bench.gone("a")
    bench.core.begin_unload("a", force=False, done=lambda: None)
    bench.pass_time(100)
    assert bench.loads() == ["a"]
    assert bench.core.next_deadline() == math.inf, "nobody looks any more"


# --- a person wants the GPU ---


def test_yield_empties_the_gpus_and_nothing_else() -> None:
    bench = Machine(
        {"card": on(CARD, 8), "apu": on(APU, 30), "ram": on(RAM, 8), "busy": on(CARD, 4)},
        card=model("card", pin=True),
    )
    for name in ("card", "apu", "ram", "busy"):
        bench.loaded(name)
    working = bench.request("busy")
    bench.core.memory.yield_memory(frozenset({CARD, APU}), bench.clock.now + 7200, "accelctl yield", now=False)
    assert (bench.state("card"), bench.state("apu")) == (State.STOPPING, State.STOPPING), "pinned or not"
    assert (bench.state("ram"), bench.state("busy")) == (State.READY, State.DRAINING)
    assert working.lease
    bench.pass_time(11)
    assert bench.state("busy") is State.STOPPING
    for name in ("card", "apu", "busy"):
        bench.gone(name)
    request = bench.request("apu")
    code, text = refusal(request)
    assert code == "yielded"
    assert text == "cannot load apu: the memory it needs is yielded (accelctl yield); accelctl resume ends that"
    assert request.error
    assert request.error.retry_after == pytest.approx(7189)
    bench.end(bench.request("ram"))
    bench.pass_time(7190)
    bench.request("apu")
    bench.pass_time(3)
    assert "apu" in bench.loads()[4:], "it is over"
    assert "card" in bench.loads()[4:], "pinned: it comes back by itself"


def test_yield_now_cuts_what_runs_and_what_loads() -> None:
    bench = Machine({"busy": on(CARD, 4), "loading": on(CARD, 4)})
    bench.loaded("busy")
    bench.request("busy")
    waiting = bench.request("loading")
    bench.core.memory.yield_memory(None, None, "accelctl yield", now=True)
    assert (bench.state("busy"), bench.state("loading")) == (State.STOPPING, State.STOPPING)
    bench.gone("busy")
    bench.gone("loading")
    assert refusal(waiting)[0] == "yielded"
    assert bench.core.memory.yielded is not None
    bench.core.memory.resume()
    bench.request("busy")
    assert bench.loads() == ["busy", "loading", "busy"]


def test_lost_memory_counts_in_its_own_pool() -> None:
    bench = Machine({"a": on(CARD, 20), "b": on(CARD, 20), "c": on(RAM, 20)})
    bench.slow_pools = True
    bench.loaded("a")
    bench.used = {"a": {CARD: 20 * GIB}}
    bench.look_now()
    bench.gone("a", Cause.EXITED)
    bench.back(1, 15 * GIB)
    bench.used = {}
    bench.foreign = {CARD: 15}
    bench.pass_time(11)
    (residue,) = bench.core.residues
    assert (residue.pool, residue.size) == (CARD, 15 * GIB)
    card = next(b for b in bench.core.memory.ledger().balances() if b.pool.id == CARD)
    assert (card.foreign, card.held, card.free) == (0, 15 * GIB, 8 * GIB), "not counted as somebody else's too"
    bench.request("c")
    assert bench.loads() == ["a", "c"]
    request = bench.request("b")
    bench.pass_time(1)
    assert refusal(request)[0] == "does_not_fit"
