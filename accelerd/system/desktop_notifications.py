"""Desktop notifications: org.freedesktop.Notifications on the session bus.

A later notification with the same key replaces the earlier one, and one that no longer applies is closed. When many
arrive at the same time they are shown as one. Starts no service. Prompts and secrets must never be given to it.
"""

from __future__ import annotations

import asyncio
import html
import logging
from typing import Any, Final

from msgspec import Struct

from accelerd.base.ports import Clock
from accelerd.system.dbus.client import BusClient, BusError
from accelerd.system.dbus.port import Variant

log = logging.getLogger(__name__)

SERVICE: Final = "org.freedesktop.Notifications"
PATH: Final = "/org/freedesktop/Notifications"
ICON: Final = "dialog-warning"
CALL_TIMEOUT: Final = 2.0  # s
SPACING: Final = 10.0  # s between two times that something is shown
MOST_AT_ONCE: Final = 3  # more are shown as one
LONGEST_TEXT: Final = 400  # characters
DIGEST_KEY: Final = "digest"


class Notification(Struct, frozen=True):
    key: str  # what it is about: a later one with the same key replaces it
    summary: str  # one line
    body: str = ""
    urgent: bool = False


class NotificationSender:
    """All methods on the loop's thread."""

    def __init__(self, bus: BusClient, clock: Clock, spacing: float = SPACING) -> None:
        """`bus`: the session bus."""
        self._bus = bus
        self._clock = clock
        self._spacing = spacing
        self._pending: dict[str, Notification | None] = {}  # None: close it
        self._shown: dict[str, int] = {}  # key → the service's id
        self._owner = ""  # the service that these ids belong to
        self._markup = False
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.enabled = True
        self.degraded: str | None = None  # why nothing is shown

    def show(self, notification: Notification) -> None:
        """Show it, after those that are shown already have had their time."""
        if self.enabled:
            self._pending[notification.key] = notification
            self._schedule()

    def withdraw(self, key: str) -> None:
        """Close it, or do not show it: it no longer applies."""
        if key in self._shown:
            self._pending[key] = None
            self._schedule()
        else:
            self._pending.pop(key, None)

    async def wait_until_sent(self) -> None:
        """Return when what is being sent has been sent."""
        if self._task is not None:
            await self._task

    async def close(self) -> None:
        """Show nothing any more; what is shown stays."""
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- inside -----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._timer is None and self._task is None:
            wait = max(0.0, self._free_at - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._task = asyncio.create_task(self._send(), name="notifications")

    async def _send(self) -> None:
        pending, self._pending = self._pending, {}
        try:
            if await self._find_service():
                for key in [key for key, notification in pending.items() if notification is None]:
                    await self._close(key)
                for notification in condensed([one for one in pending.values() if one is not None]):
                    await self._notify(notification)
        except BusError as error:
            self.degraded = error.message
            log.debug("cannot show a notification: %s", error.message)
        finally:
            self._task = None
            self._free_at = self._clock.monotonic() + self._spacing
            if self._pending:
                self._schedule()

    async def _find_service(self) -> bool:
        """Does a service run? The ids of one that ran before mean nothing to it."""
        owner = await self._bus.owner(SERVICE, CALL_TIMEOUT)
        if owner != self._owner:
            self._owner = owner
            self._shown.clear()
            self._markup = bool(owner) and "body-markup" in (await self._call("GetCapabilities"))[0]
        self.degraded = None if owner else "no notification service runs"
        return bool(owner)

    async def _notify(self, notification: Notification) -> None:
        body = printable(notification.body)
        hints = {
            "urgency": Variant("y", 2 if notification.urgent else 1),
            "desktop-entry": Variant("s", "accelerd"),
        }
        answer = await self._call(
            "Notify",
            "(susssasa{sv}i)",
            "accelerd",
            self._shown.get(notification.key, 0),
            ICON,
            printable(notification.summary),
            html.escape(body, quote=False) if self._markup else body,
            [],
            hints,
            -1,
        )
        self._shown[notification.key] = answer[0]

    async def _close(self, key: str) -> None:
        number = self._shown.pop(key, 0)
        if number:
            try:
                await self._call("CloseNotification", "(u)", number)
            except BusError as error:  # somebody has closed it already
                log.debug("cannot close a notification: %s", error.message)

    async def _call(self, method: str, signature: str = "()", *values: Any) -> tuple[Any, ...]:
        """Call the service that was found, by its unique name: this starts no other."""
        arguments = (self._owner, PATH, method, signature, *values)
        return await self._bus.call(*arguments, interface=SERVICE, within=CALL_TIMEOUT)


def condensed(notifications: list[Notification]) -> list[Notification]:
    """The same, or one in their place if there are more than MOST_AT_ONCE."""
    if len(notifications) <= MOST_AT_ONCE:
        return notifications
    lines = [notification.summary for notification in notifications]
    more = [f"and {len(lines) - 5} more"] if len(lines) > 6 else []
    body = "\n".join([*(lines[:5] if more else lines), *more])
    urgent = any(notification.urgent for notification in notifications)
    return [Notification(DIGEST_KEY, f"{len(notifications)} problems, see: accelctl status", body, urgent)]


def printable(text: str) -> str:
    """Without control characters, and at most LONGEST_TEXT long."""
    text = "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
