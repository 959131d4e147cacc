"""What becomes of models when their device goes, comes back or is reset: hears the watch, tells the scheduler.

Decides nothing about models beyond that; remembers which device each instance was started on, because the device that a
new one would take may be another by now, and of what kind was what a model has lost: a GPU is no NPU's replacement.
"""

from __future__ import annotations

from collections.abc import Collection

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.devices.watch import DeviceWatch, Diff
from accelerd.estimate.placing import default_device
from accelerd.scheduler.lifecycle import OCCUPIED
from accelerd.scheduler.service import Scheduler


class DeviceLoss:
    """Listens from its construction on."""

    def __init__(self, watch: DeviceWatch, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._on: dict[int, tuple[str, ...]] = {}  # instance → device ids, of those that lived through a change
        self._lost: dict[str, str] = {}  # model → kind of the device that it lost last
        watch.listen(self.heard)

    def heard(self, diff: Diff) -> None:
        """Lists only change here: what lives now and is not remembered was started on the list before."""
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
                why = f"{device.name} ({device.id}) {'has gone' if gone else 'was reset'}"
                if gone:
                    self._lost[name] = device.kind
                self._scheduler.device_lost(name, cause, why)
        for device in diff.recovered:
            for name in self._models_on(device, living):
                self._scheduler.suspect(name)
        usable = {device.kind for device in (*diff.added, *diff.changed) if device.problem is None}
        for snapshot in snapshots:
            if self._lost.get(snapshot.spec.name, "gpu") in usable:
                self._scheduler.device_back(snapshot.spec.name)
        self._lost = {s.spec.name: kind for s in snapshots if (kind := self._lost.get(s.spec.name))}

    def _models_on(self, device: Device, living: dict[int, ModelSpec]) -> Collection[str]:
        return [spec.name for instance, spec in living.items() if device.id in self._on[instance]]
