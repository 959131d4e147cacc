"""What a person should know, as the desktop shows it: org.freedesktop.Notifications on the session bus.

A later note about the same thing replaces the earlier one, and one that no longer holds is taken back. Few at a time:
when much goes wrong at once it is one note. Starts no service: where none runs, what was to be said is only in the
journal. Says what it is given; prompts and secrets must never be given to it.
"""

from __future__ import annotations

import asyncio
import html
import logging
from dataclasses import dataclass
from typing import Any, Final

from accelerd.base.ports import Clock
from accelerd.system.dbus.client import BusClient, BusError
from accelerd.system.dbus.port import Variant

log = logging.getLogger(__name__)

SERVICE: Final = "org.freedesktop.Notifications"
PATH: Final = "/org/freedesktop/Notifications"
ICON: Final = "dialog-warning"
CALL_TIMEOUT: Final = 2.0  # s
SPACING: Final = 10.0  # s from showing something to showing something again
AT_ONCE: Final = 3  # notes; more become one
LONGEST: Final = 400  # characters
DIGEST: Final = "digest"


@dataclass(frozen=True)
class Note:
    """One thing to know."""

    key: str  # what it is about: a later one of the same key replaces it
    summary: str  # one line
    body: str = ""
    urgent: bool = False


class Notifications:
    """See the module's text. All methods on the loop's thread."""

    def __init__(self, bus: BusClient, clock: Clock, spacing: float = SPACING) -> None:
        """`bus`: the session bus."""
        self._bus = bus
        self._clock = clock
        self._spacing = spacing
        self._pending: dict[str, Note | None] = {}  # None: take back
        self._shown: dict[str, int] = {}  # key → the service's number for it
        self._owner = ""  # whose numbers these are
        self._markup = False
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.enabled = True
        self.why_not: str | None = None  # nobody shows them

    def say(self, note: Note) -> None:
        """Show it as soon as it may be."""
        if self.enabled:
            self._pending[note.key] = note
            self._arm()

    def take_back(self, key: str) -> None:
        """It no longer holds."""
        if key in self._shown:
            self._pending[key] = None
            self._arm()
        else:
            self._pending.pop(key, None)

    async def settle(self) -> None:
        """What is being shown is shown."""
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

    def _arm(self) -> None:
        if self._timer is None and self._task is None:
            wait = max(0.0, self._free_at - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._due)

    def _due(self) -> None:
        self._timer = None
        self._task = asyncio.create_task(self._show(), name="notifications")

    async def _show(self) -> None:
        pending, self._pending = self._pending, {}
        try:
            if await self._find():
                for key in [key for key, note in pending.items() if note is None]:
                    await self._close(key)
                for note in condensed([note for note in pending.values() if note is not None]):
                    await self._notify(note)
        except BusError as error:
            self.why_not = error.message
            log.debug("cannot show a notification: %s", error.message)
        finally:
            self._task = None
            self._free_at = self._clock.monotonic() + self._spacing
            if self._pending:
                self._arm()

    async def _find(self) -> bool:
        """Is somebody there who shows them? Numbers of an earlier one mean nothing to them."""
        owner = await self._bus.owner(SERVICE, CALL_TIMEOUT)
        if owner != self._owner:
            self._owner = owner
            self._shown.clear()
            self._markup = bool(owner) and "body-markup" in (await self._call("GetCapabilities"))[0]
        self.why_not = None if owner else "nobody shows notifications"
        return bool(owner)

    async def _notify(self, note: Note) -> None:
        body = plain(note.body)
        hints = {"urgency": Variant("y", 2 if note.urgent else 1), "desktop-entry": Variant("s", "accelerd")}
        number = (
            await self._call(
                "Notify",
                "(susssasa{sv}i)",
                "accelerd",
                self._shown.get(note.key, 0),
                ICON,
                plain(note.summary),
                html.escape(body, quote=False) if self._markup else body,
                [],
                hints,
                -1,
            )
        )[0]
        self._shown[note.key] = number

    async def _close(self, key: str) -> None:
        number = self._shown.pop(key, 0)
        if number:
            try:
                await self._call("CloseNotification", "(u)", number)
            except BusError as error:  # a person was faster
                log.debug("cannot take back a notification: %s", error.message)

    async def _call(self, method: str, signature: str = "()", *values: Any) -> tuple[Any, ...]:
        """To the very one that was found: a name that only its owner has starts nobody."""
        return await self._bus.call(
            self._owner, PATH, method, signature, *values, interface=SERVICE, within=CALL_TIMEOUT
        )


def condensed(notes: list[Note]) -> list[Note]:
    """At most AT_ONCE of them: the rest, and the first with it, become one."""
    if len(notes) <= AT_ONCE:
        return notes
    lines = [note.summary for note in notes]
    more = [f"and {len(lines) - 5} more"] if len(lines) > 6 else []
    body = "\n".join([*(lines[:5] if more else lines), *more])
    urgent = any(note.urgent for note in notes)
    return [Note(DIGEST, f"{len(notes)} things went wrong: accelctl status", body, urgent)]


def plain(text: str) -> str:
    """Printable and short."""
    text = "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
