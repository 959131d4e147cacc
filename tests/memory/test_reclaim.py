"""A device that gives an ended model's memory back slowly, partly, late or never, and others who take it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from accelerd.base.events import EventStream
from accelerd.base.exits import Cause
from accelerd.base.ports import SystemClock
from accelerd.memory.model import RAM, Forecast, ForeignUser, MemoryRequirement, MemorySnapshot, Pool
from accelerd.memory.reclaim import QUICK, SLACK, STEADY, OtherPrograms, PoolAccount, Reclaimer, UnreturnedMemory
from accelerd.memory.watch import MemoryWatch
from accelerd.scheduler.lifecycle import State
from tests.fakes.clock import FakeClock
from tests.scheduler.bench import Bench, model

GIB = 1 << 30
GPU = "0000:c1:00.0"
CARD = "0000:03:00.0"
LABELS = {RAM: "main memory", GPU: "AMD Radeon 8060S", CARD: "AMD Radeon RX 7900 XTX"}


class Machine:
    """Two GPUs and who uses them, as looks show it; time passes when the test says so."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.ours: dict[int, dict[str, int]] = {}  # by instance
        self.games: dict[str, dict[str, int]] = {"browser": {GPU: GIB}}  # named processes
        self.nameless: dict[str, int] = {GPU: GIB // 4}  # in use, and nobody can be named
        self.pools = [RAM, GPU, CARD]
        self.hangs = False
        self.trouble: OSError | None = None
        self.looks: list[float] = []
        self.pauses: list[float] = []
        self.told: list[tuple[int, str]] = []
        self._waiting: tuple[float, asyncio.Future[None]] | None = None
        self.reclaimer = Reclaimer(self.look, self.clock, EventStream(), pause=self.pause)

    def seen(self) -> MemorySnapshot:
        named = [ForeignUser(pool, 1, name, size) for name, uses in self.games.items() for pool, size in uses.items()]
        foreign = {pool: self.nameless.get(pool, 0) for pool in self.pools}
        for user in named:
            foreign[user.pool] = foreign.get(user.pool, 0) + user.size
        pools = tuple(Pool(id, LABELS[id], 100 * GIB, foreign=foreign[id]) for id in self.pools)
        return MemorySnapshot(
            self.clock.now, pools, {number: dict(used) for number, used in self.ours.items()}, tuple(named)
        )

    async def look(self) -> MemorySnapshot:
        self.looks.append(self.clock.now)
        if self.hangs:
            await asyncio.Event().wait()
        if self.trouble is not None:
            raise self.trouble
        return self.seen()

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._waiting = (self.clock.now + seconds, asyncio.get_running_loop().create_future())
        await self._waiting[1]

    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float) -> None:
        until = self.clock.now + seconds
        await self.settle()
        while self._waiting is not None and self._waiting[0] <= until:
            (due, future), self._waiting = self._waiting, None
            self.clock.now = max(self.clock.now, due)
            if not future.done():
                future.set_result(None)
            await self.settle()
        self.clock.now = until

    def runs(self, instance: int, **used: int) -> None:
        """A model was seen alive with so much."""
        self.ours[instance] = {{"gpu": GPU, "card": CARD, "ram": RAM}[name]: size for name, size in used.items()}
        self.reclaimer.on_memory_snapshot(self.seen())

    def ends(self, instance: int, **missing: int) -> UnreturnedMemory | None:
        """It is gone, and the driver still has so much of it."""
        held = self.ours.pop(instance)
        for name, size in missing.items():
            pool = {"gpu": GPU, "card": CARD}[name]
            self.nameless[pool] = self.nameless.get(pool, 0) + size
        self.clock.advance(0.1)
        return self.reclaimer.watch(instance, f"m{instance}", held, lambda size, where: self.told.append((size, where)))

    def gives_back(self, size: int, pool: str = GPU) -> None:
        self.nameless[pool] -= size


@asynccontextmanager
async def machine() -> AsyncIterator[Machine]:
    """A machine; afterwards nobody may look any more."""
    made = Machine()
    yield made
    for debt in list(made.reclaimer._debts):
        debt.cancel()
    await made.settle()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "reclaim"] == []


def into(sizes: dict[int, int], instance: int) -> Callable[[int, str], None]:
    """Keeps what is told of an instance."""

    def changed(size: int, where: str) -> None:
        sizes[instance] = size

    return changed


