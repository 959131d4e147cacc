"""Power saving: on battery, or with the power-saver profile, models are not preloaded and are unloaded sooner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from msgspec import Struct

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.config.machine_settings import DesktopSettings
from accelerd.config.model import ConfigApplied, ModelSpec
from accelerd.system.dbus.properties import PropertyWatch
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

FIRST_READING: Final = 2.0  # s from the start until a battery that nobody reports counts as absent


class PowerSavingChanged(Struct, frozen=True):
    """Published when power saving begins or ends."""

    reason: str  # empty: it has ended


class PowerSaving:
    """Subscribes to the configuration; publishes PowerSavingChanged."""

    def __init__(self, watch: Callable[[Callable[[str], None]], PropertyWatch], events: EventStream) -> None:
        """`watch(report)` makes a watch that calls `report(reason)`; an empty reason: power is not to be saved."""
        self._make_watch = watch
        self._events = events
        self._settings = DesktopSettings()
        self._watch: PropertyWatch | None = None
        self._reported = asyncio.Event()
        self._mains = asyncio.Event()
        self._mains.set()
        self.reason = ""  # why power is saved; empty: it is not
        events.subscribe(ConfigApplied, self.on_config)

    def on_config(self, event: ConfigApplied) -> None:
        self._settings = event.config.desktop
        if self._settings.on_battery == "save" and self._watch is None:
            self._reported.clear()
            self._watch = self._make_watch(self._report)
            self._watch.start()
        elif self._settings.on_battery != "save":
            self.close()
            self._report("")

    def adapted(self, spec: ModelSpec) -> ModelSpec:
        """The model as it is to be run now. Needs no restart of a running process."""
        if not self.reason:
            return spec
        limit = self._settings.battery_idle_timeout
        return replace(
            spec, preload=False, idle_timeout=limit if spec.idle_timeout is None else min(spec.idle_timeout, limit)
        )

    async def mains(self) -> None:
        """Return while power is not saved, or nobody reports."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READING):
                await self._reported.wait()
        self._reported.set()  # waited for once only
        await self._mains.wait()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _report(self, reason: str) -> None:
        self._reported.set()
        if reason == self.reason:
            return
        self.reason = reason
        if reason:
            text = f"saving power ({reason}): models are not preloaded and are unloaded sooner"
            self._mains.clear()
        else:
            text = "no longer saving power"
            self._mains.set()
        event(log, NOTICE, text, message_id=names.MSG_POWER, reason=reason)
        self._events.publish(PowerSavingChanged(reason))
