"""The engine `vllm`: plans `vllm serve`, and knows how it sleeps and what it takes of a GPU.

Level 1 of vLLM's sleep moves the weights to main memory and gives up the KV cache. Its paths are there in development
mode only, which is why a model sleeps only if its settings say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from msgspec import structs

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device, room, usable
from accelerd.engines.base import Flag, LaunchPlan, SleepPaths
from accelerd.engines.command.engine import Command, size_of
from accelerd.memory.model import RAM, Forecast, MemoryRequirement

UTILIZATION: Final = 0.92  # the part of a GPU's memory that it takes by default; older versions 0.9
DEV_MODE: Final = "VLLM_SERVER_DEV_MODE"
SLEEP: Final = SleepPaths("/sleep?level=1", "/wake_up", "/is_sleeping", "is_sleeping")
QUEUE: Final = ("/metrics", "vllm:num_requests_waiting")
OPEN_PATHS: Final = (
    "older versions of vLLM do not ask for the key at the paths of its development mode, which sleep needs: while this "
    "model is loaded, every user of this machine can use them"
)
WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".gguf")


class Vllm(Command):
    """Plans for vLLM. One object for all models."""

    async def plan(self, spec: ModelSpec, runtime: Path, placed: MemoryRequirement | None = None) -> LaunchPlan:
        plan = await super().plan(spec, runtime, placed)
        # Its list of models asks for the key, /health does not.
        plan = replace(plan, warm_path="/v1/models", queue_metric=QUEUE)
        if not spec.vllm.sleep:
            return plan
        warnings = plan.warnings if plan.endpoint.unix else (*plan.warnings, OPEN_PATHS)
        return replace(plan, sleep=SLEEP, warnings=warnings)

    def _own(self, spec: ModelSpec) -> list[Flag]:
        found = []
        if isinstance(spec.context, int):
            found.append(Flag(f"--max-model-len {spec.context}", str(spec.origin("context")), "the context"))
        if (share := spec.vllm.gpu_memory_utilization) is not None:
            origin = str(spec.origin("vllm.gpu_memory_utilization"))
            found.append(Flag(f"--gpu-memory-utilization {share:g}", origin, "the part of the GPU's memory"))
        if spec.vllm.sleep:
            found.append(Flag("--enable-sleep-mode", str(spec.origin("vllm.sleep")), "it sleeps instead of ending"))
        return found

    def _env(self, spec: ModelSpec, secret: str, given: Mapping[str, str]) -> dict[str, str]:
        mode = {DEV_MODE: "1"} if spec.vllm.sleep else {}
        return {**super()._env(spec, secret, given), **mode}

    def _env_flags(self, spec: ModelSpec) -> list[Flag]:
        found = super()._env_flags(spec)
        if spec.vllm.sleep:
            found.append(Flag(f"env {DEV_MODE}=1", str(spec.origin("vllm.sleep")), "without it there is no sleep"))
        return found

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        """What is declared; else its part of the GPU's memory, of which it leaves nothing to others."""
        known = await super().forecast(spec, devices, ask=ask)
        need = known.options[0]
        chosen = next((gpu for gpu in usable(devices) if gpu.id in need.devices), None)
        if chosen is not None and spec.memory is None and room(chosen):
            share = spec.vllm.gpu_memory_utilization or UTILIZATION
            source = f"gpu_memory_utilization = {share:g}"
            need = structs.replace(need, amounts={chosen.id: int(room(chosen) * share)}, source=source)
        asleep = None
        if spec.vllm.sleep:
            size = await asyncio.to_thread(size_of, spec.path, WEIGHTS) if spec.path else 0
            most = need.total  # where nobody knows them, they are less than what it takes of the GPU
            asleep = {RAM: min(size, most) if size and most else size or most}
        return structs.replace(known, options=(need,), asleep=asleep)
