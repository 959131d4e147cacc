"""When memory is looked at: while something lives, when somebody asks, and never because a driver hangs."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from accelerd.base.events import EventStream
from accelerd.base.ports import Roots
from accelerd.devices.model import Device
from accelerd.memory.model import RAM, MemorySnapshot, Pool
from accelerd.memory.psi import StallTrigger, pressure_files
from accelerd.memory.watch import USUAL, MemoryWatch, Rhythm, has_fallen, next_look
from tests.fakes.clock import FakeClock
from tests.memory.machines import CPU, GIB

FAST = Rhythm(usual=0.01, quick=0.002, tight=0.002, card=0.01, rest=0.01, patience=30.0)


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

    def __init__(self, rhythm: Rhythm = FAST, stall: StallTrigger | None = None) -> None:
        self.drivers = Drivers()
        self.drivers.open.set()
        self.instances: dict[int, list[int]] = {}
        self.moving = self.working = False
        self.told: list[MemorySnapshot] = []
        self._heard = asyncio.Event()
        events = EventStream()
        events.subscribe(MemorySnapshot, self.hear)
        self.watch = MemoryWatch(
            self.drivers, lambda: [CPU], self.processes, events, FakeClock(), moving=lambda: self.moving,
            working=lambda: self.working, stall=stall, rhythm=rhythm,
        )  # fmt: skip

    def processes(self) -> Callable[[], dict[int, list[int]]]:
        return lambda: dict(self.instances)

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
async def stage(rhythm: Rhythm = FAST, stall: StallTrigger | None = None) -> AsyncIterator[Stage]:
    made = Stage(rhythm, stall)
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
    async with stage(FAST) as s:
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
    async with stage(structs.replace(FAST, patience=0.05)) as s:
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
    async with stage(structs.replace(FAST, patience=0.01)) as s:
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


@pytest.mark.parametrize(("look", "lives", "moving", "working", "pause"), [
    (seen(), False, False, False, None),
    (seen(RAM_POOL, FULL), False, False, False, None),
    (seen(), False, True, False, USUAL.quick),  # nothing lives, but memory is to come back
    (seen(RAM_POOL, GPU, FULL, ram=GIB, gpu=GIB), True, False, True, USUAL.usual),
    (seen(RAM_POOL, GPU, FULL, ram=GIB, gpu=GIB), True, False, False, USUAL.rest),
    (seen(RAM_POOL, ram=87 * GIB), True, False, False, 10.0),  # 5 GiB are to spare, and half a GiB a second may go
    (seen(RAM_POOL, ram=91 * GIB + GIB * 3 // 4), True, False, False, USUAL.tight),
    (seen(RAM_POOL, ram=93 * GIB), True, False, False, USUAL.quick),
    (seen(RAM_POOL, ram=93 * GIB), True, False, True, USUAL.quick),
    (seen(RAM_POOL, GPU, gpu=90 * GIB), True, False, False, 6.0),
    (seen(RAM_POOL, GPU, gpu=94 * GIB), True, False, False, USUAL.quick),
    (seen(RAM_POOL, GPU, ram=10 * GIB, gpu=85 * GIB), True, False, False, USUAL.quick),  # the GPU's is main memory
    (seen(structs.replace(FULL, id=HALO, foreign=0), gpu=13 * GIB), True, False, False, USUAL.card),
])  # fmt: skip
def test_looks_are_the_quicker_the_less_memory_is_free(
    look: MemorySnapshot, lives: bool, moving: bool, working: bool, pause: float | None
) -> None:
    assert next_look(look, lives=lives, moving=moving, working=working, steady=0) == pause


def test_looks_become_rare_where_memory_is_short_and_stays_as_it_is() -> None:
    ram = seen(RAM_POOL, ram=93 * GIB)
    pauses = [next_look(ram, lives=True, moving=False, working=False, steady=n) for n in range(6)]
    assert pauses == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
    card = seen(structs.replace(FULL, id=HALO, foreign=0), gpu=15 * GIB)
    assert next_look(card, lives=True, moving=False, working=False, steady=99) == USUAL.card


def test_memory_has_fallen_when_others_or_models_took_more_of_a_pool_in_use() -> None:
    before = seen(RAM_POOL, FULL, ram=10 * GIB)
    assert not has_fallen(before, before)
    assert not has_fallen(before, seen(RAM_POOL, FULL, ram=9 * GIB))
    assert not has_fallen(before, seen(RAM_POOL, structs.replace(FULL, foreign=99 * GIB), ram=10 * GIB)), (
        "no model uses it"
    )
    assert has_fallen(before, seen(structs.replace(RAM_POOL, foreign=21 * GIB), FULL, ram=10 * GIB))
    assert has_fallen(before, seen(RAM_POOL, FULL, ram=11 * GIB))


async def test_a_model_that_begins_to_work_shortens_the_wait() -> None:
    async with stage(Rhythm(usual=0.01, rest=3600, tight=3600, card=3600)) as s:
        s.instances[1] = [10]
        await s.watch.look()
        count = len(s.told)
        await asyncio.sleep(0.05)
        assert len(s.told) == count
        s.working = True
        s.watch.on_model_in_use(None)
        await s.until(count + 3)


async def test_memory_that_programs_wait_for_is_looked_at_while_something_lives() -> None:
    kernel, ours = socket.socketpair()

    def trigger(file: Path) -> int:
        if file.name == "refused":
            raise PermissionError
        return os.dup(ours.fileno())

    stall = StallTrigger([Path("/refused"), Path("/proc/pressure/memory")], trigger)
    async with stage(Rhythm(usual=3600, rest=3600, tight=3600, card=3600), stall) as s:
        await s.until(1)
        kernel.send(b"!", socket.MSG_OOB)
        await asyncio.sleep(0.05)
        assert len(s.told) == 1, "nothing lives"
        s.instances[1] = [10]
        await s.watch.look()
        for count in (3, 4):
            kernel.send(b"!", socket.MSG_OOB)
            await s.until(count)
    kernel.close()
    ours.close()


async def test_a_control_group_that_goes_takes_its_trigger_along() -> None:
    read, write = os.pipe()
    heard: list[int] = []
    stall = StallTrigger([Path("x")], lambda file: read)
    assert stall.start(lambda: heard.append(1))
    os.close(write)
    await asyncio.sleep(0.02)
    assert heard == []
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read)


async def test_without_the_kernels_word_the_clock_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_text("some avg10=1.00 avg60=0.00 avg300=0.00 total=0\n")
    stall = StallTrigger([tmp_path / "none", file])
    assert not stall.start(lambda: None)
    assert file.read_text().startswith("some avg10")
    stall.close()


def test_pressure_is_that_of_the_machine_or_of_the_largest_group_around(tmp_path: Path) -> None:
    roots = replace(Roots.from_env({"HOME": "/nowhere"}), proc=tmp_path / "proc", sys=tmp_path / "sys")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user.slice/app.slice\n")
    inner = tmp_path / "sys/fs/cgroup/user.slice/app.slice"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "cgroup.procs").touch()
        (folder / "memory.pressure").touch()
    assert pressure_files(roots) == [
        tmp_path / "proc/pressure/memory",
        inner.parent / "memory.pressure",
        inner / "memory.pressure",
    ]
