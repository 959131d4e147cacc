"""Where the memory lies that a driver tells of: regions of clients and sizes of devices, made into pools. Pure.

Drivers have names of their own for the same things. A byte that a GPU keeps in main memory counts once: in the GPU's
pool where the two share their memory, else in main memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.readings import Readings
from accelerd.memory.model import RAM, Pool
from accelerd.memory.npu_rules import contexts

# Beginnings of regions: amdgpu vram, gtt, cpu; xe vram0, gtt, system; i915 local0, system0; amdxdna and ivpu memory.
# The small rest (doorbells, gds, oa) is nobody's concern, nor what the firmware took away before the kernel (stolen).
LOCAL: Final = ("vram", "local")
MAPPED: Final = ("gtt", "tt", "system", "memory")  # main memory that the device sees
EVICTED: Final = "cpu"  # main memory that it does not see


class DeviceUse(Struct, frozen=True):
    """What somebody holds through a device, in bytes."""

    device: int = 0  # of the device's pool
    main: int = 0  # of main memory, counted there
    backing: int = 0  # of `device`, what lies in main memory

    def __add__(self, other: DeviceUse) -> DeviceUse:
        return DeviceUse(self.device + other.device, self.main + other.main, self.backing + other.backing)


class DeviceMemory(Struct, frozen=True):
    """The memory of a device."""

    capacity: int
    own: int | None  # bytes that are not main memory; None: none of it is
    used: int | None  # of it, by anybody; None: not known

    @property
    def shared(self) -> bool:
        return self.own is not None


def part(memory: Mapping[str, int], shape: DeviceMemory) -> DeviceUse:
    """What a client with these regions holds."""
    local = sum(size for region, size in memory.items() if region.startswith(LOCAL))
    mapped = sum(size for region, size in memory.items() if region.startswith(MAPPED))
    evicted = memory.get(EVICTED, 0)
    if shape.own is None:
        return DeviceUse(local, mapped + evicted)
    # More than the device has for itself cannot lie there, whatever the driver calls it.
    return DeviceUse(local + mapped, evicted, mapped + max(0, local - shape.own))


def shape_of(device: Device, readings: Readings, main: int | None) -> DeviceMemory | None:
    """`main`: bytes of main memory, None where that is not known. None: the device tells nothing to plan with."""
    sizes = {pool.name: pool for pool in readings.pools}
    vram, gtt, unified = sizes.get("vram"), sizes.get("gtt"), sizes.get("unified")
    if device.kind == "npu":
        told = sizes.get("ram")
        return DeviceMemory(main, 0, told.used if told is not None else None) if main is not None else None
    if vram is None and gtt is None:
        # The machine's own memory: how much of it is the device's nobody tells.
        capacity = main if main is not None else unified.total if unified is not None else 0
        return DeviceMemory(capacity, 0, None) if unified is not None and capacity else None
    if not device.unified:
        return DeviceMemory(vram.total, None, vram.used) if vram is not None and vram.total else None
    own = vram.total if vram is not None else 0
    mapped = gtt.total if gtt is not None else 0
    # Older kernels let GTT be larger than what there is.
    return DeviceMemory(own + (min(mapped, main) if main is not None else mapped), own, _sum(vram, gtt))


def _sum(*pools: MemoryPool | None) -> int | None:
    used = [pool.used for pool in pools if pool is not None]
    known = [size for size in used if size is not None]
    return sum(known) if len(known) == len(used) else None


def pool_of(device: Device, shape: DeviceMemory, foreign: int, *, reserve: int, main: bool) -> Pool:
    """The pool of a device. `main`: main memory is a pool too."""
    return Pool(
        id=device.id,
        label=device.name,
        capacity=shape.capacity,
        reserve=reserve if device.kind != "npu" else 0,
        foreign=max(0, min(foreign, shape.capacity)),
        backed_by=RAM if shape.shared and main else None,
        own=shape.own or 0,
        contexts=contexts(device),
        columns=device.columns,
    )
