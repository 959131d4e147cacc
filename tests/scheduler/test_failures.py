"""What follows from an instance that ends by itself: back-off, giving up, quarantine, coming back."""

from __future__ import annotations

import math

import pytest

from accelerd.base.exits import Cause
from accelerd.config.model import SchedulerSettings
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Waiter
from tests.scheduler.bench import Bench, Request, model

CRASH = Cause.EXITED


def error_of(request: Request) -> str:
    assert request.error is not None
    return request.error.code


def test_a_missing_program_fails_at_once_and_nothing_loops() -> None:
    bench = Bench([model("a")])
    request = bench.request("a")
    bench.gone("a", Cause.NO_PROGRAM, "llama-server is not installed")
    assert error_of(request) == "model_failed"
    assert bench.state("a") is State.FAILED
    bench.pass_time(3600)
    assert bench.loads() == ["a"], "only a request may try again"
    bench.request("a")
    assert bench.loads() == ["a", "a"], "it may be there by now"


def test_a_failed_spawn_counts_as_an_attempt_and_ends_in_failed() -> None:
    bench = Bench([model("a", preload=True)], settings=SchedulerSettings(max_failures=4))
    bench.request_load("a", may_evict=False)
    for _ in range(4):
        assert bench.state("a") is State.STARTING
        bench.gone("a", Cause.SPAWN_FAILED, "cannot start a process: EAGAIN")
        bench.pass_time(70)
    assert bench.state("a") is State.FAILED
    assert len(bench.loads()) == 4
    assert bench.core.next_deadline() == math.inf


def test_crash_while_idle_stops_a_model_on_demand() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    bench.gone("a", Cause.SIGNALED, "killed by SIGSEGV")
    assert bench.state("a") is State.STOPPED
    assert bench.core.snapshot("a").error is not None
    bench.request("a")
    assert bench.loads() == ["a", "a"], "the next request starts it at once"


def test_crash_while_idle_brings_a_kept_model_back() -> None:
    bench = Bench([model("a", pin=True)])
    bench.loaded("a")
    bench.gone("a", Cause.SIGNALED, "killed by SIGSEGV")
    assert bench.state("a") is State.BACKOFF
    bench.pass_time(1.2)
    assert bench.loads() == ["a", "a"]


def test_an_end_while_draining_or_stopping_is_no_failure() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    bench.request("a")
    bench.core.begin_unload("a", force=False, done=lambda: None)
    bench.gone("a", Cause.EXITED, "exited with status 1")
    assert bench.state("a") is State.STOPPED
    assert bench.core.snapshot("a").error is None


def test_a_crash_loop_backs_off_longer_and_longer_and_then_gives_up() -> None:
    settings = SchedulerSettings(max_failures=5, backoff_initial=1, backoff_max=3, failure_window=600)
    bench = Bench([model("a")], settings=settings)
    delays = []
    for attempt in range(5):
        request = bench.request("a")
        assert len(bench.loads()) == attempt + 1
        bench.gone("a", CRASH, "exited with status 1")
        if attempt < 4:
            assert error_of(request) == "model_backing_off"
            assert request.error is not None
            assert request.error.retry_after
            assert error_of(bench.request("a")) == "model_backing_off", "refused without a start"
            retry_in = bench.core.snapshot("a").retry_in
            assert retry_in is not None
            delays.append(retry_in)
            bench.pass_time(retry_in + 0.01)
    assert [round(d / 1.05, 2) for d in delays] == [1, 2, 3, 3], "doubled, with jitter, up to the cap"
    assert bench.state("a") is State.FAILED
    bench.pass_time(36000)
    assert error_of(bench.request("a")) == "model_failed"
    assert len(bench.loads()) == 5
    bench.core.reset("a")
    bench.request("a")
    assert len(bench.loads()) == 6


def test_failures_are_forgotten_after_a_stable_time() -> None:
    settings = SchedulerSettings(max_failures=2, failure_window=100)
    bench = Bench([model("a", idle_timeout=None)], settings=settings)
    for _ in range(4):
        bench.loaded("a")
        bench.pass_time(101)
        bench.gone("a", CRASH, "exited")
        assert bench.state("a") is State.STOPPED


