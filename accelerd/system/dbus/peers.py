"""Names on the bus: who owns one, the clients that call us, and a name of our own.

Lives in the GLib thread and never blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gi.repository import Gio, GLib

from accelerd.base.errors import AccelError
from accelerd.system.dbus.client import DBUS, DBUS_PATH, NO_OWNER
from accelerd.system.dbus.connection import guard
from accelerd.system.dbus.thread import guarded

TIMEOUT: Final = 5_000  # ms for the bus to answer
RELEASE_TIMEOUT: Final = 1_000
IS_OURS: Final = (1, 4)  # answers of RequestName: became the owner, was already the owner
CALLS_PER_CLIENT: Final = 64  # under way at the same time
CALLS_IN_ALL: Final = 1024
LARGEST_ARGUMENTS: Final = 1 << 20  # bytes
BURST: Final = 400  # calls that one client may make without a pause …
INTERVAL: Final = 0.005  # … and seconds between those that follow


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


class Callers:
    """The clients that call exported objects: known until they leave the bus, limited in rate and in calls under way.

    Reports each caller once when it comes and once when it has gone.
    """

    def __init__(
        self, come: Callable[[str], None], gone: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._come = come
        self._gone = gone
        self._clock = clock
        self._due: dict[str, float] = {}  # caller → when its calls so far would have ended, one for each interval
        self._bus: Any = None
        self._watches: dict[str, Any] = {}
        self._calls: dict[str, int] = {}

    def attach(self, bus: Any) -> None:
        self._bus = bus

    def detach(self) -> None:
        """The connection has ended: all of them count as gone."""
        for sender in list(self._watches):
            self._left(sender)
        self._bus = None

    def see(self, sender: str) -> object:
        """What is the same as long as this client is there: with a new bus another one may have its name."""
        if sender not in self._watches:
            self._come(sender)
            self._watches[sender] = follow_owner(self._bus, sender, lambda owner: self._owned(sender, owner))
            ask_owner(self._bus, sender, lambda owner: self._owned(sender, owner))  # it may have gone already
        return self._watches[sender]

    def there(self, sender: str, seen: object) -> bool:
        """Is the client still there for which `see` has returned that?"""
        return self._watches.get(sender) is seen

    def pace(self, sender: str) -> int:
        """How many ms a call has to wait: a client that calls all the time is slowed down, not refused."""
        now = self._clock()
        due = max(self._due.get(sender, 0.0), now - BURST * INTERVAL) + INTERVAL
        self._due[sender] = due
        return max(0, round((due - now) * 1000))

    def begin(self, sender: str, size: int) -> None:
        """Count a call, with `size` bytes of arguments, as under way. AccelError when that is too much."""
        if size > LARGEST_ARGUMENTS:
            raise AccelError("body_too_large", f"the arguments are larger than {LARGEST_ARGUMENTS} bytes")
        if self._calls.get(sender, 0) >= CALLS_PER_CLIENT:
            raise AccelError("too_many_calls", f"{CALLS_PER_CLIENT} of your calls are under way; wait for an answer")
        if sum(self._calls.values()) >= CALLS_IN_ALL:
            raise AccelError("too_many_calls", f"{CALLS_IN_ALL} calls are under way; try again later")
        self._calls[sender] = self._calls.get(sender, 0) + 1

    def end(self, sender: str) -> None:
        """One of its calls has been answered."""
        left = self._calls.pop(sender, 1) - 1
        if left > 0:
            self._calls[sender] = left

    def _owned(self, sender: str, owner: str) -> None:
        if not owner:
            self._left(sender)

    def _left(self, sender: str) -> None:
        self._due.pop(sender, None)
        self._calls.pop(sender, None)  # nobody waits for them: they keep nobody else waiting
        watch = self._watches.pop(sender, None)
        if watch is not None:
            watch.unsubscribe()
            self._gone(sender)


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
