"""Between models and devices: which device is in use because which model is.

Hears from the scheduler, tells the keeper of levels. Decides nothing about either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from accelerd.config.model import ModelSpec, PerformanceSettings
from accelerd.devices.gauge import Gauge
from accelerd.devices.keeper import LevelKeeper
from accelerd.devices.level import Rules
from accelerd.devices.model import Device
from accelerd.devices.setters import Direct
from accelerd.helper.gpu import DRIVER


def device_of(spec: ModelSpec, devices: Iterable[Device]) -> str | None:
    """The PCI slot of the GPU that the model uses; None: none."""
    if spec.gpu_layers == 0:
        return None
    return next((d.slot for d in devices if d.kind == "gpu" and d.slot and not d.problem), None)


class Performance:
    """See the module's text."""

    def __init__(self, keeper: LevelKeeper, direct: Direct, look: Callable[[], list[Device]], gauge: Gauge) -> None:
        """`look()`: the devices of this machine; may block."""
        self._keeper = keeper
        self._direct = direct
        self._look = look
        self._gauge = gauge
        self._devices: list[Device] = []
        self._used: dict[str, tuple[ModelSpec, str | None]] = {}  # models in use, and the slot that counts as used

    def in_use(self, spec: ModelSpec, busy: bool) -> None:
        """A model's first lease was given, or its last has ended."""
        if busy:
            slot = device_of(spec, self._devices)
            self._used[spec.name] = (spec, slot)
            if slot is not None:
                self._keeper.begin(slot)
        else:
            _, slot = self._used.pop(spec.name, (spec, None))
            if slot is not None:
                self._keeper.end(slot)

    def devices(self, devices: list[Device]) -> None:
        """What there is now, the first time and whenever it has changed."""
        for _, slot in self._used.values():
            if slot is not None:
                self._keeper.end(slot)
        self._devices = devices
        self._keeper.watch(devices)
        for name, (spec, _) in self._used.items():
            slot = device_of(spec, devices)
            self._used[name] = (spec, slot)
            if slot is not None:
                self._keeper.begin(slot)

    def configure(self, settings: PerformanceSettings) -> None:
        def rules(slot: str) -> Rules:
            own = settings.devices.get(slot)
            return Rules(own or settings.policy, settings.tail)

        self._keeper.configure(rules)

    async def run(self) -> None:
        """Until cancelled."""
        await self._direct.repair()
        self.devices(await asyncio.to_thread(self._found))
        await self._keeper.run()

    async def close(self) -> None:
        """Puts the levels back."""
        await self._keeper.close()

    def report(self) -> list[dict[str, Any]]:
        return self._keeper.report()

    def _found(self) -> list[Device]:
        """The devices, with what must be known of them here."""
        return [
            replace(d, apu=self._gauge.is_apu(d.slot)) if d.apu is None and d.slot and d.driver == DRIVER else d
            for d in self._look()
        ]
