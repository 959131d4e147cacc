"""A scheduler and a watch of devices in one, for DeviceLoss: notes what the guard tells of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from accelerd.base.exits import Cause
from accelerd.devices.model import Device
from accelerd.devices.watch import Diff, compare


@dataclass
class Told:
    """Who has models says so in `snapshots`, which a subclass has."""

    told: list[tuple[object, ...]] = field(default_factory=list, kw_only=True)
    heard: Callable[[Diff], None] = field(default=lambda diff: None, kw_only=True)

    def listen(self, listener: Callable[[Diff], None]) -> None:
        self.heard = listener

    def device_lost(self, name: str, cause: Cause, why: str) -> None:
        self.told.append(("lost", name, cause))

    def device_back(self, name: str) -> None:
        self.told.append(("back", name))

    def suspect(self, name: str) -> None:
        self.told.append(("suspect", name))

    def change(self, before: tuple[Device, ...], after: tuple[Device, ...], **more: bool) -> list[tuple[object, ...]]:
        """What the guard tells when the devices are others."""
        self.told = []
        self.heard(compare(before, after, **more))
        return self.told
