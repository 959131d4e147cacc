"""Which processes use the memory of the devices, from the kernel's fdinfo of all readable processes.

A client can be open several times and in several processes: it counts once, for the first process in `only`, else for
the one with the lowest pid. Processes of other users cannot be read; their memory appears as the rest. Starts no
programs and opens no device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from msgspec import Struct, field

from accelerd.devices.files import names, text

NODES = ("/dev/dri/", "/dev/accel/")
UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
AMOUNT = re.compile(r"(\d+)\s*([A-Za-z]*)$")
MEMORY = re.compile(r"drm-(resident|memory|total)-(?!cycles-)(.+)")
RANK = {"total": 0, "memory": 1, "resident": 2}  # if there are several keys, the highest rank counts
NOT_THE_DEVICES = frozenset({"cpu"})
MOST = 1 << 50


class DrmClient(Struct, frozen=True):
    """An open device: its memory and the work that it has done."""

    device: str  # PCI slot; the driver's name for a device on no PCI bus
    number: str  # drm-client-id
    pid: int
    process: str
    memory: dict[str, int] = field(default_factory=dict)  # bytes by region
    engines: dict[str, int] = field(default_factory=dict)  # ns of work by engine
    cycles: dict[str, tuple[int, int]] = field(default_factory=dict)  # xe: work and all, in cycles by engine

    @property
    def key(self) -> tuple[str, str]:
        return self.device, self.number


class MemoryHolder(Struct, frozen=True):
    """A process and the memory of one device that it uses."""

    pid: int
    process: str
    memory: dict[str, int]

    @property
    def total(self) -> int:
        return sum(size for region, size in self.memory.items() if region not in NOT_THE_DEVICES)


class FdinfoScan(Struct, frozen=True):
    clients: tuple[DrmClient, ...] = ()
    denied: frozenset[int] = frozenset()  # pids of processes that could not be read


def scan(
    proc: Path,
    listdir: Callable[[Path], list[str]] = os.listdir,
    *,
    only: Iterable[int] | None = None,
    without: Collection[int] = (),
    known: Iterable[DrmClient] = (),
) -> FdinfoScan:
    """All clients of all devices, each once, without those in `known`. Blocks for some milliseconds.

    Reads all processes, or those in `only`; never those in `without`.
    """
    found: dict[tuple[str, str], DrmClient] = {}
    before = {client.key for client in known}
    denied = set()
    pids = only if only is not None else sorted(int(name) for name in names(proc) if name.isdecimal())
    for pid in pids:
        if pid in without:
            continue
        directory = proc / str(pid)
        try:
            descriptors = listdir(directory / "fd")
        except PermissionError:
            denied.add(pid)
            continue
        except OSError:
            continue  # has ended
        for name in of_devices(f"{directory}/fd/", descriptors):
            client = client_of(directory, name, pid)
            if client is not None and client.key not in before:
                found.setdefault(client.key, client)
    return FdinfoScan(tuple(found.values()), frozenset(denied))


def of_devices(prefix: str, descriptors: Iterable[str]) -> Iterable[str]:
    """The descriptors that are open devices. Uses plain strings, because a browser has hundreds of descriptors."""
    readlink = os.readlink
    for name in descriptors:
        try:
            if readlink(prefix + name).startswith(NODES):
                yield name
        except OSError:
            continue  # already closed


def client_of(directory: Path, descriptor: str, pid: int) -> DrmClient | None:
    """The client of a descriptor; None if the driver does not report one."""
    told = text(directory / "fdinfo" / descriptor)
    return parse(told, pid, text(directory / "comm") or "?") if told else None


def parse(told: str, pid: int, process: str) -> DrmClient | None:
    """Parses an fdinfo file; None if the driver does not report clients."""
    values = {}
    for line in told.splitlines():
        key, _, value = line.partition(":")
        values[key.strip()] = value.strip()
    device, number = values.get("drm-pdev") or values.get("drm-driver"), values.get("drm-client-id")
    if not device or not number:
        return None
    memory: dict[str, tuple[int, int]] = {}
    engines, cycles = {}, {}
    for key, value in values.items():
        if found := MEMORY.match(key):
            size = amount(value)
            rank, region = RANK[found[1]], found[2]
            if size is not None and rank >= memory.get(region, (0, 0))[0]:
                memory[region] = (rank, size)
        elif key.startswith("drm-engine-") and not key.startswith("drm-engine-capacity-"):
            if value.removesuffix("ns").strip().isdecimal():
                engines[key.removeprefix("drm-engine-")] = int(value.removesuffix("ns"))
        elif key.startswith("drm-cycles-"):
            engine = key.removeprefix("drm-cycles-")
            total = values.get(f"drm-total-cycles-{engine}", "")
            if value.isdecimal() and total.isdecimal():
                cycles[engine] = (int(value), int(total))
    held = {region: size for region, (_, size) in memory.items() if size}
    return DrmClient(device, number, pid, process, held, engines, cycles)


def amount(value: str) -> int | None:
    """ "544428 KiB" as bytes; None if invalid."""
    found = AMOUNT.match(value)
    factor = UNITS.get(found[2].lower()) if found else None
    if found is None or factor is None:
        return None
    size = int(found[1]) * factor
    return size if size <= MOST else None


def holders(clients: Iterable[DrmClient], device: str) -> tuple[MemoryHolder, ...]:
    """The processes that use the device, the largest first."""
    by_pid: dict[int, MemoryHolder] = {}
    for client in clients:
        if client.device != device:
            continue
        memory = dict(by_pid[client.pid].memory) if client.pid in by_pid else {}
        for region, size in client.memory.items():
            memory[region] = memory.get(region, 0) + size
        by_pid[client.pid] = MemoryHolder(client.pid, client.process, memory)
    return tuple(sorted(by_pid.values(), key=lambda holder: (-holder.total, holder.pid)))


def busy(now: Iterable[DrmClient], before: Iterable[DrmClient], device: str, seconds: float) -> float | None:
    """% of time that the busiest engine worked for the clients present at both times; None if there were none."""
    earlier = {client.number: client for client in before if client.device == device}
    work: dict[str, float] = {}
    seen = False
    for client in now:
        old = earlier.get(client.number) if client.device == device else None
        if old is None or seconds <= 0:
            continue
        for engine, ns in client.engines.items():
            if engine in old.engines:
                seen = True
                work[engine] = work.get(engine, 0.0) + max(0, ns - old.engines[engine]) / (seconds * 1e9)
        for engine, (done, total) in client.cycles.items():
            old_done, old_total = old.cycles.get(engine, (done, total))
            if total > old_total:
                seen = True
                work[engine] = work.get(engine, 0.0) + max(0, done - old_done) / (total - old_total)
    return min(100.0, 100 * max(work.values())) if seen else None
