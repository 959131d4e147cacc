"""The callers of the helper: their identity, polkit's decision about them, how often they call, and when they leave.

Knows no levels. Asks asynchronously; every callback is called exactly once, even if there is no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gi.repository import Gio, GLib

from accelerd.base import names

BUS = "org.freedesktop.DBus"
POLKIT = "org.freedesktop.PolicyKit1"
CALL_TIMEOUT = 10_000  # ms


class HelperCallers:
    def __init__(self, connection: Gio.DBusConnection, gone: Callable[[str], None]) -> None:
        """`gone(sender)`: a watched caller has left the bus."""
        self._connection = connection
        self._gone = gone
        self._watches: dict[str, int] = {}

    def watch(self, sender: str) -> None:
        """Report when it leaves, also if it has left already."""
        if sender not in self._watches:
            self._watches[sender] = Gio.bus_watch_name_on_connection(
                self._connection, sender, Gio.BusNameWatcherFlags.NONE, None, lambda _, name: self._vanished(name)
            )

    def unwatch(self, sender: str) -> None:
        watch = self._watches.pop(sender, None)
        if watch is not None:
            Gio.bus_unwatch_name(watch)

    def is_watched(self, sender: str) -> bool:
        """Is it still on the bus, as far as known?"""
        return sender in self._watches

    def identify(self, sender: str, done: Callable[[int | None, int], None]) -> None:
        """`done(uid, pid)`; without a uid if it is not known."""

        def answered(answer: Any) -> None:
            known = answer[0] if answer else {}
            uid = known.get("UnixUserID")
            done(uid if isinstance(uid, int) else None, int(known.get("ProcessID", 0)))

        arguments = GLib.Variant("(s)", (sender,))
        self._ask(BUS, "/org/freedesktop/DBus", BUS, "GetConnectionCredentials", arguments, answered)

    def authorize(self, sender: str, done: Callable[[bool], None]) -> None:
        """`done(allowed)`, by polkit, without a password prompt; not allowed if polkit does not answer."""
        subject = ("system-bus-name", {"name": GLib.Variant("s", sender)})
        arguments = GLib.Variant("((sa{sv})sa{ss}us)", (subject, names.HELPER_ACTION, {}, 0, ""))
        self._ask(
            POLKIT,
            "/org/freedesktop/PolicyKit1/Authority",
            f"{POLKIT}.Authority",
            "CheckAuthorization",
            arguments,
            lambda answer: done(bool(answer and answer[0][0])),
        )

    def _vanished(self, sender: str) -> None:
        self.unwatch(sender)
        self._gone(sender)

    def _ask(
        self, name: str, path: str, interface: str, method: str, arguments: Any, done: Callable[[Any], None]
    ) -> None:
        def finished(connection: Any, result: Any) -> None:
            try:
                answer = connection.call_finish(result).unpack()
            except GLib.Error:
                answer = None
            done(answer)

        flags = Gio.DBusCallFlags.NONE
        self._connection.call(name, path, interface, method, arguments, None, flags, CALL_TIMEOUT, None, finished)


class RateLimit:
    """`burst` calls at once, then `rate` per second, for each uid."""

    def __init__(self, clock: Callable[[], float], burst: int = 8, rate: float = 1.0) -> None:
        self._clock = clock
        self._burst = burst
        self._rate = rate
        self._buckets: dict[int, tuple[float, float]] = {}  # uid → tokens, and when there were so many

    def take(self, uid: int) -> bool:
        """May this call be answered?"""
        now = self._clock()
        tokens, then = self._buckets.get(uid, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[uid] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > 256:  # forget those that are full again
            full = self._burst / self._rate
            self._buckets = {who: seen for who, seen in self._buckets.items() if now - seen[1] < full}
        return allowed
