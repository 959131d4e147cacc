"""Who calls, whether polkit allows it, and when they have gone: asynchronous questions to the bus.

Knows no levels. Every answer comes exactly once, also when nobody answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gi.repository import Gio, GLib

from accelerd.base import names

BUS = "org.freedesktop.DBus"
POLKIT = "org.freedesktop.PolicyKit1"
PATIENCE = 10_000  # ms


class Callers:
    """See the module's text."""

    def __init__(self, connection: Gio.DBusConnection, gone: Callable[[str], None]) -> None:
        """`gone(sender)`: a caller that is watched has left the bus."""
        self._connection = connection
        self._gone = gone
        self._watches: dict[str, int] = {}

    def watch(self, sender: str) -> None:
        """Hear of its end, also when it has gone already."""
        if sender not in self._watches:
            self._watches[sender] = Gio.bus_watch_name_on_connection(
                self._connection, sender, Gio.BusNameWatcherFlags.NONE, None, lambda _, name: self._vanished(name)
            )

    def unwatch(self, sender: str) -> None:
        watch = self._watches.pop(sender, None)
        if watch is not None:
            Gio.bus_unwatch_name(watch)

    def is_watched(self, sender: str) -> bool:
        """Is it on the bus still, as far as is known?"""
        return sender in self._watches

    def identify(self, sender: str, done: Callable[[int | None, int], None]) -> None:
        """`done(uid, pid)`; no uid when it cannot be known."""

        def answered(answer: Any) -> None:
            known = answer[0] if answer else {}
            uid = known.get("UnixUserID")
            done(uid if isinstance(uid, int) else None, int(known.get("ProcessID", 0)))

        arguments = GLib.Variant("(s)", (sender,))
        self._ask(BUS, "/org/freedesktop/DBus", BUS, "GetConnectionCredentials", arguments, answered)

    def authorize(self, sender: str, done: Callable[[bool], None]) -> None:
        """`done(allowed)`, by polkit. Nobody is asked for a password; where polkit does not answer nobody may."""
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
        self._connection.call(name, path, interface, method, arguments, None, flags, PATIENCE, None, finished)
