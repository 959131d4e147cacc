"""Between looks at memory and models: when other programs need the memory, models make room.

Hears each look after the scheduler has; asks it for room and tells the journal. Decides neither when (memory.pressure)
nor who (the scheduler).
"""

from __future__ import annotations

import logging
from typing import Protocol

from accelerd.base import names
from accelerd.base.ports import Clock
from accelerd.config.model import MemorySettings
from accelerd.memory.ledger import Ledger
from accelerd.memory.model import MemorySnapshot
from accelerd.memory.pressure import Pressure
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)


class Scheduler(Protocol):
    """What is asked of it."""

    def ledger(self) -> Ledger: ...
    def make_room(self, pool: str, size: int, why: str, *, busy: bool) -> int:
        """Bytes that will come back, with those that are on their way."""
        ...


class MemoryPressureRelief:
    """See the module's text."""

    def __init__(self, scheduler: Scheduler, clock: Clock, settings: MemorySettings) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._pressure = Pressure(settings)
        self._told: set[str] = set()  # pools whose want the journal has, until there is room again

    def configure(self, settings: MemorySettings) -> None:
        self._pressure.configure(settings)

    def heard(self, seen: MemorySnapshot) -> None:
        """A look, which the scheduler has heard of already."""
        orders = self._pressure.look(seen, self._scheduler.ledger().balances(), self._clock.monotonic())
        for order in orders:
            coming = self._scheduler.make_room(order.pool, order.size, order.why, busy=order.hard)
            self._pressure.answered(order, coming)
            self._tell(order.pool, order.why, coming)
        pressed = self._pressure.pressed
        self._told.intersection_update(pressed)
        if pressed and not orders:
            # nobody is to leave, but nobody comes back by itself either until this is over
            self._scheduler.make_room(pressed[0], 0, "", busy=False)

    @property
    def pressed(self) -> tuple[str, ...]:
        """The pools in which models had to make room and that have none to spare since."""
        return self._pressure.pressed

    def _tell(self, pool: str, why: str, coming: int) -> None:
        if coming > 0:
            event(log, NOTICE, f"{why}; models make room", message_id=names.MSG_PRESSURE, reason=why)
        elif pool not in self._told:
            text = f"{why}; no model can make room now"
            event(log, logging.WARNING, text, message_id=names.MSG_PRESSURE, reason=why)
        self._told.add(pool)
