"""Memory that was too little, and memory that does not come back: what is reserved, who is refused, in what words."""

from __future__ import annotations

import math

import pytest

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.memory.model import RAM, Forecast, MemoryRequirement, MemorySnapshot, Pool, in_ram
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, Request, model

OOM = Cause.OOM_KILLED
KILLED = "llama-server was killed by the OOM killer"


def bench_of(budget: int, **memory: int) -> Bench:
    sizes = {name: size * MIB for name, size in memory.items()}
    return Bench([model(name) for name in memory], limits=SharedLimits(budget * MIB, "test", None), memory=sizes)


def refusal(request: Request) -> tuple[str, str]:
    assert request.error is not None
    return request.error.code, request.error.message


def test_an_oom_kill_is_no_crash_and_raises_what_is_reserved() -> None:
    bench = bench_of(100, a=40, b=10)
    bench.loaded("b")
    bench.loaded("a")
    bench.gone("a", OOM, KILLED)
    seen = bench.core.snapshot("a")
    assert seen.state is State.STOPPED
    assert "from now on it reserves 50.0 MiB instead of 40.0 MiB" in seen.reason
    assert seen.error is not None
    assert seen.error.cause is OOM
    assert (seen.memory, seen.memory_source) == (50 * MIB, "ran out of memory with 40.0 MiB")
    assert bench.needs == {"a": 50 * MIB}, "remembered beyond this life of the daemon"
    assert bench.state("b") is State.READY, "neighbours are untouched"
    assert bench.core.next_deadline() < math.inf, "only b's idle timeout"
    assert bench.loads() == ["b", "a"], "nobody asks: nothing is tried again"


def test_what_was_seen_in_use_counts_where_it_is_more() -> None:
    bench = bench_of(100, a=40)
    bench.loaded("a")
    bench.gone("a", OOM, KILLED, peak=70 * MIB)
    assert bench.core.snapshot("a").memory == 70 * MIB


def test_after_an_oom_kill_it_reserves_at_least_the_peak_that_was_measured_while_it_lived() -> None:
    bench = bench_of(100, a=40)
    bench.loaded("a")
    pools = (Pool(RAM, "main memory", 128 * MIB),)
    for used in (70 * MIB, 30 * MIB):
        bench.core.memory.seen(MemorySnapshot(bench.clock.now, pools, {bench.instance("a"): {RAM: used}}))
    bench.gone("a", OOM, KILLED)
    assert bench.core.snapshot("a").memory == 70 * MIB


def test_the_next_request_has_others_leave_for_the_larger_model() -> None:
    bench = bench_of(100, a=60, b=40)
    bench.loaded("b")
    bench.loaded("a")
    bench.gone("a", OOM, KILLED)
    request = bench.request("a")
    assert bench.loads() == ["b", "a"]
    bench.pass_time(1)
    assert bench.state("b") is State.STOPPING, "75 MiB do not fit beside 40 any more"
    bench.gone("b")
    bench.ready("a")
    assert request.lease


def test_what_can_never_fit_is_refused_with_the_arithmetic() -> None:
    bench = bench_of(70, a=60)
    bench.loaded("a")
    bench.gone("a", OOM, KILLED)
    code, text = refusal(bench.request("a"))
    assert code == "model_out_of_memory"
    assert "it needs 75.0 MiB (ran out of memory with 60.0 MiB), 70.0 MiB are there in all" in text
    assert "accelctl reset a" in text
    bench.core.reset("a", memory=True)
    assert bench.needs == {}
    bench.request("a")
    assert bench.loads() == ["a", "a"], "a person may have it tried as before"


def test_a_limit_of_its_own_refuses_it_too() -> None:
    bench = Bench([model("a", memory_max=50 * MIB)], memory={"a": 45 * MIB})
    bench.loaded("a")
    bench.gone("a", OOM, KILLED)
    code, text = refusal(bench.request("a"))
    assert code == "model_out_of_memory"
    assert "its memory_max is 50.0 MiB" in text


def test_a_load_that_runs_out_of_memory_is_tried_once_more_with_more_room() -> None:
    bench = bench_of(1000, a=40)
    request = bench.request("a")
    bench.gone("a", OOM, KILLED)
    assert request.error is None
    assert bench.loads() == ["a", "a"]
    assert bench.core.memory_held() == 50 * MIB
    bench.gone("a", OOM, KILLED)
    code, text = refusal(request)
    assert code == "model_out_of_memory"
    assert KILLED in text
    assert bench.state("a") is State.STOPPED
    assert len(bench.loads()) == 2


