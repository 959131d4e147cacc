"""What a model of a Lemonade Server will need, and where: from the size that the server lists and the recipe.

Never raises and asks nobody: what no server has told is unknown and counts 0, until it was measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.lemonade.catalogue import Catalogue, Known
from accelerd.engines.lemonade.traits import device, traits
from accelerd.estimate.placing import usable
from accelerd.memory.model import RAM, Claim, Forecast, MemoryRequirement

# Recipe → the family of the NPU's contexts.
FAMILY: Final[Mapping[str, str]] = {"flm": "flm", "ryzenai-llm": "ryzenai-llm", "whispercpp": "whispercpp"}
ROOM: Final = 1.1  # of the files' size: the cache and the buffers beside the weights, until it was measured


def forecast(spec: ModelSpec, devices: Sequence[Device], catalogue: Catalogue, host: str) -> Forecast:
    """`host`: names the server, which has rules of its own for what it holds at once."""
    known, recipe = catalogue.of(spec.model or ""), catalogue.recipe(spec)
    size, source = _size(spec, known)
    key = _key(spec, known) if spec.memory is None and known.size else ""
    npu = next((one for one in devices if one.kind == "npu" and one.problem is None), None)
    kind = device(recipe, known)
    # Where whisper computes the server knows; until it has said so it is counted where it would be in the way.
    if npu is not None and (kind == "npu" or (recipe == "whispercpp" and not known.device)):
        # It computes out of main memory: nothing of a GPU is touched.
        claim = Claim(npu.id, FAMILY.get(recipe, recipe), _kind(spec, catalogue), host=host)
        return Forecast((MemoryRequirement({RAM: size}, source, devices=(npu.id,), claims=(claim,)),), key)
    gpus = usable(devices)
    if kind == "gpu" and gpus and spec.gpu_layers != 0:
        wanted = [gpu for gpu in gpus if gpu.id in (spec.gpus or ())]
        # Lemonade chooses the GPU itself: the first that it would take is the one that is counted.
        chosen = wanted[:1] or [gpu for gpu in gpus if gpu.apu is not True][:1] or list(gpus[:1])
        return Forecast((MemoryRequirement({chosen[0].id: size}, source, devices=(chosen[0].id,)),), key)
    return Forecast((MemoryRequirement({RAM: size}, source),), key)


def _size(spec: ModelSpec, known: Known) -> tuple[int, str]:
    if spec.memory is not None:
        return spec.memory, f"declared: {spec.origin('memory')}"
    if known.size:
        return int(known.size * ROOM), "estimated from the size that Lemonade lists"
    return 0, "unknown: no Lemonade Server has told its size yet"


def _kind(spec: ModelSpec, catalogue: Catalogue) -> Literal["llm", "asr", "embed"]:
    tasks = traits(spec, catalogue).tasks
    return "asr" if "transcription" in tasks else "embed" if "embeddings" in tasks else "llm"


def _key(spec: ModelSpec, known: Known) -> str:
    """What is measured belongs to this model with these settings."""
    said = (spec.model, spec.context, spec.parallel, spec.cache_type_k, spec.cache_type_v, spec.ubatch, spec.extra_args)
    return hashlib.sha256(repr((said, known.size, known.recipe)).encode()).hexdigest()
