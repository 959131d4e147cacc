"""Between models and devices: which device is in use because which model is.

Hears from the scheduler, tells the keeper of levels. Decides nothing about either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from accelerd.config.model import ModelSpec, PerformanceSettings
from accelerd.devices.keeper import LevelKeeper
from accelerd.devices.level import Rules
from accelerd.devices.model import Device
from accelerd.devices.setters import Direct
from accelerd.estimate.placing import default_device


class ClockBoost:
    """See the module's text."""

    def __init__(
        self,
        keeper: LevelKeeper,
        direct: Direct,
        look: Callable[[], Sequence[Device]],
        where: Callable[[str], str] = lambda name: "",
    ) -> None:
        """`look()`: the devices of this machine, as they are known now. `where`: the device that a model was placed on,
        by its name; "": it was not decided."""
        self._where = where
        self._keeper = keeper
        self._direct = direct
        self._look = look
        self._devices: Sequence[Device] = ()
        self._used: dict[str, tuple[ModelSpec, str | None]] = {}  # models in use, and the slot that counts as used

    def in_use(self, spec: ModelSpec, busy: bool) -> None:
        """A model's first lease was given, or its last has ended."""
        if busy:
            slot = self._slot(spec)
            self._used[spec.name] = (spec, slot)
            if slot is not None:
                self._keeper.begin(slot)
        else:
            _, slot = self._used.pop(spec.name, (spec, None))
            if slot is not None:
                self._keeper.end(slot)

    def _slot(self, spec: ModelSpec) -> str | None:
        """Of the GPU that the model uses; None: none. What is done on an NPU makes no GPU faster."""
        used = self._where(spec.name) or default_device(spec, self._devices)
        return next((d.slot for d in self._devices if d.id == used and d.kind == "gpu"), None)

    def devices(self, devices: Sequence[Device]) -> None:
        """What there is now, the first time and whenever it has changed."""
        for _, slot in self._used.values():
            if slot is not None:
                self._keeper.end(slot)
        self._devices = devices
        self._keeper.watch(devices)
        for name, (spec, _) in self._used.items():
            slot = self._slot(spec)
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
        self.devices(self._look())
        await self._keeper.run()

    async def close(self) -> None:
        """Puts the levels back."""
        await self._keeper.close()

    def owner(self, device: str) -> str | None:
        """Who has set the level of the device with this id; None: nobody that is known."""
        return next((one["by"] for one in self.report() if one["slot"] == device), None)

    def report(self) -> list[dict[str, Any]]:
        return self._keeper.report()
