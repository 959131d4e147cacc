"""The user's service manager (systemd --user): a small Protocol, and the state of a unit from its properties.

Implemented by user_manager_bus.py. Nothing here decides what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct

UNIT_EXISTS: Final = "org.freedesktop.systemd1.UnitExists"
NO_SUCH_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"

UnitProperty = tuple[str, str, Any]  # name, D-Bus signature, value


class UserManager(Protocol):
    """All methods raise BusError, within a few seconds. They never block the event loop."""

    async def start(self, unit: str, properties: Sequence[UnitProperty]) -> None:
        """Start a transient unit. Returns once the job is queued."""
        ...

    async def show(self, unit: str) -> Mapping[str, Any] | None:
        """The properties of UNIT_PROPERTIES, then of SERVICE_PROPERTIES, in their order; None: no such unit."""
        ...

    async def stop(self, unit: str) -> None: ...
    async def kill(self, unit: str, number: int) -> None:
        """Signal every process of the unit."""
        ...

    async def reset_failed(self, unit: str) -> None: ...
    async def ref(self, unit: str) -> None:
        """Keep the unit loaded after it has ended, until `unref` or the end of the connection to the bus."""
        ...

    async def unref(self, unit: str) -> None:
        """Has no effect without a reference."""
        ...

    async def environment(self) -> list[str]:
        """The environment that every unit inherits: "NAME=value"."""
        ...

    async def unit_of(self, pid: int) -> str | None:
        """The unit that a process belongs to."""
        ...

    async def job_type(self, unit: str) -> str | None:
        """The type of the unit's job: "start", "stop", "restart", …; None without a job."""
        ...


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
