"""The user's service manager (systemd --user) as the homes need it: a small port, and what a unit's properties say.

The port's real side is user_manager_bus.py. Nothing here decides what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

UNIT_EXISTS: Final = "org.freedesktop.systemd1.UnitExists"
NO_SUCH_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"

UnitProperty = tuple[str, str, Any]  # name, D-Bus signature, value


class UserManager(Protocol):
    """All raise BusError, within a few seconds. To be used on the event loop, which they never block."""

    async def start(self, unit: str, properties: Sequence[UnitProperty]) -> None:
        """Start a transient unit. Returns when the job is queued."""
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
        """Keep the unit's properties after its end, until `unref` or the end of this program."""
        ...

    async def unref(self, unit: str) -> None:
        """Nothing happens when it is not held."""
        ...

    async def environment(self) -> list[str]:
        """What every unit inherits: "NAME=value"."""
        ...

    async def unit_of(self, pid: int) -> str | None:
        """The unit that a process belongs to."""
        ...

    async def job_type(self, unit: str) -> str | None:
        """What is being done with a unit now: "start", "stop", "restart", …; None: nothing."""
        ...


# Read one after the other, in this order: when there was no job any more, the state read after it is what came of it;
# and when that is final, so is everything read later.
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


@dataclass(frozen=True)
class UnitState:
    """A service unit at one moment."""

    active: str  # "inactive", "activating", "active", "deactivating", "failed"
    began: bool  # its program was executed
    queued: bool  # a job waits or runs
    main_pid: int | None  # while it lives
    first_pid: int | None  # of the main process, also after its end
    status: int | None  # of the main process: exit status, or minus the signal
    result: str  # "success", "exit-code", "signal", "core-dump", "oom-kill", "timeout", "resources", …
    cgroup: str

    @classmethod
    def parse(cls, properties: Mapping[str, Any]) -> UnitState:
        """From what `show` gave."""
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
        """Nothing of it lives and nothing is about to."""
        return self.active in ("inactive", "failed") and not self.queued

    @property
    def trouble(self) -> str | None:
        """How it ended, if that says more than the status."""
        return self.result if self.over and self.result != "success" else None
