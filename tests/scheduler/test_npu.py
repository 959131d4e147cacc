"""Models on an NPU beside models on GPUs: who leaves for whom, and who may be there together."""

from __future__ import annotations

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import SchedulerSettings
from accelerd.memory.model import RAM, Claim, Forecast, MemoryRequirement, MemorySnapshot, Pool
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import Watched, model, refusal

GIB = 1 << 30
APU, NPU, OTHER_NPU = "0000:c1:00.0", "0000:c2:00.1", "0000:c6:00.1"
SETTINGS = SchedulerSettings(min_resident=0, linger=0, cool_down=30, memory_wait=20, max_overtake=20)


def on_gpu(size: float) -> Forecast:
    return Forecast((MemoryRequirement({APU: int(size * GIB)}, "estimated", (APU,)),))


def on_npu(
    size: float, family: str = "flm", kind: str = "llm", *, contexts: int = 1, host: str = "", device: str = NPU
) -> Forecast:
    """FastFlowLM's memory is the machine's: GTT is not touched (B)."""
    claim = Claim(device, family, kind, contexts, host)
    return Forecast((MemoryRequirement({RAM: int(size * GIB)}, "estimated", (device,), claims=(claim,)),))


class Halo(Watched):
    """A Strix Halo with 128 GiB: all of it is the processor's, the GPU's and the NPU's."""

    def __init__(self, limits: SharedLimits | None = None, **models: Forecast) -> None:
        specs = [model(name) for name in models]
        super().__init__(specs, SETTINGS, limits or SharedLimits(None, "no limit", None), forecasts=models)
        self.foreign = 0
        self.look_now()

    def look_now(self) -> None:
        pools = (
            Pool(RAM, "main memory", 128 * GIB, 8 * GIB, self.foreign),
            Pool(APU, "Radeon 8060S", 116 * GIB, GIB, backed_by=RAM, own=GIB),
            Pool(NPU, "RyzenAI-npu5", 128 * GIB, 0, backed_by=RAM, contexts=16, columns=8),
        )
        self.core.memory.seen(MemorySnapshot(self.clock.now, pools, {}))


@pytest.mark.parametrize(("first", "second"), [("gpu", "npu"), ("npu", "gpu")])
def test_the_two_kinds_leave_for_each_other_where_they_share_memory(first: str, second: str) -> None:
    bench = Halo(gpu=on_gpu(110), npu=on_npu(24))
    bench.loaded(first)
    bench.pass_time(300)  # idle for long
    request = bench.request(second)
    assert bench.state(first) is State.STOPPING
    reason = bench.core.snapshot(first).reason
    assert reason.startswith(f"made room for {second}: it needs ")
    assert ("109 GiB held for GPUs: 13.0 GiB are missing" if second == "npu" else "24.0 GiB held by npu") in reason
    bench.gone(first)
    bench.ready(second)
    assert request.lease


def test_one_that_works_is_not_cut_for_the_other_kind() -> None:
    bench = Halo(gpu=on_gpu(110), npu=on_npu(24), small=on_npu(4))
    bench.loaded("gpu")
    running = bench.request("gpu")
    waiting = bench.request("npu")
    bench.pass_time(5)
    assert bench.state("gpu") is State.READY
    bench.end(running)
    bench.pass_time(1)
    assert bench.state("gpu") is State.STOPPING
    bench.gone("gpu")
    bench.ready("npu")
    assert waiting.lease


def test_of_both_kinds_the_cheapest_leaves() -> None:
    bench = Halo(gpu=on_gpu(60), npu=on_npu(40), npu2=on_npu(10), big=on_gpu(70))
    for name in ("npu", "gpu", "npu2"):
        bench.loaded(name)
        bench.pass_time(60)
    bench.request("big")
    assert [bench.state(name) for name in ("gpu", "npu", "npu2")] == [State.STOPPING, State.READY, State.READY]


@pytest.mark.parametrize("pinned", ["gpu", "npu"])
def test_memory_of_their_own_is_no_reason_to_leave(pinned: str) -> None:
    """A card with memory of its own: the NPU's models use main memory."""
    card, names = "0000:03:00.0", ("gpu", "npu")
    forecasts = {"gpu": Forecast((MemoryRequirement({card: 20 * GIB}, "estimated", (card,)),)), "npu": on_npu(40)}
    forecasts |= {"gpu2": Forecast((MemoryRequirement({card: 10 * GIB}, "estimated", (card,)),)), "npu2": on_npu(90)}
    bench = Halo(**forecasts)
    pools = (
        Pool(RAM, "main memory", 128 * GIB, 8 * GIB, 0), Pool(card, "a card", 24 * GIB, 0),
        Pool(NPU, "an NPU", 128 * GIB, 0, backed_by=RAM, contexts=16),
    )  # fmt: skip
    bench.core.memory.seen(MemorySnapshot(bench.clock.now, pools, {}))
    for name in names:
        bench.loaded(name)
        bench.pass_time(60)
        bench.core.memory.seen(MemorySnapshot(bench.clock.now, pools, {}))
    bench.request(f"{pinned}2")
    assert {name: bench.state(name) for name in names} == {
        name: State.STOPPING if name == pinned else State.READY for name in names
    }


