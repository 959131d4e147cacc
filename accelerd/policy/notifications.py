"""Desktop notifications: what the user is told, and in which words.

Only what does not recover by itself, or takes away something in use. Never contains engine output or anything from a
request.
"""

from __future__ import annotations

from typing import Any, Final

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.base.exits import Cause
from accelerd.base.sizes import human_size
from accelerd.config.model import ConfigApplied
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.model import Device
from accelerd.scheduler.events import MemoryNotReturned, ModelTransition
from accelerd.scheduler.lifecycle import Event, State
from accelerd.system.desktop_notifications import Notification, NotificationSender

CAUSES: Final = {
    Cause.EXITED: "its program ended",
    Cause.SIGNALED: "its program crashed",
    Cause.NO_PROGRAM: "its program is missing",
    Cause.NO_MODEL: "its file is missing or cannot be read",
    Cause.NOT_DOWNLOADED: "its files are not on this machine",
    Cause.REFUSED: "its settings do not suit its program",
    Cause.SPAWN_FAILED: "its program could not be started",
    Cause.LOAD_TIMEOUT: "it was not ready in time",
    Cause.WITHOUT_MODEL: "its program came up without it",
    Cause.UNHEALTHY: "it answered no requests",
    Cause.PORT_UNAVAILABLE: "it got no port",
    Cause.UNLOADED_BY_SERVER: "the server that held it unloaded it",
    Cause.DEVICE_REMOVED: "its device has gone",
    Cause.DEVICE_RESET: "its device was reset",
    Cause.OOM_KILLED: "it ran out of memory",
}


class DesktopNotifications:
    """Subscribes to models, devices and the configuration."""

    def __init__(self, notifications: NotificationSender, events: EventStream) -> None:
        self._notifications = notifications
        events.subscribe(ModelTransition, self.on_transition)
        events.subscribe(MemoryNotReturned, self.on_memory_not_returned)
        events.subscribe(DevicesChanged, self.on_devices_changed)
        events.subscribe(ConfigApplied, self.on_config)

    def on_config(self, event: ConfigApplied) -> None:
        self._notifications.enabled = event.config.desktop.notify

    def on_transition(self, event: ModelTransition) -> None:
        name, transition = event.spec.name, event.transition
        if name.endswith(names.TRIAL_SUFFIX):
            return
        if transition.event is Event.STUCK:
            body = "Its process does not end, and keeps its memory and its device. accelctl status says more."
            self._notifications.show(Notification(_model(name), f"{name} cannot be ended", body, urgent=True))
        elif transition.after is State.FAILED:
            cause = event.error.cause if event.error is not None else None
            if cause is Cause.DEVICE_REMOVED:
                return  # it comes back with its device, for which there is a notification
            what = CAUSES.get(cause, "it failed too often") if cause is not None else "it failed too often"
            summary = f"{name} failed: {what}"
            again = "The next request tries again" if event.retry else "It is not retried automatically"
            body = f"{again}. {names.accelctl('explain', name)} says why; {names.accelctl('reset', name)} forgets it."
            self._notifications.show(Notification(_model(name), summary, body))
        elif transition.after is State.READY or transition.event is Event.RESET:
            self._notifications.withdraw(_model(name))

    def on_memory_not_returned(self, event: MemoryNotReturned) -> None:
        residue = event.residue
        summary = f"{human_size(residue.size)} of {residue.where} were not freed"
        body = f"{residue.model} has ended, but its memory is still in use. Other models have that much less."
        self._notifications.show(Notification(f"memory of {residue.model}", summary, body))

    def on_devices_changed(self, diff: DevicesChanged) -> None:
        there = {device.id for device in diff.added}
        for device in diff.removed:
            if device.id not in there:
                body = "Models on it have ended; they come back with it."
                self._notifications.show(Notification(_device(device), f"{device.name} has gone", body, urgent=True))
        for device in diff.reset:
            body = "Models on it have ended and are loaded again when they are asked for."
            self._notifications.show(Notification(_device(device), f"{device.name} was reset by its driver", body))
        for device in diff.added:
            self._notifications.withdraw(_device(device))

    def report(self) -> dict[str, Any]:
        """For `status`."""
        return {"enabled": self._notifications.enabled, "degraded": self._notifications.degraded}

    async def close(self) -> None:
        await self._notifications.close()


def _model(name: str) -> str:
    return f"model {name}"


def _device(device: Device) -> str:
    return f"device {device.id}"
