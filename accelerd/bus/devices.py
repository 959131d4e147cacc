"""Devices on the bus: what the inventory, the ledger and the last look say of them, as properties. Looks at nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from accelerd.bus.options import options
from accelerd.bus.paths import job_path, model_path
from accelerd.bus.port import Call, Handler, Variant
from accelerd.control.jobs import Job
from accelerd.control.npu_usage import use_of
from accelerd.devices.model import Device
from accelerd.memory.ledger import ENDED, Balance
from accelerd.memory.model import RAM
from accelerd.scheduler.lifecycle import Event
from accelerd.scheduler.record import Snapshot

CONSTANT: Final = frozenset({"Id", "Kind"})
OFTEN: Final = frozenset({"MemoryUsed", "MemoryReserved", "MemoryForeign", "Temperature", "Readings"})
MUCH: Final = 0.5  # the part of a device's memory that others use when it counts as busy

MemorySnapshot = Mapping[str, Any]  # one device of GET /accelerd/v1/devices, see docs/devices.md; {}: nobody has looked


class DeviceObjects:
    """`rescan()` has all devices looked at again."""

    def __init__(self, rescan: Callable[[], Job]) -> None:
        self._rescan = rescan

    def properties(
        self, device: Device, balances: Mapping[str, Balance], models: Iterable[Snapshot], seen: MemorySnapshot
    ) -> dict[str, Any]:
        """All of them. `balances` of the ledger, by pool."""
        balance = balances.get(pool_of(device))
        on_it = [s for s in models if s.instance is not None and device.id in {s.device, *s.need.devices}]
        readings: Mapping[str, Any] = seen.get("readings") or {}
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
            "Temperature": float(readings.get("temperature") or 0.0),
            "Readings": _readings(readings),
            "PerformanceLevel": readings.get("level") or "",
            "PerformanceLevelOwner": seen.get("level_owner") or "",
            "Models": sorted(model_path(s.spec.name) for s in on_it),
            "Contexts": (npu.contexts or 0) if npu is not None else 0,
            "ContextsUsed": npu.contexts_used if npu is not None else 0,
            "Columns": device.columns or 0,
        }

    def handler(self) -> Handler:
        async def rescan(call: Call) -> tuple[Any, ...]:
            options(call.args[0])
            return (job_path(self._rescan().id),)

        return rescan


def pool_of(device: Device) -> str:
    """The memory that models on it have."""
    return RAM if device.kind == "cpu" else device.id


def _in_use(balance: Balance) -> int:
    """Bytes that live models were seen to use."""
    return sum(held.used or 0 for held in balance.holdings if held.phase not in ENDED) + balance.spilled


def _state(
    device: Device, balance: Balance | None, models: Iterable[Snapshot], readings: Mapping[str, Any]
) -> tuple[str, str]:
    """Its state, and a clause that says why it is not "ok"."""
    if device.problem is not None:
        return "lost", device.problem
    stuck = [s.spec.name for s in models if s.history and s.history[-1].event is Event.STUCK]
    if stuck:
        return "quarantined", f"a process of {', '.join(stuck)} cannot be ended"
    if readings.get("stale"):
        reasons: Mapping[str, str] = readings.get("reasons") or {}
        return "stale", next(iter(reasons.values()), "it cannot be read at the moment")
    if device.kind != "cpu" and balance is not None and balance.foreign > MUCH * balance.pool.capacity > 0:
        return "busy", "other programs use most of its memory"
    return "ok", ""


def _readings(readings: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of them, with the units in the keys."""
    clocks: Mapping[str, Any] = readings.get("clocks") or {}
    figures = {
        "busy-percent": readings.get("busy"),
        "power-watt": readings.get("power"),
        "clock-mhz": (clocks.get("sclk") or {}).get("now"),
        "memory-clock-mhz": (clocks.get("mclk") or {}).get("now"),
    }
    found: dict[str, Any] = {key: Variant("d", float(value)) for key, value in figures.items() if value is not None}
    if readings:
        found["asleep"] = Variant("b", bool(readings.get("asleep")))
        found["throttling"] = Variant("as", list(readings.get("throttling") or ()))
    return found
