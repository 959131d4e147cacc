"""What happens to models when their device disappears, comes back or is reset.

Tells the scheduler, which decides the rest. Remembers which device each instance was started on, because a new one
might get another by now, and the kind of the lost device: a GPU does not replace an NPU.
"""

from __future__ import annotations

from collections.abc import Collection

from accelerd.base.events import EventStream
from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.model import Device
from accelerd.estimate.placing import default_device
from accelerd.scheduler.lifecycle import OCCUPIED
from accelerd.scheduler.service import Scheduler


class DeviceLoss:
    """Subscribes to DevicesChanged."""

    def __init__(self, scheduler: Scheduler, events: EventStream) -> None:
        self._scheduler = scheduler
        self._on: dict[int, tuple[str, ...]] = {}  # instance → device ids, of those that lived through a change
        self._lost: dict[str, str] = {}  # model → kind of the device that it lost last
        events.subscribe(DevicesChanged, self.on_devices_changed)

    def on_devices_changed(self, diff: DevicesChanged) -> None:
        # The list changes here only: what runs now and is not remembered was started with the list before.
        snapshots = self._scheduler.snapshots()
        found = {s.instance: s for s in snapshots if s.instance is not None and s.state in OCCUPIED}
        self._on = {
            instance: self._on.get(instance) or s.need.devices or (default_device(s.spec, diff.before),)
            for instance, s in found.items()
        }
        living = {instance: s.spec for instance, s in found.items()}
        back = {device.id for device in diff.added}
        for device in (*diff.removed, *diff.reset):
            gone = device in diff.removed and device.id not in back  # else it was bound again: as after a reset
            cause = Cause.DEVICE_REMOVED if gone else Cause.DEVICE_RESET
            for name in self._models_on(device, living):
                why = f"{device.name} ({device.id}) {'has disappeared' if gone else 'was reset'}"
                if gone:
                    self._lost[name] = device.kind
                self._scheduler.devices.lost(name, cause, why)
        for device in diff.recovered:
            for name in self._models_on(device, living):
                self._scheduler.devices.suspect(name)
        usable = {device.kind for device in (*diff.added, *diff.changed) if device.problem is None}
        for snapshot in snapshots:
            if self._lost.get(snapshot.spec.name, "gpu") in usable:
                self._scheduler.devices.back(snapshot.spec.name)
        self._lost = {s.spec.name: kind for s in snapshots if (kind := self._lost.get(s.spec.name))}

    def _models_on(self, device: Device, living: dict[int, ModelSpec]) -> Collection[str]:
        return [spec.name for instance, spec in living.items() if device.id in self._on[instance]]
