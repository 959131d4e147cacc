"""Who owns a name on the bus: asked for, followed, and a name of our own. Lives in the GLib thread, never blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gi.repository import Gio, GLib

from accelerd.system.dbus.client import DBUS, DBUS_PATH, NO_OWNER
from accelerd.system.dbus.connection import guard
from accelerd.system.dbus.thread import guarded

TIMEOUT: Final = 5_000  # ms for the bus to answer
RELEASE_TIMEOUT: Final = 1_000
IS_OURS: Final = (1, 4)  # answers of RequestName: became the owner, was already the owner


def follow_owner(bus: Any, name: str, changed: Callable[[str], None]) -> Any:
    """`changed(owner)` with every change, "" for nobody; until `unsubscribe()` of the result."""

    def fired(sender: str, path: str, interface: str, member: str, arguments: tuple[str, str, str]) -> None:
        guarded(partial(changed, arguments[2]))

    return bus.subscribe(
        sender=DBUS, iface=DBUS, signal="NameOwnerChanged", object=DBUS_PATH, arg0=name, signal_fired=fired
    )


def ask_owner(bus: Any, name: str, told: Callable[[str], None]) -> None:
    """`told(owner)` once, "" for nobody; not at all when the bus does not answer."""

    def done(connection: Any, result: Any) -> None:
        try:
            owner = connection.call_finish(result).unpack()[0]
        except GLib.Error as error:
            if Gio.DBusError.get_remote_error(error) != NO_OWNER:
                return
            owner = ""
        told(owner)

    _ask_bus(bus, "GetNameOwner", GLib.Variant("(s)", (name,)), TIMEOUT, done)


class OwnedName:
    """A well-known name, owned while there is a connection. Not queued for: while another program has it `told` says
    so, and it is requested again when that program lets go of it."""

    def __init__(self, name: str, told: Callable[[str | None], None], timeout: float) -> None:
        """`told(why_not)`; None: it is ours. `timeout`: seconds for the bus to answer."""
        self._name = name
        self._told = told
        self._timeout = round(timeout * 1000)
        self._bus: Any = None
        self._watch: Any = None

    def attach(self, bus: Any) -> None:
        self._bus = bus
        self._watch = follow_owner(bus, self._name, self._owner_changed)
        self._request()

    def detach(self) -> None:
        self._bus = None
        if self._watch is not None:
            self._watch.unsubscribe()
            self._watch = None

    def release(self, released: Callable[[], None]) -> None:
        """Give it up. `released()` is called in any case."""
        bus = self._bus
        self.detach()
        if bus is None:
            released()
        else:
            _ask_bus(bus, "ReleaseName", GLib.Variant("(s)", (self._name,)), RELEASE_TIMEOUT, lambda *_: released())

    def _request(self) -> None:
        bus = self._bus

        def done(connection: Any, result: Any) -> None:
            if self._bus is not bus:
                return  # the answer is of a connection that has ended
            try:
                answer = connection.call_finish(result).unpack()[0]
            except GLib.Error as error:
                self._told(f"the session bus does not let accelerd have the name {self._name}: {error.message}")
            else:
                taken = f"another program has the name {self._name} on the session bus"
                self._told(None if answer in IS_OURS else taken)

        # not pydbus's request_name: it blocks, without a time limit
        arguments = GLib.Variant("(su)", (self._name, int(Gio.BusNameOwnerFlags.DO_NOT_QUEUE)))
        _ask_bus(bus, "RequestName", arguments, self._timeout, done)

    def _owner_changed(self, owner: str) -> None:
        if self._bus is not None and not owner:
            self._request()


def _ask_bus(bus: Any, method: str, arguments: Any, milliseconds: int, done: Callable[..., None]) -> None:
    none = Gio.DBusCallFlags.NONE
    bus.con.call(DBUS, DBUS_PATH, DBUS, method, arguments, None, none, milliseconds, None, guard(done))
