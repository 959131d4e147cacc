"""Requests, loads and leases of one model: single flight, slots, the bounded queue, clients that go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import SchedulerSettings
from accelerd.scheduler.lifecycle import State
from tests.scheduler.bench import Bench, model


def test_a_request_loads_the_model_and_gets_a_lease_when_it_is_ready() -> None:
    bench = Bench([model("a")])
    request = bench.request("a")
    assert request.lease is None
    assert bench.loads() == ["a"]
    bench.ready("a")
    assert request.lease is not None
    assert request.lease.model == "a"
    assert request.lease.secret == "secret"


def test_requests_during_one_load_share_it() -> None:
    bench = Bench([model("a", parallel=4)])
    requests = [bench.request("a") for _ in range(4)]
    bench.ready("a")
    assert all(r.lease for r in requests)
    assert bench.loads() == ["a"]


def test_no_more_leases_than_slots_and_the_rest_in_order() -> None:
    bench = Bench([model("a", parallel=2)])
    requests = [bench.request("a") for _ in range(5)]
    bench.ready("a")
    assert [bool(r.lease) for r in requests] == [True, True, False, False, False]
    bench.end(requests[1])
    assert [bool(r.lease) for r in requests] == [True, True, True, False, False]


def test_an_alias_is_the_model() -> None:
    bench = Bench([model("a", aliases=("gpt-4o",))])
    bench.request("gpt-4o")
    assert bench.loads() == ["a"]


def test_an_unknown_model_is_refused_with_a_hint() -> None:
    bench = Bench([model("qwen")])
    request = bench.request("qwem")
    assert request.error is not None
    assert request.error.code == "model_not_found"
    assert "did you mean 'qwen'" in request.error.message


def test_the_queue_is_bounded() -> None:
    bench = Bench([model("a")], settings=SchedulerSettings(max_queue=3))
    requests = [bench.request("a") for _ in range(5)]
    refused = [r.error for r in requests if r.error]
    assert [e.code for e in refused] == ["queue_full", "queue_full"]
    assert all(e.retry_after and e.status == 429 for e in refused)


def test_a_request_that_waits_too_long_is_told() -> None:
    bench = Bench([model("a")], settings=SchedulerSettings(queue_timeout=60))
    request = bench.request("a")
    bench.pass_time(59)
    assert request.error is None
    bench.pass_time(2)
    assert request.error is not None
    assert request.error.code == "queue_timeout"


def test_a_client_that_goes_leaves_the_queue_and_the_load_goes_on() -> None:
    bench = Bench([model("a")])
    request = bench.request("a")
    assert request.waiter is not None
    bench.core.cancel("a", request.waiter)
    assert bench.core.queued == 0
    bench.ready("a")
    assert request.lease is None
    assert bench.state("a") is State.READY


def test_crash_while_loading_fails_all_waiters_with_one_error_and_frees_the_memory_once() -> None:
    bench = Bench([model("a", parallel=8)])
    requests = [bench.request("a") for _ in range(6)]
    assert bench.core.memory_held() > 0
    bench.gone("a", Cause.EXITED, "llama-server exited with status 1", tail=("no such file",))
    errors = {id(r.error) for r in requests}
    assert len(errors) == 1
    assert requests[0].error is not None
    assert "exited with status 1" in requests[0].error.message
    assert requests[0].error.fields["tail"] == ["no such file"]
    assert bench.loads() == ["a"]
    assert bench.core.memory_held() == 0
    assert bench.core.queued == 0


def test_stop_during_start_cancels_once_and_answers_both_callers() -> None:
    bench = Bench([model("a")])
    request_load = bench.request_load("a")
    unloaded: list[bool] = []
    bench.core.begin_unload("a", force=False, done=lambda: unloaded.append(True))
    assert request_load.error is not None
    assert request_load.error.code == "model_unloaded"
    assert bench.stopped == [(1, Cause.STOPPED)]
    bench.core.begin_unload("a", force=True, done=lambda: unloaded.append(True))
    assert bench.stopped == [(1, Cause.STOPPED)], "a second stop must not be sent"
    bench.gone("a")
    assert unloaded == [True, True]
    assert bench.state("a") is State.STOPPED


def test_start_during_stop_waits_then_starts_once() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    bench.core.begin_unload("a", force=False, done=lambda: None)
    request = bench.request("a")
    assert bench.loads() == ["a"]
    bench.gone("a")
    assert bench.loads() == ["a", "a"]
    bench.ready("a")
    assert request.lease is not None


def test_start_twice_and_stop_twice_are_idempotent() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    again = bench.request_load("a")
    assert again.done
    assert bench.loads() == ["a"]
    done: list[bool] = []
    for _ in range(2):
        bench.core.begin_unload("a", force=False, done=lambda: done.append(True))
    bench.gone("a")
    bench.core.begin_unload("a", force=False, done=lambda: done.append(True))
    assert done == [True, True, True]
    assert len(bench.stopped) == 1


def test_the_idle_timer_never_takes_a_model_from_a_request() -> None:
    bench = Bench([model("a", idle_timeout=10.0)])
    bench.loaded("a")
    bench.pass_time(9.9)
    request = bench.request("a")
    assert request.lease is not None
    bench.pass_time(60)
    assert bench.state("a") is State.READY, "in use, however long"
    bench.end(request)
    bench.pass_time(9.9)
    assert bench.state("a") is State.READY, "idle time counts from the end of the last request"
    bench.pass_time(0.2)
    assert bench.state("a") is State.STOPPING
    late = bench.request("a")
    assert late.error is None
    assert late.lease is None
    bench.gone("a")
    bench.ready("a")
    assert late.lease is not None, "a request that comes in the wrong moment waits, it never fails"


def test_a_pinned_model_is_never_put_away_for_idling() -> None:
    bench = Bench([model("a", idle_timeout=10.0, pin=True)])
    bench.loaded("a")
    bench.pass_time(1000)
    assert bench.state("a") is State.READY


def test_unload_lets_running_requests_end_and_force_does_not() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    request = bench.request("a")
    bench.core.begin_unload("a", force=False, done=lambda: None)
    assert bench.state("a") is State.DRAINING
    assert bench.stopped == []
    bench.end(request)
    assert bench.state("a") is State.STOPPING

    bench = Bench([model("a")])
    bench.loaded("a")
    bench.request("a")
    bench.core.begin_unload("a", force=True, done=lambda: None)
    assert bench.state("a") is State.STOPPING


def test_a_lease_of_an_instance_that_is_gone_does_no_harm() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    old = bench.request("a")
    bench.gone("a", Cause.SIGNALED, "killed by SIGKILL")
    bench.loaded("a")
    new = bench.request("a")
    bench.end(old, ok=False)
    assert bench.core.snapshot("a").leases == 1
    bench.end(new)
    assert bench.core.snapshot("a").leases == 0


def test_shutdown_refuses_whoever_waits_and_leaves_running_requests_alone() -> None:
    bench = Bench([model("a"), model("b")])
    bench.loaded("a")
    running, waiting = bench.request("a"), bench.request("a")
    loading = bench.request("b")
    bench.core.shutdown()
    assert running.lease is not None
    assert bench.state("a") is State.READY
    assert waiting.error is not None
    assert waiting.error.code == "shutting_down"
    assert loading.error is not None
    assert bench.state("b") is State.STOPPING
    assert bench.request("a").error is not None


def test_models_are_stopped_the_youngest_first() -> None:
    bench = Bench([model("a"), model("b"), model("c")])
    for name in "abc":
        bench.clock.advance(1)
        bench.loaded(name)
    bench.core.shutdown()
    bench.core.begin_stop_all()
    names = dict(bench.started)
    assert [names[instance] for instance, _ in bench.stopped] == ["c", "b", "a"]


class TestConfigure:
    def test_a_setting_that_the_process_depends_on_drains_and_replaces_it(self) -> None:
        bench = Bench([model("a"), model("b")])
        bench.loaded("a")
        bench.loaded("b")
        running = bench.request("a")
        bench.configure([replace(model("a"), context=512), model("b")])
        assert bench.state("a") is State.DRAINING
        assert bench.core.snapshot("a").outdated
        assert bench.state("b") is State.READY, "unchanged: untouched"
        waiting = bench.request("a")
        bench.end(running)
        bench.gone("a")
        assert bench.loads() == ["a", "b", "a"]
        assert bench.core.snapshot("a").spec.context == 512
        bench.ready("a")
        assert waiting.lease is not None

    def test_a_replaced_model_that_nobody_waits_for_is_loaded_again(self) -> None:
        bench = Bench([model("a")])
        bench.loaded("a")
        bench.configure([replace(model("a"), context=512)])
        bench.gone("a")
        assert bench.loads() == ["a", "a"]

    def test_a_policy_change_keeps_the_process_and_its_streams(self) -> None:
        bench = Bench([model("a")])
        bench.loaded("a")
        running = bench.request("a")
        bench.configure([replace(model("a"), idle_timeout=5.0, aliases=("x",))])
        assert bench.state("a") is State.READY
        bench.end(running)
        bench.pass_time(6)
        assert bench.state("a") is State.STOPPING

    def test_a_removed_model_drains_and_is_then_forgotten(self) -> None:
        bench = Bench([model("a"), model("b")])
        bench.loaded("a")
        running, waiting = bench.request("a"), bench.request("a")
        bench.configure([model("b")])
        assert bench.state("a") is State.DRAINING
        assert waiting.error is not None
        assert waiting.error.code == "model_not_found"
        assert bench.request("a").error is not None
        bench.end(running)
        bench.gone("a")
        with pytest.raises(AccelError, match="no model 'a'"):
            bench.state("a")

    def test_a_changed_configuration_forgives_failures(self) -> None:
        bench = Bench([model("a")])
        bench.request("a")
        bench.gone("a", Cause.REFUSED, "this build knows no --flag")
        assert bench.state("a") is State.FAILED
        bench.configure([replace(model("a"), context=512)])
        assert bench.state("a") is State.STOPPED


def test_the_first_use_and_the_end_of_the_last_are_told() -> None:
    bench = Bench([model("a", parallel=4), model("b")])
    first = bench.request("a")
    assert bench.uses == []
    bench.ready("a")
    second = bench.request("a")
    assert bench.uses == [("a", True)]
    bench.end(first)
    assert bench.uses == [("a", True)]
    bench.end(second)
    assert bench.uses == [("a", True), ("a", False)]


def test_the_end_of_an_instance_is_the_end_of_its_use() -> None:
    bench = Bench([model("a", parallel=4)])
    requests = [bench.request("a") for _ in range(3)]
    bench.ready("a")
    bench.gone("a")
    for request in requests:
        bench.end(request)
    assert bench.uses == [("a", True), ("a", False)]
