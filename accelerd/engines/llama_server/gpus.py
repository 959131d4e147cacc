"""Which of the devices that a build lists is which GPU of this machine. Pure.

`--list-devices` tells a name of ggml's own ("Vulkan1"), a description and a size, but no PCI slot; the inventory knows
slot, name and sizes. Cards that look alike are taken in the order of their slots, as drivers do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from accelerd.devices.model import Device

LINE: Final = re.compile(
    r"^\s+(?P<name>[A-Za-z]+\d+): (?P<text>.*?)(?: \((?P<total>\d+) MiB(?:, \d+ MiB free)?\))?\s*$", re.MULTILINE
)
WORD: Final = re.compile(r"[a-z]+\d+[a-z]*|\d{3,}[a-z]*")  # "gfx1151", "8060s", "7900": what tells cards apart
NEAR: Final = 0.1  # sizes that differ by less may be the same memory, counted in another way


class ListedDevice(Struct, frozen=True):
    """One line of `--list-devices`."""

    name: str
    text: str
    size: int | None  # bytes


def listed(told: str) -> list[ListedDevice]:
    """What the program can compute on, in its own order."""
    found = []
    for match in LINE.finditer(told.partition("Available devices")[2]):
        size = int(match["total"]) << 20 if match["total"] else None
        found.append(ListedDevice(match["name"], match["text"], size))
    return found


def names_of(told: str, devices: Iterable[Device], wanted: Sequence[str]) -> tuple[str, ...] | None:
    """What the program calls the GPUs in these slots; () when it has no choice, None when one cannot be told."""
    there = listed(told)
    if len(there) < 2:
        return ()
    gpus = sorted((d for d in devices if d.kind == "gpu" and d.slot), key=lambda device: device.id)
    pairs = sorted(
        ((_likeness(one, gpu), -index, -place) for index, one in enumerate(there) for place, gpu in enumerate(gpus)),
        reverse=True,
    )
    found: dict[str, str] = {}
    taken: set[int] = set()
    for likeness, index, place in pairs:
        gpu = gpus[-place]
        if likeness > 0 and gpu.id not in found and -index not in taken:
            found[gpu.id] = there[-index].name
            taken.add(-index)
    if any(slot not in found for slot in wanted):
        return None
    return tuple(found[slot] for slot in wanted)


def _likeness(one: ListedDevice, gpu: Device) -> float:
    """0: it is not this one."""
    ours = set(WORD.findall(f"{gpu.name} {gpu.gfx or ''}".lower()))
    theirs = set(WORD.findall(one.text.lower()))
    words = len(ours & theirs)
    sizes = [pool.total for pool in gpu.pools if pool.name in ("vram", "unified", "gtt")]
    near = one.size is not None and any(abs(size - one.size) <= NEAR * size for size in sizes if size)
    return words + (0.5 if near else 0.0)
