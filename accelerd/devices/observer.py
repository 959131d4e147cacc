"""One look at all devices together: readings, who uses their memory, what belongs to which.

Owns the readers between two looks (counters and last values need that) and lets go of those whose device is gone. Looks
when it is asked to and never by itself; blocking, to be run in a thread, by one caller at a time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from accelerd.devices import fdinfo, nvml
from accelerd.devices.fdinfo import Holder
from accelerd.devices.files import text
from accelerd.devices.host import machine_memory
from accelerd.devices.model import Device
from accelerd.devices.reader import DeviceReader
from accelerd.devices.readings import Readings
from accelerd.ports import Clock, Roots

UNKNOWN_LOAD = "is known from the second look on, while a program of this user uses it"


@dataclass(frozen=True)
class Look:
    """What a device does and who uses it."""

    device: Device
    readings: Readings
    holders: tuple[Holder, ...] = ()
    others: int | None = None  # bytes in use that belong to no process that could be read; None: not known

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

    def __init__(self, roots: Roots, clock: Clock, importer: Callable[[str], Any] = importlib.import_module) -> None:
        self._roots = roots
        self._clock = clock
        self._importer = importer
        self._readers: dict[str, DeviceReader] = {}
        self._before: tuple[float, fdinfo.Scan] | None = None

    def look(self, devices: Sequence[Device]) -> list[Look]:
        """Every device, in the order given."""
        now, scan = self._clock.monotonic(), fdinfo.scan(self._roots.proc)
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
                who = tuple(
                    Holder(pid, text(self._roots.proc / str(pid) / "comm") or "?", {"vram": used})
                    for pid, used in sorted(card.processes.items(), key=lambda item: -item[1])
                ) or who  # fmt: skip
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

    def _reader(self, device: Device) -> DeviceReader:
        """The reader of this device; a new one when the device is not what it was (another driver, other sizes)."""
        known = self._readers.get(device.id)
        if known is None or sizeless(known.device) != sizeless(device):
            known = self._readers[device.id] = DeviceReader(device, self._roots, self._clock)
        return known

    def _nvidia(self, devices: Sequence[Device]) -> dict[str, nvml.Card]:
        if not devices:
            return {}
        memory = machine_memory(self._roots)
        cards, reason = nvml.look([d.slot for d in devices if d.slot], memory, self._importer)
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
