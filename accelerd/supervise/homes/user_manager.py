"""The user's service manager (systemd --user) over the session bus, and the state of a unit from its properties.

Nothing here decides what runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec import Struct

from accelerd.system.dbus.client import BusClient, BusError
from accelerd.system.dbus.port import Variant

UNIT_EXISTS: Final = "org.freedesktop.systemd1.UnitExists"
NO_SUCH_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"

UnitProperty = tuple[str, str, Any]  # name, D-Bus signature, value


# Read in this order: if there was no job any more, the state that is read after it is the job's result; and if that
# state is final, so is everything that is read later.
UNIT_PROPERTIES: Final = ("Job", "ActiveState", "ActiveEnterTimestampMonotonic")
SERVICE_PROPERTIES: Final = (
    "MainPID",
    "ExecMainPID",
    "ExecMainCode",
    "ExecMainStatus",
    "Result",
    "ControlGroup",
)

_CLD_EXITED: Final = 1


class UnitState(Struct, frozen=True):
    """A service unit at one moment."""

    active: str  # "inactive", "activating", "active", "deactivating", "failed"
    began: bool  # its program has been executed
    queued: bool  # it has a job
    main_pid: int | None  # while it runs
    first_pid: int | None  # of the main process, also after its end
    status: int | None  # of the main process: exit status, or minus the signal
    result: str  # "success", "exit-code", "signal", "core-dump", "oom-kill", "timeout", "resources", …
    cgroup: str

    @classmethod
    def parse(cls, properties: Mapping[str, Any]) -> UnitState:
        """From the properties that `show` returns."""
        code, status = properties["ExecMainCode"], properties["ExecMainStatus"]
        return cls(
            active=properties["ActiveState"],
            began=properties["ActiveEnterTimestampMonotonic"] != 0,
            queued=properties["Job"][0] != 0,
            main_pid=properties["MainPID"] or None,
            first_pid=properties["ExecMainPID"] or None,
            status=None if code == 0 else status if code == _CLD_EXITED else -status,
            result=properties["Result"],
            cgroup=properties["ControlGroup"],
        )

    @property
    def over(self) -> bool:
        """No process of it runs or is about to start."""
        return self.active in ("inactive", "failed") and not self.queued

    @property
    def trouble(self) -> str | None:
        """How it ended, if that is more than its exit status."""
        return self.result if self.over and self.result != "success" else None


T = TypeVar("T")

CALL_TIMEOUT: Final = 5.0  # s for one answer of the manager
NAME: Final = "org.freedesktop.systemd1"
PATH: Final = "/org/freedesktop/systemd1"
MANAGER: Final = f"{NAME}.Manager"
UNIT: Final = f"{NAME}.Unit"
SERVICE: Final = f"{NAME}.Service"
NOT_REFERENCED: Final = f"{NAME}.NotReferenced"
NO_UNIT_FOR_PID: Final = f"{NAME}.NoUnitForPID"


class UserManager:
    """All methods raise BusError, within a few seconds, and never block the event loop. What `ref` holds is held until
    the connection to the bus ends."""

    def __init__(self, bus: BusClient, timeout: float = CALL_TIMEOUT) -> None:
        self._bus = bus
        self._timeout = timeout

    async def start(self, unit: str, properties: Sequence[UnitProperty]) -> None:
        """Start a transient unit. Returns once the job is queued."""
        given = [(name, Variant(signature, value)) for name, signature, value in properties]
        await self._call("start a unit", "StartTransientUnit", "(ssa(sv)a(sa(sv)))", unit, "fail", given, [])

    async def show(self, unit: str) -> Mapping[str, Any] | None:
        """The properties of UNIT_PROPERTIES, then of SERVICE_PROPERTIES, in their order; None: no such unit."""
        wanted = [(UNIT, name) for name in UNIT_PROPERTIES] + [(SERVICE, name) for name in SERVICE_PROPERTIES]

        async def ask() -> Mapping[str, Any]:
            path = await self._path(unit)
            # all at once: they are sent, and answered, in this order
            values = await asyncio.gather(*(self._property(path, interface, name) for interface, name in wanted))
            return {name: value for (_, name), value in zip(wanted, values, strict=True)}

        return await _unless(ask(), NO_SUCH_UNIT)

    async def stop(self, unit: str) -> None:
        await _unless(self._call("stop a unit", "StopUnit", "(ss)", unit, "replace"), NO_SUCH_UNIT)

    async def kill(self, unit: str, number: int) -> None:
        await _unless(self._call("kill a unit", "KillUnit", "(ssi)", unit, "all", number), NO_SUCH_UNIT)

    async def reset_failed(self, unit: str) -> None:
        await _unless(self._call("reset a unit", "ResetFailedUnit", "(s)", unit), NO_SUCH_UNIT)

    async def ref(self, unit: str) -> None:
        """Keep the unit loaded after it has ended."""
        await self._call("reference a unit", "RefUnit", "(s)", unit)

    async def unref(self, unit: str) -> None:
        """Has no effect without a reference."""
        await _unless(self._call("release a unit", "UnrefUnit", "(s)", unit), NO_SUCH_UNIT, NOT_REFERENCED)

    async def environment(self) -> list[str]:
        """The environment that every unit inherits: "NAME=value"."""
        return list(await self._property(PATH, MANAGER, "Environment"))

    async def listens(self, unit: str) -> list[str] | None:
        """Where a socket unit listens by its files, as "127.0.0.1:4000"; None: there is no such unit."""
        path = (await self._call("look up a unit", "LoadUnit", "(s)", unit))[0]
        if await self._property(path, UNIT, "LoadState") != "loaded":
            return None
        return [address for _, address in await self._property(path, f"{NAME}.Socket", "Listen")]

    async def reload(self) -> None:
        """Read all unit files again."""
        await self._call("read the units again", "Reload", "()")

    async def unit_of(self, pid: int) -> str | None:

        async def ask() -> str:
            path = (await self._call("find the unit of a process", "GetUnitByPID", "(u)", pid))[0]
            return str(await self._property(path, UNIT, "Id"))

        return await _unless(ask(), NO_UNIT_FOR_PID)

    async def job_type(self, unit: str) -> str | None:
        """The type of the unit's job: "start", "stop", "restart", …; None without a job."""

        async def ask() -> str | None:
            number, job = await self._property(await self._path(unit), UNIT, "Job")
            return str(await self._property(job, f"{NAME}.Job", "JobType")) if number else None

        return await _unless(ask(), NO_SUCH_UNIT)

    # --- calls --------------------------------------------------------------------------------------------------

    async def _path(self, unit: str) -> str:
        return str((await self._call("look up a unit", "GetUnit", "(s)", unit))[0])

    async def _property(self, path: str, interface: str, name: str) -> Any:
        """One property: GetAll would cost a hundred others."""
        try:
            return await self._bus.get_property(NAME, path, interface, name, within=self._timeout)
        except BusError as error:
            raise BusError(f"cannot ask systemd for {name}: {error.message}", error.name) from None

    async def _call(self, what: str, method: str, signature: str, *values: Any) -> tuple[Any, ...]:
        try:
            return await self._bus.call(NAME, PATH, method, signature, *values, interface=MANAGER, within=self._timeout)
        except BusError as error:
            raise BusError(f"cannot {what}: {error.message}", error.name) from None


async def _unless(work: Awaitable[T], *names: str) -> T | None:
    """The result; None when it fails with one of these D-Bus errors."""
    try:
        return await work
    except BusError as error:
        if error.name in names:
            return None
        raise
