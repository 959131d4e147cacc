"""Reads one device. Blocking, to be run in a thread, because a driver may be slow.

Checks the runtime state first and does not touch a sleeping device. Never raises because of a driver.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from accelerd.base.ports import Clock, Roots
from accelerd.devices.drivers import Driver, reader_of
from accelerd.devices.files import AttributeFiles, UnreadableValue
from accelerd.devices.host import machine_memory
from accelerd.devices.inventory import INTEL_DRIVERS, below_sys
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.readings import Readings, ValueCache

ASLEEP = frozenset({"suspended", "suspending"})


class DeviceReader:
    """Reads one device repeatedly."""

    def __init__(self, device: Device, roots: Roots, clock: Clock, files: AttributeFiles | None = None) -> None:
        self.device = device
        self._directory = below_sys(device.directory, roots) if device.directory is not None else None
        self._roots = roots
        self._files = files or AttributeFiles()
        self._values = ValueCache(clock)
        self._driver = reader_of(device, self._directory, self._files, self._values, clock)

    def read(self) -> Readings:
        """The current readings."""
        return self._taken(lambda driver: driver.read())

    def memory(self) -> Readings:
        """Only the pools: a few small files, no sensor, no query of the firmware."""
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
            readings = Readings(reasons={"all": f"the driver {driver} is not supported" if driver else "no driver"})
        else:
            readings = ask(self._driver)
        if not readings.pools:
            pools = intel_pools(self.device, self._roots) or unmeasured(self.device.pools)
            readings = replace(readings, pools=pools)
        stale, reasons = dict(self._values.stale), {**self._values.reasons, **readings.reasons}
        return replace(readings, stale=stale, reasons=reasons)

    def _asleep(self) -> bool:
        """Is the device suspended? Reading most attributes would wake it."""
        if self._directory is None:
            return False
        try:
            return self._files.text(self._directory / "power/runtime_status") in ASLEEP
        except UnreadableValue:
            return False  # no power management: the device is on


def ram(roots: Roots) -> tuple[MemoryPool, ...]:
    memory = machine_memory(roots)
    return (MemoryPool("ram", memory[0], memory[0] - memory[1]),) if memory is not None else ()


def intel_pools(device: Device, roots: Roots) -> tuple[MemoryPool, ...]:
    """An integrated Intel GPU uses main memory."""
    if device.driver not in INTEL_DRIVERS or not device.unified:
        return ()
    return tuple(replace(pool, name="unified") for pool in ram(roots))


def unmeasured(pools: tuple[MemoryPool, ...]) -> tuple[MemoryPool, ...]:
    """The pools without their outdated usage."""
    return tuple(replace(pool, used=None) for pool in pools)
