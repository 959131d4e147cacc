"""Properties of D-Bus services, watched: their values, None while a service is not there. Starts no service.

Signals need a GLib loop: it runs in a thread of its own, never in asyncio's. PyGObject is imported there: a machine
without it, or without the bus, has no such service. Knows no property's meaning.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from accelerd.system.dbus import glib

log = logging.getLogger(__name__)

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
PATIENCE_MS: Final = 5000  # for one answer
AGAIN_S: Final = 10  # until the next try to reach a bus that is not there
JOIN: Final = 1.0  # s; a thread that hangs in a call is left behind


def session_bus(env: Mapping[str, str] | None = None) -> str:
    """The address of this user's bus."""
    env = os.environ if env is None else env
    runtime = env.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return env.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={runtime}/bus"


@dataclass(frozen=True)
class Property:
    """What is watched."""

    service: str  # a well-known name
    path: str
    interface: str
    name: str
    signals: Sequence[str] = ()  # of the interface: after one of them the value may be another


class PropertiesWatch:
    """Some of one bus, together. See the module's text."""

    def __init__(
        self,
        address: str,
        what: Sequence[Property],
        tell: Callable[[tuple[Any, ...]], None],
        again: float = AGAIN_S,
    ) -> None:
        """`tell(values)`, in the order of `what`, is called on the loop: at first and with each change.

        `again`: seconds between two tries to reach the bus.
        """
        self._address = address
        self._what = tuple(what)
        self._services = ", ".join(dict.fromkeys(one.service for one in what))
        self._tell = tell
        self._again = max(1, round(again * 1000))
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Any = None
        self._main: Any = None
        self._closing = threading.Event()
        # in the thread
        self._connection: Any = None
        self._retry: Any = None
        self._handler = 0
        self._subscriptions: list[int] = []
        self._values: tuple[Any, ...] | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"watch of {self._services}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; nothing is told afterwards."""
        self._closing.set()
        self._loop = None
        context = self._context
        if context is not None:
            _do_in(context, self._quit)
        if self._thread is not None:
            self._thread.join(JOIN)
            self._thread = None

    # --- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            glib.load()
        except ImportError as error:
            log.info("%s: not watched: %s is missing (package python3-gi)", self._services, error.name)
            self._nobody()
            return
        from gi.repository import GLib

        context = GLib.MainContext.new()
        context.push_thread_default()
        self._main = GLib.MainLoop.new(context, False)
        self._context = context
        if not self._closing.is_set():
            self._connect()
        if not self._closing.is_set():
            self._main.run()
        if self._retry is not None:
            self._retry.destroy()
        self._disconnect()
        while context.iteration(False):  # what is left to be told to nobody keeps the context
            continue
        context.pop_thread_default()
        self._context = self._main = self._retry = None

    def _quit(self, *_: Any) -> bool:
        self._main.quit()
        return False

    def _connect(self, *_: Any) -> bool:
        """Once; later again when the bus is not there or goes. False: the timer that called it is over."""
        from gi.repository import Gio, GLib

        kind = Gio.DBusConnectionFlags
        flags = kind.AUTHENTICATION_CLIENT | kind.MESSAGE_BUS_CONNECTION
        try:
            # one of its own: GLib ends the program when the shared one breaks
            self._connection = Gio.DBusConnection.new_for_address_sync(self._address, flags, None, None)
        except GLib.Error as error:
            log.debug("cannot reach the bus of %s: %s", self._services, error.message)
            self._nobody()
            self._retry = _do_in(self._context, self._connect, self._again)
            return False
        self._handler = self._connection.connect("closed", self._closed)
        none = Gio.DBusSignalFlags.NONE

        def heard(sender: str, interface: str, member: str, path: str, first: str | None) -> None:
            number = self._connection.signal_subscribe(sender, interface, member, path, first, none, self._heard)
            self._subscriptions.append(number)

        for service in dict.fromkeys(one.service for one in self._what):
            heard(BUS, BUS, "NameOwnerChanged", BUS_PATH, service)
        for what in self._what:
            heard(what.service, PROPERTIES, "PropertiesChanged", what.path, what.interface)
            for signal in what.signals:
                heard(what.service, what.interface, signal, what.path, None)
        self._look()
        return False

    def _disconnect(self) -> None:
        from gi.repository import GLib

        connection, self._connection = self._connection, None
        if connection is not None:
            for subscription in self._subscriptions:
                connection.signal_unsubscribe(subscription)
            self._subscriptions.clear()
            connection.disconnect(self._handler)
            with suppress(GLib.Error):  # it is closed already
                connection.close_sync(None)

    def _closed(self, *_: Any) -> None:
        self._disconnect()
        self._nobody()
        if not self._closing.is_set():
            self._retry = _do_in(self._context, self._connect, self._again)

    def _heard(self, *_: Any) -> None:
        if self._connection is not None:
            self._look()

    def _look(self) -> None:
        self._deliver(
            tuple(self._call(one.service, one.path, PROPERTIES, "Get", one.interface, one.name) for one in self._what)
        )

    def _call(self, service: str, path: str, interface: str, method: str, *values: str) -> Any:
        """The answer's only value; None when nobody is there to give one."""
        from gi.repository import Gio, GLib

        arguments, flags = GLib.Variant(f"({'s' * len(values)})", values), Gio.DBusCallFlags.NO_AUTO_START
        try:
            answer = self._connection.call_sync(
                service, path, interface, method, arguments, None, flags, PATIENCE_MS, None
            )
        except GLib.Error as error:
            log.debug("%s does not say: %s", service, error.message)
            return None
        return answer.unpack()[0]

    def _nobody(self) -> None:
        self._deliver((None,) * len(self._what))

    def _deliver(self, values: tuple[Any, ...]) -> None:
        if values == self._values:
            return
        self._values = values
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(self._arrived, values)

    # --- on the loop ------------------------------------------------------------------------------------------

    def _arrived(self, values: tuple[Any, ...]) -> None:
        if not self._closing.is_set():
            self._tell(values)


class PropertyWatch(PropertiesWatch):
    """One alone."""

    def __init__(self, address: str, what: Property, tell: Callable[[Any], None], again: float = AGAIN_S) -> None:
        """`tell(value)` is called on the loop, at first and with each change; `again`: seconds between two tries."""
        super().__init__(address, (what,), lambda values: tell(values[0]), again)


def _do_in(context: Any, work: Callable[..., bool], milliseconds: int = 0) -> Any:
    """Have the loop of this context do it, from any thread, also before it runs. What can be destroyed instead."""
    from gi.repository import GLib

    source = GLib.timeout_source_new(milliseconds)
    source.set_callback(work)
    source.attach(context)
    return source
