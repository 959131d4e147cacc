"""A model held against made-up machines: who would leave, what is to spare, which contexts, which speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accelerd.cli.fit.verdict import GgufFit, MachineState
from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device, MemoryPool, usable
from accelerd.engines.llama_server.forecast import ForecastInputs, ModelFiles, settings_of
from accelerd.estimate.bandwidth import Rate
from accelerd.estimate.tensors import read_model
from accelerd.memory.ledger import Holding, Ledger
from accelerd.memory.model import RAM, MemoryRequirement, Pool
from tests.memory import zoo

MIB, GIB = 1 << 20, 1 << 30
ONE, TWO, HALO = "0000:03:00.0", "0000:04:00.0", "0000:c4:00.0"


def card(slot: str, size: int) -> Device:
    return Device("gpu", f"Card {slot[5:7]}", "amdgpu", slot, apu=False, pools=(MemoryPool("vram", size),))


APU = Device(
    "gpu", "8060S", "amdgpu", HALO, apu=True, unified=True,
    pools=(MemoryPool("vram", 2 * GIB), MemoryPool("gtt", 96 * GIB), MemoryPool("unified", 98 * GIB)),
)  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def machine(
    *pools: Pool, devices: tuple[Device, ...] = (), holdings: tuple[Holding, ...] = (), **more: Any
) -> MachineState:
    rate = Rate(100e9, 1.0, 0.5, "100 GB/s")
    facts = more.pop("facts", {})
    main = Pool(RAM, "main memory", 64 * GIB, 4 * GIB)
    return MachineState(Ledger([main, *pools], holdings), facts, devices, more.pop("rate", lambda pool: rate), **more)


def fitting(path: Path, here: MachineState, measured: tuple[MemoryRequirement, ...] = (), **settings: Any) -> GgufFit:
    model = read_model(path)
    spec = ModelSpec(name="m", path=str(path), **settings)
    gpus = usable(here.devices)
    used, layers = settings_of(spec, None, gpus, "riscv64")
    return GgufFit(ForecastInputs(ModelFiles(model, None, None, ()), used, spec, gpus, layers), here, measured)


def on(pool: str, size: int, name: str = "other", phase: Any = "resident") -> Holding:
    return Holding(name, phase, {pool: size})


def test_it_goes_to_the_card_that_has_room(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    pools = (Pool(ONE, "Card 03", 8 * GIB), Pool(TWO, "Card 04", 4 * GIB))
    devices = (card(ONE, 8 * GIB), card(TWO, 4 * GIB))
    free = fitting(path, machine(*pools, devices=devices))
    assert (free.fits_now, free.need.devices, free.leaving, free.offers) == (True, (ONE,), (), "")
    assert set(free.spare) == {RAM, ONE}
    assert free.spare[ONE] == 8 * GIB - free.need.amounts[ONE]
    full = fitting(path, machine(*pools, devices=devices, holdings=(on(ONE, 8 * GIB),)))
    assert (full.fits_now, full.need.devices, full.leaving) == (True, (TWO,), ())


def test_who_would_have_to_leave_is_no_more_than_needed_and_the_idle_first(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    holdings = (on(ONE, GIB, "busy"), on(ONE, GIB, "fresh"), on(ONE, GIB, "old"), on(ONE, GIB, "dear"),
                on(RAM, GIB, "elsewhere"))  # fmt: skip
    facts = {"busy": {"leases": 1}, "fresh": {"idle": 5.0}, "old": {"idle": 500.0}, "elsewhere": {"idle": 9000.0},
             "dear": {"idle": 9000.0, "priority": 5}}  # fmt: skip
    here = machine(Pool(ONE, "Card", 4 * GIB), devices=(card(ONE, 4 * GIB),), holdings=holdings, facts=facts)
    found = fitting(path, here)
    assert not found.fits_now
    assert found.fits
    assert found.leaving == ("old",)
    assert 0 <= found.spare[ONE] == GIB - found.need.amounts[ONE]
    facts["old"]["pin"] = True
    assert fitting(path, replace(here, facts=facts)).leaving == ("fresh",)


def test_pinned_models_and_other_programs_stay(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    pool = Pool(ONE, "Card", 4 * GIB, foreign=2 * GIB)
    here = machine(pool, devices=(card(ONE, 4 * GIB),), holdings=(on(ONE, 2 * GIB),), facts={"other": {"pin": True}})
    found = fitting(path, here)
    assert (found.fits_now, found.fits, found.leaving) == (False, False, ())
    assert found.spare[ONE] == -found.need.amounts[ONE]
    assert "gpu_layers = 0, in main memory alone" in found.offers


def test_what_it_holds_itself_is_its_own(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    here = machine(Pool(ONE, "Card", GIB), devices=(card(ONE, GIB),), holdings=(on(ONE, GIB, "m"),))
    found = fitting(path, here)
    assert (found.fits_now, found.itself) == (True, frozenset({"m"}))


def test_smaller_contexts_and_fewer_layers_are_offered(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    context = 1 << 17
    whole = fitting(path, machine(), context=context)
    here = machine(Pool(ONE, "Card", whole.need.total * 3 // 4), devices=(card(ONE, whole.need.total * 3 // 4),))
    found = fitting(path, here, context=context)
    assert not found.fits
    assert "it would fit with context = " in found.offers
    assert 'kv_cache_type = "q8_0" and context = ' in found.offers
    layers = found._layers()
    assert layers is not None
    assert 0 < layers < len(found.estimate.layers)
    assert fitting(path, here, context=context, gpu_layers=layers).fits
    assert not fitting(path, here, context=context, gpu_layers=layers + 1).fits


def test_largest_contexts_fit_and_one_step_more_does_not(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    here = machine(holdings=(on(RAM, 59 * GIB),))
    contexts = fitting(path, here).contexts
    assert [row["kv"] for row in contexts] == ["f16", "q8_0", "q4_0"]
    for row in contexts:
        kind = {"cache_type_k": row["kv"], "cache_type_v": row["kv"]}
        trained = fitting(path, here).trained
        assert fitting(path, here, context=row["now"], **kind).fits_now
        if row["now"] < trained:
            assert not fitting(path, here, context=row["now"] + 2048, **kind).fits_now
        assert row["alone"] >= row["now"]


def test_memory_that_a_gpu_shares_counts_once_and_what_others_have_of_its_own_does_too(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    need = fitting(path, machine(Pool(HALO, "8060S", 98 * GIB, 0, 0, RAM, 2 * GIB), devices=(APU,))).need
    assert need.devices == (HALO,)
    size = need.amounts[HALO]
    assert size < 2 * GIB, "it would fit into what the GPU has for itself"
    # What is the GPU's own is somebody else's: then it lies in main memory, of which too little is left.
    full = Pool(HALO, "8060S", 98 * GIB, 0, 2 * GIB, RAM, 2 * GIB)
    main = (on(RAM, 60 * GIB - need.amounts[RAM] - size + 1),)
    facts = {"other": {"pin": True}}
    assert not fitting(path, machine(full, devices=(APU,), holdings=main, facts=facts)).fits
    main = (on(RAM, 60 * GIB - need.amounts[RAM] - size),)
    found = fitting(path, machine(full, devices=(APU,), holdings=main, facts=facts))
    assert found.fits_now
    assert min(found.spare.values()) == 0


def test_a_pool_that_cannot_be_measured_is_not_guessed_about(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    found = fitting(path, machine(devices=(card(ONE, 8 * GIB),), untold="it sleeps"))
    assert found.unknown == "it sleeps"
    assert not found.fits
    assert found.offers == ""


def test_a_limit_on_all_models_together_holds(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    need = fitting(path, machine()).need.total
    holdings, facts = (on(RAM, GIB),), {"other": {"idle": 1.0}}
    tight = fitting(path, machine(limit=GIB + need - 1, holdings=holdings, facts=facts))
    assert (tight.fits_now, tight.fits, tight.leaving) == (False, True, ("other",))
    assert fitting(path, machine(limit=GIB + need, holdings=holdings, facts=facts)).fits_now
    assert not fitting(path, machine(limit=need - 1)).fits


def test_what_was_measured_replaces_the_estimate(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    measured = MemoryRequirement({RAM: 61 * GIB}, "measured in an earlier run")
    found = fitting(path, machine(), (measured,))
    assert (found.need, found.fits) == (measured, False)


# --- speed ----------------------------------------------------------------------------------------------------


def rates(**by_pool: float) -> Any:
    known = {name: Rate(best, 1.0, 1.0, name) for name, best in by_pool.items()}
    return lambda pool: known.get({ONE: "one", TWO: "two", RAM: "ram"}[pool])


def test_a_model_on_a_card_is_read_from_the_card_alone(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    here = machine(Pool(ONE, "Card", 8 * GIB), devices=(card(ONE, 8 * GIB),), rate=rates(one=1000e9))
    found = fitting(path, here)
    assert found.speed.tokens is not None
    model = read_model(path)
    read = model.weights - model.tensors["token_embd.weight"].size + found.estimate.cache // 2
    assert found.speed.tokens == pytest.approx(1000e9 / read, rel=0.01)


def test_layers_in_main_memory_are_read_as_slowly_as_that_is(models: Path) -> None:
    path = zoo.make("llama-gqa", models).path
    here = machine(Pool(ONE, "Card", 8 * GIB), devices=(card(ONE, 8 * GIB),), rate=rates(one=1000e9, ram=10e9))
    whole, half, none = (fitting(path, here, gpu_layers=n).speed.tokens for n in ("all", 4, 0))
    assert whole is not None
    assert half is not None
    assert none is not None
    assert whole > 5 * half > 5 * none
    assert none == pytest.approx(whole / 100, rel=0.01)


def test_experts_in_main_memory_are_read_from_there(models: Path) -> None:
    path = zoo.make("qwen3moe", models).path
    here = machine(Pool(ONE, "Card", 8 * GIB), devices=(card(ONE, 8 * GIB),), rate=rates(one=1000e9, ram=10e9))
    whole = fitting(path, here).speed.tokens
    moved = fitting(path, here, extra_args=("--cpu-moe",)).speed.tokens
    assert whole is not None
    assert moved is not None
    assert moved < whole / 2


@pytest.mark.parametrize("name", ["bert", "rerank"])
def test_models_that_make_no_text_have_no_speed(models: Path, name: str) -> None:
    found = fitting(zoo.make(name, models).path, machine(), embeddings=True)
    assert (found.speed.tokens, found.speed.reason) == (None, "it makes no text")
    assert found.contexts == []


@pytest.mark.parametrize("name", [name for name in zoo.LOADABLE if not zoo.ZOO[name].draft])
def test_every_animal_of_the_zoo_has_an_answer(models: Path, name: str) -> None:
    here = machine(Pool(ONE, "Card", 8 * GIB), devices=(card(ONE, 8 * GIB),))
    found = fitting(zoo.make(name, models).path, here)
    assert found.fits_now
    assert min(found.spare.values()) > 0
    assert {name for share in found.shares.values() for name in share.parts()} >= {"weights", "program"}
    assert sum(share.total for share in found.shares.values()) == found.need.total
    speed = found.speed
    assert speed.tokens is None or speed.tokens > 0
