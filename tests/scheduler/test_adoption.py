"""Models that an earlier daemon started: taken over with their memory, replaced when outdated, ended without room."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from accelerd.base.exits import Cause
from accelerd.config.model import SchedulerSettings
from accelerd.memory.model import Forecast, in_ram
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, model


def test_an_adopted_model_is_on_the_ledger_at_once_and_serves_without_a_load() -> None:
    bench = Bench(
        [model("a"), model("b")], limits=SharedLimits(3 * MIB, "test", None), memory={"a": 2 * MIB, "b": 2 * MIB}
    )
    assert bench.core.adopt("a", "found", fits=True)
    assert bench.adopted == [(1, "found")]
    assert bench.core.memory_held() == 2 * MIB
    waiting = bench.request("a")
    other = bench.request("b")
    assert bench.loads() == [], "nothing is admitted on memory that is in use"
    bench.ready("a")
    assert waiting.lease
    assert bench.core.snapshot("a").reason.startswith("taken over")
    bench.end(waiting)
    bench.pass_time(1)
    assert bench.state("a") is State.STOPPING, "from here on it is a model like all others"
    bench.gone("a")
    bench.ready("b")
    assert other.lease
    assert bench.loads() == ["b"]


def test_an_adopted_model_that_would_start_differently_now_is_replaced() -> None:
    bench = Bench([model("a")])
    assert bench.core.adopt("a", "found", fits=False)
    assert bench.state("a") is State.STOPPING
    request = bench.request("a")
    bench.gone("a")
    assert bench.loads() == ["a"]
    bench.ready("a")
    assert request.lease


def test_an_outdated_adopted_model_is_loaded_again_although_nobody_asks() -> None:
    bench = Bench([model("a")])
    bench.core.adopt("a", "found", fits=False)
    bench.gone("a")
    assert bench.loads() == ["a"]


def test_what_has_no_room_any_more_is_ended_with_the_arithmetic() -> None:
    bench = Bench(
        [model("a"), model("b")], limits=SharedLimits(3 * MIB, "test", None), memory={"a": 2 * MIB, "b": 2 * MIB}
    )
    bench.core.adopt("a", 1, fits=True)
    bench.core.adopt("b", 2, fits=True)
    assert bench.state("a") is State.STARTING
    assert bench.state("b") is State.STOPPING
    assert bench.core.memory_held() == 4 * MIB, "it holds its memory until it is gone, whatever the limit says"
    assert "2.0 MiB held by a" in bench.core.snapshot("b").reason
    bench.gone("b")
    assert bench.core.memory_held() == 2 * MIB
    assert bench.loads() == []


# --- of which the forecast is provisional ---------------------------------------------------------------------------


def guessed(size: int) -> Bench:
    """A model of which nobody was asked yet, taken over."""
    forecast = Forecast((in_ram(size * MIB, "nobody was asked"),), provisional=True)
    bench = Bench(
        [model("a"), model("b")],
        limits=SharedLimits(10 * MIB, "test", None),
        memory={"b": 2 * MIB},
        forecasts={"a": forecast},
    )
    assert bench.core.adopt("a", "found", fits=True, cache=MIB)
    return bench


def learn(bench: Bench, size: int) -> None:
    bench.core.memory.forecast("a", Forecast((in_ram(size * MIB, "its program was asked"),)))


def test_what_runs_is_not_ended_by_a_guess() -> None:
    bench = guessed(50)
    assert bench.state("a") is State.STARTING
    bench.ready("a")
    lease = bench.request("a")
    assert lease.lease, "it serves"
    learn(bench, 4)
    assert bench.state("a") is State.READY
    assert bench.core.memory_held() == 5 * MIB, "the guess is not what it holds, its prompt cache is"
    learn(bench, 7)
    assert bench.core.memory_held() == 5 * MIB, "from then on it keeps its reservation"


@pytest.mark.parametrize(("size", "ends"), [(4, False), (8, True)])
def test_nobody_is_refused_and_nobody_leaves_for_what_is_reserved_by_a_guess(size: int, ends: bool) -> None:
    for guess in (50, 9):
        bench = guessed(guess)
        bench.ready("a")
        bench.pass_time(60)
        waiting = bench.request("b")
        assert (waiting.error, bench.state("a"), bench.loads()) == (None, State.READY, [])
        learn(bench, size)
        assert bench.state("a") is (State.STOPPING if ends else State.READY), "now it makes room where it must"
        if ends:
            bench.gone("a")
        bench.ready("b")
        assert waiting.lease


def test_what_has_no_room_by_a_better_forecast_ends_when_its_requests_have() -> None:
    for ready in (False, True):
        bench = guessed(2)
        working = None
        if ready:
            bench.ready("a")
            working = bench.request("a")
        learn(bench, 12)
        assert bench.state("a") is (State.DRAINING if ready else State.STOPPING)
        assert "no longer fits: it needs 13.0 MiB" in bench.core.snapshot("a").reason
        if working is not None:
            bench.end(working)
            assert bench.state("a") is State.STOPPING


def test_a_guess_that_is_all_that_will_be_known_is_believed() -> None:
    bench = guessed(50)
    learn(bench, 50)
    assert bench.state("a") is State.STOPPING


def test_it_is_judged_by_the_context_that_it_runs_with() -> None:
    ways = tuple(replace(in_ram(size * MIB, "estimate"), context=context) for context, size in ((64, 20), (8, 5)))
    bench = Bench([model("a")], limits=SharedLimits(10 * MIB, "test", None), forecasts={"a": Forecast(ways)})
    assert bench.core.adopt("a", "found", fits=True, context=8)
    assert (bench.state("a"), bench.core.memory_held()) == (State.STARTING, 5 * MIB)


def test_a_better_forecast_finds_the_context_that_it_runs_with() -> None:
    bench = guessed(50)
    bench.gone("a", Cause.STOPPED, "it had ended already")
    assert bench.core.adopt("a", "found", fits=True, context=8)
    ways = tuple(replace(in_ram(size * MIB, "asked"), context=context) for context, size in ((64, 20), (8, 5)))
    bench.core.memory.forecast("a", Forecast(ways))
    assert (bench.state("a"), bench.core.memory_held()) == (State.STARTING, 5 * MIB)


def test_what_could_not_be_taken_over_is_no_failure_of_the_model() -> None:
    bench = Bench([model("a")])
    bench.core.adopt("a", "found", fits=True)
    request = bench.request("a")
    bench.gone("a", Cause.EXITED, "it had ended already")
    assert request.error is None
    assert bench.loads() == ["a"], "who waits gets a load of its own, at once"
    assert bench.core.snapshot("a").error is None
    bench.ready("a")
    assert request.lease


def test_a_preloaded_model_that_could_not_be_taken_over_is_loaded() -> None:
    bench = Bench([model("a", preload=True)])
    bench.core.adopt("a", "found", fits=True)
    bench.gone("a", Cause.STOPPED, "it had ended already")
    bench.request_load("a", may_evict=False)
    assert bench.loads() == ["a"]
    bench = Bench([model("a", preload=True)])
    bench.core.adopt("a", "found", fits=True)
    bench.gone("a", Cause.EXITED, "it had ended already")
    assert bench.loads() == ["a"]


def test_only_a_stopped_model_that_is_configured_can_be_taken_over() -> None:
    bench = Bench([model("a", aliases=("alias",))])
    assert not bench.core.adopt("unknown", 1, fits=True)
    assert not bench.core.adopt("alias", 1, fits=True), "a record names the model, not what clients call it"
    bench.loaded("a")
    assert not bench.core.adopt("a", 1, fits=True)
    assert bench.adopted == []


def test_a_crash_after_the_adoption_counts_like_any_other() -> None:
    bench = Bench([model("a", pin=True)])
    bench.core.adopt("a", "found", fits=True)
    bench.ready("a")
    bench.gone("a", Cause.SIGNALED, "killed by SIGSEGV")
    assert bench.state("a") is State.BACKOFF
    assert bench.core.snapshot("a").error is not None


def test_keeping_at_the_end_leaves_what_loads_and_what_is_ready_alone() -> None:
    bench = Bench([model("a"), model("b")])
    bench.loaded("a")
    bench.request_load("b")
    waiting = bench.request("b")
    bench.core.shutdown(keep=True)
    assert bench.stopped == []
    assert waiting.error is not None
    assert waiting.error.code == "shutting_down"
    bench.core.shutdown()
    assert [instance for instance, _ in bench.stopped] == [bench.instance("b")]


def test_after_a_suspend_nobody_is_served_before_the_model_has_answered() -> None:
    bench = Bench([model("a", parallel=2), model("b")], settings=SchedulerSettings())
    bench.loaded("a")
    bench.request_load("b")
    bench.core.devices.slept()
    assert bench.probed == [bench.instance("a")], "only what is ready has something to lose"
    request = bench.request("a")
    assert request.lease is None
    bench.core.instance_probed(bench.instance("a"), True)
    assert request.lease
    bench.core.devices.slept()
    bench.end(request)
    again = bench.request("a")
    bench.core.instance_probed(bench.instance("a"), False)
    assert bench.stopped == [(1, Cause.UNHEALTHY)]
    bench.gone("a", Cause.UNHEALTHY, "answers health checks but no requests")
    bench.ready("a")
    assert again.lease, "who waited is served by the reloaded model"


def test_a_pinned_one_that_was_unloaded_before_is_not_given_up_with_a_canceled_load() -> None:
    bench = Bench([model("a", pin=True)])
    bench.core.begin_unload("a", force=False, done=lambda: None)
    bench.core.adopt("a", "found", fits=True)
    assert not bench.core.holds.abandon("a", "canceled")
    assert bench.state("a") is State.STARTING
