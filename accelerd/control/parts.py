"""What operations work with: the parts of the daemon by name, and the daemon itself as far as they need it.

Holds nothing of its own. Knows no operation and no adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from accelerd.base.errors import AccelError
from accelerd.config.problems import Problem
from accelerd.gateway.listeners import ListenerStatus
from accelerd.policy.yielding import YieldReport

if TYPE_CHECKING:
    from accelerd.base.events import EventStream
    from accelerd.base.ports import Clock, Roots
    from accelerd.control.devices import DeviceLooks
    from accelerd.control.jobs import Jobs
    from accelerd.control.known_conflicts import KnownConflicts
    from accelerd.control.model_info import ModelInfo
    from accelerd.control.tuning_runs import TuningRuns
    from accelerd.devices.current_devices import DeviceWatch
    from accelerd.engines.remote.remotes import Remotes
    from accelerd.gateway.request_router import RequestRouter
    from accelerd.instances import InstanceInfo
    from accelerd.memory.watch import MemoryWatch
    from accelerd.policy.pins import Pins
    from accelerd.policy.yielding import Yielding
    from accelerd.scheduler.record import Snapshot
    from accelerd.scheduler.service import Scheduler
    from accelerd.supervise.homes.containers.maintenance import ToolboxMaintenance
    from accelerd.supervise.supervisor import ProcessSupervisor


class ConfigStatus(msgspec.Struct):
    files: list[str]
    problems: list[Problem]  # of the files as they were read last
    in_use: bool = True  # False: they have errors, and the last configuration without any is in use


class DesktopStatus(msgspec.Struct):
    sleep: Any  # see SleepPolicy.report
    saving: str | None  # why power is saved
    notifications: Any  # see DesktopNotifications.report


class DaemonStatus(msgspec.Struct, kw_only=True):
    """What `status` says of the daemon itself. Seconds."""

    version: str
    pid: int
    uptime: float
    state: str  # "starting", "running", "draining"
    status: str  # one line for people
    listen: list[str]
    listeners: list[ListenerStatus]  # the same addresses with what else is known of them, and those that cannot be had
    config: ConfigStatus
    yielded: YieldReport | None
    performance: Any  # see ClockBoost.report
    desktop: DesktopStatus | None
    degraded: str | None  # what this machine, or a part of it, lacks


class ControlledDaemon(Protocol):
    """The daemon, as far as its operations and the bus need it."""

    @property
    def state(self) -> str:
        """ "starting", "running", "draining"."""
        ...

    @property
    def endpoints(self) -> list[str]: ...
    @property
    def generation(self) -> int:
        """How many configurations were in force."""
        ...

    def overview(self) -> DaemonStatus: ...
    def degraded(self) -> list[str]:
        """What is missing, a clause each."""
        ...

    async def reload(self) -> dict[str, list[str]]:
        """Read the configuration again: what changed. AccelError config_invalid."""
        ...

    async def problems(self) -> Sequence[Problem]:
        """Of the configuration as it is on disk now."""
        ...


class ControlParts:
    """What operations work with: a part of all that `app.py` makes."""

    roots: Roots
    clock: Clock
    events: EventStream
    scheduler: Scheduler
    supervisor: ProcessSupervisor
    model_info: ModelInfo
    router: RequestRouter
    daemon: ControlledDaemon
    jobs: Jobs
    pins: Pins
    tuning_runs: TuningRuns
    devices: DeviceWatch
    device_looks: DeviceLooks
    level_owner: Callable[[str], str | None]  # by a device's id: who has set its performance level
    memory: MemoryWatch
    yielding: Yielding
    upkeep: ToolboxMaintenance
    conflicts: KnownConflicts
    remotes: Remotes

    def find(self, name: str) -> Snapshot:
        """The model that a name means which a client gave: configured, an alias or generated (local/NAME, npu/NAME).

        AccelError model_not_found; bad_request for a route, which names its models.
        """
        return self.scheduler.snapshot(self.router.directory.canonical(name))

    def facts(self, snapshot: Snapshot) -> InstanceInfo | None:
        """What is known of its process; None while it has none."""
        return self.supervisor.facts(snapshot.instance) if snapshot.instance is not None else None

    def accepting(self) -> None:
        """AccelError shutting_down while the daemon ends."""
        if self.daemon.state == "draining":
            raise AccelError("shutting_down", "accelerd is shutting down", retry_after=5)