async def test_what_lay_in_main_memory_is_back_with_the_process() -> None:
    async with machine() as world:
        world.runs(1, ram=8 * GIB)
        assert world.ends(1) is None
        world.runs(2, ram=GIB, gpu=SLACK)
        assert world.ends(2) is None, "so little may be missing anyway"
        assert (world.looks, world.told) == ([], [])


async def test_where_nobody_looks_nothing_is_waited_for() -> None:
    async with machine() as world:
        assert world.reclaimer.watch(1, "m", {GPU: GIB}, lambda *told: world.told.append(told)) is None


async def test_a_driver_that_is_quick_costs_one_look() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        assert world.ends(1) is not None
        assert world.told == [], "it is told later, never from within the question"
        await world.settle()
        assert world.told == [(0, "")]
        await world.pass_time(10)
        assert len(world.looks) == 1


async def test_a_driver_that_is_slow_is_watched_until_all_is_back() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB, ram=GIB)
        world.ends(1, gpu=8 * GIB)
        for _ in range(4):
            await world.pass_time(0.5)
            world.gives_back(2 * GIB)
        await world.pass_time(0.5)
        where = "memory of AMD Radeon 8060S"
        assert world.told == [(8 * GIB, where), (6 * GIB, where), (4 * GIB, where), (2 * GIB, where), (0, "")]
        assert set(world.pauses) == {QUICK}


