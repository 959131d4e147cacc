"""The daemon's desk on the bus: all objects put together, from the first to the last moment of the daemon.

On a machine without a session bus there is a desk that nobody comes to. Decides nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from accelerd import __version__
from accelerd.base.events import EventStream
from accelerd.base.names import BUS_MANAGER, BUS_PATH
from accelerd.base.ports import Clock
from accelerd.bus.devices import DeviceObjects
from accelerd.bus.launcher import Launcher
from accelerd.bus.manager import Manager
from accelerd.bus.models import ModelInfo, ModelObjects
from accelerd.bus.paths import device_path, model_path
from accelerd.bus.port import Bus, Variant
from accelerd.bus.tree import Tree
from accelerd.config.problems import Problem
from accelerd.control.jobs import Job, Jobs
from accelerd.control.operations import Answer, Operation, Query
from accelerd.devices.model import Device
from accelerd.policy.pins import PinChanged, Pins
from accelerd.scheduler.service import Scheduler

CAUSES: Mapping[str, str] = {"unpinned": "released"}  # of the end of a pin, where the bus has another word for it


class SessionBus(Bus, Protocol):
    """A Bus with a life."""

    @property
    def degraded(self) -> str | None: ...
    async def start(self) -> str | None: ...
    async def close(self) -> None: ...


class Owner(Protocol):
    """The daemon, as far as it is shown."""

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

    def degraded(self) -> list[str]:
        """What is missing, a clause each."""
        ...

    async def problems(self) -> Sequence[Problem]:
        """Of the configuration as it is on disk."""
        ...


@dataclass(frozen=True)
class ControlApi:
    """What there is to ask for: the same that the control socket has."""

    answers: Mapping[str, Answer]
    actions: Mapping[str, Answer]  # done at once
    operations: Mapping[str, Operation]
    check_evict: Callable[[Query], object]
    what_yields: Callable[[], str]  # for people


class BusService:
    """See the module's text. `attach` before `begin`."""

    def __init__(
        self,
        bus: SessionBus | None,
        clock: Clock,
        scheduler: Scheduler,
        insight: ModelInfo,
        devices: Callable[[], tuple[Device, ...]],
        runtime: str,
        events: EventStream,
    ) -> None:
        """`runtime`: the daemon's directory there."""
        self._bus = bus
        self._scheduler = scheduler
        self._insight = insight
        self._devices = devices
        self._events = events
        self._runtime = runtime
        self.jobs = Jobs(clock, self._changed, self._gone, self._told)
        self.pins = Pins(scheduler, clock, events)
        self.tree: Tree | None = None
        self._owner: Owner
        self._wares: ControlApi
        events.subscribe(PinChanged, self.on_pin_changed)

    def attach(self, owner: Owner, api: ControlApi) -> None:
        """The daemon, and what there is to ask for."""
        self._owner, self._wares = owner, api

    @property
    def degraded(self) -> str | None:
        """Why nobody can come, although there should be a bus."""
        return self._bus.degraded if self._bus is not None else None

    # --- life -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Lay everything out. Nobody is there yet."""
        if self._bus is None:
            return
        wares = self._wares
        launcher = Launcher(self.jobs, wares.operations, lambda: self._owner.state == "draining", self._given_up)
        manager = Manager(
            launcher,
            self._scheduler,
            self.pins,
            wares.answers,
            wares.actions,
            self._ids,
            lambda: self._owner.problems(),
            wares.check_evict,
            self._bus.watch,
        )
        self.tree = tree = Tree(
            self._bus,
            self._scheduler,
            self._devices,
            self.properties,
            lambda: self.jobs,
            wares.answers["devices"],
            self._events,
        )
        models = ModelObjects(self._insight, manager, self._ids, self._kept, tree.job_of)
        tree.begin(manager.handler, models, DeviceObjects(manager.rescan))

    async def open(self) -> None:
        """Let them come. Takes a moment where the bus does not answer; never fails."""
        if self._bus is not None:
            await self._bus.start()
            self.changed()

    def changed(self) -> None:
        """Something that is shown may be different."""
        if self.tree is not None:
            self.tree.changed()

    async def close(self) -> None:
        """Nobody is served any more; whoever waits for a job hears that it was cancelled."""
        await self.jobs.close()
        self.pins.close()
        if self.tree is not None:
            self.tree.close()
        if self._bus is not None:
            await self._bus.close()

    # --- what it shows of the daemon itself -------------------------------------------------------------------

    def properties(self) -> dict[str, Any]:
        """The Manager's, but for its counts."""
        owner = self._owner
        reasons, state = owner.degraded(), owner.state
        return {
            "Version": __version__,
            "RuntimeDirectory": self._runtime,
            "Features": [],
            "State": "degraded" if state == "running" and reasons else state,
            "DegradedReasons": reasons,
            "Endpoints": owner.endpoints,
            "ConfigGeneration": owner.generation,
            "Pins": [
                (pin.cookie, model_path(pin.model), "hold" if pin.hold else "pin", pin.reason, pin.application_id)
                for pin in self.pins.all()
            ],
            "Yield": self._yield(),
        }

    def _yield(self) -> dict[str, Any]:
        given = self._scheduler.yielded
        if given is None:
            return {}
        paths = [device_path(id) for id in self._ids() if given.pools is not None and id in given.pools]
        return {
            "what": self._wares.what_yields(),
            "why": given.why,
            "devices": Variant("ao", paths),
            "until-monotonic-usec": Variant("t", round(given.until * 1e6) if given.until is not None else 0),
        }

    def _ids(self) -> list[str]:
        return [device.id for device in self._devices()]

    def _kept(self) -> frozenset[str]:
        """Models that clients want loaded."""
        return frozenset(pin.model for pin in self.pins.all() if not pin.hold)

    # --- what it hears ----------------------------------------------------------------------------------------

    def _changed(self, job: Job) -> None:
        if self.tree is not None:
            self.tree.job_changed(job)

    def _gone(self, job: Job) -> None:
        if self.tree is not None:
            self.tree.job_gone(job)

    def _told(self, job: Job, event: Mapping[str, Any]) -> None:
        if self.tree is not None:
            self.tree.job_told(job, event)

    def _given_up(self, job: Job) -> None:
        """A load that was cancelled, and that nobody else waits for, is stopped."""
        if job.kind == "load":
            self._scheduler.abandon(job.subject, "the load was cancelled")

    def on_pin_changed(self, event: PinChanged) -> None:
        pin, end = event.pin, event.end
        if self._bus is not None and end is not None and end != "owner-gone":
            cause = CAUSES.get(end, end)
            self._bus.signal(BUS_PATH, BUS_MANAGER, "PinReleased", (pin.cookie, cause), to=pin.owner)