def test_a_load_that_was_killed_for_want_of_progress_is_a_failure() -> None:
    bench = Bench([model("a")])
    request = bench.request("a")
    bench.core.instance_killing(bench.instance("a"))
    assert bench.state("a") is State.KILLING
    assert bench.core.memory_held() > 0, "not proven gone yet"
    bench.gone("a", Cause.LOAD_TIMEOUT, "not ready in 120 s")
    assert error_of(request) == "model_backing_off"
    assert bench.core.memory_held() == 0


def test_requests_that_fail_in_a_row_cause_one_probe_then_one_reload_then_quarantine() -> None:
    bench = Bench([model("a", parallel=2)])
    for generation in range(2):
        bench.loaded("a")
        for count in range(3):
            assert len(bench.probed) == generation
            request = bench.request("a")
            bench.clock.advance(40)
            bench.end(request, ok=False)
            assert count == 2 or len(bench.probed) == generation
        held = bench.request("a")
        assert held.lease is None, "nobody is sent to an engine under suspicion"
        bench.core.instance_probed(bench.instance("a"), False)
        assert bench.stopped[-1] == (bench.instance("a"), Cause.UNHEALTHY)
        bench.gone("a", Cause.UNHEALTHY, "answers no requests")
        if generation == 0:
            assert bench.state("a") is State.STARTING, "the request that waits has it loaded once more"
            bench.ready("a")
            assert held.lease is not None
            bench.end(held, ok=None)
    assert bench.state("a") is State.FAILED
    assert "quarantined" in bench.core.snapshot("a").reason
    assert error_of(bench.request("a")) == "model_failed"


def test_success_in_between_is_no_row() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    for ok in (False, False, True, False, False, None, True):
        bench.end(bench.request("a"), ok=ok)
    assert bench.probed == []


def test_a_probe_that_succeeds_clears_the_suspicion() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    for _ in range(3):
        bench.end(bench.request("a"), ok=False)
    waiting = bench.request("a")
    bench.core.instance_probed(bench.instance("a"), True)
    assert waiting.lease is not None
    assert bench.stopped == []


def test_an_engine_that_still_makes_progress_is_not_killed() -> None:
    bench = Bench([model("a", parallel=4)])
    bench.loaded("a")
    streaming = bench.request("a")
    for _ in range(3):
        bench.end(bench.request("a"), ok=False)
    bench.clock.advance(25)
    assert streaming.lease is not None
    streaming.lease.progress = bench.clock.now  # tokens flow, the probe waited behind them
    bench.clock.advance(5)
    bench.core.instance_probed(bench.instance("a"), False)
    assert bench.stopped == []
    assert bench.state("a") is State.READY


def test_an_explicit_unload_keeps_a_kept_model_away_until_it_is_asked_for() -> None:
    bench = Bench([model("a", pin=True)])
    bench.loaded("a")
    bench.core.begin_unload("a", force=False, done=lambda: None)
    bench.gone("a")
    bench.pass_time(3600)
    assert bench.loads() == ["a"]


def test_memory_of_a_process_that_cannot_be_killed_stays_on_the_ledger() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    bench.core.begin_unload("a", force=True, done=lambda: None)
    bench.core.instance_killing(bench.instance("a"))
    bench.pass_time(3600)
    assert bench.state("a") is State.KILLING
    assert bench.core.memory_held() > 0


def crashes(bench: Bench, times: int) -> None:
    """It is loaded and ends by itself, again and again."""
    for _ in range(times):
        bench.request("a")
        bench.ready("a")
        bench.gone("a", CRASH)


def test_who_waits_for_a_model_that_has_served_waits_out_its_back_off() -> None:
    bench = Bench([model("a")])
    crashes(bench, 1)
    running = bench.request("a")
    bench.ready("a")
    waits = bench.request("a")
    assert running.lease is not None
    bench.pass_time(1)
    bench.gone("a", CRASH)
    assert bench.state("a") is State.BACKOFF
    assert waits.error is None
    bench.pass_time(0.1)
    assert error_of(bench.request("a")) == "model_backing_off", "who comes now is told to come again"
    bench.pass_time(2.5)
    bench.ready("a")
    assert waits.lease is not None
    assert bench.core.next_deadline() > bench.clock.now


def test_whose_turn_it_was_waits_it_out_too() -> None:
    """Its engine had ended before it could read the request."""
    bench = Bench([model("a")])
    crashes(bench, 1)
    running = bench.request("a")
    bench.ready("a")
    assert running.waiter is not None
    came = running.waiter.arrived
    bench.pass_time(1)
    bench.gone("a", CRASH)
    again = Request("a")
    bench.core.submit("a", Waiter(again.resolve, came, bench.clock.now + 60))
    assert again.error is None
    bench.pass_time(2.5)
    bench.ready("a")
    assert again.lease is not None