async def test_what_a_driver_keeps_for_itself_is_not_missing() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.runs(2, gpu=GIB // 4)
        world.ends(1, gpu=8 * GIB // 20)
        await world.settle()
        world.ends(2, gpu=SLACK // 2)
        await world.settle()
        assert world.told == [(0, ""), (0, "")]


async def test_what_does_not_come_back_is_told_once_and_looked_for_more_and_more_seldom() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.ends(1, gpu=8 * GIB)
        await world.pass_time(1)
        world.gives_back(5 * GIB)
        await world.pass_time(3600)
        where = "memory of AMD Radeon 8060S"
        assert world.told == [(8 * GIB, where), (3 * GIB, where)]
        assert len(world.looks) < 800
        world.gives_back(3 * GIB)
        await world.pass_time(5)
        assert world.told[-1] == (0, "")


async def test_a_game_that_took_the_memory_meanwhile_is_no_residue() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.games["game"] = {GPU: 6 * GIB}
        world.ends(1)
        await world.pass_time(STEADY - 0.5)
        assert world.told == [(6 * GIB, "memory of AMD Radeon 8060S")]
        await world.pass_time(1)
        assert world.told[-1] == (0, "")


async def test_beside_a_game_what_is_really_missing_stays_missing() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.ends(1, gpu=2 * GIB)
        world.games["game"] = {GPU: 3 * GIB}
        await world.pass_time(STEADY + 1)
        assert [size for size, _ in world.told] == [5 * GIB, 2 * GIB]
        del world.games["game"]
        await world.pass_time(STEADY + 1)
        assert world.told[-1][0] == 2 * GIB, "that the game has gone gives nothing of the model's back"
        del world.games["browser"]
        await world.pass_time(STEADY + 1)
        assert world.told[-1][0] == 2 * GIB, "nor does a program that was there before"
        world.gives_back(2 * GIB)
        await world.pass_time(QUICK)
        assert world.told[-1] == (0, "")


async def test_a_game_that_still_loads_is_waited_for() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.ends(1)
        for step in range(1, 7):
            world.games["game"] = {GPU: step * GIB // 2}
            await world.pass_time(1)
        assert [size for size, _ in world.told] == [step * GIB // 2 for step in range(1, 7)]
        await world.pass_time(STEADY)
        assert world.told[-1] == (0, "")


async def test_two_models_that_end_together_miss_no_byte_twice() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.runs(2, gpu=4 * GIB)
        sizes: dict[int, int] = {}
        for instance in (1, 2):
            held = world.ours.pop(instance)
            world.nameless[GPU] += held[GPU]
            world.reclaimer.watch(instance, "m", held, into(sizes, instance))
        await world.settle()
        assert sizes == {1: 8 * GIB, 2: 4 * GIB}
        world.gives_back(7 * GIB)
        await world.pass_time(QUICK)
        assert sizes == {1: GIB, 2: 4 * GIB}
        world.gives_back(4 * GIB)
        await world.pass_time(QUICK)
        assert sizes == {1: 0, 2: GIB}
        world.gives_back(GIB)
        await world.pass_time(QUICK)
        assert sizes == {1: 0, 2: 0}


async def test_on_two_devices_each_is_named() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB, card=4 * GIB)
        world.ends(1, gpu=2 * GIB, card=GIB)
        await world.settle()
        world.gives_back(2 * GIB)
        await world.pass_time(QUICK)
        world.gives_back(GIB, CARD)
        await world.pass_time(QUICK)
        assert world.told == [
            (3 * GIB, "memory of AMD Radeon 8060S and memory of AMD Radeon RX 7900 XTX"),
            (GIB, "memory of AMD Radeon RX 7900 XTX"),
            (0, ""),
        ]


async def test_a_look_that_is_older_than_the_end_says_nothing_of_it() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        before = world.seen()
        world.hangs = True
        world.ends(1, gpu=8 * GIB)
        await world.settle()
        world.reclaimer.on_memory_snapshot(before)
        assert world.told == []
        world.ours[1] = {GPU: 8 * GIB}
        world.reclaimer.on_memory_snapshot(world.seen())
        assert world.told == [], "nor does one in which it is still there"
        del world.ours[1]
        world.reclaimer.on_memory_snapshot(world.seen())
        assert world.told == [(8 * GIB, "memory of AMD Radeon 8060S")]


async def test_a_model_that_was_already_ending_when_it_was_seen_last_is_no_measure() -> None:
    """Its memory counted as others' by then, although it was still there."""
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.nameless[GPU] += 8 * GIB
        world.runs(1, gpu=0, ram=GIB)
        world.ours[1] = {GPU: 8 * GIB}
        world.ends(1)
        await world.settle()
        assert world.told == [(8 * GIB, "memory of AMD Radeon 8060S")]


async def test_the_memory_of_a_device_that_is_gone_is_gone_too() -> None:
    async with machine() as world:
        world.runs(1, card=8 * GIB)
        world.ends(1, card=8 * GIB)
        await world.settle()
        world.pools.remove(CARD)
        world.nameless.pop(CARD)
        await world.pass_time(STEADY - 0.5)
        assert world.told == [(8 * GIB, "memory of AMD Radeon RX 7900 XTX")]
        await world.pass_time(1)
        assert world.told[-1] == (0, "")


async def test_a_look_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.trouble = OSError("the driver is away")
        world.ends(1)
        await world.pass_time(1)
        assert world.told == []
        assert {record.levelno for record in caplog.records} == {logging.WARNING}
        assert "whether the memory of m1 is back" in caplog.text
        world.trouble = None
        await world.pass_time(QUICK)
        assert world.told == [(0, "")]


@pytest.mark.parametrize("when", ["before the first look", "while a look hangs", "between two looks", "when told"])
async def test_it_can_be_called_off_at_any_time(when: str) -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.hangs = when == "while a look hangs"
        debt = world.ends(1, gpu=8 * GIB)
        assert debt is not None
        if when == "when told":
            debt.changed = lambda *_: debt.cancel()
        elif when != "before the first look":
            await world.settle()
        told = list(world.told)
        debt.cancel()
        debt.cancel()
        world.hangs = False
        world.gives_back(8 * GIB)
        world.reclaimer.on_memory_snapshot(world.seen())
        await world.pass_time(60)
        assert world.told == told
        world.runs(2, gpu=GIB)
        world.ends(2)
        await world.settle()
        assert world.told[-1] == (0, ""), "the next one is watched again"


async def test_a_look_of_somebody_else_will_do() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.hangs = True
        world.ends(1, gpu=8 * GIB)
        await world.settle()
        world.reclaimer.on_memory_snapshot(world.seen())
        world.gives_back(8 * GIB)
        world.reclaimer.on_memory_snapshot(world.seen())
        assert [size for size, _ in world.told] == [8 * GIB, 0]


async def test_nobody_looks_twice_for_the_same_moment() -> None:
    async with machine() as world:
        world.runs(1, gpu=8 * GIB)
        world.ends(1, gpu=8 * GIB)
        await world.pass_time(1)
        before = len(world.looks)
        for _ in range(8):
            await world.pass_time(QUICK / 2)
            world.reclaimer.on_memory_snapshot(world.seen())
        assert len(world.looks) == before
        world.reclaimer.on_memory_snapshot(MemorySnapshot(world.clock.now, (), {}))
        assert len(world.told) == 1, "a look that saw nothing proves nothing"


async def test_with_the_watch_of_memory_that_the_daemon_has() -> None:
    class Meter:
        """Looks in a thread, at whatever is the case."""

        def look(self, devices: object, processes: Mapping[int, Sequence[int]]) -> MemorySnapshot:
            return replace(world.seen(), at=SystemClock().monotonic())

    def processes() -> Callable[[], dict[int, list[int]]]:
        return lambda: {instance: [] for instance in world.ours}

    world, events = Machine(), EventStream()
    watch = MemoryWatch(Meter(), list, processes, events, SystemClock())
    reclaimer = Reclaimer(watch.look, SystemClock(), events)
    world.ours[1] = {GPU: 8 * GIB}
    told: asyncio.Queue[int] = asyncio.Queue()
    watch.start()
    try:
        await watch.look()
        held = world.ours.pop(1)
        world.nameless[GPU] += 8 * GIB
        assert reclaimer.watch(1, "m", held, lambda size, where: told.put_nowait(size)) is not None
        async with asyncio.timeout(10):
            assert await told.get() == 8 * GIB
            world.gives_back(8 * GIB)
            assert await told.get() == 0
    finally:
        await watch.close()


def bench_on(world: Machine) -> Bench:
    """A scheduler that asks the Reclaimer."""
    bench = Bench([])
    bench.core.attach(bench, bench, bench.look, world.reclaimer)
    bench.clock.now = world.clock.now
    need = MemoryRequirement({GPU: 8 * GIB}, "test", (GPU,))
    entries = [(model(name), Forecast((need,))) for name in ("a", "b")]
    pools = (Pool(RAM, "main memory", 100 * GIB), Pool(GPU, LABELS[GPU], 10 * GIB))
    bench.core.configure(entries, bench.settings, bench.limits)
    bench.core.memory.seen(MemorySnapshot(world.clock.now, pools, {}))
    return bench


async def test_the_next_model_waits_for_the_memory_of_the_one_before() -> None:
    async with machine() as world:
        bench = bench_on(world)
        bench.loaded("a")
        world.runs(1, gpu=8 * GIB)
        waits = bench.request("b")
        bench.pass_time(60)
        assert bench.state("a") is State.STOPPING
        world.ours.clear()
        world.nameless[GPU] += 8 * GIB
        bench.gone("a")
        await world.pass_time(1)
        assert bench.loads() == ["a"]
        assert [(r.size, r.where) for r in bench.core.residues] == [(8 * GIB, "memory of AMD Radeon 8060S")]
        world.gives_back(8 * GIB)
        await world.pass_time(1)
        assert bench.loads() == ["a", "b"]
        bench.ready("b")
        assert waits.lease is not None


async def test_a_look_that_hangs_holds_nobody_up_for_ever() -> None:
    async with machine() as world:
        bench = bench_on(world)
        bench.loaded("a")
        world.runs(1, gpu=8 * GIB)
        world.hangs = True
        bench.gone("a", Cause.EXITED)
        await world.settle()
        assert bench.state("a") is State.RECLAIMING
        bench.pass_time(11)
        assert bench.state("a") is not State.RECLAIMING
        assert [(r.model, r.size) for r in bench.lost_memory] == [("a", 8 * GIB)]


READINGS = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 16)), min_size=1, max_size=20)


@given(READINGS)
def test_an_account_never_misses_more_than_there_is_and_believes_in_the_end(readings: list[tuple[int, int]]) -> None:
    account = PoolAccount(OtherPrograms(4 * GIB, 2 * GIB), "a card")
    at = 0.0
    for nameless, named in readings:
        at += QUICK
        foreign = (nameless + named) * GIB // 4
        missing = account.look(at, OtherPrograms(foreign, named * GIB // 4))
        assert 0 <= missing <= foreign
        assert account.others.foreign >= account.others.named >= 0
    for _ in range(20):
        at += QUICK
        missing = account.look(at, OtherPrograms(3 * GIB + 2 * GIB, 3 * GIB))
    assert missing == 0, "others have their two nameless GiB, as before"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.lists(st.integers(0, 200), max_size=8))
def test_shares_add_up(held: list[int], readings: list[int]) -> None:
    async def run() -> None:
        async with machine() as world:
            sizes: dict[int, int] = {}
            for instance, size in enumerate(held):
                world.runs(instance, gpu=size * GIB)
            world.hangs = True
            for instance in range(len(held)):
                mine = world.ours.pop(instance)
                world.reclaimer.watch(instance, "m", mine, into(sizes, instance))
            usual = world.nameless[GPU]
            for missing in [*readings, 0]:
                world.nameless[GPU] = usual + missing * GIB
                world.reclaimer.on_memory_snapshot(world.seen())
                assert all(0 <= left <= held[instance] * GIB for instance, left in sizes.items())
                assert sum(sizes.values()) <= missing * GIB
            assert set(sizes.values()) == {0}

    asyncio.run(run())