def test_they_are_counted_apart_for_max_loaded() -> None:
    bench = Halo(SharedLimits(None, "no limit", 1), gpu=on_gpu(8), npu=on_npu(4), gpu2=on_gpu(8), npu2=on_npu(4))
    bench.loaded("gpu")
    bench.loaded("npu")
    assert bench.loads() == ["gpu", "npu"]
    bench.request("npu2")
    assert (bench.state("npu"), bench.state("gpu")) == (State.STOPPING, State.READY)
    bench.gone("npu")
    bench.ready("npu2")
    bench.request("gpu2")
    assert (bench.state("gpu"), bench.state("npu2")) == (State.STOPPING, State.READY)
    assert bench.core.snapshot("gpu").reason == "made room for gpu2: max_loaded = 1 and 1 loaded"


def test_a_limit_on_all_memory_is_shared() -> None:
    bench = Halo(SharedLimits(30 * GIB, "scheduler.memory", None), gpu=on_gpu(20), npu=on_npu(12))
    bench.loaded("gpu")
    bench.request("npu")
    assert bench.state("gpu") is State.STOPPING
    assert "30.0 GiB are there in all (scheduler.memory), 20.0 GiB held by gpu" in bench.core.snapshot("gpu").reason


def test_max_loaded_of_one_kind_is_no_reason_for_the_other_to_leave() -> None:
    bench = Halo(SharedLimits(None, "no limit", 2), gpu=on_gpu(8), npu=on_npu(1), gpu2=on_gpu(8), gpu3=on_gpu(8))
    for name in ("npu", "gpu", "gpu2"):
        bench.loaded(name)
        bench.pass_time(60)
    bench.request("gpu3")
    assert sorted(name for name in ("npu", "gpu", "gpu2") if bench.state(name) is State.READY) in (
        ["gpu", "npu"], ["gpu2", "npu"],
    )  # fmt: skip


@pytest.mark.parametrize("words", [{"group": "one"}, {"exclusive": True}])
def test_group_and_exclusive_are_a_persons_words_and_hold_across(words: dict[str, object]) -> None:
    bench = Halo(gpu=on_gpu(8), npu=on_npu(4))
    bench.configure([model("gpu", **words), model("npu", **({} if "exclusive" in words else words))])
    bench.loaded("gpu")
    bench.request_load("npu")
    assert bench.state("gpu") is State.STOPPING
    bench.gone("gpu")
    bench.ready("npu")
    bench.request("gpu")
    assert bench.state("npu") is State.STOPPING


def test_a_pinned_model_beside_one_on_the_npu_is_told_by_name() -> None:
    bench = Halo(gpu=on_gpu(110), npu=on_npu(24))
    bench.configure([model("gpu", pin=True), model("npu")])
    bench.loaded("gpu")
    code, _ = refusal(bench.request("npu"))
    assert code == "does_not_fit", "it will never leave, whatever kind it is of"
    with pytest.raises(AccelError, match="cannot pin npu beside gpu"):
        bench.core.holds.hold("npu", "me", load=False)


# --- who is on the NPU together ---------------------------------------------------------------------------------


def test_B_several_flm_share_the_npu() -> None:
    bench = Halo(a=on_npu(4), b=on_npu(4), c=on_npu(1, kind="asr"))
    for name in "abc":
        bench.loaded(name)
    assert bench.loads() == ["a", "b", "c"]


@pytest.mark.parametrize("family", ["whispercpp", "ryzenai-llm", "a-new-one"])
def test_families_that_exclude_each_other_make_each_other_leave(family: str) -> None:
    bench = Halo(flm=on_npu(4), asr=on_npu(1, kind="asr"), other=on_npu(4, family), gpu=on_gpu(8))
    for name in ("flm", "asr", "gpu"):
        bench.loaded(name)
    bench.request_load("other")
    assert [bench.state(name) for name in ("flm", "asr")] == [State.STOPPING] * 2
    assert bench.state("gpu") is State.READY
    assert bench.core.snapshot("flm").reason == (
        f"made room for other: flm is loaded, and {family} and flm cannot use the NPU at the same time"
    )
    bench.gone("flm")
    bench.gone("asr")
    bench.ready("other")
    bench.request("flm")
    assert bench.state("other") is State.STOPPING


def test_a_busy_model_that_excludes_is_not_cut() -> None:
    bench = Halo(flm=on_npu(4), whisper=on_npu(1, "whispercpp", "asr"))
    bench.loaded("flm")
    running = bench.request("flm")
    waiting = bench.request("whisper")
    bench.pass_time(10)
    assert bench.state("flm") is State.READY
    bench.end(running)
    bench.pass_time(1)
    assert bench.state("flm") is State.STOPPING
    bench.gone("flm")
    bench.ready("whisper")
    assert waiting.lease


