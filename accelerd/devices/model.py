"""A device as the rest of the program sees it. Pure data.

Identity is the PCI slot, never the number of a card or node: these change between boots and when a driver is bound
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace


class MemoryPool(Struct, frozen=True):
    """Memory that a device can use for models. Sizes in bytes; `used` is None if it is not cheap to read.

    Pools overlap: "visible vram" is part of "vram", and "unified" is "vram" plus "gtt".
    """

    name: str  # "vram", "visible vram", "gtt", "unified"; "ram" of the processor
    total: int
    used: int | None = None


class DeviceTrouble(Struct, frozen=True):
    message: str  # one clause
    fix: str | None = None  # the command that fixes it
    blocks: bool = False  # the device cannot be used at all


class Device(Struct, frozen=True):
    kind: Literal["gpu", "npu", "cpu"]
    name: str  # product name: "AMD Radeon 8060S Graphics"
    driver: str | None = None
    slot: str | None = None  # PCI, "0000:c1:00.0"
    node: str | None = None  # "/dev/dri/renderD128"
    pools: tuple[MemoryPool, ...] = ()
    problem: str | None = None  # why it cannot be used
    fix: str | None = None  # the command that fixes that
    vendor: str = ""  # PCI ids in lower case hex: "1002" …
    device: str = ""  # … "1586"
    gfx: str | None = None  # AMD's target: "gfx1151"
    apu: bool | None = None  # is it integrated into the processor? None: unknown
    unified: bool = False  # its pools are main memory
    columns: int | None = None  # of an NPU
    firmware: Mapping[str, str] = field(default_factory=dict)
    troubles: tuple[DeviceTrouble, ...] = ()  # in addition to `problem`
    directory: Path | None = None  # of the PCI function, below /sys

    @property
    def id(self) -> str:
        return self.slot or self.kind

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = to_builtins(self, enc_hook=str)
        return found | {"id": self.id}


def unmeasured(pools: tuple[MemoryPool, ...]) -> tuple[MemoryPool, ...]:
    """The pools without their usage, which changes constantly."""
    return tuple(replace(pool, used=None) for pool in pools)


def lasting(device: Device) -> Device:
    """The device without what changes constantly."""
    return replace(device, pools=unmeasured(device.pools))


COMPUTE = frozenset({"amdgpu", "i915", "xe", "nvidia", "nouveau"})  # drivers through which models can run


def room(device: Device) -> int:
    """Bytes a device has for models; 0: not known."""
    pools = {pool.name: pool.total for pool in device.pools}
    return pools.get("unified", 0) if device.unified else pools.get("vram", max(pools.values(), default=0))


def runs_no_model(device: Device) -> bool:
    """Is it a render node of another driver, such as a virtual machine's, or one without hardware?"""
    return device.kind == "gpu" and device.driver is not None and device.driver not in COMPUTE


def computes(device: Device) -> bool:
    """Is it a GPU that can run models now?"""
    blocked = device.problem is not None or any(trouble.blocks for trouble in device.troubles)
    return device.kind == "gpu" and device.driver in COMPUTE and not blocked


def usable(devices: Iterable[Device]) -> tuple[Device, ...]:
    """The GPUs that models are placed on: cards, the largest first, then those in the processor."""
    found = filter(computes, devices)
    return tuple(sorted(found, key=lambda d: (d.apu is True, -room(d), d.slot or "~")))


def first_gpu(devices: Iterable[Device]) -> Device | None:
    """The one that a model is placed on by default."""
    return next(iter(usable(devices)), None)


def first_npu(devices: Iterable[Device]) -> Device | None:
    """The first usable NPU."""
    usable = [d for d in devices if d.kind == "npu" and d.problem is None]
    return min(usable, key=lambda d: d.slot or "~", default=None)
