"""A process that SIGKILL does not end is never called stopped, stays counted, and spoils its device only."""

from __future__ import annotations

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, model


def bench_with_stuck(**settings: object) -> Bench:
    """`a` on the GPU cannot be ended; `b` waits for the GPU, `c` is of the CPU, `d` is loaded on the GPU."""
    models = [model("a", **settings), model("b"), model("c", gpu_layers=0), model("d")]
    bench = Bench(models, limits=SharedLimits(100 * MIB, "test", None))
    bench.loaded("d")
    bench.loaded("a")
    bench.core.begin_unload("a", force=True, done=lambda: None)
    bench.core.instance_killing(bench.instance("a"))
    return bench


def test_it_is_killing_and_counted_for_as_long_as_it_lives() -> None:
    bench = bench_with_stuck()
    bench.pass_time(10_000)
    assert bench.state("a") is State.KILLING
    assert bench.core.memory_held() == 2 * MIB, "its own, and that of d"
    assert "its memory stays counted, and the gpu takes no other model" in bench.core.snapshot("a").reason
    assert bench.core.snapshot("a").since > 9_000, "it says how long"
    bench.gone("a")
    assert bench.state("a") is State.STOPPED
    assert bench.core.memory_held() == MIB


def test_a_kill_that_takes_a_while_is_nothing() -> None:
    bench = bench_with_stuck()
    waiting = bench.request("b")
    bench.pass_time(STUCK_AFTER - 1)
    assert bench.state("b") is State.STARTING, "there is room, and its device is not suspected yet"
    bench.gone("a")
    bench.ready("b")
    assert waiting.lease is not None


def test_its_device_takes_no_other_model_until_it_has_gone() -> None:
    bench = bench_with_stuck()
    bench.pass_time(STUCK_AFTER + 1)
    refused = bench.request("b").error
    assert refused is not None
    assert (refused.code, refused.status) == ("device_quarantined", 503)
    assert "a cannot be ended and may hold the gpu" in refused.message
    assert bench.core.placement("b") == (False, refused.message.removeprefix("cannot load b: "))
    assert bench.request("d").lease is not None, "what runs there goes on"
    bench.request("c")
    assert bench.state("c") is State.STARTING, "the CPU is not spoiled"
    assert bench.state("d") is State.READY, "nobody had to leave for what cannot start"
    bench.gone("a")
    bench.request("b")
    assert bench.state("b") is State.STARTING


def test_a_model_of_the_cpu_quarantines_nothing() -> None:
    bench = bench_with_stuck(gpu_layers=0)
    bench.pass_time(STUCK_AFTER + 1)
    assert bench.core.snapshot("a").reason.endswith("its memory stays counted")
    bench.request("b")
    assert bench.state("b") is State.STARTING


def test_whoever_waits_for_it_is_told() -> None:
    bench = bench_with_stuck()
    failed: list[AccelError] = []
    bench.core.begin_unload(
        "a", force=True, done=lambda: failed.append(AccelError("internal", "")), failed=failed.append
    )
    waiting = bench.request("a")
    bench.pass_time(STUCK_AFTER - 1)
    assert (failed, waiting.error) == ([], None)
    bench.pass_time(2)
    assert [error.code for error in failed] == ["model_stuck"]
    assert waiting.error is not None
    assert waiting.error.code == "model_stuck"
    later = bench.request("a").error
    assert later is not None
    assert "does not end, 30 s after SIGKILL" in later.message
    bench.core.begin_unload("a", force=True, done=lambda: None, failed=failed.append)
    assert len(failed) == 2
    assert bench.core.queued == 0


def test_what_is_left_of_a_model_that_ended_by_itself_takes_it_out_of_service() -> None:
    """Its server is dead, a grandchild of it hangs: nobody may be sent there."""
    bench = Bench([model("a")])
    bench.loaded("a")
    served = bench.request("a")
    bench.core.instance_killing(bench.instance("a"))
    assert bench.state("a") is State.KILLING
    assert bench.request("a").lease is None
    bench.end(served, ok=False)
    bench.gone("a", Cause.EXITED)
    assert bench.state("a") in (State.BACKOFF, State.STARTING)


def test_a_loading_model_that_cannot_be_ended_is_as_stuck() -> None:
    bench = Bench([model("a"), model("b")])
    bench.request_load("a")
    bench.core.instance_killing(bench.instance("a"))
    bench.pass_time(STUCK_AFTER + 1)
    refused = bench.request("b").error
    assert refused is not None
    assert refused.code == "device_quarantined"
