"""A device as the rest of the program sees it. Pure data.

Identity is the PCI slot, never a card's or a node's number: those change from boot to boot and when a driver is bound
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class MemoryPool:
    """Memory that a device can hold a model in. Sizes in bytes; `used` is None where it cannot be known cheaply.

    They overlap and must not be added: "visible vram" is a part of "vram", "unified" is "vram" and "gtt" together.
    """

    name: str  # "vram", "visible vram", "gtt", "unified"; "ram" of the processor
    total: int
    used: int | None = None


@dataclass(frozen=True)
class Trouble:
    """Something about a device that a person should know."""

    message: str  # one clause
    fix: str | None = None  # the command that changes it
    blocks: bool = False  # the device cannot be used at all


@dataclass(frozen=True)
class Device:
    """One gpu, npu, or the processor itself."""

    kind: Literal["gpu", "npu", "cpu"]
    name: str  # as it is sold: "AMD Radeon 8060S Graphics"
    driver: str | None = None
    slot: str | None = None  # PCI, "0000:c1:00.0"
    node: str | None = None  # "/dev/dri/renderD128"
    pools: tuple[MemoryPool, ...] = ()
    problem: str | None = None  # why it cannot be used, one clause
    fix: str | None = None  # the command that changes that
    vendor: str = ""  # PCI ids in lower case hex: "1002" …
    device: str = ""  # … "1586"
    gfx: str | None = None  # AMD's target: "gfx1151"
    apu: bool | None = None  # it is part of the processor; None: not known
    unified: bool = False  # its pools are the machine's own memory
    columns: int | None = None  # of an NPU
    firmware: Mapping[str, str] = field(default_factory=dict)
    troubles: tuple[Trouble, ...] = ()  # beside `problem`
    directory: Path | None = None  # of the PCI function, below /sys

    @property
    def id(self) -> str:
        return self.slot or self.kind

    def json(self) -> dict[str, Any]:
        return asdict(self) | {"id": self.id, "directory": str(self.directory) if self.directory else None}
