"""Devices, builds and models that rules are held against."""

from __future__ import annotations

from typing import Any

from accelerd.config.model import ModelSpec, Origin
from accelerd.devices.model import Device, MemoryPool
from accelerd.engines.base import EngineBuild, TunedModel
from accelerd.estimate.gguf import Header
from accelerd.tuning.resolve import situation, tune
from accelerd.tuning.rules import TuningRule, packaged

GIB = 1 << 30
STRIX_HALO = Device(
    "gpu", "AMD Radeon 8060S Graphics", driver="amdgpu", slot="0000:c1:00.0", node="/dev/dri/renderD128",
    pools=(MemoryPool("unified", 120 * GIB),), vendor="1002", device="1586", gfx="gfx1151", apu=True, unified=True,
)  # fmt: skip
RADEON = Device("gpu", "AMD Radeon RX 9070 XT", driver="amdgpu", slot="0000:03:00.0", vendor="1002", device="7550",
                gfx="gfx1201", apu=False)  # fmt: skip
GEFORCE = Device("gpu", "NVIDIA GeForce", driver="nvidia", slot="0000:01:00.0", vendor="10de", device="2684", apu=False)
CPU = Device("cpu", "a processor")
DENSE = Header(3, 400, {"general.architecture": "qwen3"})
MOE = Header(3, 600, {"general.architecture": "qwen3moe", "qwen3moe.expert_count": 128})
CORES = 8


def build(backend: str = "radv", *options: str) -> EngineBuild:
    return EngineBuild("llama-server", "version 1", backend, frozenset(options))


def own(line: int = 5, layer: str = "model", file: str = "accelerd.toml") -> Origin:
    return Origin(layer, file, line)


def tuned(
    spec: ModelSpec | None = None,
    device: Device | None = STRIX_HALO,
    backend: str = "radv",
    header: Header | None = DENSE,
    size: int = 16 * GIB,
    rules: tuple[TuningRule, ...] | None = None,
    **settings: Any,
) -> TunedModel:
    """What rules, by default the package's, make of a model."""
    spec = spec or ModelSpec("qwen", path="/m.gguf", **settings)
    here = situation(spec, device, build(backend), header, size)
    return tune(packaged() if rules is None else rules, spec, here, CORES)


def changes(result: TunedModel) -> dict[str, Any]:
    """What was set, by field; variables as env.NAME."""
    names = ("mmap", "flash_attention", "batch", "ubatch", "cache_type_k", "cache_type_v", "gpu_layers", "threads")
    found = {name: getattr(result.spec, name) for name in names if result.spec.origin(name).by_rule}
    env = {f"env.{key}": text for key, text in result.spec.env if result.spec.origin(f"env.{key}").by_rule}
    return {**found, **env}
