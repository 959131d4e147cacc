"""Devices and NPUs as answers show them, as docs/devices.md describes it; and the looks at them.

Made of looks, snapshots and the rules of NPUs; decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from accelerd.base.errors import AccelError
from accelerd.devices.model import Device, DeviceTrouble, MemoryPool
from accelerd.devices.observer import DeviceObserver, DeviceStatus
from accelerd.devices.readings import Readings
from accelerd.memory import npu_rules
from accelerd.memory.model import MemoryRequirement, Pool
from accelerd.scheduler.lifecycle import OCCUPIED
from accelerd.scheduler.record import Snapshot

PATIENCE: Final = 5.0  # s for a look
LOOK_TASK: Final = "look at devices"


class Tenant(Struct, frozen=True):
    """One claim of a model. Bytes are the model's whole, wherever they lie: an NPU has no memory of its own."""

    model: str
    family: str
    kind: str
    contexts: int
    host: str
    memory: int  # that counts
    memory_used: int | None  # seen in use; None: not seen yet


class NpuUse(Struct, frozen=True):
    """One NPU. `contexts` None: nobody knows how many there are."""

    contexts: int | None
    contexts_used: int
    columns: int | None
    models: tuple[Tenant, ...]

    @property
    def memory(self) -> int:
        """Bytes that count as its models'; of a model with two claims once."""
        return sum({one.model: one.memory for one in self.models}.values())

    @property
    def memory_used(self) -> int:
        return sum({one.model: one.memory_used or 0 for one in self.models}.values())


class ClaimStatus(msgspec.Struct, frozen=True):
    """A place that a model takes on an NPU."""

    device: str
    family: str
    kind: str
    contexts: int
    host: str  # the server that holds several models; "": its own process
    label: str  # of the device, for people
    of: int | None  # contexts that there are; None: not known


class HolderStatus(msgspec.Struct):
    """A process that uses a device's memory. Bytes by pool."""

    pid: int
    process: str
    model: str | None
    memory: Mapping[str, int]
    total: int


class DeviceReport(msgspec.Struct, kw_only=True):
    """A device as it is seen by a look. Bytes; None: not known, or there is none."""

    id: str
    kind: Literal["gpu", "npu", "cpu"]
    name: str
    driver: str | None
    slot: str | None
    node: str | None
    pools: Sequence[MemoryPool]
    problem: str | None
    fix: str | None
    vendor: str
    device: str
    gfx: str | None
    apu: bool | None
    unified: bool
    columns: int | None
    firmware: Mapping[str, str]
    troubles: Sequence[DeviceTrouble]
    directory: str | None
    readings: Readings
    level_owner: str | None  # who has set the performance level
    holders: list[HolderStatus]
    others: int | None  # in use by no process that could be read
    npu: NpuUse | msgspec.UnsetType = msgspec.UNSET


class DeviceLooks:
    """Looks at devices in a thread, one look at a time: a driver that does not answer holds up nobody else."""

    def __init__(self, observer: DeviceObserver, devices: Callable[[], Sequence[Device]]) -> None:
        self._observer = observer
        self._devices = devices
        self._look: asyncio.Future[list[DeviceStatus]] | None = None

    async def look(self) -> list[DeviceStatus]:
        """A look; who asks while one is under way gets that. AccelError internal when a driver does not answer."""
        if self._look is None:
            work = asyncio.to_thread(self._observer.look, self._devices())
            self._look = asyncio.create_task(work, name=LOOK_TASK)
            self._look.add_done_callback(self._looked)
        try:
            return await asyncio.wait_for(asyncio.shield(self._look), PATIENCE)
        except TimeoutError:
            text = "a driver does not answer; see: sudo dmesg --level=err,warn"
            raise AccelError("internal", f"cannot read the devices: {text}") from None

    def _looked(self, look: asyncio.Future[list[DeviceStatus]]) -> None:
        self._look = None
        if not look.cancelled():
            look.exception()  # whoever asked has it, or has gone


def device_report(
    look: DeviceStatus, models: Mapping[int, str], level_owner: str | None = None, npu: NpuUse | None = None
) -> DeviceReport:
    """`models`: names by pid of their process; `npu`: who uses it, of an NPU."""
    device = look.device
    known = asdict(device) | {
        "pools": look.readings.pools or device.pools,
        "directory": str(device.directory) if device.directory else None,
    }
    return DeviceReport(
        **known,
        id=device.id,
        readings=replace(look.readings, pools=()),
        level_owner=level_owner,
        holders=[
            HolderStatus(one.pid, one.process, models.get(one.pid), one.memory, one.total) for one in look.holders
        ],
        others=look.others,
        npu=npu if npu is not None else msgspec.UNSET,
    )


def use_of(device: Device, snapshots: Iterable[Snapshot]) -> NpuUse | None:
    """Who is on an NPU now; None for any other device."""
    if device.kind != "npu":
        return None
    there = [s for s in snapshots if s.state in OCCUPIED and s.need.claims]
    return NpuUse(
        contexts=npu_rules.contexts(device),
        contexts_used=npu_rules.claimed((s.need for s in there), device.id),
        columns=device.columns,
        models=tuple(
            Tenant(s.spec.name, claim.family, claim.kind, claim.contexts, claim.host, sum(s.held.values()),
                   s.memory_used)
            for s in there for claim in s.need.claims if claim.device == device.id
        ),
    )  # fmt: skip


def claims_of(need: MemoryRequirement, pools: Mapping[str, Pool]) -> list[ClaimStatus]:
    """The places that a model placed like this takes."""
    found = []
    for claim in need.claims:
        pool = pools.get(claim.device)
        label, contexts = (pool.label, pool.contexts) if pool is not None else (claim.device, None)
        found.append(ClaimStatus(**asdict(claim), label=label, of=contexts))
    return found
