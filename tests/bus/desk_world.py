"""A desk on a fake bus, with a real scheduler, real jobs and pins, and models whose processes are the test's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from accelerd.base.events import EventStream
from accelerd.base.exits import Cause, Exit
from accelerd.base.names import BUS_PATH
from accelerd.base.ports import SystemClock
from accelerd.bus.paths import model_path
from accelerd.bus.service import BusService
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.config.problems import Problem
from accelerd.control.api import ControlApi
from accelerd.control.devices import LOOK_TASK, DeviceLooks
from accelerd.control.jobs import Jobs
from accelerd.control.parts import ConfigStatus, ControlParts, DaemonStatus
from accelerd.devices.model import Device
from accelerd.devices.observer import DeviceStatus
from accelerd.devices.readings import Readings
from accelerd.engines.base import Endpoint, Traits
from accelerd.engines.remote.remotes import Remotes
from accelerd.gateway.request_router import RequestRouter
from accelerd.instances import InstanceInfo
from accelerd.memory.model import RAM, Forecast, MemoryRequirement, MemorySnapshot, Pool, in_ram
from accelerd.policy.pins import Pins
from accelerd.policy.yielding import YieldReport
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.service import Scheduler
from tests.bus.fake_bus import FakeBus

GIB = 1 << 30
ENDPOINT = Endpoint(unix="/run/a.sock")
CPU = Device("cpu", "a processor")
GPU = Device("gpu", "a GPU", driver="amdgpu", slot="0000:c1:00.0")
SETTINGS = SchedulerSettings()
LIMITS = SharedLimits(None, "test", None)


def model(name: str, **settings: Any) -> ModelSpec:
    return ModelSpec(name=name, path=f"/models/{name}.gguf", **settings)


@dataclass
class World:
    """Supervisor, Needs and the daemon in one."""

    bus: FakeBus = field(default_factory=FakeBus)
    devices: tuple[Device, ...] = (CPU, GPU)
    started: list[tuple[str, int]] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    state: str = "running"
    lacks: list[str] = field(default_factory=list)
    wrong: list[Problem] = field(default_factory=list)
    generation: int = 1
    reloads: list[Any] = field(default_factory=list)  # what each gives: changes, or an error
    given: bool = False
    looks: int = 0
    unloads: asyncio.Event | None = None  # set: what is told to stop ends at once

    events: EventStream = field(default_factory=EventStream)
    scheduler: Scheduler = field(init=False)
    api: ControlApi = field(init=False)
    desk: BusService = field(init=False)

    # --- Supervisor ---

    def start(self, instance: int, spec: ModelSpec, devices: Sequence[str] = ()) -> None:
        self.started.append((spec.name, instance))

    def stop(self, instance: int, reason: Cause = Cause.STOPPED) -> None:
        self.stopped.append(instance)

    def probe(self, instance: int, *, thorough: bool = False) -> None: ...
    def adopt(self, instance: int, spec: ModelSpec, found: object) -> None: ...

    # --- Needs ---

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None: ...
    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        return Forecast((in_ram(GIB, "test"),))

    def record_peak(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None: ...
    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        return ""

    def device(self, spec: ModelSpec) -> str:
        return "cpu"

    # --- Reclaimer ---

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: object) -> None: ...

    # --- what is known of its processes ---

    def facts(self, instance: int) -> InstanceInfo | None:
        return InstanceInfo("m", 4711, 0.0, None, "systemd", "accelerd-m.service")

    def progress(self, instance: int) -> Any:
        return SimpleNamespace(line="loading", resident=GIB // 4, taken_in=None)

    def output(self, model: str) -> Any:
        return SimpleNamespace(lines=lambda last=None: ["one", "two", "three"][-(last or 3) :])

    # --- the daemon ---

    endpoints = ("http://127.0.0.1:4000/v1",)

    def degraded(self) -> list[str]:
        return self.lacks

    async def problems(self) -> Sequence[Problem]:
        return self.wrong

    def overview(self) -> DaemonStatus:
        return DaemonStatus(
            version="test", pid=1, uptime=1.0, state=self.state, status="", listen=[], listeners=[],
            config=ConfigStatus([], [], not self.wrong),
            yielded=self.report(), performance=[], desktop=None, degraded=None,
        )  # fmt: skip

    async def reload(self) -> dict[str, list[str]]:
        outcome = self.reloads.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    # --- Yielding ---

    async def ask(self, seconds: float | None = None, *, everything: bool = False, now: bool = False) -> None:
        self.given = True
        self.scheduler.memory.yield_memory(None if everything else frozenset({GPU.id}), None, "test", now=now)
        self.desk.changed()

    async def resume(self) -> bool:
        was, self.given = self.given, False
        self.scheduler.memory.resume()
        self.desk.changed()
        return was

    def concerns(self, pool: str) -> bool:
        return self.given

    def report(self) -> YieldReport | None:
        report = YieldReport(what=self.what, pools=[GPU.id], remaining=None, why="test", holds=[])
        return report if self.given else None

    what = "the GPU"

    # --- looks ---

    def look(self, devices: Sequence[Device]) -> list[DeviceStatus]:
        self.looks += 1
        return [DeviceStatus(device, Readings(temperature=51.5, busy=12.0)) for device in devices]

    async def rescan(self) -> None:
        self.looks += 1

    # --- for tests ---

    def ready(self, name: str) -> None:
        """Its last instance answers."""
        instance = next(number for one, number in reversed(self.started) if one == name)
        self.scheduler.instance_ready(instance, ENDPOINT, "s")

    def gone(self, name: str, exit: Exit | None = None) -> None:
        instance = next(number for one, number in reversed(self.started) if one == name)
        self.scheduler.instance_gone(instance, exit or Exit(Cause.STOPPED, "stopped"))

    async def manager(self, method: str, *args: Any, sender: str = ":1.1") -> Any:
        return await self.bus.call(BUS_PATH, method, *args, sender=sender)

    async def loaded(self, *names: str) -> None:
        for name in names:
            job = await self.manager("LoadModel", name, {})
            await until(lambda name=name: any(one == name for one, _ in self.started))
            self.ready(name)
            await self.bus.call(job, "Wait")

    def shown(self, name: str) -> dict[str, Any]:
        return self.bus.values[model_path(name)]

    def used(self, *, of_gpu: int = 0, **sizes: int) -> None:
        """Somebody has looked at memory: main memory, by model, and what each has of the GPU."""
        numbers = dict(self.started)
        pools = (Pool(RAM, "main memory", 64 * GIB), Pool(GPU.id, "a GPU", 64 * GIB))
        used = {numbers[name]: {RAM: size, GPU.id: of_gpu} for name, size in sizes.items()}
        seen = MemorySnapshot(SystemClock().monotonic(), pools, used)
        self.events.publish(seen)


async def until(condition: Callable[[], Any], every: float = 0.0) -> None:
    """Wait on the loop until it is true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (what changes it is many steps of the loop away)
            await asyncio.sleep(every)


