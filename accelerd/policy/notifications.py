"""Which of what happens a person is told on their desktop, and in which words.

Few things: what does not come right by itself, or takes something away that they use. The words are accelerd's own:
nothing that an engine printed and nothing of any request is ever in them.
"""

from __future__ import annotations

from typing import Any, Final

from accelerd.base import names
from accelerd.base.exits import Cause
from accelerd.base.sizes import human_size
from accelerd.devices.model import Device
from accelerd.devices.watch import Diff
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.record import Record, Residue, Transition
from accelerd.system.notifications import Note, Notifications

CAUSES: Final = {
    Cause.EXITED: "its program ended",
    Cause.SIGNALED: "its program crashed",
    Cause.NO_PROGRAM: "its program is missing",
    Cause.NO_MODEL: "its file is missing or cannot be read",
    Cause.REFUSED: "its settings do not suit its program",
    Cause.SPAWN_FAILED: "its program could not be started",
    Cause.LOAD_TIMEOUT: "it was not ready in time",
    Cause.WITHOUT_MODEL: "its program came up without it",
    Cause.UNHEALTHY: "it answered no requests",
    Cause.PORT_UNAVAILABLE: "it got no port",
    Cause.PUT_AWAY: "the server that held it unloaded it",
    Cause.DEVICE_REMOVED: "its device has gone",
    Cause.DEVICE_RESET: "its device was reset",
    Cause.OOM_KILLED: "it ran out of memory",
}


class DesktopNotifications:
    """See the module's text. Hears models and devices; all methods on the loop's thread."""

    def __init__(self, notifications: Notifications) -> None:
        self._notifications = notifications

    def configure(self, *, notify: bool) -> None:
        self._notifications.enabled = notify

    def moved(self, record: Record, transition: Transition) -> None:
        """A model changed its state."""
        name = record.spec.name
        if name.endswith(names.TRIAL_SUFFIX):
            return
        if transition.event is Event.STUCK:
            body = "Its process does not end, and keeps its memory and its device. accelctl status says more."
            self._notifications.say(Note(_model(name), f"{name} cannot be ended", body, urgent=True))
        elif transition.after is State.FAILED:
            cause = record.error.cause if record.error is not None else None
            if cause is Cause.DEVICE_REMOVED:
                return  # comes back with its device, of which a note tells
            what = CAUSES.get(cause, "it failed too often") if cause is not None else "it failed too often"
            summary = f"{name} failed: {what}"
            again = (
                "The next request tries it again" if record.retry_at is not None else "It is not tried again by itself"
            )
            body = f"{again}. accelctl explain {name} says why; accelctl reset {name} forgets it."
            self._notifications.say(Note(_model(name), summary, body))
        elif transition.after is State.READY or transition.event is Event.RESET:
            self._notifications.take_back(_model(name))

    def lost(self, residue: Residue) -> None:
        """Memory of an ended model does not come back."""
        summary = f"{human_size(residue.size)} of {residue.where} do not come back"
        body = f"{residue.model} has ended, its memory is still taken. Other models have that much less."
        self._notifications.say(Note(f"memory of {residue.model}", summary, body))

    def devices(self, diff: Diff) -> None:
        """Devices went, came, or were reset."""
        there = {device.id for device in diff.added}
        for device in diff.removed:
            if device.id not in there:
                body = "Models on it have ended; they come back with it."
                self._notifications.say(Note(_device(device), f"{device.name} has gone", body, urgent=True))
        for device in diff.reset:
            body = "Models on it have ended and are loaded again when they are asked for."
            self._notifications.say(Note(_device(device), f"{device.name} was reset by its driver", body))
        for device in diff.added:
            self._notifications.take_back(_device(device))

    def report(self) -> dict[str, Any]:
        """For `status`."""
        return {"enabled": self._notifications.enabled, "degraded": self._notifications.why_not}

    async def close(self) -> None:
        await self._notifications.close()


def _model(name: str) -> str:
    return f"model {name}"


def _device(device: Device) -> str:
    return f"device {device.id}"
