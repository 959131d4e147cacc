"""The scheduler on the event loop: memory that is waited for, needs that are remembered, a machine that has slept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from accelerd.base.events import EventStream
from accelerd.base.exits import Cause, Exit
from accelerd.base.ports import SystemClock
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.engines.base import Endpoint
from accelerd.memory.model import Forecast, MemoryRequirement, in_ram
from accelerd.memory.reclaim import Changed
from accelerd.scheduler.events import HoldsDropped, MemoryNotReturned, ModelInUse, SystemResumed
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.record import Residue
from accelerd.scheduler.service import Scheduler
from accelerd.system.suspend import time_asleep
from tests.scheduler.bench import MIB, model

ENDPOINT = Endpoint(unix="/run/a.sock")


class World:
    """Supervisor, subscriber, Needs, Reclaim and clock of suspends in one, noting what it hears."""

    def __init__(self, *, slow: bool = False) -> None:
        self.slow = slow
        self.started: list[int] = []
        self.adopted: list[tuple[int, object]] = []
        self.probed: list[int] = []
        self.stopped: list[int] = []
        self.told_to_stop = asyncio.Event()
        self.lost_memory: list[Residue] = []
        self.needs: dict[str, int] = {}
        self.peaks: dict[str, dict[str, int]] = {}
        self.changed: list[Changed] = []
        self.cancelled = 0
        self.slept = 0.0
        self.naps: list[float] = []
        self.uses: list[tuple[str, bool]] = []
        self.dropped: list[tuple[str, tuple[str, ...]]] = []

    def start(self, instance: int, spec: ModelSpec, devices: Sequence[str] = ()) -> None:
        self.started.append(instance)

    def adopt(self, instance: int, spec: ModelSpec, found: object) -> None:
        self.adopted.append((instance, found))

    def stop(self, instance: int, reason: Cause = Cause.STOPPED) -> None:
        self.stopped.append(instance)
        self.told_to_stop.set()

    def probe(self, instance: int, *, thorough: bool = False) -> None:
        self.probed.append(instance)

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None:
        self.needs[spec.name] = need.total

    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        self.needs.pop(spec.name, None)
        return Forecast((in_ram(MIB, "test"),))

    def record_peak(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None:
        self.peaks[spec.name] = dict(peak)

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        return "a smaller context would"

    def device(self, spec: ModelSpec) -> str:
        return "cpu"

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: Changed) -> World | None:
        if self.slow:
            self.changed.append(changed)
            return self
        return None

    def cancel(self) -> None:
        self.cancelled += 1

    def asleep(self) -> float:
        return self.slept

    def hear(self, events: EventStream) -> None:
        events.subscribe(MemoryNotReturned, lambda event: self.lost_memory.append(event.residue))
        events.subscribe(SystemResumed, lambda event: self.naps.append(event.seconds))
        events.subscribe(ModelInUse, lambda event: self.uses.append((event.spec.name, event.in_use)))
        events.subscribe(HoldsDropped, lambda event: self.dropped.append((event.model, event.keys)))


@asynccontextmanager
async def scheduler_of(world: World, *specs: ModelSpec) -> AsyncIterator[Scheduler]:
    limits = SharedLimits(None, "test", None)
    settings = SchedulerSettings()
    scheduler = Scheduler(SystemClock(), settings, limits, events := EventStream(), asleep=world.asleep)
    world.hear(events)
    scheduler.attach(world, world, lambda: False, world)  # type: ignore[arg-type]
    scheduler.configure([(spec, Forecast((in_ram(MIB, "test"),))) for spec in specs], settings, limits)
    try:
        yield scheduler
    finally:
        scheduler.close()


async def test_the_first_request_after_a_suspend_waits_for_an_answer_of_the_model() -> None:
    world = World()
    async with scheduler_of(world, model("a")) as scheduler:
        first = asyncio.create_task(scheduler.wait("a"))
        await asyncio.sleep(0)
        scheduler.instance_ready(1, ENDPOINT, "s")
        scheduler.release(await first, True)
        world.slept = 0.5
        lease = scheduler.acquire("a")
        assert lease is not None, "half a second is no sleep"
        scheduler.release(lease, True)
        world.slept = 3600.0
        waiting = asyncio.create_task(scheduler.wait("a"))
        await asyncio.sleep(0)
        assert world.probed == [1]
        assert not waiting.done()
        assert scheduler.acquire("a") is None
        scheduler.instance_probed(1, True)
        scheduler.release(await waiting, True)
        assert world.probed == [1], "one sleep is one question"
        assert world.naps == [3600.0]


async def test_before_a_sleep_everybody_waits_and_afterwards_models_are_asked_first() -> None:
    world = World()
    async with scheduler_of(world, model("a"), model("b")) as scheduler:
        first = asyncio.create_task(scheduler.wait("a"))
        await asyncio.sleep(0)
        scheduler.instance_ready(1, ENDPOINT, "s")
        running = await first
        scheduler.pause(True)
        assert scheduler.acquire("a") is None
        late, other = asyncio.create_task(scheduler.wait("a")), asyncio.create_task(scheduler.wait("b"))
        await asyncio.sleep(0)
        assert world.started == [1], "nothing is started"
        assert scheduler.busy()
        scheduler.release(running, True)
        await asyncio.sleep(0)
        assert not scheduler.busy(), "who runs goes on to its end, and nobody follows"
        world.slept = 3600.0
        scheduler.pause(False)
        assert (world.probed, world.started) == ([1], [1, 2])
        await asyncio.sleep(0)
        assert not late.done()
        scheduler.instance_probed(1, True)
        scheduler.release(await late, True)
        scheduler.instance_ready(2, ENDPOINT, "s")
        scheduler.release(await other, True)


async def test_a_sleep_that_did_not_come_asks_nobody() -> None:
    world = World()
    async with scheduler_of(world, model("a")) as scheduler:
        first = asyncio.create_task(scheduler.wait("a"))
        await asyncio.sleep(0)
        scheduler.instance_ready(1, ENDPOINT, "s")
        scheduler.release(await first, True)
        scheduler.pause(True)
        late = asyncio.create_task(scheduler.wait("a"))
        await asyncio.sleep(0)
        scheduler.pause(False)
        scheduler.release(await late, True)
        assert world.probed == []


async def test_memory_is_looked_at_from_the_moment_that_something_lives() -> None:
    """While nothing lives nobody looks: who starts or takes over an instance says so."""
    world = World()
    looks: list[int] = []

    def look() -> bool:
        looks.append(len(world.started))
        return False

    async with scheduler_of(world, model("a"), model("b")) as scheduler:
        scheduler.attach(world, world, look, world)  # type: ignore[arg-type]
        scheduler.enqueue("a")
        assert looks[-1:] == [1]
        before = len(looks)
        assert scheduler.adopt("b", "found", fits=True)
        assert len(looks) > before


async def test_a_port_tells_when_memory_is_back() -> None:
    world = World(slow=True)
    async with scheduler_of(world, model("a")) as scheduler:
        scheduler.enqueue("a")
        scheduler.instance_ready(1, ENDPOINT, "s")
        scheduler.instance_gone(1, Exit(Cause.EXITED, "it ended"))
        assert scheduler.snapshot("a").state is State.RECLAIMING
        world.changed[0](MIB // 2, "VRAM of card0")
        assert [(r.size, r.where) for r in scheduler.residues] == [(MIB // 2, "VRAM of card0")]
        world.changed[0](0, "")
        assert scheduler.snapshot("a").state is not State.RECLAIMING
        assert scheduler.residues == ()
        assert world.cancelled == 0


async def test_the_end_of_the_daemon_does_not_wait_for_memory() -> None:
    world = World(slow=True)
    async with scheduler_of(world, model("a")) as scheduler:
        scheduler.enqueue("a")
        scheduler.instance_ready(1, ENDPOINT, "s")
        scheduler.instance_gone(1, Exit(Cause.EXITED, "it ended"))
        async with asyncio.timeout(1):
            await scheduler.stop_all()
    assert world.cancelled == 1


async def test_a_need_is_remembered_until_a_person_resets_it() -> None:
    world = World()
    async with scheduler_of(world, model("a")) as scheduler:
        ticket = scheduler.enqueue("a")
        scheduler.instance_ready(1, ENDPOINT, "s")
        ticket.leave()
        scheduler.instance_gone(1, Exit(Cause.OOM_KILLED, "killed", peak=3 * MIB))
        assert world.needs == {"a": 3 * MIB}
        load = asyncio.create_task(scheduler.load("a"))
        await asyncio.sleep(0)
        assert scheduler.memory_held() == 3 * MIB, "a load forgets failures, not what was learnt"
        scheduler.instance_ready(2, ENDPOINT, "s")
        await load
        scheduler.reset("a", memory=True)
        assert scheduler.memory_held() == 3 * MIB, "not while it uses it"
        scheduler.instance_gone(2, Exit(Cause.STOPPED, "stopped"))
        scheduler.reset("a", memory=True)
        assert world.needs == {}
        assert scheduler.snapshot("a").memory == MIB


async def test_an_adoption_reaches_the_supervisor_and_is_no_start() -> None:
    world = World()
    async with scheduler_of(world, model("a")) as scheduler:
        assert scheduler.adopt("a", "found", fits=True)
        assert (world.adopted, world.started) == ([(1, "found")], [])
        scheduler.shutdown(keep=True)
        assert world.stopped == []


async def test_a_hold_loads_and_letting_go_puts_away() -> None:
    world = World()
    async with scheduler_of(world, model("a", idle_timeout=0.02), model("b")) as scheduler:
        assert scheduler.holds.hold("a", "me", load=True) == "a"
        assert world.started == [1]
        scheduler.instance_ready(1, ENDPOINT, "s")
        assert scheduler.holds.unhold("a", "me")
        async with asyncio.timeout(10):
            await world.told_to_stop.wait()
        assert world.stopped == [1]
        assert not scheduler.holds.unhold("a", "me")
        scheduler.holds.hold("b", "me", load=False)
        scheduler.configure([], SchedulerSettings(), SharedLimits(None, "test", None))
        assert world.dropped == [("b", ("me",))]


async def test_a_cancelled_load_can_be_abandoned() -> None:
    world = World()
    async with scheduler_of(world, model("a")) as scheduler:
        load = asyncio.create_task(scheduler.load("a"))
        await asyncio.sleep(0)
        assert not scheduler.holds.abandon("a", "cancelled"), "somebody waits for it"
        load.cancel()
        await asyncio.wait((load,))
        assert scheduler.snapshot("a").state is State.STARTING, "without a word it goes on"
        assert scheduler.holds.abandon("a", "cancelled")
        assert world.stopped == [1]


def test_the_time_asleep_stands_still_while_the_machine_is_awake() -> None:
    first = time_asleep()
    assert abs(time_asleep() - first) < 0.5
    assert first > -0.5
