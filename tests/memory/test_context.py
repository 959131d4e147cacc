"""The context where nobody says: what the model was trained for, within a part of the memory that the rest leaves."""

from __future__ import annotations

from typing import Any

import pytest

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device, MemoryPool, usable
from accelerd.engines.base import EngineBuild
from accelerd.engines.llama_server.forecast import ForecastInputs, ModelFiles, contexts_of, settings_of, ways
from accelerd.estimate.tensors import GgufModel
from accelerd.memory.model import RAM
from tests.memory.animals import animal

GIB = 1 << 30
CARD = "0000:03:00.0"
BUILD = EngineBuild("llama-server", "1", "radv", frozenset({"--load-mode"}))
BIG = {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "head": 128, "inner": 14336}  # 14 GiB, 128 KiB a token
MANY = {"layers": 48, "width": 2048, "heads": 32, "kv_heads": 4, "head": 128, "inner": 768, "experts": 128}  # 57 GiB


def cpu(size: int) -> Device:
    return Device("cpu", "a processor", pools=(MemoryPool("ram", size * GIB),))


def card(size: int) -> Device:
    return Device("gpu", "card", "amdgpu", CARD, pools=(MemoryPool("vram", size * GIB),), apu=False)


def apu(size: int) -> Device:
    pools = (MemoryPool("vram", GIB // 2), MemoryPool("unified", size * GIB))
    return Device("gpu", "apu", "amdgpu", "0000:c1:00.0", apu=True, unified=True, pools=pools)


def inputs(model: GgufModel, *devices: Device, **settings: Any) -> ForecastInputs:
    spec, gpus = ModelSpec("m", path="/m.gguf", **settings), usable(devices)
    used, layers = settings_of(spec, BUILD, gpus, "x86_64")
    return ForecastInputs(ModelFiles(model, None, None, ()), used, spec, gpus, layers, spec, BUILD)


def of(model: GgufModel, *devices: Device, **settings: Any) -> tuple[int, ...]:
    return contexts_of(inputs(model, *devices, **settings), devices)


def test_with_memory_enough_it_is_what_the_model_was_trained_for() -> None:
    assert of(animal(), cpu(64))[0] == 131072
    assert of(animal(context_length=40960), cpu(64)) == (40960, 20480, 10240, 8192, 4096)
    halo = of(animal("qwen3moe", **MANY, context_length=262144), cpu(128), apu(116))
    assert halo[0] >= 131072, "an agent's prompts of 30,000 tokens and more fit on a machine of 128 GB"
    assert of(animal(context_length=512), cpu(64)) == (512,)
    assert of(animal(context_length=5000), cpu(64)) == (5000, 4096)


@pytest.mark.parametrize(
    ("devices", "pool", "size", "part"),
    [((cpu(64),), RAM, 64 - 6.4, 1 / 2), ((cpu(64), card(24)), CARD, 23.75, 3 / 4)],
)
def test_the_context_takes_a_part_of_what_the_rest_leaves(
    devices: tuple[Device, ...], pool: str, size: float, part: float
) -> None:
    known = inputs(animal(**BIG, context_length=1 << 20), *devices)
    best = contexts_of(known, devices)[0]
    usual, chosen, more = (ways(known)(tokens, None)[0].amounts[pool] for tokens in (8192, best, best + 1024))
    bound = usual + part * (size * GIB - usual)
    assert chosen <= bound < more
    assert size * GIB - chosen > 0.99 * (1 - part) * (size * GIB - usual), "which is left for others"


@pytest.mark.parametrize("devices", [(cpu(64),), (cpu(64), card(24))], ids=["main", "card"])
def test_a_limit_for_all_models_leaves_half_of_it_to_others(devices: tuple[Device, ...]) -> None:
    known = inputs(animal(**BIG, context_length=1 << 20), *devices)
    unlimited = contexts_of(known, devices)[0]
    for limit in (17 * GIB, 19 * GIB):
        best = contexts_of(known, devices, limit)[0]
        usual, chosen, more = (ways(known)(tokens, None)[0].total for tokens in (8192, best, best + 1024))
        assert chosen <= (usual + limit) / 2 < more
        assert 8192 < best < unlimited
    assert contexts_of(known, devices, 1000 * GIB)[0] == unlimited
    assert contexts_of(known, devices, GIB) == (8192, 4096), "the scheduler says that it does not fit"


def test_a_card_that_the_model_fills_still_gets_the_usual_context_or_the_least() -> None:
    assert of(animal(**BIG), cpu(64), card(16)) == (14336, 8192, 4096)
    assert of(animal(**BIG), cpu(64), card(15)) == (8192, 4096), "the scheduler takes what fits"
    assert of(animal(**BIG), cpu(8)) == (8192, 4096)


def test_slots_share_what_there_is() -> None:
    model = animal(**BIG)
    one, four = (of(model, cpu(64), card(24), parallel=slots)[0] for slots in (1, 4))
    assert one / 5 < four < one / 3


def test_what_a_person_said_of_memory_bounds_it() -> None:
    model = animal(**BIG)
    assert of(model, cpu(64), memory=20 * GIB)[0] == 8192, "a figure that was right with the usual context stays right"
    assert of(model, cpu(64), memory_max=18 * GIB)[0] < of(model, cpu(64))[0]


def test_a_longer_input_than_a_batch_is_no_use_for_embeddings() -> None:
    assert of(animal(context_length=32768), cpu(64), embeddings=True)[0] == 8192
    assert of(animal(context_length=32768), cpu(64), rerank=True)[0] == 8192


def test_where_the_machine_or_the_model_says_nothing_it_is_the_usual_one() -> None:
    assert of(animal()) == (8192, 4096)
    assert of(animal(context_length=0), cpu(64)) == (8192, 4096)
