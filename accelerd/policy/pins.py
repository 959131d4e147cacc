"""Pins: which models programs keep in memory and why, until they unpin or disconnect.

Owns the cookies. Tells the scheduler, which alone keeps models, and the journal. Owners are names that somebody else
watches (connections to the bus), who calls `owner_gone`.
"""

from __future__ import annotations

import logging
import re
from typing import Final, Literal

from msgspec import Struct

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.ports import Clock
from accelerd.scheduler.events import HoldsDropped
from accelerd.scheduler.holds import Holds
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

OWNER_MOST: Final = 64  # pins of one owner
MOST: Final = 1024  # pins of all of them
REASON_MOST: Final = 256  # characters
_APPLICATION: Final = re.compile(r"[A-Za-z0-9_.-]{0,255}")

PinEnd = Literal["released", "owner-gone", "model-removed", "shutdown"]


class Pin(Struct, frozen=True):
    """`hold`: the model stays when it is loaded, but is not loaded for this."""

    cookie: int
    model: str
    reason: str
    application_id: str
    owner: str
    hold: bool
    since: float  # monotonic seconds

    @property
    def who(self) -> str:
        """For people."""
        return self.application_id or self.owner

    @property
    def key(self) -> str:
        return f"pin {self.cookie}"


class PinChanged(Struct, frozen=True):
    """Published when a pin is made, and once when it ends."""

    pin: Pin
    end: PinEnd | None  # None: it is in force


class Pins:
    """Subscribes to dropped holds; publishes PinChanged. All methods on the event loop's thread."""

    def __init__(self, holds: Holds, clock: Clock, events: EventStream) -> None:
        self._holds = holds
        self._clock = clock
        self._events = events
        self._pins: dict[int, Pin] = {}
        self._next = 1
        events.subscribe(HoldsDropped, self.on_holds_dropped)

    def pin(self, model: str, reason: str, application_id: str, owner: str, *, hold: bool) -> int:
        """A cookie for `unpin`. AccelError, and nothing is pinned: bad_request, too_many_pins, model_not_found,
        does_not_fit, pin_conflict."""
        if not reason.strip() or len(reason) > REASON_MOST or not reason.isprintable():
            text = f"a pin needs a reason for people to read: one line of at most {REASON_MOST} characters"
            raise AccelError("bad_request", text, param="reason")
        if not _APPLICATION.fullmatch(application_id):
            text = "an application id has letters, digits, '.', '_' and '-' (org.example.App), or is empty"
            raise AccelError("bad_request", text, param="application_id")
        if sum(one.owner == owner for one in self._pins.values()) >= OWNER_MOST or len(self._pins) >= MOST:
            raise AccelError("too_many_pins", f"there are {len(self._pins)} pins already; unpin some of them")
        cookie, self._next = self._next, self._next + 1
        asked = Pin(cookie, model, reason, application_id, owner, hold, self._clock.monotonic())
        name = self._holds.hold(model, asked.key, load=not hold)
        self._pins[cookie] = pin = Pin(cookie, name, reason, application_id, owner, hold, asked.since)
        what = "held" if hold else "pinned"
        event(log, NOTICE, f"{name} is {what} for {pin.who}: {reason}", message_id=names.MSG_PIN,
              model=name, reason=reason)  # fmt: skip
        self._events.publish(PinChanged(pin, None))
        return cookie

    def unpin(self, cookie: int, owner: str) -> None:
        """AccelError pin_not_found: not a pin of this owner, or no longer."""
        pin = self._pins.get(cookie)
        if pin is None or pin.owner != owner:
            raise AccelError(
                "pin_not_found", f"you have no pin {cookie}; it ends with the connection that asked for it"
            )
        self._end(pin, "released")

    def release(self, cookie: int) -> None:
        """The client that made it has disconnected. Does nothing for a pin that has ended."""
        if cookie in self._pins:
            self._end(self._pins[cookie], "owner-gone")

    def owner_gone(self, owner: str) -> None:
        """End the pins of an owner that disconnected."""
        for pin in [one for one in self._pins.values() if one.owner == owner]:
            self._end(pin, "owner-gone")

    def close(self) -> None:
        """End all pins."""
        for pin in list(self._pins.values()):
            self._end(pin, "shutdown")

    def all(self) -> list[Pin]:
        """The oldest first."""
        return list(self._pins.values())

    def of(self, model: str) -> list[Pin]:
        """Those of one model, by its configured name."""
        return [pin for pin in self._pins.values() if pin.model == model]

    def on_holds_dropped(self, event: HoldsDropped) -> None:
        for pin in [one for one in self.of(event.model) if one.key in event.keys]:
            self._end(pin, "model-removed", f": {event.reason}", held=False)

    def _end(self, pin: Pin, cause: PinEnd, why: str = "", *, held: bool = True) -> None:
        del self._pins[pin.cookie]
        if held:
            self._holds.unhold(pin.model, pin.key)
        text = f"{pin.model} is no longer {'held' if pin.hold else 'pinned'} for {pin.who} ({cause}){why}"
        event(log, NOTICE, text, message_id=names.MSG_PIN, model=pin.model, reason=cause)
        self._events.publish(PinChanged(pin, cause))
