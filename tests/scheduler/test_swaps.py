"""Several models and room for few of them: batching, fairness, pins, groups, memory, preloading."""

from __future__ import annotations

from dataclasses import replace

from accelerd.base.exits import Cause
from accelerd.config.model import SchedulerSettings
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, Request, model

ONE = SharedLimits(None, "test", 1)
SETTINGS = SchedulerSettings(linger=0.5, max_overtake=20.0)


def one_at_a_time(*names: str, **settings: object) -> Bench:
    return Bench([model(name, **settings) for name in names], limits=ONE, settings=SETTINGS)


def settle(bench: Bench) -> None:
    """Let every process do at once what it was told."""
    for _ in range(100):
        before = len(bench.log)
        for snapshot in bench.core.snapshots():
            if snapshot.state is State.STARTING:
                bench.ready(snapshot.spec.name)
            elif snapshot.state is State.STOPPING:
                bench.gone(snapshot.spec.name)
        if len(bench.log) == before:
            return
    raise AssertionError("the models never come to rest")


def finish_all(bench: Bench, requests: list[Request]) -> None:
    """Serve everything that waits, each request for 0.1 s."""
    done: set[int] = set()
    for _ in range(10_000):
        settle(bench)
        running = [r for r in requests if r.lease and id(r) not in done]
        for request in running:
            bench.pass_time(0.1)
            bench.end(request)
            done.add(id(request))
        if len(done) == len(requests):
            return
        if not running:
            bench.pass_time(0.1)
    raise AssertionError("somebody was never served")


def test_interleaved_requests_cost_one_load_per_model() -> None:
    bench = one_at_a_time("a", "b", "c")
    requests = [bench.request("abc"[i % 3]) for i in range(40)]
    finish_all(bench, requests)
    assert bench.loads() == ["a", "b", "c"]


def test_requests_that_trickle_in_are_batched_too() -> None:
    """As one client sends them: each a little after the last, some when their model is already loaded and idle."""
    bench = one_at_a_time("a", "b", "c")
    requests = []
    for i in range(40):
        requests.append(bench.request("abc"[i % 3]))
        settle(bench)
        bench.pass_time(0.02)
        for request in requests:
            if request.lease and request.lease in request.lease.record.active:
                bench.end(request)
    finish_all(bench, [r for r in requests if not r.lease])
    assert bench.loads() == ["a", "b", "c"]


def test_a_running_request_is_never_cut_by_a_swap() -> None:
    bench = one_at_a_time("a", "b")
    bench.loaded("a")
    running = bench.request("a")
    other = bench.request("b")
    bench.pass_time(300)
    assert bench.state("a") is State.DRAINING
    assert bench.stopped == []
    bench.end(running)
    assert bench.state("a") is State.STOPPING
    settle(bench)
    assert other.lease is not None


def test_an_idle_model_leaves_at_once_but_lingers_when_just_used() -> None:
    bench = one_at_a_time("a", "b")
    bench.loaded("a")
    bench.pass_time(10)
    bench.request("b")
    assert bench.state("a") is State.STOPPING

    bench = one_at_a_time("a", "b")
    bench.loaded("a")
    bench.end(bench.request("a"))
    bench.request("b")
    assert bench.state("a") is State.READY
    bench.pass_time(0.6)
    assert bench.state("a") is State.STOPPING


def test_nobody_is_overtaken_for_longer_than_the_bound() -> None:
    """A never-ending row of requests for a; b waits at most max_overtake before a's newer requests must queue."""
    bench = one_at_a_time("a", "b")
    bench.loaded("a")
    running = bench.request("a")
    other = bench.request("b")
    began = bench.clock.now
    while bench.state("a") is State.READY:
        bench.pass_time(0.3)
        following = bench.request("a")
        bench.end(running)
        if following.lease is None:
            break
        running = following
        assert bench.clock.now - began <= SETTINGS.max_overtake + 1
    settle(bench)
    assert other.lease is not None
    assert bench.clock.now - began <= SETTINGS.max_overtake + 1


