"""Who has a name on the bus: asked once, and heard of when it changes. Knows no name's meaning.

Lives in the GLib thread and never waits there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gi.repository import Gio, GLib

from accelerd.system.dbus.thread import guarded

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
PATIENCE: Final = 5_000  # ms for the bus to answer


def subscribe(bus: Any, name: str, told: Callable[[str], None]) -> Any:
    """`told(owner)` with each change, "" for nobody; until `unsubscribe()` of what this returns."""

    def changed(sender: str, path: str, interface: str, member: str, arguments: tuple[str, str, str]) -> None:
        guarded(lambda: told(arguments[2]))

    return bus.subscribe(
        sender=BUS, iface=BUS, signal="NameOwnerChanged", object=BUS_PATH, arg0=name, signal_fired=changed
    )


def ask_owner(bus: Any, name: str, told: Callable[[str], None]) -> None:
    """`told(owner)` once, "" for nobody. Not when the bus does not answer."""

    def done(connection: Any, result: Any) -> None:
        try:
            owner = connection.call_finish(result).unpack()[0]
        except GLib.Error as error:
            if Gio.DBusError.get_remote_error(error) != f"{BUS}.Error.NameHasNoOwner":
                return
            owner = ""
        guarded(lambda: told(owner))

    arguments, none = GLib.Variant("(s)", (name,)), Gio.DBusCallFlags.NONE
    bus.con.call(BUS, BUS_PATH, BUS, "GetNameOwner", arguments, None, none, PATIENCE, None, done)
