"""D-Bus services, called from the event loop. One `BusClient` for each bus and one GLib thread serve the whole daemon.

A client connects with its first call and again after the bus was away. Where PyGObject or pydbus is missing every call
raises a BusError that says so.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from accelerd.system.dbus.thread import GLibThread, finished, tell

if TYPE_CHECKING:
    from accelerd.system.dbus.connection import Attachment, BusConnection

SYSTEM_BUS_ADDRESS: Final = "unix:path=/run/dbus/system_bus_socket"
DBUS: Final = "org.freedesktop.DBus"  # the bus itself: name and interface
DBUS_PATH: Final = "/org/freedesktop/DBus"
PROPERTIES: Final = f"{DBUS}.Properties"
NO_OWNER: Final = f"{DBUS}.Error.NameHasNoOwner"
CONNECT_TIMEOUT: Final = 5.0  # s
CALL_TIMEOUT: Final = 15.0  # s; a service may have to be started first
CLOSE_TIMEOUT: Final = 2.0  # s


class BusError(Exception):
    """A call failed. `name`: the D-Bus error's name; empty when there was no answer."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.name = name


def session_bus_address(env: Mapping[str, str] | None = None) -> str:
    """The address of this user's bus, which the user's systemd is on as well."""
    env = os.environ if env is None else env
    runtime = env.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return env.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={runtime}/bus"


def system_bus_address(env: Mapping[str, str] | None = None) -> str:
    env = os.environ if env is None else env
    return env.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS_ADDRESS


