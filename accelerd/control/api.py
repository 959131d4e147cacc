"""The one control API: every operation that a person, a program or a desktop tool can ask for.

Puts the operations together and owns what they share: jobs and claims. HTTP (control/http.py), D-Bus (bus/) and later
the web page are adapters that walk `operations`; none of them holds an operation of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.ports import Clock
from accelerd.config.model import ModelSpec
from accelerd.config.problems import Problem
from accelerd.control.configuration import ConfigOperations
from accelerd.control.devices import DeviceList, DeviceOperations, Observer, no_owner
from accelerd.control.event_feed import EventFeed
from accelerd.control.job_status import JobOperations
from accelerd.control.jobs import Job, Jobs
from accelerd.control.known_conflicts import KnownConflicts
from accelerd.control.memory import LearnedNeeds, MemoryOperations, MemorySource
from accelerd.control.memory_release import MemoryReleaseOperations, MemoryYielding
from accelerd.control.model_info import ModelNames
from accelerd.control.models import ModelOperations
from accelerd.control.operations import Operation, Request, operation, parse
from accelerd.control.status import DaemonStatus, Processes, Router, StatusOperations
from accelerd.control.toolboxes import ToolboxOperations, Upkeep
from accelerd.control.tuning_runs import TuningRuns
from accelerd.memory.model import Forecast
from accelerd.policy.pins import Pins
from accelerd.scheduler.service import Scheduler


class ControlledDaemon(Protocol):
    """The daemon, as far as its operations need it."""

    @property
    def state(self) -> str:
        """ "starting", "running", "draining"."""
        ...

    def overview(self) -> DaemonStatus: ...
    async def reload(self) -> dict[str, list[str]]:
        """Read the configuration again: what changed. AccelError config_invalid."""
        ...

    async def problems(self) -> Sequence[Problem]:
        """Of the configuration as it is on disk now."""
        ...


class ControlApi:
    """The operations by name, with the jobs and claims that they make."""

    def __init__(
        self,
        *,
        clock: Clock,
        events: EventStream,
        scheduler: Scheduler,
        processes: Processes,
        router: Router,
        daemon: ControlledDaemon,
        tuning: TuningRuns,
        devices: DeviceList,
        observer: Observer,
        yielding: MemoryYielding,
        upkeep: Upkeep,
        memory: MemorySource,
        learned: LearnedNeeds,
        forecast: Callable[[ModelSpec], Awaitable[Forecast]],
        level_owner: Callable[[str], str | None] = no_owner,
        conflicts: KnownConflicts | None = None,
    ) -> None:
        """`forecast`: what a model will need, with what was learned; `level_owner(device id)`: who has set its
        performance level."""
        self.events = events
        self.jobs = jobs = Jobs(clock, events)
        self.pins = Pins(scheduler.holds, clock, events)
        self.names = names = ModelNames(scheduler, lambda: router.directory)
        self.yielding = yielding
        self._daemon = daemon
        self.status = StatusOperations(scheduler, names, processes, router, daemon.overview, conflicts)
        self._groups = (
            self.status,
            ModelOperations(scheduler, names, processes, jobs, self.pins, tuning, self.accepting),
            MemoryOperations(scheduler, names, memory, learned, forecast, yielding.report),
            MemoryReleaseOperations(scheduler, yielding, devices.current, jobs),
            DeviceOperations(devices, observer, scheduler, processes, jobs, level_owner),
            ToolboxOperations(upkeep, jobs),
            ConfigOperations(daemon, jobs),
            JobOperations(jobs),
        )
        self._feed = partial(EventFeed, scheduler, daemon.overview)

    @cached_property
    def operations(self) -> Mapping[str, Operation]:
        """By name. Made when the first is asked for: the start need not wait for their types to be read."""
        return {"events": operation("stream", "events", self.event_feed)} | {
            one.name: one for group in self._groups for one in group.operations()
        }

    async def event_feed(self) -> EventFeed:
        """Changes of models, devices, jobs, memory and accelerd itself, from now on."""
        self.accepting()
        return self._feed()

    async def call(self, name: str, given: Mapping[str, Any], owner: str, *, text: bool = False) -> Any:
        """Carry out an operation: its answer, or the Job that does it. `given`, `text`: see `parse`. AccelError."""
        return await self.perform(self.operations[name], given, owner, text=text)

    async def perform(self, operation: Operation, given: Mapping[str, Any], owner: str, *, text: bool = False) -> Any:
        """As `call`."""
        request: Request = parse(operation.request, given, text=text)
        if operation.kind == "job":
            self.accepting()
        return await operation.call(request, owner)

    async def start(self, name: str, given: Mapping[str, Any], owner: str) -> Job:
        """As `call`, of an operation that is a job, for a client that cannot be seen to leave: the job is kept."""
        job: Job = await self.call(name, given, owner)
        job.kept = True
        return job

    def accepting(self) -> None:
        """AccelError shutting_down while the daemon ends."""
        if self._daemon.state == "draining":
            raise AccelError("shutting_down", "accelerd is shutting down", retry_after=5)

    async def close(self) -> None:
        """Nothing is done for anybody any more; who waits for a job hears that it was canceled."""
        await self.jobs.close()
        self.pins.close()
