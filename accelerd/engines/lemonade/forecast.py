"""Estimates the memory of a Lemonade model and its device from the listed size and the recipe.

Never raises and contacts no server. A size that no server has listed counts 0 until it has been measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.lemonade.catalogue import Catalogue, LemonadeModel
from accelerd.engines.lemonade.traits import device, traits
from accelerd.estimate.placing import usable
from accelerd.memory.model import RAM, Claim, Forecast, MemoryRequirement, in_ram

# Recipe → family of NPU contexts.
FAMILY: Final[Mapping[str, str]] = {"flm": "flm", "ryzenai-llm": "ryzenai-llm", "whispercpp": "whispercpp"}
ROOM: Final = 1.1  # factor on the size of the files for cache and buffers


def forecast(spec: ModelSpec, devices: Sequence[Device], catalogue: Catalogue, host: str) -> Forecast:
    """`host`: identifies the server, which has its own limits for loaded models."""
    known, recipe = catalogue.of(spec.model or ""), catalogue.recipe(spec)
    size, source = _size(spec, known)
    declared = spec.memory is not None
    key = _key(spec, known) if known.size and not declared else ""
    npu = next((one for one in devices if one.kind == "npu" and one.problem is None), None)
    kind = device(recipe, known)
    # The device of whisper is known only after a load; until then assume the NPU.
    if npu is not None and (kind == "npu" or (recipe == "whispercpp" and not known.device)):
        # The NPU uses main memory and no GPU memory.
        claim = Claim(npu.id, FAMILY.get(recipe, recipe), _kind(spec, catalogue), host=host)
        return Forecast((MemoryRequirement({RAM: size}, source, (npu.id,), claims=(claim,), declared=declared),), key)
    gpus = usable(devices)
    if kind == "gpu" and gpus and spec.gpu_layers != 0:
        wanted = [gpu for gpu in gpus if gpu.id in (spec.gpus or ())]
        # Lemonade selects the GPU itself; assume the first one that it would use.
        chosen = wanted[:1] or [gpu for gpu in gpus if gpu.apu is not True][:1] or list(gpus[:1])
        one = chosen[0].id
        return Forecast((MemoryRequirement({one: size}, source, (one,), declared=declared),), key)
    return Forecast((in_ram(size, source, declared=declared),), key)


def _size(spec: ModelSpec, known: LemonadeModel) -> tuple[int, str]:
    if spec.memory is not None:
        return spec.memory, f"declared: {spec.origin('memory')}"
    if known.size:
        return int(known.size * ROOM), "estimated from the size that Lemonade lists"
    return 0, "unknown: no Lemonade Server has listed its size yet"


def _kind(spec: ModelSpec, catalogue: Catalogue) -> Literal["llm", "asr", "embed"]:
    tasks = traits(spec, catalogue).tasks
    return "asr" if "transcription" in tasks else "embed" if "embeddings" in tasks else "llm"


def _key(spec: ModelSpec, known: LemonadeModel) -> str:
    """The key of measurements: the model and its settings."""
    said = (spec.model, spec.context, spec.parallel, spec.cache_type_k, spec.cache_type_v, spec.ubatch, spec.extra_args)
    return hashlib.sha256(repr((said, known.size, known.recipe)).encode()).hexdigest()
