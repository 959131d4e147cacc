"""Controls the performance levels of the GPUs: reads sensors, executes the governors' orders, writes to the journal.

A single task does everything sequentially; while no device is in use or raised, it has no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from accelerd.base import names
from accelerd.base.ports import Clock
from accelerd.devices.amdgpu import clock_steps
from accelerd.devices.files import FILES, UnreadableValue, text
from accelerd.devices.level import HIGH, LevelGovernor, LevelNote, LevelOrder, LevelReading, LevelRules
from accelerd.devices.model import Device
from accelerd.devices.setters import LevelSetters, OtherTools
from accelerd.helper.gpu import ASLEEP, DRIVER, FILE, LevelError
from accelerd.system.records import event
from accelerd.system.worker_thread import WorkerThread

log = logging.getLogger(__name__)

LOOK_PATIENCE: Final = 5.0  # s for one reading; a GPU that is being reset may take long
CLOSE_PATIENCE: Final = 5.0
LEAST_PAUSE: Final = 0.05
A_CARD: Final = "dedicated cards are not changed, because the level high can keep them below their boost clock"
MESSAGES: Final = {
    "level": names.MSG_LEVEL,
    "unable": names.MSG_LEVEL_UNABLE,
    "stuck": names.MSG_CLOCK_STUCK,
}


class LevelKeeper:
    """Controls the levels. `begin` and `end` are called for every request and must be fast."""

    def __init__(
        self,
        clock: Clock,
        setters: LevelSetters,
        read: Callable[[str], LevelReading],
        rivals: OtherTools,
        rules: Callable[[str], LevelRules] = lambda slot: LevelRules(),
        patience: float = LOOK_PATIENCE,
    ) -> None:
        """`read(slot)` may block; `rules(slot)`: the user's settings; `patience`: seconds for one reading."""
        self._clock = clock
        self._setters = setters
        self._read = read
        self._rivals = rivals
        self._rules = rules
        self._patience = patience
        self._thread = WorkerThread("sensors")
        self._governors: dict[str, LevelGovernor] = {}
        self._leaving: set[str] = set()  # slots of removed devices
        self._wake = asyncio.Event()
        self._due = math.inf

    # --- what others tell -------------------------------------------------------------------------------------

    def watch(self, devices: Iterable[Device]) -> None:
        """Sets the current devices; known ones keep their state."""
        known = {d.slot: d for d in devices if d.kind == "gpu" and d.slot and d.driver == DRIVER}
        for slot in set(self._governors) - set(known):
            if self._governors.pop(slot).held:
                self._leaving.add(slot)
        for slot, device in known.items():
            if slot is not None and slot not in self._governors:
                unsuitable = None if device.apu else A_CARD
                self._governors[slot] = LevelGovernor(self._clock, device.name, self._rules(slot), unsuitable)
        self._wake.set()

    def configure(self, rules: Callable[[str], LevelRules]) -> None:
        self._rules = rules
        for slot, governor in self._governors.items():
            governor.configure(rules(slot))
        self._wake.set()

    def begin(self, slot: str) -> None:
        """A model uses the device from now on. Unknown devices are ignored."""
        governor = self._governors.get(slot)
        if governor is not None:
            governor.begin()
            self._hurry(governor)

    def end(self, slot: str) -> None:
        governor = self._governors.get(slot)
        if governor is not None and governor.users:
            governor.end()
            self._hurry(governor)

    def _hurry(self, governor: LevelGovernor) -> None:
        if governor.deadline() < self._due or governor.order() is not None:
            self._wake.set()

    def report(self) -> list[dict[str, Any]]:
        return [{"slot": slot, **governor.report()} for slot, governor in self._governors.items()]

    # --- the work ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            self._wake.clear()
            for slot in list(self._leaving):
                self._leaving.discard(slot)
                await self._restore(slot)
            for slot, governor in list(self._governors.items()):
                await self._look_after(slot, governor)
            self._due = min((governor.deadline() for governor in self._governors.values()), default=math.inf)
            pause = None if self._due == math.inf else max(LEAST_PAUSE, self._due - self._clock.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def close(self) -> None:
        """Restores all levels, after `run` has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_PATIENCE):
                for slot, governor in self._governors.items():
                    if governor.held:
                        await self._restore(slot)
                        governor.restored()
        try:
            await self._setters.close()
        except LevelError as error:
            log.warning("cannot restore the performance levels: %s", error)
        self._thread.close()

    async def _look_after(self, slot: str, governor: LevelGovernor) -> None:
        if governor.look_due():
            await self._look(slot, governor)
        order = governor.order()
        if order is LevelOrder.RAISE:
            try:
                self._tell(governor.raised(await self._setters.set(slot, HIGH)))
            except LevelError as error:
                self._tell(governor.failed(error.message))
        elif order is LevelOrder.RESTORE:
            await self._restore(slot)
            self._tell(governor.restored())

    async def _look(self, slot: str, governor: LevelGovernor) -> None:
        try:
            reading = await self._thread.call(lambda: self._read(slot), self._patience)
        except TimeoutError:
            reading = LevelReading()
        by = ""
        if governor.differs(reading):
            if await self._setters.holds(slot):
                by = await self._rivals.suspects()
            else:
                self._tell(governor.dropped())
        self._tell(governor.observe(reading, by))

    async def _restore(self, slot: str) -> None:
        try:
            await self._setters.restore(slot)
        except LevelError as error:
            log.warning("cannot restore the performance level of %s: %s", slot, error)

    def _tell(self, notes: list[LevelNote]) -> None:
        for note in notes:
            level = logging.WARNING if note.warning else logging.INFO
            event(log, level, note.text, message_id=MESSAGES[note.kind])


def read_level(sys: Path, slot: str) -> LevelReading:
    """What the rules need to know of a GPU. Blocking; empty if it sleeps or is gone, without impossible values."""
    device = sys / "bus/pci/devices" / slot
    if text(device / "power/runtime_status") in ASLEEP:
        return LevelReading()
    hwmon = next(iter(sorted(device.glob("hwmon/hwmon*"))), device / "none")
    steps = clock_steps(text(device / "pp_dpm_sclk") or "")
    power = number(hwmon / "power1_average", 1e-6, 2000)
    return LevelReading(
        level=text(device / FILE),
        clock=number(hwmon / "freq1_input", 1e-6, 10_000),
        lowest=steps.lowest if steps else None,
        highest=steps.highest if steps else None,
        busy=number(device / "gpu_busy_percent", 1.0, 100),
        temperature=number(hwmon / "temp1_input", 1e-3, 200),
        power=power if power is not None else number(hwmon / "power1_input", 1e-6, 2000),
    )


def number(path: Path, unit: float, most: float) -> float | None:
    """The number in a file times `unit`, if the result is from 0 to `most`."""
    try:
        return FILES.number(path, 0, round(most / unit)) * unit
    except UnreadableValue:
        return None
