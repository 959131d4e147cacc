"""The user's service manager over the session bus, by pydbus: blocking calls in one thread of their own.

No GLib main loop is needed for them. pydbus and PyGObject are imported with the first call: a machine without them has
no systemd homes, and nothing else is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from accelerd.supervise.homes.user_manager import (
    NO_SUCH_UNIT,
    SERVICE_PROPERTIES,
    UNIT_PROPERTIES,
    ManagerError,
    Property,
)
from accelerd.system.dbus import glib
from accelerd.system.worker_thread import WorkerThread

T = TypeVar("T")

CALL_TIMEOUT: Final = 5.0  # s for one answer of the manager
NAME: Final = "org.freedesktop.systemd1"
UNIT: Final = f"{NAME}.Unit"
SERVICE: Final = f"{NAME}.Service"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
NOT_REFERENCED: Final = f"{NAME}.NotReferenced"
NO_UNIT_FOR_PID: Final = f"{NAME}.NoUnitForPID"


class BusUserManager:
    """A UserManager. Connects when it is first asked, and again after the bus was away."""

    def __init__(self, address: str, timeout: float = CALL_TIMEOUT) -> None:
        self._address = address
        self._timeout = timeout
        self._thread = WorkerThread("user manager")
        self._bus: Any = None
        self._manager: Any = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> BusUserManager:
        """The manager of this session."""
        env = os.environ if env is None else env
        runtime = env.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
        return cls(env.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={runtime}/bus")

    # --- the port ---------------------------------------------------------------------------------------------

    async def start(self, unit: str, properties: Sequence[Property]) -> None:
        def work() -> None:
            from gi.repository import GLib

            given = [(name, GLib.Variant(signature, value)) for name, signature, value in properties]
            self._manager.StartTransientUnit(unit, "fail", given, [], timeout=self._timeout)

        await self._do("start a unit", work)

    async def show(self, unit: str) -> Mapping[str, Any] | None:
        def work() -> Mapping[str, Any]:
            path = self._manager.GetUnit(unit, timeout=self._timeout)
            found = {name: self._property(path, UNIT, name) for name in UNIT_PROPERTIES}
            return found | {name: self._property(path, SERVICE, name) for name in SERVICE_PROPERTIES}

        return await self._unless(NO_SUCH_UNIT, "look at a unit", work)

    async def stop(self, unit: str) -> None:
        await self._unless(NO_SUCH_UNIT, "stop a unit", lambda: self._call("StopUnit", unit, "replace"))

    async def kill(self, unit: str, number: int) -> None:
        await self._unless(NO_SUCH_UNIT, "kill a unit", lambda: self._call("KillUnit", unit, "all", number))

    async def reset_failed(self, unit: str) -> None:
        await self._unless(NO_SUCH_UNIT, "reset a unit", lambda: self._call("ResetFailedUnit", unit))

    async def ref(self, unit: str) -> None:
        await self._do("hold a unit", lambda: self._call("RefUnit", unit))

    async def unref(self, unit: str) -> None:
        try:
            await self._do("let a unit go", lambda: self._call("UnrefUnit", unit))
        except ManagerError as error:
            if error.name not in (NO_SUCH_UNIT, NOT_REFERENCED):
                raise

    async def environment(self) -> list[str]:
        path = "/org/freedesktop/systemd1"
        return await self._do(
            "read systemd's environment", lambda: list(self._property(path, f"{NAME}.Manager", "Environment"))
        )

    async def unit_of(self, pid: int) -> str | None:
        def work() -> str:
            path = self._call("GetUnitByPID", pid)
            return str(self._property(path, UNIT, "Id"))

        return await self._unless(NO_UNIT_FOR_PID, "find the unit of a process", work)

    async def job_type(self, unit: str) -> str | None:
        def work() -> str | None:
            path = self._manager.GetUnit(unit, timeout=self._timeout)
            number, job = self._property(path, UNIT, "Job")
            return str(self._property(job, f"{NAME}.Job", "JobType")) if number else None

        return await self._unless(NO_SUCH_UNIT, "look at a unit's job", work)

    def close(self) -> None:
        """Ends the connection: what is held by `ref` is let go."""
        self._thread.close()
        if self._bus is not None:
            self._bus.con.close(None, None)
            self._bus = self._manager = None

    # --- in the thread ----------------------------------------------------------------------------------------

    def _call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._manager, method)(*arguments, timeout=self._timeout)

    def _property(self, path: str, interface: str, name: str) -> Any:
        """One property, without the introspection of every unit that a proxy would cost."""
        from gi.repository import GLib

        arguments = GLib.Variant("(ss)", (interface, name))
        milliseconds = int(self._timeout * 1000)
        answer = self._bus.con.call_sync(NAME, path, PROPERTIES, "Get", arguments, None, 0, milliseconds, None)
        return answer.unpack()[0]

    def _connect(self) -> None:
        if self._bus is not None and not self._bus.con.is_closed():
            return
        glib.load()
        import pydbus

        bus = pydbus.connect(self._address)  # a connection of its own: GLib does not end the program when it breaks
        self._manager = bus.get(".systemd1", timeout=self._timeout)[f"{NAME}.Manager"]
        self._bus = bus

    # --- from the loop ----------------------------------------------------------------------------------------

    async def _do(self, what: str, work: Callable[[], T]) -> T:
        def connected() -> T:
            try:
                self._connect()
                return work()
            except ImportError as error:
                raise ManagerError(f"cannot reach systemd: {error.name} is missing (package python3-gi)") from None
            except Exception as error:
                raise _explain(what, error) from error

        try:
            return await self._thread.call(connected, self._timeout * 2)
        except TimeoutError:
            raise ManagerError(f"cannot {what}: systemd does not answer") from None

    async def _unless(self, name: str, what: str, work: Callable[[], T]) -> T | None:
        """`_do`, or None when the answer is the D-Bus error `name`."""
        try:
            return await self._do(what, work)
        except ManagerError as error:
            if error.name == name:
                return None
            raise


def _explain(what: str, error: Exception) -> ManagerError:
    from gi.repository import Gio, GLib

    if isinstance(error, GLib.Error):
        name = Gio.DBusError.get_remote_error(error) or ""
        text = error.message.removeprefix(f"GDBus.Error:{name}: ")
        silent = name in ("org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Timeout")
        return ManagerError(f"cannot {what}: {text}", "" if silent else name)
    return ManagerError(f"cannot {what}: {type(error).__name__}: {error}")
