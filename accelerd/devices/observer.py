"""Reads all devices: their state and memory users, or only their memory.

Keeps a reader per device between calls, because counters and last values need it. Has no timer; blocking, to be run in
a thread by one caller at a time.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from accelerd.base.ports import Clock, Roots
from accelerd.devices import fdinfo, kfd, nvml
from accelerd.devices.drivers import DeviceReader
from accelerd.devices.fdinfo import MemoryHolder
from accelerd.devices.files import text
from accelerd.devices.host import machine_memory
from accelerd.devices.model import Device, lasting
from accelerd.devices.readings import Readings

CARDS_EVERY = 0.9  # s between two queries of NVML for memory
UNKNOWN_LOAD = "available from the second reading on, while a program of this user uses the device"


class DeviceStatus(Struct, frozen=True):
    device: Device
    readings: Readings
    holders: tuple[MemoryHolder, ...] = ()
    others: int | None = None  # bytes in use by processes that could not be read; None: unknown
    unsized: frozenset[int] = frozenset()  # processes that use an unknown amount


class DeviceObserver:
    def __init__(
        self,
        roots: Roots,
        clock: Clock,
        importer: Callable[[str], Any] = importlib.import_module,
        listdir: Callable[[Path], list[str]] = os.listdir,
    ) -> None:
        self._roots = roots
        self._clock = clock
        self._importer = importer
        self._listdir = listdir
        self._readers: dict[str, DeviceReader] = {}
        self._before: tuple[float, fdinfo.FdinfoScan] | None = None
        self._cards: tuple[float, dict[str, nvml.NvmlCard]] | None = None  # from the last call of `memory`
        self._known: tuple[fdinfo.DrmClient, ...] = ()  # of the processes in the last call of `memory`

    def look(self, devices: Sequence[Device]) -> list[DeviceStatus]:
        now, scan = self._clock.monotonic(), fdinfo.scan(self._roots.proc, self._listdir)
        before, self._before = self._before, (now, scan)
        found = {device.id: self._reader(device).read() for device in devices}
        for gone in set(self._readers) - set(found):
            del self._readers[gone]
        cards = self._nvidia([d for d in devices if d.driver == "nvidia" and d.slot and not found[d.id].asleep])
        looks = []
        for device in devices:
            readings = found[device.id]
            who = fdinfo.holders(scan.clients, device.slot or device.driver or "")
            if (card := cards.get(device.id)) is not None:
                readings = card.readings
                who = tuple(self._of_card(card, card.processes)) or who
            elif device.kind == "npu":
                readings = beside(readings, device, devices, found)
            if readings.busy is None and before is not None and not readings.asleep and device.slot:
                seconds = now - before[0]
                busy = fdinfo.busy(scan.clients, before[1].clients, device.slot, seconds)
                readings = replace(readings, busy=busy)
            if readings.busy is None and device.kind != "cpu" and not readings.asleep:
                readings = replace(readings, reasons={"busy": UNKNOWN_LOAD, **readings.reasons})
            looks.append(DeviceStatus(device, readings, who, rest(readings, who)))
        return looks

    def memory(self, devices: Sequence[Device], of: Collection[int]) -> list[DeviceStatus]:
        """Like `look`, but only memory, and only of the processes in `of`. Cheap; reads no sensor.

        A client that is also open in other processes counts for those in `of`.
        """
        found = {device.id: self._reader(device).memory() for device in devices}
        scan = fdinfo.scan(self._roots.proc, self._listdir, only=of)
        self._known = scan.clients
        cards = self._cards_now([d for d in devices if d.driver == "nvidia" and d.slot and not found[d.id].asleep])
        closed = self._computing(scan.denied)
        looks = []
        for device in devices:
            readings, slot, unsized = found[device.id], device.slot or device.driver or "", frozenset[int]()
            who = [*fdinfo.holders(scan.clients, slot), *closed.get(slot, ())]
            if (card := cards.get(device.id)) is not None:
                readings, unsized = card.readings, card.unsized & set(of)
                who = self._of_card(card, [pid for pid in card.processes if pid in of]) or who
            looks.append(DeviceStatus(device, readings, tuple(who), rest(readings, who), unsized))
        return looks

    def strangers(self, devices: Sequence[Device], but: Collection[int]) -> dict[str, tuple[MemoryHolder, ...]]:
        """Other users of each device's memory, the largest first. Call `memory` before. Reads every process."""
        scan = fdinfo.scan(self._roots.proc, self._listdir, without=but, known=self._known)
        cards = self._cards[1] if self._cards is not None else {}
        found = {}
        for device in devices:
            who = fdinfo.holders(scan.clients, device.slot or device.driver or "")
            if (card := cards.get(device.id)) is not None:
                who = tuple(self._of_card(card, [pid for pid in card.processes if pid not in but])) or who
            found[device.id] = who
        return found

    def _of_card(self, card: nvml.NvmlCard, pids: Iterable[int]) -> list[MemoryHolder]:
        """The memory users of an NVIDIA card, the largest first."""
        return [
            MemoryHolder(pid, text(self._roots.proc / str(pid) / "comm") or "?", {"vram": card.processes[pid]})
            for pid in sorted(pids, key=lambda pid: -card.processes[pid])
        ]

    def _cards_now(self, devices: Sequence[Device]) -> dict[str, nvml.NvmlCard]:
        """Memory of the cards, read at most once per second, because opening NVML is expensive."""
        now = self._clock.monotonic()
        known = self._cards
        if known is None or now - known[0] >= CARDS_EVERY or set(known[1]) != {device.id for device in devices}:
            known = self._cards = now, self._nvidia(devices, sensors=False)
        return known[1]

    def _computing(self, pids: Iterable[int]) -> dict[str, list[MemoryHolder]]:
        """By slot, the memory that KFD reports for processes whose descriptors are not readable."""
        found: dict[str, list[MemoryHolder]] = {}
        for pid in pids:
            for slot, size in kfd.held_by(self._roots.sys, pid).items():
                name = text(self._roots.proc / str(pid) / "comm") or "?"
                found.setdefault(slot, []).append(MemoryHolder(pid, name, {"vram": size}))
        return found

    def _reader(self, device: Device) -> DeviceReader:
        """The reader of this device; a new one if the device has changed (driver, sizes)."""
        known = self._readers.get(device.id)
        if known is None or lasting(known.device) != lasting(device):
            known = self._readers[device.id] = DeviceReader(device, self._roots, self._clock)
        return known

    def _nvidia(self, devices: Sequence[Device], *, sensors: bool = True) -> dict[str, nvml.NvmlCard]:
        if not devices:
            return {}
        memory = machine_memory(self._roots)
        cards, reason = nvml.look([d.slot for d in devices if d.slot], memory, self._importer, sensors=sensors)
        found = {d.id: cards[d.slot] for d in devices if d.slot in cards}
        for device in devices:
            if device.id not in found:
                readings = Readings(pools=device.pools, reasons={"all": reason or "NVML does not list this card"})
                found[device.id] = nvml.NvmlCard(readings)
        return found


def beside(readings: Readings, npu: Device, devices: Iterable[Device], found: Mapping[str, Readings]) -> Readings:
    """The NPU's load, which AMD reports with the GPU of the same processor."""
    if npu.vendor != "1022":
        return readings
    apu = next((found[d.id] for d in devices if d.kind == "gpu" and d.apu and d.driver == "amdgpu"), None)
    if apu is None:
        return readings
    if apu.asleep:
        return replace(readings, reasons={**readings.reasons, "busy": "the GPU that reports it is asleep"})
    return replace(
        readings,
        busy=readings.busy if readings.busy is not None else apu.npu_busy,
        power=readings.power if readings.power is not None else apu.npu_power,
    )


def rest(readings: Readings, holders: Iterable[MemoryHolder]) -> int | None:
    """Bytes in use by other users' processes, the firmware and the display."""
    used = {pool.name: pool.used for pool in readings.pools}
    whole = used.get("unified") if "gtt" in used else used.get("vram")
    if whole is None:
        return None
    return max(0, whole - sum(holder.total for holder in holders))
