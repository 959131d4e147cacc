"""Main memory as a whole: how much there is, how much of it nobody can have, and who holds most of it.

Blocking reads of /proc. What our own models hold is subtracted by whoever knows it.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from accelerd.base.ports import Roots
from accelerd.devices.files import MOST_BYTES, lines, names, text
from accelerd.devices.host import meminfo
from accelerd.memory.model import RAM, ForeignUser
from accelerd.memory.resident import rss

GIB: Final = 1 << 30
MOST_RESERVE: Final = 8 * GIB
LEAST_RESERVE: Final = 512 << 20
WORTH_NAMING: Final = 256 << 20  # bytes resident


class MainMemoryUse(Struct, frozen=True):
    """Bytes."""

    total: int
    used: int  # by anybody, and not to be had by asking for it


def read_main_memory(roots: Roots) -> MainMemoryUse | None:
    """None where /proc does not say.

    Beyond the page cache, which the kernel takes into account itself, there are caches that it calls used and that
    shrink when somebody needs the memory: ZFS's, and pages that GPU drivers keep for later.
    """
    told = meminfo(roots)
    total, available = told.get("MemTotal", 0), told.get("MemAvailable")
    if not 0 < total <= MOST_BYTES or available is None:
        return None
    yielding = told.get("GPUReclaim", 0) + zfs_cache(roots)  # GPUReclaim: since Linux 6.19
    return MainMemoryUse(total, max(0, total - available - yielding))


def zfs_cache(roots: Roots) -> int:
    """Bytes that ZFS's cache gives back when memory is short: what it has beyond its least size."""
    found = {}
    for line in lines(roots.proc / "spl/kstat/zfs/arcstats"):
        words = line.split()
        if len(words) == 3 and words[0] in ("size", "c_min") and words[2].isdecimal():
            found[words[0]] = int(words[2])
    size, least = found.get("size", 0), found.get("c_min", 0)
    return max(0, size - least) if size <= MOST_BYTES else 0


def usual_reserve(total: int) -> int:
    """What is kept free of `total` bytes unless somebody decides otherwise: a tenth, from 512 MiB to 8 GiB."""
    return min(MOST_RESERVE, max(LEAST_RESERVE, total // 10))


def largest(roots: Roots) -> list[ForeignUser]:
    """Processes that have much resident, in no order. Reads one line for every process."""
    found = []
    for name in names(roots.proc):
        if name.isdecimal():
            size = rss(roots.proc, int(name))
            if size is not None and WORTH_NAMING <= size <= MOST_BYTES:
                found.append(ForeignUser(RAM, int(name), text(roots.proc / name / "comm") or "?", size))
    return found
