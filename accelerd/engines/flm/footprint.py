"""The memory and NPU contexts of a FastFlowLM model. Pure.

The NPU uses main memory; GPU memory is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.flm import argv
from accelerd.engines.flm.catalogue import EMBEDDER, KNOWN, WHISPER, FlmModel
from accelerd.memory.model import RAM, Claim, MemoryRequirement

MIB: Final = 1 << 20
BESIDE: Final = 256 * MIB  # buffers and the program
FAMILY: Final = "flm"
NO_NPU: Final = "npu"  # the device of a claim on a machine without one


def npu(devices: Sequence[Device]) -> Device | None:
    """The NPU that FastFlowLM uses: one from AMD, working ones first."""
    found = [device for device in devices if device.kind == "npu" and device.vendor in ("", "1022")]
    return min(found, key=lambda d: (d.problem is not None, d.driver != "amdxdna", d.id), default=None)


def need(spec: ModelSpec, known: FlmModel, devices: Sequence[Device]) -> MemoryRequirement:
    """Its only placement."""
    device = npu(devices)
    where = device.id if device is not None else NO_NPU
    own, hears, embeds = argv.parts(spec, known.tag)
    kinds = [kind for kind, wanted in (("llm", own is not None), ("asr", hears), ("embed", embeds)) if wanted]
    claims = tuple(Claim(where, FAMILY, kind) for kind in kinds)
    on = (where,) if device is not None else ()
    if spec.memory is not None:
        source = f"declared: {spec.origin('memory')}"
        return MemoryRequirement({RAM: spec.memory}, source, on, claims=claims, declared=True)
    sizes = parts(spec, known)
    source = (
        "estimated from FastFlowLM's list of models"
        if known.footprint
        else f"unknown: {known.tag} is in no list of models"
    )
    return MemoryRequirement({RAM: sum(sizes.values())}, source, on, sizes, claims)


def parts(spec: ModelSpec, known: FlmModel) -> dict[str, int]:
    """Bytes: "weights", "kv cache", "compute"."""
    own, hears, embeds = argv.parts(spec, known.tag)
    weights = known.footprint if own is not None else 0
    weights += KNOWN[WHISPER].footprint if hears else 0
    weights += KNOWN[EMBEDDER].footprint if embeds else 0
    tokens = argv.context_of(spec.context) if spec.context is not None else known.context
    cache = known.cache * tokens if own is not None else 0
    return {"weights": weights, "kv cache": cache, "compute": BESIDE} if weights else {}


def lockable_needed(spec: ModelSpec, known: FlmModel) -> int:
    """Bytes that the program locks."""
    return sum(parts(spec, known).values()) + 2 * BESIDE