def test_a_kept_model_is_not_killed_again_and_again() -> None:
    bench = Bench([model("a", pin=True)], settings=SchedulerSettings(failure_window=600))
    bench.request_load("a")
    for _ in range(3):
        bench.gone("a", OOM, KILLED)
        bench.pass_time(30)
    assert bench.state("a") is State.FAILED
    assert len(bench.loads()) == 3
    code, text = refusal(bench.request("a"))
    assert code == "model_out_of_memory"
    assert "3 times" in bench.core.snapshot("a").reason
    assert "accelctl reset a" in text
    bench.core.reset("a")
    bench.request("a")
    assert len(bench.loads()) == 4


def test_an_oom_kill_counts_for_no_crash_loop() -> None:
    bench = Bench([model("a")], settings=SchedulerSettings(max_failures=2, failure_window=600))
    bench.loaded("a")
    bench.gone("a", OOM, KILLED)
    bench.loaded("a")
    bench.gone("a", Cause.SIGNALED, "killed by SIGSEGV")
    assert bench.state("a") is State.STOPPED, "the first crash of two"


def test_while_it_drains_it_is_an_oom_kill_all_the_same() -> None:
    bench = bench_of(100, a=40)
    bench.loaded("a")
    bench.request("a")
    over: list[bool] = []
    bench.core.begin_unload("a", force=False, done=lambda: over.append(True))
    bench.gone("a", OOM, KILLED)
    assert over == [True]
    assert bench.core.snapshot("a").memory == 50 * MIB


# --- memory that does not come back -------------------------------------------------------------------------------


def test_a_load_goes_on_when_nobody_waits_for_it_any_more() -> None:
    bench = bench_of(100, a=60, b=60)
    requests = [bench.request("a") for _ in range(3)]
    for request in requests:
        assert request.waiter is not None
        bench.core.cancel("a", request.waiter)
    assert bench.state("a") is State.STARTING
    assert bench.core.memory_held() == 60 * MIB, "its memory is taken, whoever waits"
    assert bench.core.queued == 0
    bench.request("b")
    bench.pass_time(5)
    assert bench.loads() == ["a"], "no room beside a load that goes on"
    bench.ready("a")
    bench.pass_time(1)
    assert bench.state("a") is State.STOPPING, "warm and idle, it makes room like any other"
    bench.gone("a")
    assert bench.core.memory_held() == 60 * MIB
    assert bench.loads() == ["a", "b"]


def test_the_next_admission_waits_until_the_memory_is_back() -> None:
    bench = bench_of(100, a=60, b=60)
    bench.slow_pools = True
    bench.loaded("a")
    bench.pass_time(1)
    request = bench.request("b")
    bench.gone("a")
    assert bench.state("a") is State.RECLAIMING
    assert bench.core.snapshot("a").instance is None
    assert bench.core.memory_held() == 60 * MIB
    bench.back(1, 30 * MIB)
    assert bench.loads() == ["a"]
    assert bench.core.memory_held() == 60 * MIB
    bench.back(1)
    assert bench.state("a") is State.STOPPED
    assert bench.core.snapshot("a").reason == (
        "made room for b: it needs 60.0 MiB (test), 100 MiB are there in all (test), 60.0 MiB held by a"
    )
    assert bench.loads() == ["a", "b"]
    bench.ready("b")
    assert request.lease


def test_what_does_not_come_back_is_named_and_stays_on_the_ledger() -> None:
    bench = bench_of(100, a=60, b=60)
    bench.slow_pools = True
    bench.loaded("a")
    bench.core.begin_unload("a", force=False, done=lambda: None)
    bench.gone("a")
    bench.back(1, 50 * MIB)
    bench.pass_time(11)
    seen = bench.core.snapshot("a")
    assert seen.state is State.STOPPED
    assert "50.0 MiB of VRAM of card0 are not back" in seen.reason
    assert [(r.model, r.size) for r in seen.residues] == [("a", 50 * MIB)]
    assert [r.model for r in bench.lost_memory] == ["a"]
    assert bench.core.memory_held() == 50 * MIB
    code, text = refusal(bench.request("b"))
    assert code == "does_not_fit"
    assert "50.0 MiB of VRAM of card0 not given back by a" in text
    bench.back(1, 20 * MIB)
    bench.request("b")
    assert bench.loads() == ["a", "b"], "60 fit beside 20"
    bench.back(1)
    assert bench.core.residues == ()
    assert bench.core.memory_held() == 60 * MIB


