"""One look at all devices together: readings, who uses their memory, what belongs to which; or at their memory alone.

Owns the readers between two looks (counters and last values need that) and lets go of those whose device is gone. Looks
when it is asked to and never by itself; blocking, to be run in a thread, by one caller at a time.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerd.base.ports import Clock, Roots
from accelerd.devices import fdinfo, kfd, nvml
from accelerd.devices.fdinfo import Holder
from accelerd.devices.files import text
from accelerd.devices.host import machine_memory
from accelerd.devices.model import Device
from accelerd.devices.reader import DeviceReader
from accelerd.devices.readings import Readings

CARDS_EVERY = 0.9  # s between two questions to NVIDIA's library about memory
UNKNOWN_LOAD = "is known from the second look on, while a program of this user uses it"


@dataclass(frozen=True)
class Look:
    """What a device does and who uses it."""

    device: Device
    readings: Readings
    holders: tuple[Holder, ...] = ()
    others: int | None = None  # bytes in use that belong to no process that could be read; None: not known
    unsized: frozenset[int] = frozenset()  # processes that use it, and it is not told how much

    def json(self, models: Mapping[int, str], owner: str | None = None) -> dict[str, Any]:
        """`models`: names by pid of their process; `owner`: who has set the performance level."""
        told = self.device.json()
        return told | {
            "pools": [asdict(pool) for pool in self.readings.pools or self.device.pools],
            "readings": {key: value for key, value in asdict(self.readings).items() if key != "pools"},
            "level_owner": owner,
            "holders": [
                {
                    "pid": holder.pid, "process": holder.process, "model": models.get(holder.pid),
                    "memory": holder.memory, "total": holder.total,
                }
                for holder in self.holders
            ],
            "others": self.others,
        }  # fmt: skip


class Observer:
    """See the module's text."""

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
        self._before: tuple[float, fdinfo.Scan] | None = None
        self._cards: tuple[float, dict[str, nvml.Card]] | None = None  # as `memory` saw them
        self._known: tuple[fdinfo.Client, ...] = ()  # of the processes that `memory` was asked about

    def look(self, devices: Sequence[Device]) -> list[Look]:
        """Every device, in the order given."""
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
                readings = replace(
                    readings, busy=fdinfo.busy(scan.clients, before[1].clients, device.slot, seconds)
                )  # fmt: skip
            if readings.busy is None and device.kind != "cpu" and not readings.asleep:
                readings = replace(readings, reasons={"busy": UNKNOWN_LOAD, **readings.reasons})
            looks.append(Look(device, readings, who, rest(readings, who)))
        return looks

    def memory(self, devices: Sequence[Device], of: Collection[int]) -> list[Look]:
        """As `look`, of the memory alone, and of holders only the processes in `of`: cheap, and no sensor is asked.

        A client that is open in other processes too counts for those in `of`.
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
            looks.append(Look(device, readings, tuple(who), rest(readings, who), unsized))
        return looks

    def strangers(self, devices: Sequence[Device], but: Collection[int]) -> dict[str, tuple[Holder, ...]]:
        """Who else holds memory of each device, the largest first; `memory` was asked before. Reads every process."""
        scan = fdinfo.scan(self._roots.proc, self._listdir, without=but, known=self._known)
        cards = self._cards[1] if self._cards is not None else {}
        found = {}
        for device in devices:
            who = fdinfo.holders(scan.clients, device.slot or device.driver or "")
            if (card := cards.get(device.id)) is not None:
                who = tuple(self._of_card(card, [pid for pid in card.processes if pid not in but])) or who
            found[device.id] = who
        return found

    def _of_card(self, card: nvml.Card, pids: Iterable[int]) -> list[Holder]:
        """NVIDIA's holders, the largest first."""
        return [
            Holder(pid, text(self._roots.proc / str(pid) / "comm") or "?", {"vram": card.processes[pid]})
            for pid in sorted(pids, key=lambda pid: -card.processes[pid])
        ]

    def _cards_now(self, devices: Sequence[Device]) -> dict[str, nvml.Card]:
        """Their memory, asked at most once a second: to open the library costs more than all the rest."""
        now = self._clock.monotonic()
        known = self._cards
        if known is None or now - known[0] >= CARDS_EVERY or set(known[1]) != {device.id for device in devices}:
            known = self._cards = now, self._nvidia(devices, sensors=False)
        return known[1]

    def _computing(self, pids: Iterable[int]) -> dict[str, list[Holder]]:
        """By slot, processes whose descriptors nobody may read, as far as AMD's compute driver tells of them."""
        found: dict[str, list[Holder]] = {}
        for pid in pids:
            for slot, size in kfd.held_by(self._roots.sys, pid).items():
                name = text(self._roots.proc / str(pid) / "comm") or "?"
                found.setdefault(slot, []).append(Holder(pid, name, {"vram": size}))
        return found

    def _reader(self, device: Device) -> DeviceReader:
        """The reader of this device; a new one when the device is not what it was (another driver, other sizes)."""
        known = self._readers.get(device.id)
        if known is None or sizeless(known.device) != sizeless(device):
            known = self._readers[device.id] = DeviceReader(device, self._roots, self._clock)
        return known

    def _nvidia(self, devices: Sequence[Device], *, sensors: bool = True) -> dict[str, nvml.Card]:
        if not devices:
            return {}
        memory = machine_memory(self._roots)
        cards, reason = nvml.look([d.slot for d in devices if d.slot], memory, self._importer, sensors=sensors)
        found = {d.id: cards[d.slot] for d in devices if d.slot in cards}
        for device in devices:
            if device.id not in found:
                readings = Readings(pools=device.pools, reasons={"all": reason or "NVML does not know this card"})
                found[device.id] = nvml.Card(readings)
        return found


def sizeless(device: Device) -> Device:
    """The device without what changes from moment to moment."""
    return replace(device, pools=tuple(replace(pool, used=None) for pool in device.pools))


def beside(readings: Readings, npu: Device, devices: Iterable[Device], found: Mapping[str, Readings]) -> Readings:
    """AMD tells the NPU's load with that of the GPU in the same processor."""
    if npu.vendor != "1022":
        return readings
    apu = next((found[d.id] for d in devices if d.kind == "gpu" and d.apu and d.driver == "amdgpu"), None)
    if apu is None:
        return readings
    if apu.asleep:
        return replace(readings, reasons={**readings.reasons, "busy": "the GPU beside it sleeps, and would tell it"})
    return replace(
        readings,
        busy=readings.busy if readings.busy is not None else apu.npu_busy,
        power=readings.power if readings.power is not None else apu.npu_power,
    )


def rest(readings: Readings, holders: Iterable[Holder]) -> int | None:
    """Bytes in use that no process that we may read has: other users', the firmware's, the display's."""
    used = {pool.name: pool.used for pool in readings.pools}
    whole = used.get("unified") if "gtt" in used else used.get("vram")
    if whole is None:
        return None
    return max(0, whole - sum(holder.total for holder in holders))


def observe(roots: Roots, devices: Sequence[Device], clock: Clock) -> list[Look]:
    """One look, for who wants no second one."""
    return Observer(roots, clock).look(devices)
