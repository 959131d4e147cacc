"""What follows for a model when its device goes, comes back or is reset."""

from __future__ import annotations

from accelerd.base.exits import Cause
from accelerd.scheduler.lifecycle import State
from tests.scheduler.bench import Bench, model

GONE, RESET = Cause.DEVICE_REMOVED, Cause.DEVICE_RESET


def test_a_model_whose_device_has_gone_fails_until_the_device_is_back() -> None:
    bench = Bench([model("a"), model("b")])
    bench.loaded("a")
    running = bench.request("a")
    waiting = bench.request("b")
    bench.core.devices.lost("a", GONE, "it has gone")
    assert bench.state("a") is State.STOPPING
    bench.gone("a", GONE, "the device that llama-server ran on was removed")
    assert bench.state("a") is State.FAILED
    assert running.lease is not None, "its end is the relay's to tell"
    assert waiting.error is None
    refused = bench.request("a")
    assert refused.error is not None
    assert (refused.error.code, refused.error.status) == ("model_failed", 503)
    bench.pass_time(3600)
    assert bench.request("a").error is not None, "elsewhere it would be another model"
    bench.core.devices.back("a")
    assert bench.state("a") is State.STOPPED
    assert bench.request("a").error is None


def test_a_pinned_model_comes_back_with_its_device() -> None:
    bench = Bench([model("a", pin=True)])
    bench.loaded("a")
    bench.core.devices.lost("a", GONE, "it has gone")
    bench.core.devices.back("a")  # before the last of its processes has ended
    bench.gone("a", GONE)
    assert bench.state("a") is State.STARTING
    assert bench.loads() == ["a", "a"]


def test_models_that_load_drain_or_have_no_process() -> None:
    bench = Bench([model("loading"), model("draining"), model("stopped")])
    bench.request("loading")
    bench.loaded("draining")
    bench.request("draining")
    bench.core.begin_unload("draining", force=False, done=lambda: None)
    for name in ("loading", "draining", "stopped"):
        bench.core.devices.lost(name, GONE, "it has gone")
    assert [bench.state(n) for n in ("loading", "draining", "stopped")] == [
        State.STOPPING, State.STOPPING, State.STOPPED,
    ]  # fmt: skip


def test_the_devices_return_is_nothing_to_a_model_that_failed_otherwise() -> None:
    bench = Bench([model("a"), model("b")])
    bench.request("a")
    bench.gone("a", Cause.NO_MODEL)
    bench.loaded("b")
    for name in ("a", "b"):
        bench.core.devices.back(name)
    assert (bench.state("a"), bench.state("b")) == (State.FAILED, State.READY)


def test_a_reset_reloads_once_and_quarantines_when_it_happens_again() -> None:
    bench = Bench([model("a")])
    bench.loaded("a")
    bench.core.devices.lost("a", RESET, "it was reset")
    bench.gone("a", RESET, "the device that llama-server ran on was reset")
    assert bench.state("a") is State.STARTING, "it was there, so it shall be there again"
    bench.ready("a")
    bench.core.devices.lost("a", RESET, "it was reset")
    bench.gone("a", RESET, "the device that llama-server ran on was reset")
    assert bench.state("a") is State.FAILED
    assert "quarantined" in bench.core.snapshot("a").reason
    assert bench.loads() == ["a", "a"]


def test_a_reset_that_the_device_survived_has_the_model_asked_before_it_serves() -> None:
    bench = Bench([model("a", parallel=2)])
    bench.loaded("a")
    bench.core.devices.suspect("a")
    assert bench.core.acquire("a") is None
    bench.core.instance_probed(bench.instance("a"), True)
    assert bench.core.acquire("a") is not None
    bench.core.devices.suspect("a")
    bench.core.devices.suspect("a")
    assert len(bench.probed) == 2
