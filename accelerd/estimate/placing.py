"""The ways to place an estimated model on this machine's pools, the best first.

A GPU alone comes before several, a card before the GPU in the processor; several share the layers in proportion to
their memory, as llama.cpp divides them. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device, first_gpu, first_npu, room
from accelerd.estimate.estimate import Estimate, MemoryShare
from accelerd.memory.model import RAM, MemoryRequirement
from accelerd.memory.npu_rules import NPU_ENGINES

ALL: Final = 1 << 16  # layers
FROM_HEADER: Final = "estimated from the file's header"


def options(
    estimate: Estimate,
    gpus: Sequence[Device],
    *,
    gpu_layers: int | str | None,
    wanted_gpus: Sequence[str] | None,
) -> tuple[MemoryRequirement, ...]:
    """The ways to place the model; never empty. `gpus`: as `usable` orders them; `wanted_gpus`: slots it may use."""
    count = gpu_layers if isinstance(gpu_layers, int) and gpu_layers >= 0 else ALL
    settings = estimate.settings
    allowed = _allowed(gpus, wanted_gpus)
    if count == 0 or not allowed or settings.backend == "cpu":
        return (_need(estimate.placed(()), ()),)
    if settings.split_mode == "none":
        return tuple(_on((gpu,), estimate, count) for gpu in allowed if settings.main_gpu in (None, gpu.id)) or (
            _need(estimate.placed(()), ()),
        )
    groups = _groups(allowed)
    if settings.tensor_split is not None:
        together = [allowed]
    elif settings.split_mode in ("row", "tensor") and groups:
        together = groups
    else:
        together = [[gpu] for gpu in allowed]
        together += [group[:size] for group in groups for size in range(2, len(group) + 1)]
    found = [_on(group, estimate, count) for group in together]
    if settings.fit_target is not None:
        found += [_fitted(group, estimate, settings.fit_target) for group in together]
    return tuple(found)


def _allowed(gpus: Sequence[Device], wanted: Sequence[str] | None) -> list[Device]:
    """Those that are asked for, in that order; else the cards, or without one what the processor has."""
    if wanted:
        by_id = {gpu.id: gpu for gpu in gpus}
        return [by_id[slot] for slot in wanted if slot in by_id]
    cards = [gpu for gpu in gpus if gpu.apu is not True]
    return cards or list(gpus[:1])


def _groups(gpus: Sequence[Device]) -> list[list[Device]]:
    """Cards that can share a model: of one driver."""
    groups: dict[str | None, list[Device]] = {}
    for gpu in gpus:
        if gpu.apu is not True:
            groups.setdefault(gpu.driver, []).append(gpu)
    return [group for group in groups.values() if len(group) > 1]


def divided(layers: int, rooms: Sequence[float]) -> list[int]:
    """How many of so many layers each gets, as llama.cpp divides them by what each has."""
    if not any(rooms):
        rooms = [1] * len(rooms)
    shares = [total / sum(rooms) for total in accumulate(rooms)]
    counts = [0] * len(rooms)
    for index in range(layers):
        counts[min(bisect_right(shares, index / layers), len(rooms) - 1)] += 1
    return counts


def _shares(gpus: Sequence[Device], estimate: Estimate, count: int) -> tuple[MemoryShare, ...]:
    split = estimate.settings.tensor_split
    parts: Sequence[float] = split[: len(gpus)] if split is not None else [room(gpu) for gpu in gpus]
    counts = divided(min(count, len(estimate.layers) + 1), parts)
    return estimate.placed(counts, [gpu.id for gpu in gpus], parts if any(parts) else [1.0] * len(gpus))


def _on(gpus: Sequence[Device], estimate: Estimate, count: int) -> MemoryRequirement:
    return _need(_shares(gpus, estimate, count), tuple(gpu.id for gpu in gpus))


def _fitted(gpus: Sequence[Device], estimate: Estimate, targets: Sequence[int]) -> MemoryRequirement:
    """As much of the model as leaves `targets` free of each GPU: experts leave first, else the first layers."""
    most = [max(0, room(gpu) - (targets[place] if place < len(targets) else targets[-1]))
            for place, gpu in enumerate(gpus)]  # fmt: skip

    def tried(steps: int) -> tuple[MemoryShare, ...]:
        if steps <= experts:
            return _shares(gpus, estimate.hosting(steps), ALL)
        return _shares(gpus, estimate.hosting(experts), len(estimate.layers) + 1 + experts - steps)

    experts = len(estimate.layers) if estimate.facts.experts else 0
    low, high = 0, experts + len(estimate.layers) + 1
    while low < high:
        middle = (low + high) // 2
        fits = all(share.total <= limit for share, limit in zip(tried(middle)[1:], most, strict=True))
        low, high = (low, middle) if fits else (middle + 1, high)
    return _need(tried(low), tuple(gpu.id for gpu in gpus))


def _need(shares: Sequence[MemoryShare], slots: tuple[str, ...]) -> MemoryRequirement:
    placed = dict(zip((RAM, *slots), shares, strict=True))
    amounts = {pool: share.total for pool, share in placed.items()}
    return MemoryRequirement(amounts, FROM_HEADER, slots, {pool: share.parts() for pool, share in placed.items()})


def default_device(spec: ModelSpec, devices: Sequence[Device]) -> str:
    """The id of the device that the model takes when there are these: a GPU's or NPU's PCI slot, "cpu",
    or "remote NAME".

    Where the model has no place yet; a MemoryRequirement's devices are the truth.
    """
    if spec.elsewhere:
        return f"remote {spec.remote}"
    if spec.engine in NPU_ENGINES:
        npu = first_npu(devices)
        return npu.id if npu is not None else "cpu"
    found = first_gpu(devices) if spec.gpu_layers != 0 else None
    return found.id if found is not None else "cpu"
