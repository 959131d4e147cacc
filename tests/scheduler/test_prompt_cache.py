"""Prompt caches: from what a start leaves, on the ledger as the model's, and never a reason to evict or to refuse."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.memory.model import RAM, Forecast, MemoryRequirement, MemorySnapshot, Pool
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import Bench, model

MIB, GIB = 1 << 20, 1 << 30
CARD = "0000:03:00.0"


def needs(size: int, card: int = 0, *, spare: int = 8 * GIB, fixed: int = 0) -> Forecast:
    amounts = {RAM: size, CARD: card} if card else {RAM: size}
    need = MemoryRequirement(
        amounts, "estimated", (CARD,) if card else (), {pool: {"weights": one} for pool, one in amounts.items()}
    )
    return Forecast((need.with_cache(fixed),), spare_cache=spare)


def machine(
    ram: int, forecasts: dict[str, Forecast], *, foreign: int = 0, limit: int | None = None, **more: ModelSpec
) -> Bench:
    bench = Bench(
        [more.get(name) or model(name) for name in forecasts],
        forecasts=forecasts,
        limits=SharedLimits(limit, "scheduler.memory", None),
    )
    bench.somebody_looks = True
    pools = (Pool(RAM, "main memory", ram, GIB, foreign), Pool(CARD, "card", 24 * GIB, GIB, 0))
    bench.core.memory.seen(MemorySnapshot(bench.clock.now, pools, {}))
    return bench


@pytest.mark.parametrize(
    ("ram", "need", "cache"),
    [
        (128 * GIB, 20 * GIB, 8 * GIB),  # the engine's own limit
        (16 * GIB, 5 * GIB, 5 * GIB),  # half of 10 GiB
        (8 * GIB, 6 * GIB, GIB // 2),
        (8 * GIB, 7 * GIB - 127 * MIB, 0),  # less than is worth it
        (8 * GIB, 7 * GIB, 0),
    ],
)
def test_half_of_what_a_start_leaves_up_to_the_engines_limit(ram: int, need: int, cache: int) -> None:
    bench = machine(ram, {"a": needs(need)})
    assert bench.core.would_need("a").cache == cache, "before it is loaded"
    bench.loaded("a")
    placed = bench.placed["a"]
    assert (placed.cache, placed.amounts[RAM]) == (cache, need + cache)
    assert placed.parts.get("prompt cache", 0) == cache
    assert bench.core.memory_held() == need + cache
    (held,) = bench.core.memory.ledger().balances()[0].holdings
    assert (held.size, held.cache) == (need + cache, cache)


def test_a_model_on_a_card_has_its_cache_in_main_memory() -> None:
    bench = machine(16 * GIB, {"a": needs(GIB, 20 * GIB)})
    bench.loaded("a")
    assert bench.placed["a"].amounts == {RAM: GIB + 7 * GIB, CARD: 20 * GIB}


def test_what_others_use_and_hold_is_not_to_spare() -> None:
    bench = machine(32 * GIB, {"a": needs(4 * GIB, spare=0), "b": needs(2 * GIB)}, foreign=9 * GIB)
    bench.loaded("a")
    bench.loaded("b")
    assert bench.placed["a"].cache == 0, "it has none"
    assert bench.placed["b"].cache == 8 * GIB
    bench = machine(32 * GIB, {"a": needs(4 * GIB), "b": needs(2 * GIB)}, foreign=17 * GIB)
    bench.loaded("a")
    bench.loaded("b")
    assert bench.placed["a"].cache == 4 * GIB, "half of the 8 GiB that are left beside both"
    assert bench.placed["b"].cache == 2 * GIB


def test_the_limits_that_a_person_set_hold_for_it_too() -> None:
    bench = machine(128 * GIB, {"a": needs(4 * GIB)}, limit=8 * GIB)
    bench.loaded("a")
    assert bench.placed["a"].cache == 2 * GIB
    for key in ("memory_max", "memory_high"):
        bench = machine(128 * GIB, {"a": needs(4 * GIB)}, a=model("a", **{key: 5 * GIB}))
        bench.loaded("a")
        assert bench.placed["a"].cache == GIB, key


def test_nobody_leaves_for_a_cache_and_nothing_is_refused_for_one() -> None:
    bench = machine(16 * GIB, {"a": needs(8 * GIB, spare=0), "b": needs(7 * GIB)})
    bench.loaded("a")
    bench.loaded("b")
    assert bench.state("a") is State.READY
    assert bench.placed["b"].cache == 0
    assert machine(8 * GIB, {"a": needs(7 * GIB)}).core.placement("a")[0]


def test_models_that_can_all_be_loaded_still_can_and_have_equal_caches() -> None:
    bench = machine(16 * GIB, dict.fromkeys("abc", needs(4 * GIB)))
    for name in "abc":
        bench.loaded(name)
    assert [bench.state(name) for name in "abc"] == [State.READY] * 3
    assert [bench.placed[name].cache for name in "abc"] == [GIB, GIB, GIB // 2], "of the last half is kept free"


def test_of_more_models_than_can_be_loaded_each_gets_a_cache() -> None:
    bench = machine(16 * GIB, dict.fromkeys("abcdefghijklmn", needs(2 * GIB)))
    bench.loaded("a")
    assert bench.placed["a"].cache == 13 * GIB // 16, "6 others would fit, and leave 1 GiB for 7 caches"
    for name in "bcdefgh":
        bench.request_load(name)
        bench.pass_time(1)
    assert len([name for name in "abcdefgh" if bench.state(name) in (State.STARTING, State.READY)]) >= 5


def test_a_model_that_is_alone_by_order_leaves_nothing_for_others() -> None:
    bench = machine(16 * GIB, dict.fromkeys("abc", needs(4 * GIB)))
    bench.limits = SharedLimits(None, "", 1)
    bench.configure([model(name) for name in "abc"])
    assert bench.core.would_need("a").cache == 11 * GIB // 2


def test_an_idle_model_leaves_with_its_cache_when_another_needs_the_place() -> None:
    bench = machine(16 * GIB, {"a": needs(5 * GIB), "b": needs(11 * GIB)})
    bench.loaded("a")
    assert bench.core.memory_held() == 10 * GIB
    bench.request("b")
    bench.pass_time(1)
    assert bench.state("a") is State.STOPPING
    bench.gone("a")
    assert bench.core.snapshot("a").memory == 5 * GIB, "what it needs, not what there was to spare"
    assert bench.placed["b"].cache == 2 * GIB


def test_a_size_that_a_person_wrote_is_needed_like_the_rest() -> None:
    bench = machine(16 * GIB, {"a": needs(5 * GIB, spare=0, fixed=4 * GIB), "b": needs(7 * GIB, spare=0)})
    bench.loaded("a")
    assert bench.core.memory_held() == 9 * GIB
    bench.request("b")
    bench.pass_time(1)
    assert bench.state("a") is State.STOPPING
    bench = machine(8 * GIB, {"a": needs(5 * GIB, spare=0, fixed=4 * GIB)})
    assert not bench.core.placement("a")[0]


def test_a_model_that_ran_out_of_memory_gets_more_for_itself_and_none_to_spare() -> None:
    bench = machine(64 * GIB, {"a": needs(4 * GIB)})
    bench.request("a")
    assert bench.placed["a"].cache == 8 * GIB
    bench.gone("a", Cause.OOM_KILLED)
    assert bench.needs["a"] == 5 * GIB, "a quarter more than it needed, whatever the cache was"
    assert (bench.placed["a"].total, bench.placed["a"].cache) == (5 * GIB, 0)


def test_a_model_taken_over_has_the_cache_that_it_was_started_with() -> None:
    bench = machine(32 * GIB, {"a": needs(4 * GIB), "b": needs(4 * GIB)})
    assert bench.core.adopt("a", "found", fits=True, cache=3 * GIB)
    assert bench.core.memory_held() == 7 * GIB
    bench.core.memory.forecast("a", needs(4 * GIB + MIB))
    assert bench.core.memory_held() == 7 * GIB, "a better estimate is for its next load"


def test_a_new_declaration_of_a_loaded_model_keeps_its_cache_on_the_ledger() -> None:
    bench = machine(32 * GIB, {"a": needs(4 * GIB)})
    bench.loaded("a")
    cache = bench.placed["a"].cache
    bench.forecasts["a"] = Forecast(
        tuple(replace(need, declared=True) for need in needs(6 * GIB).options), spare_cache=8 * GIB
    )
    bench.configure([model("a", memory=6 * GIB)])
    assert bench.core.memory_held() == 6 * GIB + cache