def test_memory_that_does_not_come_back_counts_for_no_more_than_the_model_had() -> None:
    bench = bench_of(100, a=60, b=40)
    bench.slow_pools = True
    bench.loaded("a")
    bench.gone("a", Cause.EXITED)
    bench.back(1, 90 * MIB)  # another program has taken memory of the same device meanwhile
    assert [residue.size for residue in bench.core.snapshot("a").residues] == [60 * MIB]
    bench.pass_time(11)
    bench.back(1, 95 * MIB)
    assert [residue.size for residue in bench.core.residues] == [60 * MIB]
    bench.request("b")
    assert bench.loads() == ["a", "b"], "40 MiB fit beside 60"


def test_an_unload_is_over_when_the_memory_is_back() -> None:
    bench = bench_of(100, a=60)
    bench.slow_pools = True
    bench.loaded("a")
    over: list[bool] = []
    bench.core.begin_unload("a", force=False, done=lambda: over.append(True))
    bench.gone("a")
    bench.core.begin_unload("a", force=True, done=lambda: over.append(True))
    assert over == []
    bench.back(1)
    assert over == [True, True]
    assert bench.state("a") is State.STOPPED


@pytest.mark.parametrize("cause", [Cause.EXITED, Cause.NO_MODEL, Cause.UNHEALTHY, OOM])
def test_every_way_to_end_waits_for_the_memory(cause: Cause) -> None:
    bench = bench_of(100, a=40)
    bench.slow_pools = True
    bench.loaded("a")
    bench.gone("a", cause)
    assert bench.state("a") is State.RECLAIMING
    waiting = bench.request("a")
    assert waiting.error is None
    bench.back(1)
    assert bench.state("a") is not State.RECLAIMING
    assert bench.core.snapshot("a").error is not None


def test_a_model_that_was_removed_meanwhile_leaves_its_name_at_the_residue() -> None:
    bench = bench_of(100, a=60, b=10)
    bench.slow_pools = True
    bench.loaded("a")
    bench.gone("a", Cause.EXITED)
    bench.back(1, 5 * MIB)
    bench.configure([model("b")])
    bench.pass_time(11)
    assert [s.spec.name for s in bench.core.snapshots()] == ["b"]
    assert [(r.model, r.size) for r in bench.core.residues] == [("a", 5 * MIB)]
    bench.back(1)
    assert bench.core.memory_held() == 0


# --- preloads that have no room ---------------------------------------------------------------------------------


def kept_out(**settings: bool) -> tuple[Bench, list[ModelSpec]]:
    """Two models that are to be loaded, with room for one: b was refused."""
    specs = [model("a", preload=True), model("b", **(settings or {"preload": True}))]
    bench = Bench(specs, limits=SharedLimits(100 * MIB, "test", None), memory={"a": 60 * MIB, "b": 60 * MIB})
    bench.loaded("a")
    refused = bench.request_load("b", may_evict=False)
    assert refused.error is not None
    assert refused.error.code == "does_not_fit"
    return bench, specs


def test_a_preload_without_room_comes_when_the_limit_is_raised() -> None:
    bench, specs = kept_out()
    bench.limits = SharedLimits(200 * MIB, "test", None)
    bench.configure(specs)
    bench.pass_time(1)
    assert bench.loads() == ["a", "b"]
    assert bench.stopped == [], "nobody leaves for it"


def test_a_preload_without_room_comes_when_another_model_has_left() -> None:
    bench, _ = kept_out()
    bench.core.begin_unload("a", force=True, done=lambda: None)
    bench.gone("a")
    bench.pass_time(1)
    assert bench.loads() == ["a", "b"]


def test_a_preload_without_room_comes_when_it_needs_less() -> None:
    bench, _ = kept_out()
    bench.memory["b"] = 30 * MIB
    bench.configure([model("a", preload=True), model("b", preload=True, context=1024)])
    bench.pass_time(1)
    assert bench.loads() == ["a", "b"]


def test_a_preload_without_room_comes_when_a_better_forecast_says_that_it_fits() -> None:
    bench, _ = kept_out()
    bench.core.memory.forecast("b", Forecast((in_ram(50 * MIB, "still too much"),)))
    bench.pass_time(1)
    assert bench.loads() == ["a"]
    bench.core.memory.forecast("b", Forecast((in_ram(30 * MIB, "its program was asked"),)))
    bench.pass_time(1)
    assert bench.loads() == ["a", "b"]
    assert bench.stopped == [], "nobody leaves for it"


