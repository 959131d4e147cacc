"""Reads a device as often as it is asked to, never by itself. To be run in a thread: a driver may take its time.

Looks at the runtime state first and leaves a sleeping device alone. Nothing here raises for what a driver does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from accelerd.base.ports import Clock, Roots
from accelerd.devices import intel
from accelerd.devices.drivers import Driver, reader_of
from accelerd.devices.files import Files, Unreadable
from accelerd.devices.host import machine_memory
from accelerd.devices.inventory import below_sys
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.readings import Readings, Values

ASLEEP = frozenset({"suspended", "suspending"})


class DeviceReader:
    """Reads one device again and again. One per device and life of it."""

    def __init__(self, device: Device, roots: Roots, clock: Clock, files: Files | None = None) -> None:
        self.device = device
        self._directory = below_sys(device.directory, roots) if device.directory is not None else None
        self._roots = roots
        self._files = files or Files()
        self._values = Values(clock)
        self._driver = reader_of(device, self._directory, self._files, self._values, clock)

    def read(self) -> Readings:
        """What can be read now."""
        return self._taken(lambda driver: driver.read())

    def memory(self) -> Readings:
        """The pools alone: a few small files, no sensor, no question to the firmware."""
        return self._taken(lambda driver: driver.memory())

    def _taken(self, ask: Callable[[Driver], Readings]) -> Readings:
        self._values.begin()
        if self.device.kind == "cpu":
            readings = Readings(pools=ram(self._roots))
        elif self._asleep():
            self._values.forget()
            return Readings(asleep=True, pools=unmeasured(self.device.pools))
        elif self._driver is None:
            driver = self.device.driver
            readings = Readings(reasons={"all": f"nothing is known about reading {driver}" if driver else "no driver"})
        else:
            readings = ask(self._driver)
        if not readings.pools:
            pools = intel_pools(self.device, self._roots) or unmeasured(self.device.pools)
            readings = replace(readings, pools=pools)
        stale, reasons = dict(self._values.stale), {**self._values.reasons, **readings.reasons}
        return replace(readings, stale=stale, reasons=reasons)

    def _asleep(self) -> bool:
        """Reading most attributes of a suspended device would wake it."""
        if self._directory is None:
            return False
        try:
            return self._files.text(self._directory / "power/runtime_status") in ASLEEP
        except Unreadable:
            return False  # no power management, or a driver that cannot say: it is on


def ram(roots: Roots) -> tuple[MemoryPool, ...]:
    memory = machine_memory(roots)
    return (MemoryPool("ram", memory[0], memory[0] - memory[1]),) if memory is not None else ()


def intel_pools(device: Device, roots: Roots) -> tuple[MemoryPool, ...]:
    """An integrated GPU of Intel holds its things in the machine's memory."""
    if device.driver not in intel.DRIVERS or not device.unified:
        return ()
    return tuple(replace(pool, name="unified") for pool in ram(roots))


def unmeasured(pools: tuple[MemoryPool, ...]) -> tuple[MemoryPool, ...]:
    """Their sizes, which do not change, without how full they were once."""
    return tuple(replace(pool, used=None) for pool in pools)
