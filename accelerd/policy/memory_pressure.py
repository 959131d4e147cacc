"""Memory pressure: when other programs need memory, models give theirs back.

Asks the scheduler for room and writes the journal. When is decided by memory.pressure, which models by the scheduler.
"""

from __future__ import annotations

import logging

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.base.ports import Clock
from accelerd.config.machine_settings import MemorySettings
from accelerd.config.model import ConfigApplied
from accelerd.memory.model import MemorySnapshot
from accelerd.memory.pressure import Pressure
from accelerd.scheduler.memory_events import MemoryEvents
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)


class MemoryPressureRelief:
    """Subscribes to memory snapshots; must do so after the scheduler, whose ledger it reads."""

    def __init__(self, scheduler: MemoryEvents, clock: Clock, settings: MemorySettings, events: EventStream) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._pressure = Pressure(settings)
        self._told: set[str] = set()  # pools whose pressure is in the journal, until there is room again
        events.subscribe(MemorySnapshot, self.on_memory_snapshot)
        events.subscribe(ConfigApplied, self.on_config)

    def on_config(self, event: ConfigApplied) -> None:
        self._pressure.configure(event.config.memory)

    def on_memory_snapshot(self, seen: MemorySnapshot) -> None:
        orders = self._pressure.look(seen, self._scheduler.ledger().balances(), self._clock.monotonic())
        for order in orders:
            coming = self._scheduler.make_room(order.pool, order.size, order.why, busy=order.hard)
            self._pressure.answered(order, coming)
            self._tell(order.pool, order.why, coming)
        pressed = self._pressure.pressed
        self._told.intersection_update(pressed)
        if pressed and not orders:
            # No model has to go, but none is reloaded by itself until this is over.
            self._scheduler.make_room(pressed[0], 0, "", busy=False)

    @property
    def pressed(self) -> tuple[str, ...]:
        """The pools in which models had to make room and that are still short of memory."""
        return self._pressure.pressed

    def _tell(self, pool: str, why: str, coming: int) -> None:
        if coming > 0:
            event(log, NOTICE, f"{why}; models are being unloaded", message_id=names.MSG_PRESSURE, reason=why)
        elif pool not in self._told:
            text = f"{why}; no model can be unloaded now"
            event(log, logging.WARNING, text, message_id=names.MSG_PRESSURE, reason=why)
        self._told.add(pool)
