"""Keeps the performance levels of the GPUs: looks, asks the governors, has their orders carried out, tells the journal.

One task does it all, one thing after the other; while no device is used and none is raised it has no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from accelerd.base import names
from accelerd.base.ports import Clock
from accelerd.devices.level import HIGH, Governor, Note, Order, Reading, Rules
from accelerd.devices.model import Device
from accelerd.helper.gpu import DRIVER, LevelError
from accelerd.system.records import event
from accelerd.system.worker_thread import WorkerThread

log = logging.getLogger(__name__)

LOOK_PATIENCE: Final = 5.0  # s for one reading: a GPU in a reset may take long
CLOSE_PATIENCE: Final = 5.0
LEAST_PAUSE: Final = 0.05
A_CARD: Final = "a card of its own stays as it is: the level high may hold it below its boost clock"
MESSAGES: Final = {
    "level": names.MSG_LEVEL,
    "unable": names.MSG_LEVEL_UNABLE,
    "stuck": names.MSG_CLOCK_STUCK,
}


class Sensors(Protocol):
    def read(self, slot: str) -> Reading:
        """Everything that can be read now; may block."""
        ...


class Setting(Protocol):
    async def set(self, slot: str, level: str) -> str: ...
    async def restore(self, slot: str) -> None: ...
    async def holds(self, slot: str) -> bool: ...
    async def close(self) -> None: ...


class Suspecting(Protocol):
    async def suspects(self) -> str: ...


class LevelKeeper:
    """See the module's text. `begin` and `end` are called for every short request: they do next to nothing."""

    def __init__(
        self,
        clock: Clock,
        setters: Setting,
        sensors: Sensors,
        rivals: Suspecting,
        rules: Callable[[str], Rules] = lambda slot: Rules(),
        patience: float = LOOK_PATIENCE,
    ) -> None:
        """`rules(slot)`: what the user wants of a device; `patience`: seconds for one reading."""
        self._clock = clock
        self._setters = setters
        self._sensors = sensors
        self._rivals = rivals
        self._rules = rules
        self._patience = patience
        self._thread = WorkerThread("sensors")
        self._governors: dict[str, Governor] = {}
        self._leaving: set[str] = set()  # of devices that are no more
        self._wake = asyncio.Event()
        self._due = math.inf

    # --- what others tell -------------------------------------------------------------------------------------

    def watch(self, devices: Iterable[Device]) -> None:
        """The devices there are now; those that were there before go on as they are."""
        known = {d.slot: d for d in devices if d.kind == "gpu" and d.slot and d.driver == DRIVER}
        for slot in set(self._governors) - set(known):
            if self._governors.pop(slot).held:
                self._leaving.add(slot)
        for slot, device in known.items():
            if slot is not None and slot not in self._governors:
                unsuitable = None if device.apu else A_CARD
                self._governors[slot] = Governor(self._clock, device.name, self._rules(slot), unsuitable)
        self._wake.set()

    def configure(self, rules: Callable[[str], Rules]) -> None:
        self._rules = rules
        for slot, governor in self._governors.items():
            governor.configure(rules(slot))
        self._wake.set()

    def begin(self, slot: str) -> None:
        """A model uses the device from now on. What is no GPU of ours is nothing to us."""
        governor = self._governors.get(slot)
        if governor is not None:
            governor.begin()
            self._hurry(governor)

    def end(self, slot: str) -> None:
        governor = self._governors.get(slot)
        if governor is not None and governor.users:
            governor.end()
            self._hurry(governor)

    def _hurry(self, governor: Governor) -> None:
        if governor.deadline() < self._due or governor.order() is not None:
            self._wake.set()

    def report(self) -> list[dict[str, Any]]:
        return [{"slot": slot, **governor.report()} for slot, governor in self._governors.items()]

    # --- the work ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever."""
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
        """Put everything back, after `run` has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_PATIENCE):
                for slot, governor in self._governors.items():
                    if governor.held:
                        await self._restore(slot)
                        governor.restored()
        try:
            await self._setters.close()
        except LevelError as error:
            log.warning("cannot put the levels back: %s", error)
        self._thread.close()

    async def _look_after(self, slot: str, governor: Governor) -> None:
        if governor.look_due():
            await self._look(slot, governor)
        order = governor.order()
        if order is Order.RAISE:
            try:
                self._tell(governor.raised(await self._setters.set(slot, HIGH)))
            except LevelError as error:
                self._tell(governor.failed(error.message))
        elif order is Order.RESTORE:
            await self._restore(slot)
            self._tell(governor.restored())

    async def _look(self, slot: str, governor: Governor) -> None:
        try:
            reading = await self._thread.call(lambda: self._sensors.read(slot), self._patience)
        except TimeoutError:
            reading = Reading()
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
            log.warning("cannot put the level of %s back: %s", slot, error)

    def _tell(self, notes: list[Note]) -> None:
        for note in notes:
            level = logging.WARNING if note.warning else logging.INFO
            event(log, level, note.text, message_id=MESSAGES[note.kind])
