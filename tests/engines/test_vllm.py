"""The engine `vllm`: what it is started with, what it takes of a GPU, and when it can sleep."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.command import CommandSettings, of_preset
from accelerd.config.model import ModelSpec
from accelerd.config.vllm import VllmSettings
from accelerd.devices.model import Device, MemoryPool
from accelerd.engines.base import ContainerProgram, LaunchPlan, ProgramOutput
from accelerd.engines.vllm.engine import OPEN_PATHS, Vllm
from accelerd.memory.model import RAM
from tests.harness import ROOT

PROGRAM = str(ROOT / "tests/fakes/fake_vllm.py")
GIB = 1 << 30
CARD = Device("gpu", "a card", "nvidia", "0000:01:00.0", pools=(MemoryPool("vram", 24 * GIB),))


def engine(**more: Any) -> Vllm:
    base = {"PATH": os.environ["PATH"], "HOME": "/home/u"}
    return Vllm(environ=base, port=lambda: 4711, token=lambda: "5ec7e7", **more)


def spec(path: Path | None = None, **settings: Any) -> ModelSpec:
    own = {name: settings.pop(name) for name in ("sleep", "gpu_memory_utilization") if name in settings}
    source = {"path": str(path)} if path else {"model": "org/model"}
    base = ModelSpec("m", engine="vllm", binary=PROGRAM, **source)  # type: ignore[arg-type]
    return replace(base, command=CommandSettings(**of_preset("vllm")), vllm=VllmSettings(**own), **settings)


def plan(model: ModelSpec, tmp_path: Path) -> LaunchPlan:
    return asyncio.run(engine().plan(model, tmp_path))


def folder(tmp_path: Path, gib: int) -> Path:
    (tmp_path / "weights").mkdir()
    with open(tmp_path / "weights/model.safetensors", "wb") as file:
        file.truncate(gib * GIB)
    (tmp_path / "weights/tokenizer.json").write_text("{}" * 500)
    return tmp_path / "weights"


def test_a_plain_model_is_started_with_its_name_and_a_key_alone(tmp_path: Path) -> None:
    made = plan(spec(), tmp_path)
    assert made.argv == (
        PROGRAM,
        "serve",
        "org/model",
        "--host",
        "127.0.0.1",
        "--port",
        "4711",
        "--served-model-name",
        "m",
    )
    assert (made.env["VLLM_API_KEY"], made.sleep) == ("5ec7e7", None)
    assert "VLLM_SERVER_DEV_MODE" not in made.env
    assert made.warnings == ()
    assert engine().traits(spec()).wire_name == "m"


def test_what_is_set_is_on_the_command_line_before_what_is_written_by_hand(tmp_path: Path) -> None:
    model = spec(context=4096, gpu_memory_utilization=0.5, sleep=True, extra_args=("--max-num-seqs", "8"))
    made = plan(model, tmp_path)
    own = ("--max-model-len", "4096", "--gpu-memory-utilization", "0.5", "--enable-sleep-mode", "--max-num-seqs", "8")
    assert made.argv[-7:] == own
    shown = [flag.text for flag in made.flags]
    assert "--gpu-memory-utilization 0.5" in shown
    assert "env VLLM_SERVER_DEV_MODE=1" in shown


def test_only_a_model_that_is_to_sleep_has_the_paths_for_it_and_says_who_may_use_them(tmp_path: Path) -> None:
    made = plan(spec(sleep=True, env=(("VLLM_SERVER_DEV_MODE", "0"),)), tmp_path)
    assert made.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert made.sleep is not None
    assert (made.sleep.sleep, made.sleep.wake) == ("/sleep?level=1", "/wake_up")
    assert made.warnings == (OPEN_PATHS,)


@pytest.mark.parametrize(
    ("settings", "devices", "amounts"),
    [
        ({}, (CARD,), {CARD.id: int(24 * GIB * 0.92)}),
        ({"gpu_memory_utilization": 0.5}, (CARD,), {CARD.id: 12 * GIB}),
        ({"memory": 7 * GIB, "gpu_memory_utilization": 0.5}, (CARD,), {CARD.id: 7 * GIB}),
        ({}, (), {RAM: 0}),
    ],
)
def test_it_takes_its_part_of_the_gpu_whatever_its_weights_are(
    settings: dict[str, Any], devices: Sequence[Device], amounts: dict[str, int]
) -> None:
    [need] = asyncio.run(engine().forecast(spec(**settings), devices, ask=True)).options
    assert need.amounts == amounts


def test_asleep_it_needs_its_weights_or_what_they_are_at_most(tmp_path: Path) -> None:
    def asleep(model: ModelSpec) -> Any:
        return asyncio.run(engine().forecast(model, (CARD,), ask=True)).asleep

    weights = folder(tmp_path, 9)
    assert asleep(spec(weights)) is None
    assert asleep(spec(weights, sleep=True)) == {RAM: 9 * GIB}
    assert asleep(spec(weights, sleep=True, gpu_memory_utilization=0.25)) == {RAM: 6 * GIB}
    assert asleep(spec(sleep=True, memory=8 * GIB)) == {RAM: 8 * GIB}


def test_in_a_container_it_is_the_image_s_own_program_with_the_folder_as_it_is_seen_there(tmp_path: Path) -> None:
    class Image:
        async def look(self, spec: ModelSpec, program: str, files: Sequence[str]) -> ContainerProgram:
            return ContainerProgram(
                f"/usr/bin/{program}", "1", {one: f"/models{one}" for one in files}, {}, "vllm-openai"
            )

        async def ask(self, spec: ModelSpec, *argv: str) -> ProgramOutput:
            raise AssertionError(argv)

    async def places(spec: ModelSpec) -> Image:
        return Image()

    weights = folder(tmp_path, 1)
    model = replace(spec(weights, sleep=True), binary=None, home="podman", image="vllm-openai")
    made = asyncio.run(engine(places=places).plan(model, tmp_path))
    assert made.argv[:3] == ("/usr/bin/vllm", "serve", f"/models{weights}")
    assert made.argv[-1] == "--enable-sleep-mode"
