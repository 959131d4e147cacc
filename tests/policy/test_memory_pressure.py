"""Looks at memory that become room: what the scheduler is asked for and what the journal hears."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.config.machine_settings import MemorySettings
from accelerd.config.model import Config, ConfigApplied
from accelerd.memory.ledger import Holding, Ledger
from accelerd.memory.model import RAM, MemorySnapshot, Pool
from accelerd.policy.memory_pressure import MemoryPressureRelief
from tests.fakes.clock import FakeClock

GIB = 1 << 30


@dataclass
class Scheduler:
    """Models of 10 GiB; gives them back at once when they are `idle`."""

    idle: int
    busy: int = 0
    foreign: int = 0
    asked: list[tuple[str, int, bool]] = field(default_factory=list)

    def ledger(self) -> Ledger:
        count = self.idle + self.busy
        pool = Pool(RAM, "main memory", 64 * GIB, 4 * GIB, self.foreign)
        return Ledger([pool], [Holding(str(n), "resident", {RAM: 10 * GIB}) for n in range(count)])

    def make_room(self, pool: str, size: int, why: str, *, busy: bool) -> int:
        self.asked.append((pool, size, busy))
        coming = 0
        while coming < size and self.idle:
            self.idle -= 1
            coming += 10 * GIB
        while busy and coming < size and self.busy:
            self.busy -= 1
            coming += 10 * GIB
        return coming


class World:
    def __init__(self, idle: int, busy: int = 0) -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(idle, busy)
        self.relief = MemoryPressureRelief(self.scheduler, self.clock, MemorySettings(soft_grace=3), EventStream())

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            self.relief.on_memory_snapshot(
                MemorySnapshot(self.clock.now, tuple(self.scheduler.ledger().pools.values()), {})
            )


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if getattr(r, "message_id", "") == names.MSG_PRESSURE]


def test_idle_models_make_room_and_the_journal_says_why(caplog: pytest.LogCaptureFixture) -> None:
    world = World(idle=2)
    world.run(1)
    world.scheduler.foreign = 41 * GIB
    world.run(4)
    assert world.scheduler.asked == [(RAM, GIB + 64 * GIB // 20, False)]
    assert (world.scheduler.idle, world.relief.pressed) == (1, (RAM,))
    [text] = told(caplog)
    assert text.startswith(
        "main memory is short: 3.0 GiB of 64.0 GiB free, 4.0 GiB must stay free; others use 41.0 GiB"
    )
    assert text.endswith("; models are being unloaded")
    world.run(1)
    assert world.relief.pressed == ()


def test_an_urgent_need_asks_those_that_work_too() -> None:
    world = World(idle=0, busy=1)
    world.run(1)
    world.scheduler.foreign = 53 * GIB
    world.run(1)
    assert [busy for _, _, busy in world.scheduler.asked] == [True]
    assert world.scheduler.busy == 0


def test_what_cannot_be_helped_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World(idle=0, busy=1)
    world.run(1)
    world.scheduler.foreign = 51 * GIB
    world.run(40)
    assert len(told(caplog)) == 1
    assert told(caplog)[0].endswith("; no model can be unloaded now")
    world.scheduler.foreign = 0
    world.run(5)
    world.scheduler.foreign = 51 * GIB
    world.run(40)
    assert len(told(caplog)) == 2


def test_nobody_comes_back_by_itself_while_others_need_the_memory() -> None:
    """An order of 0 bytes has nobody leave, and the scheduler's calm begin anew."""
    world = World(idle=1)
    world.run(1)
    world.scheduler.foreign = 63 * GIB
    world.run(1)
    assert len(world.scheduler.asked) == 1
    world.run(10)
    assert world.scheduler.asked[1:] == [(RAM, 0, False)] * 10
    world.scheduler.foreign = 20 * GIB
    world.run(10)
    assert len(world.scheduler.asked) == 11


def test_the_settings_may_change() -> None:
    world = World(idle=1)
    world.run(1)
    world.relief.on_config(ConfigApplied(Config(memory=MemorySettings(soft_grace=0))))
    world.scheduler.foreign = 51 * GIB
    world.run(1)
    assert world.scheduler.idle == 0