def test_requests_older_than_the_one_that_waits_are_still_served_before_the_swap() -> None:
    bench = one_at_a_time("a", "b")
    bench.loaded("a")
    first, second = bench.request("a"), bench.request("a")
    bench.clock.advance(1)
    other = bench.request("b")
    bench.clock.advance(1)
    late = bench.request("a")
    bench.pass_time(30)
    bench.end(first)
    assert second.lease is not None, "it came before b"
    assert late.lease is None, "it came after b"
    bench.end(second)
    settle(bench)
    assert other.lease is not None
    bench.end(other)
    bench.pass_time(1)
    settle(bench)
    assert late.lease is not None


def test_requests_of_the_same_moment_do_not_push_each_other_out() -> None:
    bench = one_at_a_time("a", "b", "c")
    bench.loaded("a")
    requests = [bench.request("b"), bench.request("c")]
    finish_all(bench, requests)
    assert bench.loads() == ["a", "b", "c"]


def test_a_model_that_was_only_waited_for_makes_room_after_linger() -> None:
    """Found by hypothesis: the wish that had it loaded must not make it look busy to those who need its room."""
    bench = one_at_a_time("a", "b")
    bench.request_load("a")
    bench.request("b")
    bench.ready("a")
    bench.pass_time(0.6)
    assert bench.state("a") is State.STOPPING


def test_waiting_models_are_served_oldest_first() -> None:
    bench = one_at_a_time("a", "b", "c")
    bench.loaded("a")
    bench.pass_time(1)
    bench.request("c")
    bench.clock.advance(0.1)
    bench.request("b")
    bench.gone("a")
    assert bench.loads() == ["a", "c"]


def test_the_longest_idle_models_leave_and_no_more_than_needed() -> None:
    memory = {"a": 4 * MIB, "b": 4 * MIB, "c": 2 * MIB, "big": 6 * MIB}
    bench = Bench([model(n) for n in memory], limits=SharedLimits(10 * MIB, "test", None), memory=memory)
    for name in "abc":
        bench.loaded(name)
        bench.pass_time(1)
    bench.request("big")
    assert bench.state("a") is State.STOPPING
    assert bench.state("b") is State.STOPPING, "a alone does not make room"
    assert bench.state("c") is State.READY
    bench.gone("a")
    assert "big" not in bench.loads(), "not before the memory of both is back"
    bench.gone("b")
    assert bench.loads()[-1] == "big"


def test_a_small_victim_is_spared_when_a_later_one_suffices() -> None:
    memory = {"small": 1 * MIB, "large": 8 * MIB, "new": 8 * MIB}
    bench = Bench([model(n) for n in memory], limits=SharedLimits(10 * MIB, "test", None), memory=memory)
    bench.loaded("small")
    bench.pass_time(1)
    bench.loaded("large")
    bench.pass_time(1)
    bench.request("new")
    assert bench.state("small") is State.READY
    assert bench.state("large") is State.STOPPING


def test_a_small_model_may_load_beside_one_that_waits_for_room_only_if_it_never_delays_it() -> None:
    memory = {"a": 6 * MIB, "big": 8 * MIB, "fits": 2 * MIB, "not": 3 * MIB}
    bench = Bench([model(n) for n in memory], limits=SharedLimits(10 * MIB, "test", None), memory=memory)
    bench.loaded("a")
    running = bench.request("a")
    bench.request("big")
    bench.clock.advance(1)
    bench.request("fits")
    bench.clock.advance(1)
    bench.request("not")
    assert bench.loads() == ["a", "fits"], "8 + 2 fit together, 8 + 3 do not"
    bench.pass_time(25)
    bench.end(running)
    bench.gone("a")
    assert bench.loads() == ["a", "fits", "big"]


def test_what_can_never_fit_is_refused_at_once_with_numbers() -> None:
    bench = Bench(
        [model("huge")], limits=SharedLimits(1 << 30, "80 % of the machine's memory", None), memory={"huge": 2 << 30}
    )
    request = bench.request("huge")
    assert request.error is not None
    assert request.error.code == "does_not_fit"
    assert "it needs 2.0 GiB (test), 1.0 GiB are there in all (80 % of the machine's memory)" in request.error.message
    assert bench.started == []