class BusClient:
    """The connection to one bus, shared by all that use it. All methods on the loop's thread."""

    def __init__(
        self,
        address: str,
        bus: str = "session bus",
        thread: GLibThread | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        """`bus`: what messages call it; `thread`: a shared one, else the client has its own."""
        self.bus = bus
        self.connect_timeout = connect_timeout
        self._address = address
        self._own_thread = thread is None
        self.thread = thread or GLibThread()
        self._connection: BusConnection | None = None

    async def ready(self) -> None:
        """Have the GLib thread run. BusError where PyGObject or pydbus is missing."""
        try:
            await asyncio.wrap_future(self.thread.start())
        except (ImportError, ValueError) as error:  # ValueError: gi.require_version
            missing = getattr(error, "name", None) or str(error)
            raise BusError(f"{missing} is missing (packages python3-gi and python3-pydbus)") from None
        if self._connection is None:
            from accelerd.system.dbus.connection import BusConnection

            self._connection = BusConnection(self.thread, self._address, self.connect_timeout)

    async def call(
        self,
        name: str,
        path: str,
        method: str,
        signature: str = "()",
        *values: Any,
        interface: str = "",
        within: float = CALL_TIMEOUT,
        start: bool = True,
    ) -> tuple[Any, ...]:
        """The answer of the service `name`, within so many seconds. BusError.

        `interface`: unless it is `name`; variants in `values` are given as port.Variant; `start`: may the bus start
        the service.
        """
        body, _ = await self._send(_Request(name, path, interface or name, method, signature, values, within, start))
        return tuple(body.unpack())

    async def call_for_file(
        self, name: str, path: str, interface: str, method: str, signature: str, *values: Any, within: float
    ) -> FileIO:
        """The file descriptor in the answer, to be closed by the caller. BusError."""
        request = _Request(name, path, interface, method, signature, values, within, start=True, file=True)
        _, file = await self._send(request)
        assert file is not None
        return file

    async def get_property(
        self, name: str, path: str, interface: str, key: str, *, within: float = CALL_TIMEOUT, start: bool = True
    ) -> Any:
        """The value of a property. BusError."""
        arguments = (name, path, "Get", "(ss)", interface, key)
        return (await self.call(*arguments, interface=PROPERTIES, within=within, start=start))[0]

    async def owner(self, name: str, within: float = CALL_TIMEOUT) -> str:
        """The unique name of the owner of `name`; empty without one. Starts no service. BusError."""
        try:
            return str((await self.call(DBUS, DBUS_PATH, "GetNameOwner", "(s)", name, within=within))[0])
        except BusError as error:
            if error.name == NO_OWNER:
                return ""
            raise

    async def reachable(self, name: str) -> bool:
        """Does anybody own `name`, or would the bus start the service? BusError."""
        return bool(await self.owner(name)) or name in (await self.call(DBUS, DBUS_PATH, "ListActivatableNames"))[0]

    def attach(self, attachment: Attachment) -> None:
        """Keep it on the connection; after `ready`."""
        if self._connection is not None:
            self.thread.do(partial(self._connection.attach, attachment))

    def detach(self, attachment: Attachment) -> None:
        if self._connection is not None:
            self.thread.do(partial(self._connection.detach, attachment))

    async def close(self) -> None:
        """Disconnect: names, exported objects and references to units end. Nothing may be called afterwards."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await finished(lambda done: self.thread.do(partial(connection.close, done)), CLOSE_TIMEOUT)
        if self._own_thread:
            self.thread.stop()

    # --- inside -----------------------------------------------------------------------------------------------

    async def _send(self, request: _Request) -> _Answer:
        await self.ready()
        connection = self._connection
        assert connection is not None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Answer] = loop.create_future()

        def deliver(outcome: _Answer | BusError) -> None:
            if isinstance(outcome, BusError):
                if not answer.done():
                    answer.set_exception(outcome)
            elif not answer.done():
                answer.set_result(outcome)
            elif outcome[1] is not None:
                outcome[1].close()  # nobody waits for it any more

        def connected(bus: Any, reason: str) -> None:
            if bus is None:
                tell(loop, deliver, BusError(f"cannot reach the {self.bus}: {reason}"))
            else:
                request.send(bus, partial(tell, loop, deliver))

        self.thread.do(partial(connection.connected, connected))
        return await answer


_Answer = tuple[Any, FileIO | None]  # the body, a GLib.Variant, and the file that came with it


class _Request(Struct, frozen=True):
    name: str
    path: str
    interface: str
    method: str
    signature: str
    values: tuple[Any, ...]
    within: float
    start: bool
    file: bool = False

    def send(self, bus: Any, deliver: Callable[[_Answer | BusError], None]) -> None:
        """In the GLib thread. `deliver` gets the outcome."""
        from gi.repository import Gio

        from accelerd.system.dbus.values import pack

        try:
            arguments = pack(self.signature, self.values)
        except ValueError as error:
            deliver(BusError(str(error)))
            return

        def done(connection: Any, result: Any) -> None:
            deliver(self._outcome(connection, result))

        flags = Gio.DBusCallFlags.NONE if self.start else Gio.DBusCallFlags.NO_AUTO_START
        milliseconds = max(1, round(self.within * 1000))
        call = (self.name, self.path, self.interface, self.method, arguments, None, flags, milliseconds)
        if self.file:
            bus.con.call_with_unix_fd_list(*call, None, None, done)
        else:
            bus.con.call(*call, None, done)

    def _outcome(self, connection: Any, result: Any) -> _Answer | BusError:
        from gi.repository import Gio, GLib

        try:
            if not self.file:
                return connection.call_finish(result), None
            body, descriptors = connection.call_with_unix_fd_list_finish(result)
            return body, FileIO(descriptors.get(body.unpack()[0]), "wb")
        except GLib.Error as error:
            remote = Gio.DBusError.get_remote_error(error) or ""
            late = error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.TIMED_OUT)
            text = f"{self.name} has not answered within {self.within:g} s" if late else error.message
            return BusError(text.removeprefix(f"GDBus.Error:{remote}: "), remote)
        except Exception as error:
            return BusError(f"unexpected answer: {type(error).__name__}: {error}")


class Buses(Struct, frozen=True):
    """The two buses that a daemon uses, on one GLib thread."""

    session: BusClient
    system: BusClient
    thread: GLibThread

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Buses:
        thread = GLibThread()
        session = BusClient(session_bus_address(env), "session bus", thread)
        return cls(session, BusClient(system_bus_address(env), "system bus", thread), thread)

    async def close(self) -> None:
        """Disconnect from both, then end the thread."""
        await self.session.close()
        await self.system.close()
        self.thread.stop()