@contextlib.asynccontextmanager
async def desk_of(*specs: ModelSpec, begin: bool = True) -> AsyncIterator[World]:
    """A desk that is open, with these models."""
    world = World()
    clock = SystemClock()
    world.scheduler = scheduler = Scheduler(clock, SETTINGS, LIMITS, world.events)
    scheduler.attach(world, world, lambda: False, world)  # type: ignore[arg-type]

    async def seen() -> MemorySnapshot:
        return MemorySnapshot(clock.monotonic(), (), {})

    async def forecast(spec: ModelSpec, *, ask: bool) -> Forecast:
        return world.estimate_anew(spec)

    learned = SimpleNamespace(entries=lambda: (), forget=lambda key=None: 3)
    engine = SimpleNamespace(traits=lambda spec: Traits(frozenset(("chat",))))
    remotes = Remotes(clock.monotonic, {})
    router = RequestRouter(scheduler, {"llama-server": engine}, clock.monotonic, remotes)  # type: ignore[dict-item]
    parts = ControlParts()
    vars(parts).update(
        roots=SimpleNamespace(home=Path("/home/me")),
        clock=clock,
        events=world.events,
        scheduler=scheduler,
        supervisor=world,
        model_info=SimpleNamespace(learned=learned, forecast=forecast, load_seconds=lambda spec: 1.5),
        router=router,
        remotes=remotes,
        daemon=world,
        jobs=Jobs(clock, world.events),
        pins=Pins(scheduler.holds, clock, world.events),
        tuning_runs=SimpleNamespace(run=None),
        devices=SimpleNamespace(current=lambda: world.devices, rescan=world.rescan, degraded=None),
        device_looks=DeviceLooks(cast(Any, world), lambda: world.devices),
        level_owner=lambda device: None,
        memory=SimpleNamespace(look=seen, degraded=None),
        yielding=world,
        upkeep=SimpleNamespace(),
        conflicts=SimpleNamespace(now=list, of=lambda snapshot, plan: []),
    )
    world.api = api = ControlApi(parts)
    world.desk = desk = BusService(cast(Any, world.bus), "/run/user/1000/accelerd")
    desk.attach(api)
    configure(world, *specs)
    if begin:
        desk.begin()
        await desk.open()
    try:
        yield world
    finally:
        await desk.close()
        await until(lambda: all(task.get_name() != LOOK_TASK for task in asyncio.all_tasks()))
        scheduler.close()


def configure(world: World, *specs: ModelSpec) -> None:
    """These models, from now on."""
    world.scheduler.configure([(spec, Forecast((in_ram(GIB, "test"),))) for spec in specs], SETTINGS, LIMITS)
    world.desk.changed()
