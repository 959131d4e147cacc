"""When memory is looked at: while something lives, when somebody asks, and never because a driver hangs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from accelerd.base.events import EventStream
from accelerd.devices.model import Device
from accelerd.memory.model import RAM, MemorySnapshot, Pool
from accelerd.memory.watch import USUAL, MemoryWatch, Rhythm, next_look
from tests.fakes.clock import FakeClock
from tests.memory.machines import CPU, GIB

FAST = Rhythm(usual=0.01, quick=0.002, patience=30.0)


@dataclass
class Drivers:
    """A Measure that answers when it may, and counts."""

    open: threading.Event = field(default_factory=threading.Event)
    asked: list[Mapping[int, Sequence[int]]] = field(default_factory=list)
    trouble: Exception | None = None
    at_once: int = 0

    def look(self, devices: Iterable[Device], processes: Mapping[int, Sequence[int]]) -> MemorySnapshot:
        assert list(devices) == [CPU]
        assert self.at_once == 0, "one at a time"
        self.at_once += 1
        self.asked.append(processes)
        number = len(self.asked)
        self.open.wait(20)
        self.at_once -= 1
        if self.trouble is not None:
            raise self.trouble
        return MemorySnapshot(float(number), (), {instance: {RAM: 1} for instance in processes})


class Stage:
    """A watch, its drivers and instances, and what it told."""

    def __init__(self, rhythm: Rhythm = FAST) -> None:
        self.drivers = Drivers()
        self.drivers.open.set()
        self.instances: dict[int, list[int]] = {}
        self.moving = False
        self.told: list[MemorySnapshot] = []
        self._heard = asyncio.Event()
        events = EventStream()
        events.subscribe(MemorySnapshot, self.hear)
        self.watch = MemoryWatch(
            self.drivers, lambda: [CPU], self.processes, events, FakeClock(), moving=lambda: self.moving,
            rhythm=rhythm,
        )  # fmt: skip

    async def processes(self) -> dict[int, list[int]]:
        return dict(self.instances)

    def hear(self, seen: MemorySnapshot) -> None:
        self.told.append(seen)
        self._heard.set()

    async def until(self, count: int) -> None:
        """So many looks were told."""
        async with asyncio.timeout(20):
            while len(self.told) < count:
                self._heard.clear()
                await self._heard.wait()


@asynccontextmanager
async def stage(rhythm: Rhythm = FAST) -> AsyncIterator[Stage]:
    made = Stage(rhythm)
    made.watch.start()
    try:
        yield made
    finally:
        made.drivers.open.set()
        await made.watch.close()


async def test_while_something_lives_one_look_follows_the_other() -> None:
    async with stage() as s:
        s.instances[1] = [10]
        s.watch.want()
        await s.until(5)
        assert s.drivers.asked[-1] == {1: [10]}
        assert s.watch.last is s.told[-1]


async def test_while_nothing_lives_nobody_looks_until_somebody_asks() -> None:
    """No timer is left, so nothing can happen."""
    loop: Any = asyncio.get_running_loop()
    async with stage(Rhythm(0.001, 0.001, 30)) as s:
        await s.until(1)
        for number in (2, 3):
            seen = await s.watch.look()
            assert (seen.at, len(s.told)) == (number, number)
        deadline = time.monotonic() + 20
        while any(not timer.cancelled() for timer in loop._scheduled):
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        assert len(s.told) == 3


async def test_many_wishes_are_one_look() -> None:
    async with stage() as s:
        await s.until(1)
        s.drivers.open.clear()
        assert all(s.watch.want() for _ in range(100))
        first = [asyncio.create_task(s.watch.look()) for _ in range(20)]
        while len(s.drivers.asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        late = asyncio.create_task(s.watch.look())
        await asyncio.sleep(0)
        s.drivers.open.set()
        assert {seen.at for seen in await asyncio.gather(*first)} == {2}
        assert (await late).at == 3, "that look had begun before"


async def test_a_look_that_hangs_stops_nobody_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with stage(Rhythm(0.001, 0.001, patience=0.05)) as s:
        await s.until(1)
        s.drivers.open.clear()
        assert (await s.watch.look()).at == 1, "what was seen last"
        assert s.watch.degraded is not None
        assert "has not answered for 0.05 s" in s.watch.degraded
        assert [(await s.watch.look()).at for _ in range(3)] == [1, 1, 1]
        assert not s.watch.want()
        assert len(s.drivers.asked) == 2, "one look hangs, no second one is begun"
        s.drivers.open.set()
        await s.until(2)
        assert (s.watch.degraded, (await s.watch.look()).at) == (None, 3)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text.split(":")[0] for text in told] == ["memory cannot be measured", "memory can be measured again"]


async def test_the_end_does_not_wait_for_a_look_that_hangs() -> None:
    s = Stage()
    s.watch.start()
    s.drivers.open.clear()
    reader = asyncio.create_task(s.watch.look())
    while not s.drivers.asked:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    async with asyncio.timeout(20):
        await s.watch.close()
        assert (await reader).pools == ()
    s.drivers.open.set()
    assert (await s.watch.look()).pools == (), "a watch that does not run knows what it knew"


async def test_a_machine_beyond_belief_is_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with stage(Rhythm(0.001, 0.001, patience=0.01)) as s:
        await s.until(1)
        s.drivers.trouble = OSError("no /proc")
        await s.watch.look()
        while len(s.drivers.asked) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert s.watch.degraded == "memory cannot be measured: OSError: no /proc"
        s.drivers.trouble = None
        await s.until(2)
        assert s.watch.degraded is None
    assert sum("no /proc" in record.getMessage() for record in caplog.records) == 1


HALO, OTHER = "0000:c4:00.0", "0000:03:00.0"


def seen(*pools: Pool, **used: int) -> MemorySnapshot:
    return MemorySnapshot(0.0, pools, {1: {RAM if pool == "ram" else HALO: size for pool, size in used.items()}})


RAM_POOL = Pool(RAM, "main memory", 128 * GIB, 8 * GIB, 20 * GIB)
GPU = Pool(HALO, "8060S", 97 * GIB, GIB, 2 * GIB, backed_by=RAM, own=GIB)
FULL = Pool(OTHER, "a card that no model uses", 16 * GIB, GIB, 16 * GIB)


@pytest.mark.parametrize(("look", "lives", "moving", "pause"), [
    (seen(), False, False, None),
    (seen(RAM_POOL, FULL), False, False, None),
    (seen(), False, True, USUAL.quick),  # nothing lives, but memory is to come back
    (seen(RAM_POOL, GPU, FULL, ram=GIB, gpu=GIB), True, False, USUAL.usual),
    (seen(RAM_POOL, ram=91 * GIB), True, False, USUAL.usual),
    (seen(RAM_POOL, ram=93 * GIB), True, False, USUAL.quick),
    (seen(RAM_POOL, GPU, gpu=90 * GIB), True, False, USUAL.usual),
    (seen(RAM_POOL, GPU, gpu=94 * GIB), True, False, USUAL.quick),
    (seen(RAM_POOL, GPU, ram=10 * GIB, gpu=85 * GIB), True, False, USUAL.quick),  # the GPU's lies in main memory
])  # fmt: skip
def test_A33_looks_are_quicker_while_memory_is_short(
    look: MemorySnapshot, lives: bool, moving: bool, pause: float | None
) -> None:
    assert next_look(look, lives=lives, moving=moving) == pause