@pytest.mark.parametrize("timer", [True, False])
@pytest.mark.parametrize("readings", range(8))
def test_a_back_off_that_ends_while_the_scheduler_decides_is_followed_by_a_start(readings: int, timer: bool) -> None:
    """What happens so many readings of the clock before its end is a timer that fires early, or another request."""
    bench = Bench([model("a"), model("b")])
    crashes(bench, 1)
    bench.request("a")
    bench.ready("a")
    waits = bench.request("a")
    bench.gone("a", CRASH)
    retry_at = bench.core.next_deadline()
    assert math.isfinite(retry_at)
    bench.clock.pace = 0.001
    bench.clock.now = retry_at - (readings + 0.5) * bench.clock.pace
    if timer:
        bench.core.tick()
    else:
        bench.request("b")
    assert bench.loads().count("a") == 3 or bench.core.next_deadline() <= retry_at
    bench.clock.pace = 0.0
    bench.pass_time(1)
    bench.ready("a")
    assert waits.lease is not None


def test_a_back_off_that_ends_while_nothing_may_start_is_followed_by_a_start() -> None:
    bench = Bench([model("a")])
    crashes(bench, 1)
    bench.request("a")
    bench.ready("a")
    waits = bench.request("a")
    bench.gone("a", CRASH)
    bench.core.devices.pause(True)
    bench.pass_time(10)
    assert bench.state("a") is State.BACKOFF
    bench.core.devices.pause(False)
    bench.ready("a")
    assert waits.lease is not None


def test_who_may_be_answered_by_another_model_does_not_wait_it_out() -> None:
    bench = Bench([model("a")])
    crashes(bench, 1)
    bench.request("a")
    bench.ready("a")
    waits, moves_on, too_late = Request("a"), Request("a"), Request("a")
    came = bench.clock.now
    bench.core.submit("a", Waiter(waits.resolve, came, came + 60))
    bench.core.submit("a", Waiter(moves_on.resolve, came, came + 60, moves_on=True))
    bench.pass_time(1)
    bench.gone("a", CRASH)
    assert error_of(moves_on) == "model_backing_off"
    assert waits.error is None
    bench.core.submit("a", Waiter(too_late.resolve, came, came + 60, moves_on=True))
    assert error_of(too_late) == "model_backing_off"
    assert bench.core.queued == 1
    bench.pass_time(2.5)
    bench.ready("a")
    assert waits.lease is not None


def test_a_long_back_off_or_a_load_that_fails_is_not_waited_out() -> None:
    bench = Bench([model("a")], settings=SchedulerSettings(backoff_initial=4.0, max_failures=9))
    crashes(bench, 1)
    bench.request("a")
    bench.ready("a")
    waits = bench.request("a")
    bench.gone("a", CRASH)
    assert error_of(waits) == "model_backing_off", "8 s"
    bench.pass_time(9)
    loads = bench.request("a")
    bench.gone("a", CRASH)
    assert error_of(loads) == "model_backing_off"


def test_who_waits_it_out_waits_no_longer_than_anybody() -> None:
    bench = Bench([model("a")], settings=SchedulerSettings(queue_timeout=0.5, backoff_initial=2.0))
    crashes(bench, 1)
    bench.request("a")
    bench.ready("a")
    waits = bench.request("a")
    bench.gone("a", CRASH)
    bench.pass_time(1)
    assert error_of(waits) == "queue_timeout"


def test_what_a_failed_model_is_started_with_now_decides_whether_it_stays_failed() -> None:
    bench = Bench([model("a"), model("b")])
    for name in ("a", "b"):
        bench.request(name)
        bench.gone(name, Cause.NO_PROGRAM, "no such file: /mistyped")
    bench.configure([model("a"), model("b", idle_timeout=5.0)])
    assert [bench.state(name) for name in ("a", "b")] == [State.FAILED, State.FAILED], "nothing that it starts with"
    bench.configure([model("a"), model("b", idle_timeout=5.0)], relaunch=["a"])  # its engine's program is another
    assert [bench.state(name) for name in ("a", "b")] == [State.STOPPED, State.FAILED]
    assert bench.core.snapshot("a").error is None
    bench.configure([model("a"), model("b", context=512)])
    assert bench.state("b") is State.STOPPED
