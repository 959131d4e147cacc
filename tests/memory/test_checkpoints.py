"""What a server keeps to go back in a conversation: only of models whose caches forget, in main memory, and bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from accelerd.config.model import ModelSpec
from accelerd.engines.llama_server.forecast import ModelFiles, with_checkpoints
from accelerd.estimate.estimate import EstimateSettings, estimate
from accelerd.estimate.placing import options
from accelerd.estimate.tensors import GgufModel, read_model
from tests.memory import zoo
from tests.memory.animals import animal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("name", ["gemma3", "mamba", "qwen3next"])
def test_a_model_that_forgets_keeps_as_many_places_as_it_may(folder: Path, name: str) -> None:
    model = read_model(zoo.make(name, folder).path)
    few = estimate(model, EstimateSettings(context=8192, slots=2, checkpoints=4))
    many = estimate(model, EstimateSettings(context=8192, slots=2, checkpoints=8))
    none = estimate(model, EstimateSettings(context=8192, slots=2))
    assert 0 < 2 * few.checkpoints == many.checkpoints
    assert none.checkpoints == 0
    (need,) = options(many, (), gpu_layers=None, wanted_gpus=None)
    assert need.parts["checkpoints"] == many.checkpoints
    assert need.total - options(none, (), gpu_layers=None, wanted_gpus=None)[0].total == many.checkpoints


@pytest.mark.parametrize(
    ("name", "seen"), [("gemma3", 7.506), ("gpt-oss", 0.752), ("mamba", 2.672), ("falcon-h1", 9.246)]
)
def test_one_place_is_as_large_as_llama_server_says(folder: Path, name: str, seen: float) -> None:
    """As its log has it: "created context checkpoint …, size = 7.506 MiB"; a few kB of it are no state."""
    found = estimate(read_model(zoo.make(name, folder).path), EstimateSettings(context=8192, checkpoints=1)).checkpoints
    assert found / (1 << 20) == pytest.approx(seen, abs=0.02)


def test_a_model_that_forgets_nothing_keeps_none(folder: Path) -> None:
    assert (
        estimate(
            read_model(zoo.make("llama-gqa", folder).path), EstimateSettings(context=8192, checkpoints=32)
        ).checkpoints
        == 0
    )


WINDOW = {"heads": 16, "kv_heads": 16, "head": 128, "attention__sliding_window": 1024}  # 16 MiB a layer that forgets


def kept(model: GgufModel, *extra: str, slots: int = 1, least: int = 8) -> int:
    settings = EstimateSettings(context=8192 * slots, slots=slots, checkpoints=least)
    spec = ModelSpec("m", path="/m.gguf", extra_args=extra)
    return with_checkpoints(settings, spec, ModelFiles(model, None, None, ())).checkpoints


def test_as_many_as_the_program_keeps_by_itself_unless_they_take_a_gib() -> None:
    assert kept(animal()) == 32, "they take nothing"
    few, many = (animal("gemma3", layers=layers, **WINDOW) for layers in (2, 12))
    assert kept(few) == 32
    one = estimate(many, EstimateSettings(context=8192, checkpoints=1)).checkpoints
    assert (1 << 30) // 32 < one < (1 << 30) // 8
    assert kept(many) == (1 << 30) // one
    assert kept(many, slots=4) == 8, "never less, as before"


def test_a_number_in_extra_args_stays_and_a_build_without_them_keeps_none() -> None:
    for flag in ("--ctx-checkpoints", "--swa-checkpoints", "-ctxcp"):
        assert kept(animal(), flag, "8") == 8
        assert kept(animal(), flag, "9" * 5000) == 8, "what no program takes says nothing"
    assert kept(animal(), least=0) == 0
