"""What the devices are and do, and who uses them, as docs/devices.md describes it.

Looks when it is asked to, in a thread, one look at a time: a driver that does not answer holds up nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec
from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.control.jobs import Job, Jobs
from accelerd.control.npu_usage import NpuUse, use_of
from accelerd.control.operations import NoArguments, Operation, Request, operation
from accelerd.devices.model import Device, DeviceTrouble, MemoryPool
from accelerd.devices.observer import DeviceStatus
from accelerd.devices.readings import Readings
from accelerd.instances import InstanceFacts
from accelerd.scheduler.service import Scheduler

PATIENCE = 5.0  # s for a look
LOOK_TASK = "look at devices"


class DevicesRequest(Request, frozen=True):
    device: str = ""  # an id; "": all devices


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


class Devices(msgspec.Struct):
    devices: list[DeviceReport]
    degraded: str | None  # why changes of devices are not noticed


class Rescanned(msgspec.Struct, tag="rescanned", tag_field="event"):
    elapsed: float


class DeviceList(Protocol):
    """The devices that there are."""

    def current(self) -> tuple[Device, ...]: ...
    @property
    def degraded(self) -> str | None:
        """Why changes are not noticed."""
        ...

    async def rescan(self) -> None: ...


class Observer(Protocol):
    def look(self, devices: Sequence[Device]) -> list[DeviceStatus]:
        """Blocks."""
        ...


def no_owner(device: str) -> str | None:
    """The level's owner where nobody keeps levels."""


class DeviceOperations:
    """Looks at the devices."""

    def __init__(
        self,
        devices: DeviceList,
        observer: Observer,
        scheduler: Scheduler,
        processes: InstanceFacts,
        jobs: Jobs,
        level_owner: Callable[[str], str | None] = no_owner,
    ) -> None:
        """`level_owner(device id)`: who has set its performance level."""
        self._devices = devices
        self._observer = observer
        self._scheduler = scheduler
        self._processes = processes
        self._jobs = jobs
        self._level_owner = level_owner
        self._look: asyncio.Future[list[DeviceStatus]] | None = None

    def operations(self) -> list[Operation]:
        return [
            operation("look", "devices", self.devices),
            operation("job", "rescan", self.rescan, outcome=Rescanned),
        ]

    async def devices(self, request: DevicesRequest) -> Devices:
        """The devices, what they do and who uses them, from a fresh look."""
        if self._devices.degraded is not None:
            await self._devices.rescan()  # nobody else says when something has changed
        looks = [look for look in await self._looks() if request.device in ("", look.device.id)]
        if request.device and not looks:
            raise AccelError("device_not_found", f"there is no device {request.device[:60]!r}", param="device")
        models, snapshots = self._models(), self._scheduler.snapshots()
        found = [
            device_report(look, models, self._level_owner(look.device.id), use_of(look.device, snapshots))
            for look in looks
        ]
        return Devices(found, self._devices.degraded)

    async def rescan(self, request: NoArguments) -> Job:
        """Look for devices again."""

        async def work(job: Job) -> Rescanned:
            await self._devices.rescan()
            return Rescanned(job.elapsed)

        return self._jobs.start("rescan", "", work, key="rescan", cancellable=False)

    async def _looks(self) -> list[DeviceStatus]:
        """A look; who asks while one is under way gets that."""
        if self._look is None:
            work = asyncio.to_thread(self._observer.look, self._devices.current())
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

    def _models(self) -> dict[int, str]:
        """Names by pid of the models' processes."""
        found = {}
        for snapshot in self._scheduler.snapshots():
            facts = self._processes.facts(snapshot.instance) if snapshot.instance is not None else None
            if facts is not None and facts.pid is not None:
                found[facts.pid] = snapshot.spec.name
        return found


def device_report(
    look: DeviceStatus, models: Mapping[int, str], level_owner: str | None = None, npu: NpuUse | None = None
) -> DeviceReport:
    """`models`: names by pid of their process; `npu`: who uses it, of an NPU."""
    device = look.device
    return DeviceReport(
        id=device.id,
        kind=device.kind,
        name=device.name,
        driver=device.driver,
        slot=device.slot,
        node=device.node,
        pools=look.readings.pools or device.pools,
        problem=device.problem,
        fix=device.fix,
        vendor=device.vendor,
        device=device.device,
        gfx=device.gfx,
        apu=device.apu,
        unified=device.unified,
        columns=device.columns,
        firmware=device.firmware,
        troubles=device.troubles,
        directory=str(device.directory) if device.directory else None,
        readings=replace(look.readings, pools=()),
        level_owner=level_owner,
        holders=[
            HolderStatus(one.pid, one.process, models.get(one.pid), one.memory, one.total) for one in look.holders
        ],
        others=look.others,
        npu=npu if npu is not None else msgspec.UNSET,
    )
