"""The connection to one bus: made when it is first needed, made again after a loss while anything is attached to it.

Lives in the GLib thread and never blocks. What is attached (exported objects, subscriptions) is put on every new
connection. A connection of its own, not GLib's shared one: GLib ends the program when that breaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from gi.repository import Gio, GLib
from pydbus.bus import Bus as PydbusBus

from accelerd.system.dbus.thread import GLibThread, guarded

FIRST_RETRY: Final = 500  # ms after a loss; the pause doubles with each failure
FIRST_RETRY_UNSEEN: Final = 8_000  # ms, of a bus that was never there: most likely it never will be
LAST_RETRY: Final = 30_000
FLUSH_TIMEOUT: Final = 1_000  # ms


class Attachment(Protocol):
    """Something that is on the connection whenever there is one. `bus`: pydbus's."""

    def attach(self, bus: Any) -> None: ...
    def detach(self) -> None: ...
    def unreachable(self, reason: str) -> None:
        """The bus cannot be reached, or the connection has ended; another attempt follows."""
        ...


class BusConnection:
    def __init__(self, thread: GLibThread, address: str, timeout: float) -> None:
        """`timeout`: seconds for one attempt to connect."""
        self._thread = thread
        self._address = address
        self._timeout = round(timeout * 1000)
        self._bus: Any = None
        self._closed_handler = 0
        self._attachments: list[Attachment] = []
        self._waiting: list[Callable[[Any, str], None]] = []
        self._attempt: Any = None  # its Gio.Cancellable
        self._pause = FIRST_RETRY_UNSEEN
        self._retry: Any = None
        self._closing = False

    def attach(self, attachment: Attachment) -> None:
        """Keep it on the connection, from now on and after every loss."""
        self._attachments.append(attachment)
        if self._bus is not None:
            guarded(partial(attachment.attach, self._bus))
        else:
            self._connect()

    def detach(self, attachment: Attachment) -> None:
        if attachment in self._attachments:
            self._attachments.remove(attachment)
            if self._bus is not None:
                guarded(attachment.detach)

    def connected(self, then: Callable[[Any, str], None]) -> None:
        """`then(bus, "")` at once or when there is a connection; `then(None, reason)` when the attempt fails."""
        if self._bus is not None:
            then(self._bus, "")
        elif self._closing:
            then(None, "the connection is closed")
        else:
            self._waiting.append(then)
            self._connect()

    def close(self, closed: Callable[[], None]) -> None:
        """Send what is still to be sent, then disconnect. `closed()` is called within FLUSH_TIMEOUT."""
        self._closing = True
        if self._retry is not None:
            self._retry.destroy()
            self._retry = None
        if self._attempt is not None:
            self._attempt.cancel()
        if self._bus is None:
            closed()
            return
        connection = self._bus.con
        over = False

        def ended(*_: Any) -> None:
            nonlocal over
            if not over:
                over = True
                late.destroy()
                self._leave()
                closed()

        def flushed(*_: Any) -> None:
            self._leave()
            connection.close(None, guard(ended))  # waited for: what GLib still has to report keeps its context alive

        late = self._thread.later(ended, FLUSH_TIMEOUT)
        connection.flush(None, guard(flushed))

    # --- connecting -------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._attempt is not None or self._closing:
            return
        if self._retry is not None:
            self._retry.destroy()
            self._retry = None
        self._attempt = attempt = Gio.Cancellable.new()
        limit = self._thread.later(attempt.cancel, self._timeout)
        kind = Gio.DBusConnectionFlags
        flags = kind.AUTHENTICATION_CLIENT | kind.MESSAGE_BUS_CONNECTION

        def done(_: Any, result: Any) -> None:
            limit.destroy()
            self._attempt = None
            try:
                connection = Gio.DBusConnection.new_for_address_finish(result)
            except GLib.Error as error:
                late = error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.CANCELLED)
                self._unreachable("it does not answer" if late else error.message)
            else:
                self._connected(connection)

        Gio.DBusConnection.new_for_address(self._address, flags, None, attempt, guard(done))

    def _connected(self, connection: Any) -> None:
        if self._closing:
            connection.close(None, None)
            self._unreachable("the connection is closed")
            return
        self._bus = bus = PydbusBus(connection)
        self._pause = FIRST_RETRY
        self._closed_handler = connection.connect("closed", guard(self._closed))
        for attachment in list(self._attachments):
            guarded(partial(attachment.attach, bus))
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(bus, "")

    def _closed(self, *_: Any) -> None:
        self._leave()
        self._unreachable("the connection has ended")

    def _leave(self) -> None:
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.con.disconnect(self._closed_handler)
            for attachment in self._attachments:
                guarded(attachment.detach)

    def _unreachable(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(None, reason)
        if self._closing:
            return
        for attachment in list(self._attachments):
            guarded(partial(attachment.unreachable, reason))
        if self._attachments and self._attempt is None and self._retry is None:
            self._retry_later()

    def _retry_later(self) -> None:
        self._retry = self._thread.later(self._try_again, self._pause)
        self._pause = min(self._pause * 2, LAST_RETRY)

    def _try_again(self) -> None:
        self._retry = None
        if self._attachments:
            if self._socket_exists():
                self._connect()
            else:
                self._retry_later()  # an attempt wakes several threads

    def _socket_exists(self) -> bool:
        kind, _, path = self._address.partition("path=")
        return kind != "unix:" or os.path.exists(path.partition(",")[0])


class SignalRule(NamedTuple):
    """Which signals: as in a match rule."""

    sender: str
    interface: str
    member: str
    path: str
    arg0: str | None = None


class Subscriptions:
    """An Attachment: `heard(True)` after connecting and with every signal, `heard(False)` while there is no bus."""

    def __init__(self, rules: Sequence[SignalRule], heard: Callable[[bool], None]) -> None:
        self._rules = rules
        self._heard = heard
        self._held: list[Any] = []

    def attach(self, bus: Any) -> None:
        def fired(*_: Any) -> None:
            guarded(partial(self._heard, True))

        self._held = [
            bus.subscribe(
                sender=rule.sender, iface=rule.interface, signal=rule.member, object=rule.path, arg0=rule.arg0,
                signal_fired=fired,
            )
            for rule in self._rules
        ]  # fmt: skip
        self._heard(True)

    def detach(self) -> None:
        held, self._held = self._held, []
        for subscription in held:
            subscription.unsubscribe()

    def unreachable(self, reason: str) -> None:
        self._heard(False)


def guard(function: Callable[..., None]) -> Callable[..., None]:
    """`function` as a callback for GLib."""
    return lambda *arguments: guarded(partial(function, *arguments))
