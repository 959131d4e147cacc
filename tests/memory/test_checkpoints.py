"""What a server keeps to go back in a conversation: only of models whose caches forget, in main memory, and bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from accelerd.estimate.estimate import EstimateSettings, estimate
from accelerd.estimate.placing import options
from accelerd.estimate.tensors import read_model
from tests.memory import zoo


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
