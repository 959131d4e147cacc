"""The event stream for clients: `GET events` and `accelctl monitor`. Turns what rooms publish into JSON events.

One feed per client. It keeps the little that it needs to tell a change from a repetition, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from accelerd.base.events import DaemonStateChanged, DegradationChanged
from accelerd.config.model import ConfigApplied
from accelerd.control.jobs import Job, JobChanged, JobForgotten
from accelerd.control.operations import operation
from accelerd.control.parts import ControlParts
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.model import Device
from accelerd.memory.model import MemorySnapshot
from accelerd.policy.battery import PowerSavingChanged
from accelerd.policy.pins import PinChanged
from accelerd.policy.yielding import YieldChanged, YieldReport
from accelerd.scheduler.events import ModelsConfigured, ModelTransition
from accelerd.scheduler.lifecycle import State

KINDS: Final = (
    ModelTransition, ModelsConfigured, ConfigApplied, DevicesChanged, JobChanged, JobForgotten, MemorySnapshot,
    PinChanged, YieldChanged, PowerSavingChanged, DaemonStateChanged, DegradationChanged,
)  # fmt: skip
STEP: Final = 256 << 20  # bytes by which the free memory of a pool must change before that is an event
FAILED: Final = frozenset({State.FAILED, State.BACKOFF})


class ErrorText(msgspec.Struct):
    code: str
    message: str


class ModelEvent(msgspec.Struct, tag="model", tag_field="event", omit_defaults=True):
    """A state changed, or with `change` the model itself: "added", "removed", "outdated"."""

    model: str
    state: str
    before: str | None = None
    reason: str = ""
    error: ErrorText | None = None
    change: str | None = None


class DeviceEvent(msgspec.Struct, tag="device", tag_field="event"):
    """A device was "added", "removed", "changed", "reset" or has "recovered"."""

    device: str
    name: str
    change: str
    reason: str


class JobEvent(msgspec.Struct, tag="job", tag_field="event"):
    """A job is new, has entered another phase, or has ended."""

    job: int
    kind: str
    subject: str | None  # of a model, a device or a toolbox
    state: str
    phase: str
    result: str | None
    error: ErrorText | None


class PoolMemory(msgspec.Struct):
    """Bytes."""

    id: str
    label: str
    capacity: int
    free: int


class MemoryEvent(msgspec.Struct, tag="memory", tag_field="event"):
    """The free memory of a pool has changed noticeably."""

    pools: list[PoolMemory]


class ManagerEvent(msgspec.Struct, tag="manager", tag_field="event", omit_defaults=True):
    """What concerns accelerd as a whole. `change`: "state", "configuration", "yield", "pin", "power"; it says which of
    the other keys are meant."""

    change: str
    state: str | None = None
    degraded: str | None = None
    in_use: bool | None = None  # of a configuration; False: the one on disk has errors
    yielded: YieldReport | None = None  # as in `status`; absent: models may use all memory again
    model: str | None = None  # of a pin
    pinned: bool | None = None
    hold: bool | None = None
    who: str | None = None
    reason: str | None = None  # of a pin; of power saving, absent when that has ended


class EventsLost(msgspec.Struct, tag="lost", tag_field="event"):
    """The last event for a client that was too slow: so many are missing, and it has to read the state anew."""

    events: int


Event = ModelEvent | DeviceEvent | JobEvent | MemoryEvent | ManagerEvent


class EventFeed:
    """Events for one client, from the moment at which it is made."""

    def __init__(self, parts: ControlParts) -> None:
        self._scheduler = parts.scheduler
        self._overview = parts.daemon.overview
        self._models = self._configured()
        self._jobs: dict[int, tuple[str, str]] = {}
        self._free: dict[str, int] = {}
        self._status = self._daemon_status()
        self._in_use = self._overview().config.in_use

    def of(self, published: object) -> Iterator[Event]:
        """The events of one published object; none where a client would see no difference."""
        match published:
            case ModelTransition():
                yield self._transition(published)
            case ModelsConfigured():
                yield from self._reconfigured()
            case ConfigApplied():
                self._in_use = True
                yield ManagerEvent("configuration", in_use=True)
                yield from self._reconfigured()
            case DevicesChanged():
                yield from _devices(published)
            case JobChanged():
                yield from self._job(published.job)
            case JobForgotten():
                self._jobs.pop(published.job.id, None)
            case MemorySnapshot():
                yield from self._memory()
            case PinChanged(pin=pin, end=end):
                yield ManagerEvent(
                    "pin", model=pin.model, pinned=end is None, hold=pin.hold, who=pin.who, reason=pin.reason
                )
            case YieldChanged():
                yield ManagerEvent("yield", yielded=self._overview().yielded)
            case PowerSavingChanged(reason=reason):
                yield ManagerEvent("power", reason=reason or None)
            case DaemonStateChanged() | DegradationChanged():
                yield from self._daemon()

    def _configured(self) -> dict[str, tuple[str, bool]]:
        snapshots = self._scheduler.snapshots()
        return {one.spec.name: (one.state.value, one.outdated) for one in snapshots}

    def _daemon_status(self) -> tuple[str, str | None]:
        status = self._overview()
        return status.state, status.degraded

    def _transition(self, published: ModelTransition) -> ModelEvent:
        change, error = published.transition, published.error
        failure = ErrorText(error.cause.value, error.message) if error and change.after in FAILED else None
        return ModelEvent(published.spec.name, change.after.value, change.before.value, change.reason, failure)

    def _reconfigured(self) -> Iterator[ModelEvent]:
        """Models that came, that went, and those that will restart with other settings."""
        before, self._models = self._models, self._configured()
        for name, (state, outdated) in self._models.items():
            if name not in before:
                yield ModelEvent(name, state, change="added")
            elif outdated and not before[name][1]:
                yield ModelEvent(name, state, change="outdated")
        for name in before.keys() - self._models.keys():
            yield ModelEvent(name, before[name][0], change="removed")

    def _job(self, job: Job) -> Iterator[JobEvent]:
        told = (job.state, job.phase)
        if self._jobs.get(job.id) == told:
            return  # only its progress has changed
        self._jobs[job.id] = told
        error = ErrorText(job.error.code, job.error.message) if job.error is not None else None
        yield JobEvent(job.id, job.kind, job.subject or None, job.state, job.phase, job.result or None, error)

    def _memory(self) -> Iterator[MemoryEvent]:
        pools = [
            PoolMemory(one.pool.id, one.pool.label, one.pool.capacity, one.free)
            for one in self._scheduler.memory.ledger().balances()
        ]
        if any(abs(pool.free - self._free.get(pool.id, -STEP)) >= STEP for pool in pools):
            self._free = {pool.id: pool.free for pool in pools}
            yield MemoryEvent(pools)

    def _daemon(self) -> Iterator[ManagerEvent]:
        now = self._daemon_status()
        if now != self._status:
            self._status = now
            yield ManagerEvent("state", state=now[0], degraded=now[1])
        if self._overview().config.in_use != self._in_use:
            self._in_use = not self._in_use
            yield ManagerEvent("configuration", in_use=self._in_use)


def _devices(changed: DevicesChanged) -> Iterator[DeviceEvent]:
    groups: tuple[tuple[str, tuple[Device, ...]], ...] = (
        ("removed", changed.removed), ("added", changed.added), ("changed", changed.changed),
        ("reset", changed.reset), ("recovered", changed.recovered),
    )  # fmt: skip
    for change, devices in groups:
        for device in devices:
            yield DeviceEvent(device.id, device.name, change, device.problem or "")


@operation("stream", "events")
async def events(parts: ControlParts) -> EventFeed:
    """Changes of models, devices, jobs, memory and accelerd itself, from now on."""
    return EventFeed(parts)