def test_a_pinned_model_does_not_leave_and_the_refusal_says_so() -> None:
    bench = Bench([model("p", pin=True), model("b")], limits=ONE)
    bench.loaded("p")
    request = bench.request("b")
    assert request.error is not None
    assert request.error.code == "does_not_fit"
    assert bench.state("p") is State.READY


def test_one_of_a_group_at_a_time() -> None:
    bench = Bench([model("a", group="chat"), model("b", group="chat"), model("c")], settings=SETTINGS)
    bench.loaded("a")
    bench.loaded("c")
    bench.pass_time(1)
    bench.request("b")
    assert bench.state("a") is State.STOPPING
    assert bench.state("c") is State.READY


def test_an_exclusive_model_is_alone() -> None:
    bench = Bench([model("x", exclusive=True), model("a"), model("b")], settings=SETTINGS)
    bench.loaded("a")
    bench.loaded("b")
    bench.pass_time(1)
    bench.request("x")
    assert [bench.state(n) for n in "ab"] == [State.STOPPING, State.STOPPING]
    settle(bench)
    assert bench.state("x") is State.READY
    bench.pass_time(1)
    assert bench.request("a").error is None
    assert bench.state("x") is State.READY, "in use"


def test_preloading_pushes_nobody_out() -> None:
    bench = one_at_a_time("a", "b")
    bench.loaded("a")
    bench.pass_time(5)
    request_load = bench.request_load("b", may_evict=False)
    assert request_load.error is not None
    assert request_load.error.code == "does_not_fit"
    assert bench.state("a") is State.READY


def test_a_request_joins_a_preload_and_may_then_evict() -> None:
    bench = Bench([model("a"), model("b"), model("c")], limits=SharedLimits(None, "test", 2), settings=SETTINGS)
    bench.loaded("a")
    bench.request_load("b", may_evict=False)
    bench.pass_time(1)
    request = bench.request("c")
    assert request.error is None
    assert bench.state("a") is State.STOPPING


def test_a_failed_load_gives_the_room_to_the_next_in_the_queue() -> None:
    bench = one_at_a_time("a", "b")
    bench.request("a")
    bench.clock.advance(0.1)
    other = bench.request("b")
    bench.gone("a", Cause.EXITED, "exited with status 1")
    assert bench.loads() == ["a", "b"]
    bench.ready("b")
    assert other.lease is not None


def test_a_tighter_limit_at_reload_does_not_cut_what_runs() -> None:
    bench = Bench([model("a"), model("b")], settings=SETTINGS)
    bench.loaded("a")
    bench.loaded("b")
    bench.limits = ONE
    bench.configure([model("a"), model("b")])
    assert [bench.state(n) for n in "ab"] == [State.READY, State.READY]


def test_declared_memory_changes_at_reload_without_a_restart() -> None:
    bench = Bench([model("a")], memory={"a": MIB})
    bench.loaded("a")
    bench.memory["a"] = 3 * MIB
    bench.configure([replace(model("a"), memory=3 * MIB)])
    assert bench.core.memory_held() == 3 * MIB
    assert bench.state("a") is State.READY


def test_placement_says_what_loading_would_take() -> None:
    bench = Bench([model("p", pin=True), model("a"), model("b"), model("c")], limits=SharedLimits(None, "test", 2))
    bench.loaded("p")
    assert bench.core.placement("a") == (True, "it fits beside what is loaded now")
    bench.loaded("a")
    assert bench.core.placement("b") == (True, "a would make room for it: max_loaded = 2 and 2 loaded")
    assert bench.core.placement("a")[0]
    bench.limits = ONE
    bench.configure([model("p", pin=True), model("a"), model("b"), model("c")])
    assert bench.core.placement("b") == (False, "max_loaded = 1 and 2 loaded")
