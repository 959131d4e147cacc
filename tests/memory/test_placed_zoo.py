"""Estimates of models whose parts lie in several places, held against llama-server's own lines.

placed_rows.json has what a llama-server with two of ggml's RPC devices said (placed_report.py); what needs no device is
asked of the installed one. Weights, caches and adapters are exact; compute buffers are never under by more than the
margin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.lora import LoraAdapter
from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device, MemoryPool
from accelerd.engines.base import EngineBuild
from accelerd.engines.llama_server.forecast import settings_of
from accelerd.estimate.compute import MARGIN
from accelerd.estimate.estimate import Estimate, EstimateSettings, estimate
from accelerd.estimate.placing import ALL, divided
from accelerd.estimate.tensors import read_model
from tests.memory import placed_report, reported, zoo

MIB = 1 << 20
SLOTS = {"A": "0000:03:00.0", "B": "0000:41:00.0"}
CARDS = tuple(
    Device("gpu", name, "amdgpu", slot, pools=(MemoryPool("vram", 8 << 30),), apu=False) for name, slot in SLOTS.items()
)
NAMES = {slot: f"RPC{number}" for number, slot in enumerate(SLOTS.values())}
NEW = EngineBuild("llama-server", "1", "cuda", frozenset({"--load-mode", "--spec-draft-n-max"}))
ROUNDING = MIB // 50  # of a line with two decimals, and of padding
ROWS = json.loads(placed_report.ROWS.read_text())


def spec_of(row: dict[str, Any], folder: Path) -> ModelSpec:
    written = dict(row["settings"])
    slots = {"gpus": tuple(SLOTS[card] for card in written.pop("gpus", "AB"))}
    for key in ("main_gpu", "mmproj_device"):
        if key in written:
            slots[key] = SLOTS[written.pop(key)]
    lora = tuple(LoraAdapter(str(path)) for path in placed_report.adapters(written.pop("lora", 0), folder))
    more = {key: tuple(value) if isinstance(value, list) else value for key, value in written.items()}
    draft = zoo.ZOO[row["animal"]].draft
    made = {"draft_model": str(zoo.make(draft, folder).path)} if draft else {}
    path = str(zoo.make(row["animal"], folder).path)
    fixed = {"flash_attention": "on", "mmap": False, "extra_args": ("--no-repack", "--ctx-checkpoints", "0")}
    return ModelSpec("m", path=path, context=row["context"], lora=lora, **slots, **more, **made, **fixed)


def estimated(spec: ModelSpec) -> tuple[Estimate, int | str | None]:
    settings, layers = settings_of(spec, NEW, CARDS, "none", NAMES)
    draft = read_model(spec.draft_model) if spec.draft_model else None
    adapters = [read_model(adapter.path) for adapter in spec.lora]
    return estimate(read_model(spec.path or ""), settings, None, draft, adapters), layers


def name_of(row: dict[str, Any]) -> str:
    return f"{row['animal']}-{'-'.join(f'{key}={value}' for key, value in row['settings'].items())}"


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_each_place_has_what_the_server_puts_there(row: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(row, tmp_path)
    found, layers = estimated(spec)
    used = [SLOTS[card] for card in row["settings"].get("gpus", "AB")]
    if spec.split_mode == "none":
        used = [spec.main_gpu or used[0]]
    parts = spec.tensor_split or (1,) * len(used)
    counts = divided(min(layers if isinstance(layers, int) else ALL, len(found.layers) + 1), parts)
    shares = dict(zip(("host", *(NAMES[slot] for slot in used)), found.placed(counts, used, parts), strict=True))
    for place, real in row["places"].items():
        mine = shares[place]
        if not spec.draft_model:  # else its figures are in the lines of the other
            assert mine.weights == pytest.approx(real.get("model", 0), abs=ROUNDING), place
            assert mine.cache == pytest.approx(real.get("kv", 0) + real.get("state", 0), abs=ROUNDING), place
            assert mine.lora == pytest.approx(real.get("lora", 0), abs=ROUNDING), place
        seen = sum(real.get(kind, 0) for kind in ("model", "kv", "state", "compute", "output", "lora"))
        total = mine.total - mine.program - mine.checkpoints
        assert total >= seen - MARGIN, (place, total / MIB, seen / MIB)


@pytest.mark.parametrize("repack", [False, True])
def test_adapters_take_what_the_server_says(repack: bool, llama_server: str, tmp_path: Path) -> None:
    model, adapters = zoo.make("llama-gqa", tmp_path).path, placed_report.adapters(2, tmp_path)
    real = reported.reported(
        llama_server, model, reported.Settings(repack=repack, further=("--lora", ",".join(map(str, adapters))))
    )
    settings = EstimateSettings(mmap=False, few_outputs=True)
    (share,) = estimate(read_model(model), settings, lora=[read_model(path) for path in adapters]).placed(())
    assert share.lora == pytest.approx(sum(row.lora for row in real.rows), abs=ROUNDING)
    assert share.lora > 5 * MIB
    assert -MARGIN <= share.compute - real.compute <= MARGIN + 8 * MIB


@pytest.mark.parametrize("more", [{}, {"draft_max": 8, "draft_cache_type_k": "q8_0", "draft_cache_type_v": "q8_0"}])
def test_a_model_that_drafts_by_itself_takes_what_the_server_says(
    more: dict[str, Any], llama_server: str, tmp_path: Path
) -> None:
    model = zoo.make("qwen35moe", tmp_path).path
    further = ["--spec-type", "draft-mtp"]
    if more:
        further += ["--spec-draft-n-max", "8", "-ctkd", "q8_0", "-ctvd", "q8_0"]
    real = reported.reported(llama_server, model, reported.Settings(context=4096, further=tuple(further)))
    spec = ModelSpec("m", path=str(model), context=4096, spec_type=("draft-mtp",), mmap=False, **more)
    settings, _ = settings_of(spec, NEW, (), "none")
    plain, _ = settings_of(ModelSpec("m", path=str(model), context=4096, mmap=False), NEW, (), "none")
    share, without = (estimate(read_model(model), one).placed(())[0] for one in (settings, plain))
    mine = share.weights + share.cache + share.compute + share.output + share.draft
    assert -MARGIN <= mine - real.total <= 2 * MARGIN
    assert share.weights == pytest.approx(real.model, abs=ROUNDING)
    assert share.weights > without.weights