def test_what_still_has_no_room_is_neither_tried_nor_watched_for() -> None:
    bench, specs = kept_out()
    bench.configure(specs)
    bench.pass_time(60)
    looks = bench.looks
    assert (bench.loads(), bench.state("b"), bench.core.snapshot("b").displaced) == (["a"], State.STOPPED, True)
    assert bench.core.memory.deadline() == math.inf, "an idle machine sleeps"
    bench.pass_time(3600)
    assert bench.looks == looks


def test_a_person_s_unload_overrules_a_preload_without_room() -> None:
    bench, specs = kept_out()
    bench.core.begin_unload("b", force=False, done=lambda: None)
    bench.limits = SharedLimits(200 * MIB, "test", None)
    bench.core.configure([(specs[0], bench.forecast(specs[0])), (specs[1], bench.forecast(specs[1]))],
                         bench.settings, bench.limits)  # fmt: skip
    bench.pass_time(1)
    assert (bench.loads(), bench.core.snapshot("b").displaced) == (["a"], False)


def test_after_pressure_it_waits_until_memory_was_free_for_a_while() -> None:
    bench, specs = kept_out()
    bench.core.memory.make_room(RAM, 0, "", busy=False)
    bench.limits = SharedLimits(200 * MIB, "test", None)
    bench.configure(specs)
    bench.pass_time(bench.settings.cool_down - 1)
    assert bench.loads() == ["a"]
    bench.pass_time(2)
    assert bench.loads() == ["a", "b"]


# --- forecasts that are provisional -----------------------------------------------------------------------------

EARLY = Forecast((in_ram(120 * MIB, "nobody was asked"),), provisional=True)


def early(forecast: Forecast = EARLY, **settings: bool) -> Bench:
    """A loaded model, and b, of which its program was not asked yet; together they fit into 100 MiB if b needs 30."""
    specs = [model("a"), model("b", **settings)]
    limits = SharedLimits(100 * MIB, "test", None)
    bench = Bench(specs, limits=limits, memory={"a": 60 * MIB}, forecasts={"b": forecast})
    bench.loaded("a")
    bench.pass_time(60)
    return bench


def learn(bench: Bench, size: int) -> None:
    bench.core.memory.forecast("b", Forecast((in_ram(size * MIB, "its program was asked"),)))


def test_a_request_is_not_refused_by_a_provisional_forecast() -> None:
    bench = early()
    waiting = bench.request("b")
    assert (waiting.error, bench.loads()) == (None, ["a"])
    assert bench.request("a").lease is not None, "others are served meanwhile"
    learn(bench, 30)
    assert bench.loads() == ["a", "b"]
    assert bench.placed["b"].total == 30 * MIB
    bench.ready("b")
    assert waiting.lease is not None


def test_nobody_leaves_and_nothing_is_placed_by_a_provisional_forecast() -> None:
    for size in (80, 40):
        bench = early(Forecast((in_ram(size * MIB, "nobody was asked"),), provisional=True))
        bench.request("b")
        assert (bench.loads(), bench.stopped) == (["a"], [])
        learn(bench, 30)
        assert (bench.loads(), bench.stopped) == (["a", "b"], [])
        assert bench.placed["b"].total == 30 * MIB


def test_what_turns_out_to_be_too_large_is_refused_then() -> None:
    bench = early()
    waiting = bench.request("b")
    learn(bench, 110)
    assert refusal(waiting)[0] == "does_not_fit"


def test_a_preload_waits_for_its_forecast_and_then_loads() -> None:
    bench = early(preload=True)
    wish = bench.request_load("b", may_evict=False)
    assert wish.error is None
    learn(bench, 30)
    bench.ready("b")
    assert wish.done


def test_a_model_that_is_to_be_replaced_waits_for_the_forecast_of_its_new_settings() -> None:
    bench = early()
    bench.forecasts["a"] = EARLY
    bench.configure([model("a", context=1024), model("b")])
    bench.gone("a")
    assert bench.loads() == ["a"]
    bench.core.memory.forecast("a", Forecast((in_ram(50 * MIB, "its program was asked"),)))
    assert bench.loads() == ["a", "a"]
    assert bench.placed["a"].total == 50 * MIB


def test_what_a_run_has_shown_stays_when_the_forecast_arrives() -> None:
    shown = MemoryRequirement({RAM: 35 * MIB}, "ran out of memory with less", raised=True)
    bench = early(Forecast((shown,), provisional=True))
    bench.request("b")
    learn(bench, 30)
    assert bench.placed["b"].total == 35 * MIB
