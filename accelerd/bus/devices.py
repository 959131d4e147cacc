"""Devices on the bus: what the inventory, the ledger and the last look say of them, as properties. Looks at nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from accelerd.bus.paths import model_path
from accelerd.control.devices import DeviceReport
from accelerd.control.npu_usage import use_of
from accelerd.devices.model import Device
from accelerd.devices.readings import Readings
from accelerd.memory.ledger import ENDED, Balance
from accelerd.memory.model import RAM
from accelerd.scheduler.lifecycle import Event
from accelerd.scheduler.record import Snapshot
from accelerd.system.dbus.port import Variant

CONSTANT: Final = frozenset({"Id", "Kind"})
OFTEN: Final = frozenset({"MemoryUsed", "MemoryReserved", "MemoryForeign", "Temperature", "Readings"})
MUCH: Final = 0.5  # the part of a device's memory that others use when it counts as busy


def properties(
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
        "Id": device.id,
        "Kind": device.kind,
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
