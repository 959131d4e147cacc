"""The tree of objects on the bus: mirrors models, devices, jobs and the daemon's own figures, and tells what changes.

Subscribes to the event stream; compares nothing and polls nothing: the Bus sends what differs.
While nothing happens no timer runs. Figures that change often are told once a second at most, while anybody listens.

Of a job that ends with a model's change the job is told first: the model waits for it, for a moment at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from accelerd import __version__
from accelerd.base.errors import AccelError
from accelerd.base.events import DaemonStateChanged, DegradationChanged
from accelerd.base.names import (
    BUS_DEVICE,
    BUS_JOB,
    BUS_MANAGER,
    BUS_MODEL,
    BUS_NO_OBJECT,
    BUS_PATH,
    MSG_BUG,
    TRIAL_SUFFIX,
)
from accelerd.bus import properties
from accelerd.bus.manager import Methods
from accelerd.bus.paths import device_path, job_path, model_path
from accelerd.control import downloads
from accelerd.control.api import ControlApi
from accelerd.control.devices import DeviceReport
from accelerd.control.jobs import Job, JobChanged, JobForgotten, JobTold
from accelerd.control.status import model_status
from accelerd.devices.current_devices import DevicesChanged
from accelerd.memory.model import MemorySnapshot
from accelerd.policy.pins import PinChanged
from accelerd.policy.yielding import YieldChanged
from accelerd.scheduler.events import (
    MemoryNotReturned,
    ModelInUse,
    ModelsConfigured,
    ModelTransition,
    SystemResumed,
)
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot
from accelerd.system.dbus.object_exporter import ObjectExporter
from accelerd.system.records import event

log = logging.getLogger(__name__)

EVERY: Final = 1.0  # s between two tellings of what changes often
LOOK: Final = 2.0  # s between two looks at devices while requests run on them
LOOK_IDLE: Final = 10.0  # … while models are only loaded: a look goes through all processes
FIRST: Final = 1.0  # s that a model's change waits for the end of the job that it may end
OF_MODELS: Final = frozenset({"load", "unload", "tune"})  # kinds of jobs whose subject is a model
ENDS: Final = {
    "load": frozenset({State.READY, State.STOPPED, State.BACKOFF, State.FAILED}),
    "unload": frozenset({State.STOPPED, State.BACKOFF, State.FAILED}),
}  # states of a model that may be the end of a job


class Tree:
    """Keeps the object tree. All methods run on the event loop's thread; none waits."""

    def __init__(self, bus: ObjectExporter, api: ControlApi, methods: Methods, runtime: str) -> None:
        """`runtime`: the daemon's runtime directory."""
        self._bus = bus
        self._api = api
        self._parts = api.parts
        self._methods = methods
        self._runtime = runtime
        self._shown = False
        self._shown_models: set[str] = set()
        self._shown_devices: set[str] = set()
        self._shown_jobs: set[int] = set()
        self._under_way: dict[str, list[Job]] = {}  # loads and unloads, by model, the oldest first
        self._seen: dict[str, DeviceReport] = {}  # what the last look said, by device
        self._moved: set[str] = set()  # models whose state has changed, and nobody knows yet
        self._later: dict[str, asyncio.TimerHandle] = {}  # models whose change waits for a job's end
        self._soon: asyncio.Handle | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._ticked = -EVERY
        self._looking: asyncio.Task[None] | None = None
        self._looked = -LOOK_IDLE
        events = api.parts.events
        events.subscribe(JobChanged, self.on_job_changed)
        events.subscribe(JobTold, self.on_job_told)
        events.subscribe(JobForgotten, self.on_job_forgotten)
        events.subscribe(ModelTransition, self.on_transition)
        for kind in (
            MemoryNotReturned, SystemResumed, ModelsConfigured, DevicesChanged, YieldChanged, PinChanged,
            DaemonStateChanged, DegradationChanged,
        ):  # fmt: skip
            events.subscribe(kind, self.on_change)
        for often in (ModelInUse, MemorySnapshot):
            events.subscribe(often, self.on_frequent_change)

    def begin(self) -> None:
        """Show everything that is there; before the bus is started."""
        self._shown = True
        constant = {"Version": __version__, "RuntimeDirectory": self._runtime, "Features": []}
        values = properties.of_manager(self._parts, len(self._snapshots())) | constant
        self._bus.publish(BUS_PATH, {BUS_MANAGER: values}, self._methods.manager)
        self._refresh()

    async def close(self) -> None:
        """Tell nothing any more."""
        self._shown = False
        for handle in (self._soon, self._tick, *self._later.values()):
            if handle is not None:
                handle.cancel()
        self._later.clear()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """Is nothing going to be told until something happens?"""
        return self._soon is None and self._tick is None and not self._later and self._looking is None

    # --- subscriptions ----------------------------------------------------------------------------------------

    def on_transition(self, event: ModelTransition) -> None:
        if not self._shown:
            return
        name = event.spec.name
        if not name.endswith(TRIAL_SUFFIX):
            self._moved.add(name)
        job = self.job_of(name)
        if job is not None and event.transition.after in ENDS[job.kind] and name not in self._later:
            self._later[name] = asyncio.get_running_loop().call_later(FIRST, self._waited, name)
        self.changed()

    def on_change(self, event: object) -> None:
        self.changed()

    def on_frequent_change(self, event: object) -> None:
        self._often()

    def changed(self) -> None:
        """Something may be different: devices, a configuration, what is given up, what is degraded, pins."""
        if self._soon is None and self._shown:
            self._soon = asyncio.get_running_loop().call_soon(self._refresh)

    # --- jobs -------------------------------------------------------------------------------------------------

    def on_job_changed(self, changed: JobChanged) -> None:
        job = changed.job
        if job.id not in self._shown_jobs:
            self._shown_jobs.add(job.id)
            self._show_job(job)
            if job.kind in ENDS:
                self._under_way.setdefault(job.subject, []).append(job)
        self._bus.update(job_path(job.id), BUS_JOB, properties.of_job(job))
        if job.finished is None:
            self.changed()
            return
        if job in (same := self._under_way.get(job.subject, [])):
            same.remove(job)
            if not same:
                del self._under_way[job.subject]
        if (waiting := self._later.pop(job.subject, None)) is not None:
            waiting.cancel()
        if job.kind in ENDS and job.subject in self._shown_models:
            self._mirror_one(job.subject)
        self.changed()
        subject = self._subject(job)
        self._bus.signal(BUS_PATH, BUS_MANAGER, "JobRemoved", (job.id, job_path(job.id), subject, job.result))

    def on_job_told(self, told: JobTold) -> None:
        text = msgspec.json.encode(told.event).decode()
        self._bus.signal(job_path(told.job.id), BUS_JOB, "Event", (text,))

    def on_job_forgotten(self, forgotten: JobForgotten) -> None:
        self._shown_jobs.discard(forgotten.job.id)
        self._bus.remove(job_path(forgotten.job.id))

    def _show_job(self, job: Job) -> None:
        """One object for each, from its start until a minute after its end."""
        values = properties.of_job(job) | {
            "Id": job.id,
            "Kind": job.kind,
            "Subject": self._subject(job),
            "CreatedMonotonicUSec": properties.usec(job.created),
        }
        self._bus.publish(job_path(job.id), {BUS_JOB: values}, self._methods.of_job(job.id))

    def job_of(self, model: str) -> Job | None:
        """The load or unload of the model that is under way: the one that was wanted last."""
        found = self._under_way.get(model)
        return found[-1] if found else None

    def _subject(self, job: Job) -> str:
        if job.kind in OF_MODELS:
            return model_path(job.subject)
        if job.kind == "download":
            found = (one.spec.name for one in self._snapshots() if downloads.is_for(job, one.spec))
            return next(map(model_path, found), BUS_NO_OBJECT)
        return device_path(job.subject) if job.kind == "evict" and job.subject else BUS_NO_OBJECT

    # --- telling ----------------------------------------------------------------------------------------------

    def _waited(self, name: str) -> None:
        """The job goes on although its model has changed."""
        self._later.pop(name, None)
        self.changed()

    def _often(self) -> None:
        if self._tick is None and self._shown:
            loop = asyncio.get_running_loop()
            self._tick = loop.call_later(max(0.0, self._ticked + EVERY - loop.time()), self._due)

    def _due(self) -> None:
        self._tick, self._ticked = None, asyncio.get_running_loop().time()
        if self._bus.listeners and self._looking is None and self._worth_a_look(self._snapshots()):
            self._looked = self._ticked
            self._looking = asyncio.ensure_future(self._look_at_devices())
        self._refresh(often=True)

    def _worth_a_look(self, snapshots: Iterable[Snapshot]) -> bool:
        there = [snapshot for snapshot in snapshots if snapshot.instance is not None]
        pause = LOOK if any(snapshot.leases for snapshot in there) else LOOK_IDLE
        return bool(there) and self._looked + pause <= self._ticked

    async def _look_at_devices(self) -> None:
        try:
            found = await self._api.call("devices", {}, "")
            self._seen = {device.id: device for device in found.devices}
        except AccelError as error:
            log.debug("devices are not shown in full: %s", error.message)
            self._seen = {}
        finally:
            self._looking = None

    def _refresh(self, *, often: bool = False) -> None:
        """Everything as it is now; what changes `often` only if it is its turn, soon otherwise.

        Whatever goes wrong here goes no further: what is mirrored matters more.
        """
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if not self._shown:
            return
        self._guarded(lambda: self._mirror(often=often))
        if not often:
            self._often()

    def _guarded(self, mirror: Callable[[], None]) -> None:
        try:
            mirror()
        except Exception:
            event(log, logging.ERROR, "the bus does not show what there is", message_id=MSG_BUG, exc_info=True)

    def _mirror(self, *, often: bool) -> None:
        snapshots = self._snapshots()
        self._mirror_models(snapshots, often=often)
        self._mirror_devices(snapshots, often=often)
        self._update(BUS_PATH, BUS_MANAGER, properties.of_manager(self._parts, len(snapshots)))

    def _mirror_one(self, name: str) -> None:
        """A model alone, which may have gone."""
        for snapshot in self._snapshots():
            if snapshot.spec.name == name:
                self._mirror_model(snapshot, self._pinned(), self._device_ids(), often=False)

    def _mirror_models(self, snapshots: Iterable[Snapshot], *, often: bool) -> None:
        pinned, known = self._pinned(), self._device_ids()
        there = set()
        for snapshot in snapshots:
            name = snapshot.spec.name
            there.add(name)
            if name not in self._shown_models:
                values = self._model_values(snapshot, pinned, known) | {"Name": name}
                self._bus.publish(model_path(name), {BUS_MODEL: values}, self._methods.of_model(name))
            elif name not in self._later:
                self._mirror_model(snapshot, pinned, known, often=often)
        for name in self._shown_models - there:
            self._bus.remove(model_path(name))
            self._moved.discard(name)
        self._shown_models = there

    def _mirror_model(self, snapshot: Snapshot, pinned: frozenset[str], known: frozenset[str], *, often: bool) -> None:
        name, values = snapshot.spec.name, self._model_values(snapshot, pinned, known)
        self._update(model_path(name), BUS_MODEL, values, often=often, whole=name in self._moved)
        self._moved.discard(name)

    def _model_values(self, snapshot: Snapshot, pinned: frozenset[str], known: frozenset[str]) -> dict[str, Any]:
        status, name = model_status(self._parts, snapshot), snapshot.spec.name
        job = self.job_of(name)
        if snapshot.state is State.DOWNLOADING:
            under_way = (one for one in self._parts.jobs.all() if one.finished is None)
            job = next((one for one in under_way if downloads.is_for(one, snapshot.spec)), job)
        return properties.of_model(status, snapshot, job, pinned=name in pinned, devices=known)

    def _pinned(self) -> frozenset[str]:
        """Models that clients want loaded."""
        return frozenset(pin.model for pin in self._parts.pins.all() if not pin.hold)

    def _device_ids(self) -> frozenset[str]:
        return frozenset(device.id for device in self._parts.devices.current())

    def _mirror_devices(self, snapshots: list[Snapshot], *, often: bool) -> None:
        if all(snapshot.instance is None for snapshot in snapshots):
            self._seen = {}  # nobody looks any more, and what was seen is soon no longer true
        balances = {balance.pool.id: balance for balance in self._parts.scheduler.memory.ledger().balances()}
        there = set()
        for device in self._parts.devices.current():
            there.add(device.id)
            values = properties.of_device(device, balances, snapshots, self._seen.get(device.id))
            if device.id in self._shown_devices:
                self._update(device_path(device.id), BUS_DEVICE, values, often=often)
            else:
                values |= {"Id": device.id, "Kind": device.kind}
                self._bus.publish(device_path(device.id), {BUS_DEVICE: values}, self._methods.of_device)
        for id in self._shown_devices - there:
            self._bus.remove(device_path(id))
        self._shown_devices = there

    def _update(
        self, path: str, interface: str, values: Mapping[str, Any], *, often: bool = False, whole: bool = False
    ) -> None:
        """What requests change all the time is told if it is its turn, and only while anybody listens, or with all."""
        restless = frozenset() if whole else properties.OFTEN
        self._bus.update(path, interface, {name: one for name, one in values.items() if name not in restless})
        if often:
            told = {name: one for name, one in values.items() if name in restless}
            self._bus.update(path, interface, told, quiet=True)

    def _snapshots(self) -> list[Snapshot]:
        """Of the configured models: what is only tried out is a job's business."""
        return [s for s in self._parts.scheduler.snapshots() if not s.spec.name.endswith(TRIAL_SUFFIX)]
