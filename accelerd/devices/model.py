"""A device as the rest of the program sees it. Pure data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class MemoryPool:
    """Memory that a device can hold a model in. Sizes in bytes; `used` is None where it cannot be known cheaply."""

    name: str  # "vram", "gtt", "ram"
    total: int
    used: int | None = None


@dataclass(frozen=True)
class Device:
    """One gpu, npu, or the processor itself."""

    kind: Literal["gpu", "npu", "cpu"]
    name: str
    driver: str | None = None
    slot: str | None = None  # PCI, "0000:c1:00.0"
    node: str | None = None  # "/dev/dri/renderD128"
    pools: tuple[MemoryPool, ...] = ()
    problem: str | None = None  # why it cannot be used, one clause
    fix: str | None = None  # the command that changes that

    def json(self) -> dict[str, Any]:
        return asdict(self)
