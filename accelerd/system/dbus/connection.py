"""The connection itself: made through pydbus, named, lost, made again with a back-off.

Lives in the GLib thread and never waits there: reads of properties go on whatever the bus does. What is on the
connection is for Exports and Callers. The name is never queued for: while another has it there is a reason why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gi.repository import Gio, GLib
from pydbus.bus import Bus

from accelerd.system.dbus.callers import Callers
from accelerd.system.dbus.export import Exports
from accelerd.system.dbus.owners import BUS, BUS_PATH, subscribe
from accelerd.system.dbus.thread import GLibThread, guarded

log = logging.getLogger(__name__)

SOONEST: Final = 500  # ms until the first try after a loss; twice as long each time
LATEST: Final = 10_000
FLUSH: Final = 1_000  # ms for what is still to be sent
OWNER: Final = (1, 4)  # answers of RequestName: it is ours, or was already


class BusConnection:
    """See the module's text."""

    def __init__(
        self,
        thread: GLibThread,
        address: str,
        name: str,
        exports: Exports,
        callers: Callers,
        told: Callable[[str | None], None],
        patience: int,
    ) -> None:
        """`told(trouble)`: there is no bus for that reason; None: connected and named. `patience`: ms for an answer."""
        self._thread = thread
        self._address = address
        self._name = name
        self._exports = exports
        self._callers = callers
        self._told = told
        self._patience = patience
        self._connection: Any = None
        self._handler = 0
        self._owner_watch: Any = None
        self._wait = SOONEST
        self._timer: Any = None
        self._trying: Any = None  # the Cancellable of a try to connect
        self._closing = False

    def connect(self) -> None:
        """Try once; again and again later when it is not there."""
        self._timer = None
        self._trying = trying = Gio.Cancellable.new()
        given_up = self._thread.later(trying.cancel, self._patience)
        kind = Gio.DBusConnectionFlags
        flags = kind.AUTHENTICATION_CLIENT | kind.MESSAGE_BUS_CONNECTION

        def done(_: Any, result: Any) -> None:
            given_up.destroy()
            self._trying = None
            try:
                connection = Gio.DBusConnection.new_for_address_finish(result)
            except GLib.Error as error:
                slow = error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.CANCELLED)
                self._lost("it does not answer" if slow else error.message)
            else:
                self._connected(connection)

        # one of its own: GLib ends the program when the shared one breaks
        Gio.DBusConnection.new_for_address(self._address, flags, None, trying, _guard(done))

    def close(self, closed: Callable[[], None]) -> None:
        """Send what is still to be sent, then leave. `closed()` is called soon, whatever the bus does."""
        self._closing = True
        if self._timer is not None:
            self._timer.destroy()
        if self._trying is not None:
            self._trying.cancel()
        connection = self._connection
        if connection is None:
            closed()
            return

        over = False

        def ended(*_: Any) -> None:
            nonlocal over
            if not over:
                over = True
                late.destroy()
                if self._connection is not None:
                    self._leave()
                closed()

        def flushed(*_: Any) -> None:
            if self._connection is not None:
                self._leave()
                # to its end: what GLib has still to tell would keep the context
                connection.close(None, _guard(ended))

        late = self._thread.later(ended, FLUSH)
        connection.flush(None, _guard(flushed))

    # --- the connection ---------------------------------------------------------------------------------------

    def _connected(self, connection: Any) -> None:
        if self._closing:
            connection.close(None, None)
            return
        self._connection = connection
        self._wait = SOONEST
        bus = Bus(connection)
        self._handler = connection.connect("closed", _guard(self._closed))
        self._callers.attach(bus)
        self._exports.attach(connection)
        # the name last, so that no call comes too early
        self._owner_watch = subscribe(bus, self._name, _guard(self._owner_changed))
        self._request()

    def _closed(self, *_: Any) -> None:
        self._leave()
        self._lost("the connection to it has ended")

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        connection.disconnect(self._handler)
        self._owner_watch.unsubscribe()
        self._owner_watch = None
        self._exports.detach()
        self._callers.detach()

    def _lost(self, why: str) -> None:
        if self._closing:
            return
        self._told(f"cannot reach the session bus: {why}")
        self._timer = self._thread.later(self.connect, self._wait)
        self._wait = min(self._wait * 2, LATEST)

    # --- the name ---------------------------------------------------------------------------------------------

    def _request(self) -> None:
        connection = self._connection

        def done(_: Any, result: Any) -> None:
            if self._connection is not connection:
                return  # of a connection that has ended meanwhile
            try:
                answer = connection.call_finish(result).unpack()[0]
            except GLib.Error as error:
                self._told(f"the session bus does not let accelerd have the name {self._name}: {error.message}")
            else:
                taken = f"another program has the name {self._name} on the session bus"
                self._told(None if answer in OWNER else taken)

        # pydbus would ask without a time limit, and wait
        arguments = GLib.Variant("(su)", (self._name, int(Gio.BusNameOwnerFlags.DO_NOT_QUEUE)))
        none = Gio.DBusCallFlags.NONE
        connection.call(BUS, BUS_PATH, BUS, "RequestName", arguments, None, none, self._patience, None, _guard(done))

    def _owner_changed(self, owner: str) -> None:
        if self._connection is not None and not owner:  # nobody has it any more
            self._request()


def _guard(function: Callable[..., None]) -> Callable[..., None]:
    """For GLib to call."""
    return lambda *arguments: guarded(partial(function, *arguments))
