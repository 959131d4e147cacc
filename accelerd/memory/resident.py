"""Main memory, from /proc: what processes hold, as RSS or as PSS, which counts a shared page once, and what is free.

Blocking: call it in a thread. Knows no instances, and nothing of devices: memory that a driver holds for a process is
not included.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import astuple

from accelerd.base.cgroup import cgroup_of
from accelerd.base.ports import Clock, Roots
from accelerd.devices.files import MOST_BYTES, lines, names, text
from accelerd.devices.host import meminfo, sizes
from accelerd.memory.model import RAM, ForeignUser

AGAIN: Final = 5.0  # s until the PSS of a process is read again at the earliest …
SHARE: Final = 100  # … and at least so many times what reading it took: page tables of a large model are long
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class ResidentMemory(Struct, frozen=True):
    """Bytes of main memory."""

    anon: int = 0
    shmem: int = 0
    file: int = 0  # pages of mapped files, which the kernel may drop …
    locked: int = 0  # … unless they are locked: of all three

    @property
    def total(self) -> int:
        return self.anon + self.shmem + self.file

    @property
    def firm(self) -> int:
        """What the kernel cannot drop. A model's file is locked alone, or all of a process is."""
        return self.anon + self.shmem + min(self.locked, self.file)

    def __add__(self, other: ResidentMemory) -> ResidentMemory:
        return ResidentMemory(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def moved(self, before: ResidentMemory, now: ResidentMemory) -> ResidentMemory:
        """This, changed by as much as it is from `before` to `now`; never below nothing."""
        sizes = zip(astuple(self), astuple(before), astuple(now), strict=True)
        return ResidentMemory(*(max(0, size + new - old) for size, old, new in sizes))


def resident(proc: Path, pids: Iterable[int]) -> int:
    """Bytes resident (RSS), shared pages counted for each process. Cheap. Processes that are gone count 0."""
    return sum(rss(proc, pid) or 0 for pid in pids)


def rss(proc: Path, pid: int) -> int | None:
    """Bytes resident; None: the process has ended."""
    try:
        return int((proc / str(pid) / "statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None


def taken_in(proc: Path, pids: Iterable[int]) -> int | None:
    """Bytes of files that processes have read, or have mapped and touched. None: one of them cannot be asked.

    What is mapped no more counts no more; what was read counts for ever.
    """
    total = 0
    for pid in pids:
        try:
            io = dict(line.split(b": ") for line in (proc / str(pid) / "io").read_bytes().splitlines())
            total += int(io[b"rchar"])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except (OSError, ValueError, KeyError):
            return None  # of another user, or a kernel that does not tell
        total += sizes(proc / str(pid) / "status").get("RssFile", 0)
    return total


def shared(proc: Path, pid: int) -> ResidentMemory | None:
    """The proportional share of a process. Walks its page tables: some 3 ms for each GB. None: not to be had."""
    return _share_in(sizes(proc / str(pid) / "smaps_rollup"))


def _share_in(told: Mapping[str, int]) -> ResidentMemory | None:
    if "Pss" not in told:
        return None  # it has ended, or may not be looked into
    if "Pss_Anon" not in told:  # before Linux 5.9
        anon = min(told["Pss"], told.get("Anonymous", 0))
        return ResidentMemory(anon, 0, told["Pss"] - anon, told.get("Locked", 0))
    return ResidentMemory(told["Pss_Anon"], told.get("Pss_Shmem", 0), told.get("Pss_File", 0), told.get("Locked", 0))


def _walked(told: Mapping[str, int], before: ResidentMemory) -> ResidentMemory:
    """What was counted for the process when its share was read, and not just `before`: it may be loading a model."""
    if not {"Rss", "Anonymous"} <= told.keys():
        return before
    mapped = told["Rss"] - told["Anonymous"]
    return ResidentMemory(told["Anonymous"], before.shmem, max(0, mapped - before.shmem), before.locked)


def counted(proc: Path, pid: int) -> ResidentMemory | None:
    """What the kernel has counted for a process (RSS by kind): cheap, and anybody may ask. None: it has ended."""
    told = sizes(proc / str(pid) / "status")
    if "RssAnon" not in told:
        return None
    return ResidentMemory(told["RssAnon"], told.get("RssShmem", 0), told.get("RssFile", 0), told.get("VmLck", 0))


class _KnownProcess(Struct, frozen=True):
    """The share of a process, what was counted for it then, and when the share is to be read again."""

    share: ResidentMemory
    counted: ResidentMemory
    due: float


class Residents:
    """What groups of processes hold, again and again, at a price that does not grow with the size of a model.

    The share is read now and then; in between it moves as the kernel's counters do.
    """

    def __init__(self, roots: Roots, clock: Clock) -> None:
        self._roots = roots
        self._clock = clock
        self._known: dict[int, _KnownProcess] = {}

    def look(self, groups: Mapping[int, Collection[int]]) -> dict[int, ResidentMemory]:
        """By group; a group of which no process lives is left out. Processes in none of them are forgotten."""
        found = {}
        for group, pids in groups.items():
            shares = {pid: self._share(pid) for pid in pids}
            held = [share for share in shares.values() if share is not None]
            closed = {
                pid: now
                for pid, share in shares.items()
                if share is None and (now := counted(self._roots.proc, pid)) is not None
            }
            if closed:
                held.append(self._closed(closed))
            if held:
                found[group] = sum(held, ResidentMemory())
        live = {pid for pids in groups.values() for pid in pids}
        self._known = {pid: known for pid, known in self._known.items() if pid in live}
        return found

    def _share(self, pid: int) -> ResidentMemory | None:
        """None: it has ended, or may not be looked into."""
        now = counted(self._roots.proc, pid)
        known = self._known.get(pid)
        began = self._clock.monotonic()
        if now is None:
            return None
        if known is not None and began < known.due:
            return known.share.moved(known.counted, now)
        told = sizes(self._roots.proc / str(pid) / "smaps_rollup")
        share = _share_in(told)
        if share is None:
            return None
        ended = self._clock.monotonic()
        self._known[pid] = _KnownProcess(share, _walked(told, now), ended + max(AGAIN, SHARE * (ended - began)))
        return share

    def _closed(self, processes: Mapping[int, ResidentMemory]) -> ResidentMemory:
        """Of processes of another user, of which only the counters can be read.

        What several of them share is taken to be the same pages. A control group that is theirs alone knows what they
        have between them, but not which part of the page cache they use: that is charged to whoever read it first.
        """
        anon = sum(held.anon for held in processes.values())
        shmem, file, locked = (
            max(getattr(held, kind) for held in processes.values()) for kind in ("shmem", "file", "locked")
        )
        group = cgroup_of(self._roots.proc, self._roots.sys, next(iter(processes)))
        if group is not None and group.processes() == frozenset(processes):
            charged = group.charged()
            most = max(held.anon for held in processes.values())
            anon = max(most, min(anon, charged.get("anon", anon)))  # after a fork both have the same pages
            shmem = max(shmem, charged.get("shmem", 0))
        return ResidentMemory(anon, shmem, file, locked)


# --- main memory as a whole -----------------------------------------------------------------------------------------

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
