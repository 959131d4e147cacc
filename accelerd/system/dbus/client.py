"""The system bus, or another, for the few calls that the daemon makes there: blocking, in one thread of their own.

Connects with the first call and again after the bus was away. PyGObject is imported then: a machine without it, or
without a system bus, has only the reason why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from io import FileIO
from typing import Any, Final, TypeVar

from accelerd.system.dbus import glib
from accelerd.system.worker_thread import WorkerThread

T = TypeVar("T")

ADDRESS: Final = "unix:path=/run/dbus/system_bus_socket"
BUS: Final = "org.freedesktop.DBus"
NO_OWNER: Final = "org.freedesktop.DBus.Error.NameHasNoOwner"
PATIENCE: Final = 15.0  # s; a service may have to be started first


class BusError(Exception):
    """`name` is the D-Bus error's, empty when there was no answer."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.name = name


def system_bus(env: Mapping[str, str] | None = None) -> str:
    """The address of this machine's bus."""
    env = os.environ if env is None else env
    return env.get("DBUS_SYSTEM_BUS_ADDRESS") or ADDRESS


class SystemBus:
    """See the module's text."""

    def __init__(self, address: str, patience: float = PATIENCE, bus: str = "system bus") -> None:
        self._address = address
        self._patience = patience
        self._bus = bus
        self._thread = WorkerThread(bus)
        self._connection: Any = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> SystemBus:
        return cls(system_bus(env))

    async def call(
        self, name: str, path: str, method: str, signature: str = "()", *values: Any, interface: str = ""
    ) -> tuple[Any, ...]:
        """What `name` answers; the interface has its name unless another is given. BusError."""

        def work() -> tuple[Any, ...]:
            from gi.repository import GLib

            arguments = GLib.Variant(signature, values)
            milliseconds = int(self._patience * 1000)
            answer = self._connection.call_sync(
                name, path, interface or name, method, arguments, None, 0, milliseconds, None
            )
            return tuple(answer.unpack())

        return await self._do(work)

    async def descriptor(
        self, name: str, path: str, interface: str, method: str, signature: str, *values: Any
    ) -> FileIO:
        """The file descriptor that `name` hands out, to be closed by the caller. BusError."""

        def work() -> FileIO:
            from gi.repository import GLib

            arguments = GLib.Variant(signature, values)
            milliseconds = int(self._patience * 1000)
            answer, handed = self._connection.call_with_unix_fd_list_sync(
                name, path, interface, method, arguments, None, 0, milliseconds, None, None
            )
            return FileIO(handed.get(answer.unpack()[0]), "wb")

        return await self._do(work)

    async def owner(self, name: str) -> str:
        """The unique name of whoever is there under this one; empty: nobody. Starts nobody. BusError."""
        try:
            return str((await self.call(BUS, "/org/freedesktop/DBus", "GetNameOwner", "(s)", name))[0])
        except BusError as error:
            if error.name == NO_OWNER:
                return ""
            raise

    async def has_owner(self, name: str) -> bool:
        """Is somebody there under this name? Starts nobody. BusError."""
        return bool((await self.call(BUS, "/org/freedesktop/DBus", "NameHasOwner", "(s)", name))[0])

    async def reachable(self, name: str) -> bool:
        """Is somebody there under this name, or would the bus start them? BusError."""
        if await self.has_owner(name):
            return True
        return name in (await self.call(BUS, "/org/freedesktop/DBus", "ListActivatableNames"))[0]

    def close(self) -> None:
        """Ends the connection, and with it what others hold for it."""
        self._thread.close()
        if self._connection is not None:
            self._connection.close(None, None)
            self._connection = None

    # --- in the thread ----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._connection is not None and not self._connection.is_closed():
            return
        glib.load()
        from gi.repository import Gio

        kind = Gio.DBusConnectionFlags
        flags = kind.AUTHENTICATION_CLIENT | kind.MESSAGE_BUS_CONNECTION
        # one of its own: GLib ends the program when the shared one breaks
        self._connection = Gio.DBusConnection.new_for_address_sync(self._address, flags, None, None)

    async def _do(self, work: Callable[[], T]) -> T:
        def connected() -> T:
            try:
                self._connect()
                return work()
            except ImportError as error:
                raise BusError(f"{error.name} is missing (package python3-gi)") from None
            except Exception as error:
                raise _explain(error) from error

        try:
            return await self._thread.call(connected, self._patience * 2)
        except TimeoutError:
            raise BusError(f"the {self._bus} does not answer") from None


def _explain(error: Exception) -> BusError:
    from gi.repository import Gio, GLib

    if isinstance(error, GLib.Error):
        name = Gio.DBusError.get_remote_error(error) or ""
        return BusError(error.message.removeprefix(f"GDBus.Error:{name}: "), name)
    return BusError(f"{type(error).__name__}: {error}")