def test_a_pinned_model_that_excludes_is_told_with_the_rule() -> None:
    bench = Halo(flm=on_npu(4), whisper=on_npu(1, "whispercpp", "asr"))
    bench.configure([model("flm", pin=True), model("whisper")])
    bench.loaded("flm")
    code, text = refusal(bench.request("whisper"))
    assert code == "does_not_fit"
    assert "flm is loaded, and whispercpp and flm cannot use the NPU at the same time" in text
    assert bench.core.placement("whisper") == (
        False,
        "flm is loaded, and whispercpp and flm cannot use the NPU at the same time",
    )
    with pytest.raises(AccelError, match="cannot use the NPU at the same time"):
        bench.core.holds.hold("whisper", "me", load=False)


def test_one_lemonade_holds_one_flm_model_of_each_kind() -> None:
    lemonade = {"host": "Lemonade server"}
    bench = Halo(a=on_npu(4, **lemonade), b=on_npu(4, **lemonade), asr=on_npu(1, kind="asr", **lemonade), own=on_npu(4))
    for name in ("a", "asr", "own"):
        bench.loaded(name)
    bench.request("b")
    assert [bench.state(name) for name in ("a", "asr", "own")] == [State.STOPPING, State.READY, State.READY]
    assert "Lemonade server holds one flm model of the kind llm at a time" in bench.core.snapshot("a").reason


def test_families_on_different_npus_do_not_meet() -> None:
    bench = Halo(a=on_npu(4), b=on_npu(4, "whispercpp", device=OTHER_NPU))
    bench.loaded("a")
    bench.loaded("b")
    assert bench.loads() == ["a", "b"]


def test_B_contexts_are_counted_and_the_least_wanted_leaves_for_one() -> None:
    bench = Halo(a=on_npu(1, contexts=8), b=on_npu(1, contexts=7), c=on_npu(1, contexts=2), gpu=on_gpu(1))
    for name in ("gpu", "a", "b"):
        bench.loaded(name)
        bench.pass_time(1)
    bench.request("c")
    leaving = [name for name in ("gpu", "a", "b") if bench.state(name) is State.STOPPING]
    assert len(leaving) == 1
    assert leaving != ["gpu"]
    reason = bench.core.snapshot(leaving[0]).reason
    assert reason == "made room for c: it needs 2 of 16 hardware contexts of RyzenAI-npu5, 15 held by a, b"


def test_B_more_contexts_than_there_are_is_refused_at_once() -> None:
    bench = Halo(a=on_npu(1, contexts=17))
    code, text = refusal(bench.request("a"))
    assert code == "does_not_fit"
    assert "it needs 17 of 16 hardware contexts of RyzenAI-npu5" in text


def test_contexts_of_an_unknown_npu_are_no_limit() -> None:
    bench = Halo(**{f"m{i}": on_npu(0.1, device=OTHER_NPU) for i in range(20)})
    for name in bench.forecasts:
        bench.loaded(name)
    assert len(bench.loads()) == 20


# --- what else may end them -------------------------------------------------------------------------------------


def test_other_programs_that_need_memory_may_have_any_idle_model_leave() -> None:
    bench = Halo(gpu=on_gpu(20), npu=on_npu(24))
    bench.loaded("gpu")
    bench.loaded("npu")
    bench.core.memory.make_room(RAM, GIB, "other programs need main memory", busy=False)
    assert (bench.state("npu"), bench.state("gpu")) == (State.STOPPING, State.READY), "the largest, of whatever kind"


def test_an_npu_that_cannot_be_freed_stops_nobody_on_the_gpu() -> None:
    bench = Halo(gpu=on_gpu(8), npu=on_npu(4), npu2=on_npu(4))
    bench.loaded("npu")
    bench.core.begin_unload("npu", force=True, done=lambda: None)
    bench.core.instance_killing(bench.instance("npu"))
    bench.pass_time(600)
    code, text = refusal(bench.request("npu2"))
    assert code == "device_quarantined"
    assert f"may hold the {NPU}" in text
    bench.loaded("gpu")
    assert bench.state("gpu") is State.READY


def test_what_is_on_the_npu_is_placed_there_for_readers() -> None:
    bench = Halo(npu=on_npu(4))
    assert bench.core.snapshot("npu").device == NPU, "before its load"
    bench.loaded("npu")
    snapshot = bench.core.snapshot("npu")
    assert (snapshot.device, bench.core.placed("npu")) == (NPU, NPU)
    assert snapshot.need.claims == (Claim(NPU, "flm", "llm"),)
    bench.configure([model("npu", context=4096)])
    bench.gone("npu", Cause.STOPPED)
    assert bench.core.snapshot("npu").device == NPU, "after a change of its settings too"
