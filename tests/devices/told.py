"""A scheduler and a watch of devices in one, for DeviceLoss: notes what the guard tells of models."""

from __future__ import annotations

from dataclasses import dataclass, field

from accelerd.base.events import EventStream
from accelerd.base.exits import Cause
from accelerd.devices.current_devices import compare
from accelerd.devices.model import Device


@dataclass
class Told:
    """Who has models says so in `snapshots`, which a subclass has."""

    told: list[tuple[object, ...]] = field(default_factory=list, kw_only=True)
    events: EventStream = field(default_factory=EventStream, kw_only=True)

    @property
    def devices(self) -> Told:
        """The scheduler's DeviceEvents."""
        return self

    def lost(self, name: str, cause: Cause, why: str) -> None:
        self.told.append(("lost", name, cause))

    def back(self, name: str) -> None:
        self.told.append(("back", name))

    def suspect(self, name: str) -> None:
        self.told.append(("suspect", name))

    def change(self, before: tuple[Device, ...], after: tuple[Device, ...], **more: bool) -> list[tuple[object, ...]]:
        """What the guard tells when the devices are others."""
        self.told = []
        self.events.publish(compare(before, after, **more))
        return self.told
