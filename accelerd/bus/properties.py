"""Models, devices, jobs and the daemon as properties on the bus that may change: what their owners say, translated.

Looks at nothing and changes nothing. What never changes is given once, when an object is published.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from accelerd.base.names import BUS_NO_OBJECT
from accelerd.bus.paths import device_path, error_name, job_path, model_path
from accelerd.control.devices import DeviceReport, use_of
from accelerd.control.jobs import Job
from accelerd.control.parts import ControlParts
from accelerd.control.status import ModelStatus
from accelerd.devices.model import Device
from accelerd.devices.readings import Readings
from accelerd.memory.ledger import ENDED, Balance
from accelerd.memory.model import RAM
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.record import Snapshot
from accelerd.system.dbus.port import Variant

OFTEN: Final = frozenset({
    "MemoryUsed", "MemoryReserved", "MemoryForeign", "InFlight", "Queued", "IdleSinceMonotonicUSec", "Temperature",
    "Readings",
})  # fmt: skip
"""What changes while requests run."""
MUCH: Final = 0.5  # the part of a device's memory that others use when it counts as busy


def of_manager(parts: ControlParts, models: int) -> dict[str, Any]:
    """The daemon itself. `models`: how many are configured."""
    daemon = parts.daemon
    reasons, state = daemon.degraded(), daemon.state
    return {
        "State": "degraded" if state == "running" and reasons else state,
        "DegradedReasons": reasons,
        "Endpoints": daemon.endpoints,
        "ConfigGeneration": daemon.generation,
        "ConfigInUse": daemon.overview().config.in_use,
        "Pins": [
            (pin.cookie, model_path(pin.model), "hold" if pin.hold else "pin", pin.reason, pin.application_id)
            for pin in parts.pins.all()
        ],
        "Yield": _yield(parts),
        "NModels": models,
        "NJobs": sum(job.finished is None for job in parts.jobs.all()),
    }


def _yield(parts: ControlParts) -> dict[str, Any]:
    given = parts.scheduler.memory.yielded
    if given is None:
        return {}
    ids = [device.id for device in parts.devices.current()]
    return {
        "what": parts.yielding.what,
        "why": given.why,
        "devices": Variant("ao", [device_path(id) for id in ids if given.pools is not None and id in given.pools]),
        "until-monotonic-usec": Variant("t", usec(given.until)),
    }


def of_model(
    status: ModelStatus, snapshot: Snapshot, job: Job | None, *, pinned: bool, devices: Collection[str]
) -> dict[str, Any]:
    """All of them. `snapshot` is what the status was made of; `job`: what is under way with the model; `pinned`: by a
    client; `devices`: ids of those on the bus."""

    def device(id: str) -> str:
        return device_path(id) if id in devices else BUS_NO_OBJECT

    def moment(seconds: float | None) -> int:
        """So many seconds from the snapshot, as CLOCK_MONOTONIC; 0 for none."""
        return usec(snapshot.at + seconds) if seconds is not None else 0

    waits = snapshot.instance is None and snapshot.state is State.STOPPED and status.queue > 0
    return {
        "Aliases": status.aliases,
        "Engine": status.engine,
        "State": "queued" if waits else status.state,
        "StateReason": status.reason,
        "StateSinceMonotonicUSec": moment(-status.since) if snapshot.history else 0,
        "Device": device(status.device),
        "NpuContexts": [(device(one.device), one.family, one.kind, one.contexts) for one in status.claims],
        "MemoryEstimate": status.memory,
        "MemorySource": status.memory_source,
        "MemoryUsed": status.memory_used or 0,
        "MemoryPools": dict(snapshot.held),
        "InFlight": status.leases,
        "Queued": status.queue,
        "IdleSinceMonotonicUSec": moment(-status.idle) if status.idle is not None else 0,
        "IdleTimeoutUSec": usec(status.idle_timeout),
        "LoadUSec": usec(status.load_seconds),
        "NextRetryMonotonicUSec": moment(status.retry_in),
        "Pinned": status.pin or pinned,
        "Held": status.held,
        "Preload": status.preload,
        "NeedsRestart": status.outdated,
        "Pid": status.pid or 0,
        "Home": status.home or "",
        "Place": status.place or "",
        "LastError": (status.error.cause, status.error.message) if status.error is not None else ("", ""),
        "Job": job_path(job.id) if job is not None else BUS_NO_OBJECT,
    }


def of_job(job: Job) -> dict[str, Any]:
    """What changes of a job."""
    return {
        "State": job.state,
        "Result": job.result,
        "Progress": job.progress,
        "Phase": job.phase,
        "ErrorName": error_name(job.error) if job.error is not None else "",
        "ErrorMessage": job.error.message if job.error is not None else "",
        "FinishedMonotonicUSec": usec(job.finished),
    }


def of_device(
    device: Device, balances: Mapping[str, Balance], models: Iterable[Snapshot], seen: DeviceReport | None
) -> dict[str, Any]:
    """All of them. `balances` of the ledger, by pool; `seen`: by the last look; None: nobody has looked."""
    balance = balances.get(pool_of(device))
    on_it = [s for s in models if s.instance is not None and device.id in {s.device, *s.need.devices}]
    readings = seen.readings if seen is not None else None
    state, reason = _state(device, balance, on_it, readings)
    reserved = sum(held.size for held in balance.holdings) if balance is not None else 0
    ended = sum(held.size for held in balance.holdings if held.phase in ENDED) if balance is not None else 0
    used = balance.foreign + ended + _in_use(balance) if balance is not None else 0
    npu = use_of(device, on_it)
    if npu is not None:  # its models' memory may be in main memory's pool, or in its own
        reserved, used = max(reserved, npu.memory), max(used, npu.memory_used)
    return {
        "Name": device.name,
        "Driver": device.driver or "",
        "Node": device.node or "",
        "State": state,
        "StateReason": reason,
        "Problems": [(trouble.message, trouble.fix or "") for trouble in device.troubles],
        "MemoryTotal": balance.pool.room if balance is not None else 0,
        "MemoryUsed": used,
        "MemoryReserved": reserved,
        "MemoryForeign": balance.foreign if balance is not None else 0,
        "Temperature": float(readings.temperature or 0.0) if readings is not None else 0.0,
        "Readings": _readings(readings),
        "PerformanceLevel": (readings.level or "") if readings is not None else "",
        "PerformanceLevelOwner": (seen.level_owner or "") if seen is not None else "",
        "Models": sorted(model_path(s.spec.name) for s in on_it),
        "Contexts": (npu.contexts or 0) if npu is not None else 0,
        "ContextsUsed": npu.contexts_used if npu is not None else 0,
        "Columns": device.columns or 0,
    }


def pool_of(device: Device) -> str:
    """The memory that models on it have."""
    return RAM if device.kind == "cpu" else device.id


def _in_use(balance: Balance) -> int:
    """Bytes that live models were seen to use."""
    return sum(held.used or 0 for held in balance.holdings if held.phase not in ENDED) + balance.spilled


def _state(
    device: Device, balance: Balance | None, models: Iterable[Snapshot], readings: Readings | None
) -> tuple[str, str]:
    """Its state, and a clause that says why it is not "ok"."""
    if device.problem is not None:
        return "lost", device.problem
    stuck = [s.spec.name for s in models if s.history and s.history[-1].event is Event.STUCK]
    if stuck:
        return "quarantined", f"a process of {', '.join(stuck)} cannot be ended"
    if readings is not None and readings.stale:
        return "stale", next(iter(readings.reasons.values()), "it cannot be read at the moment")
    if device.kind != "cpu" and balance is not None and balance.foreign > MUCH * balance.pool.capacity > 0:
        return "busy", "other programs use most of its memory"
    return "ok", ""


def _readings(readings: Readings | None) -> dict[str, Any]:
    """What is known of them, with the units in the keys."""
    if readings is None:
        return {}
    clocks = {name: readings.clocks[name].now for name in ("sclk", "mclk") if name in readings.clocks}
    figures = {
        "busy-percent": readings.busy,
        "power-watt": readings.power,
        "clock-mhz": clocks.get("sclk"),
        "memory-clock-mhz": clocks.get("mclk"),
    }
    found: dict[str, Any] = {key: Variant("d", float(value)) for key, value in figures.items() if value is not None}
    found["asleep"] = Variant("b", readings.asleep)
    found["throttling"] = Variant("as", list(readings.throttling))
    return found


def usec(seconds: float | None) -> int:
    """Microseconds; 0 for none."""
    return round(seconds * 1e6) if seconds is not None else 0
