"""The machine's sleep: held up while there is something to do, never longer than logind waits, served after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from accelerd.system.dbus.client import BusClient
from accelerd.system.suspend import SleepGuard
from tests.harness import PATIENCE
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401
from tests.system.buses import until
from tests.system.fake_services import Bus, Player


class Work:
    """What is done before and after a sleep; `may_end` is what it waits for."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def before(self, seconds: float) -> None:
        self.told.put_nowait(round(seconds, 3))
        await self.may_end.wait()

    async def after(self) -> None:
        self.told.put_nowait("awake")

    async def next(self) -> Any:
        return await asyncio.wait_for(self.told.get(), PATIENCE)


@asynccontextmanager
async def guarding(
    bus: Bus, work: Work, *, hold: bool = True, resumed_after: float = 60.0
) -> AsyncIterator[SleepGuard]:
    client = BusClient(bus.address, "system bus")
    guard = SleepGuard(client, work.before, work.after, resumed_after)
    guard.configure(hold=hold)
    try:
        yield guard
    finally:
        await guard.close()
        await client.close()


def holders(logind: Player) -> Callable[[], bool]:
    return lambda: logind.ask("inhibitors") == [["sleep", "accelerd", "finishing requests and freeing memory", "delay"]]


async def test_a_sleep_waits_for_what_is_done_before_it_and_the_next_one_too(bus: Bus) -> None:
    logind = await asyncio.to_thread(bus.player, "logind", delay=10)
    work = Work()
    async with guarding(bus, work) as guard:
        for round_ in (1, 2):
            await until(holders(logind), "one inhibitor")
            work.may_end.clear()
            await asyncio.to_thread(logind.ask, "prepare")
            assert await work.next() == 8.0, "four fifths of what logind waits"
            assert len(await asyncio.to_thread(logind.ask, "slept")) == round_ - 1, "it waits"
            assert guard.report() == {"logind": True, "held": True, "asleep": True, "degraded": None}
            work.may_end.set()
            await until(lambda round_=round_: logind.ask("slept") == ["let"] * round_, "asleep")
            assert not guard.held
            assert work.told.empty()
            await asyncio.to_thread(logind.ask, "wake")
            assert await work.next() == "awake"
            assert guard.held, "the new inhibitor is there before anybody is served"


async def test_work_without_an_end_is_cut_before_logind_loses_patience(bus: Bus) -> None:
    logind = await asyncio.to_thread(bus.player, "logind", delay=1.5)
    work = Work()
    async with guarding(bus, work):
        await until(holders(logind), "an inhibitor")
        work.may_end.clear()
        await asyncio.to_thread(logind.ask, "prepare")
        assert await work.next() == 1.2
        await until(lambda: logind.ask("slept"), "asleep")
        assert await asyncio.to_thread(logind.ask, "slept") == ["let"]
        await asyncio.to_thread(logind.ask, "wake")
        assert await work.next() == "awake"


async def test_a_bug_in_the_work_lets_go_and_the_next_sleep_is_another_chance(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    logind = await asyncio.to_thread(bus.player, "logind")
    work = Work()
    steps = [True, False]

    async def before(seconds: float) -> None:
        work.told.put_nowait("asleep")
        if steps.pop(0):
            raise RuntimeError("a bug")

    work.before = before  # type: ignore[method-assign]
    async with guarding(bus, work):
        for count in (1, 2):
            await until(holders(logind), "an inhibitor")
            await asyncio.to_thread(logind.ask, "prepare")
            assert await work.next() == "asleep"
            await until(lambda count=count: logind.ask("slept") == ["let"] * count, "asleep")
            await asyncio.to_thread(logind.ask, "wake")
            assert await work.next() == "awake"
    assert "cannot prepare for suspend" in caplog.text


async def test_who_does_not_hold_sleep_up_hears_of_it_all_the_same(bus: Bus) -> None:
    logind = await asyncio.to_thread(bus.player, "logind")
    work = Work()
    async with guarding(bus, work, hold=False) as guard:
        await asyncio.to_thread(logind.ask, "prepare")
        assert await work.next() == 0.0, "no time at all"
        assert await asyncio.to_thread(logind.ask, "slept") == ["at once"]
        await asyncio.to_thread(logind.ask, "wake")
        assert await work.next() == "awake"
        assert guard.report() == {"logind": True, "held": False, "asleep": False, "degraded": None}
        guard.configure(hold=True)
        await until(holders(logind), "taken when asked for")
        guard.configure(hold=False)
        await until(lambda: logind.ask("inhibitors") == [], "given back when asked for")


async def test_a_logind_that_refuses_or_is_not_there_is_named(bus: Bus) -> None:
    work = Work()
    async with guarding(bus, work) as guard:
        await until(lambda: guard.degraded, "no logind")
        assert guard.degraded == "suspend is not delayed: logind does not run"
        logind = await asyncio.to_thread(bus.player, "logind", refuse=True)
        await until(lambda: "does not permit it; without polkit" in (guard.degraded or ""), "refused")
        await asyncio.to_thread(logind.ask, "prepare")
        assert await work.next() == 0.0
        await asyncio.to_thread(logind.stop)
        assert await work.next() == "awake", "a logind that is gone lets nobody sleep"
        await asyncio.to_thread(bus.player, "logind")
        await until(lambda: guard.held and guard.degraded is None, "the next logind")


async def test_a_bus_that_dies_while_the_machine_falls_asleep_leaves_nobody_waiting(bus: Bus) -> None:
    logind = await asyncio.to_thread(bus.player, "logind")
    work = Work()
    async with guarding(bus, work) as guard:
        await until(holders(logind), "an inhibitor")
        await asyncio.to_thread(logind.ask, "prepare")
        assert await work.next() == 4.0
        await asyncio.to_thread(bus.stop)
        assert await work.next() == "awake"
        assert not guard.held


async def test_a_machine_that_does_not_sleep_after_all_is_served_again(bus: Bus) -> None:
    logind = await asyncio.to_thread(bus.player, "logind")
    work = Work()
    async with guarding(bus, work, resumed_after=0.05) as guard:
        await until(holders(logind), "an inhibitor")
        await asyncio.to_thread(logind.ask, "prepare")
        assert await work.next() == 4.0
        assert await work.next() == "awake", "logind never said so"
        await until(lambda: "already running" in (guard.degraded or ""), "no inhibitor while logind prepares")
        await asyncio.to_thread(logind.ask, "wake")
        await until(holders(logind), "an inhibitor again")
        assert work.told.empty(), "awake is said once"


async def test_the_end_lets_a_sleep_go_on_that_waits(bus: Bus) -> None:
    logind = await asyncio.to_thread(bus.player, "logind", delay=100)
    work = Work()
    async with guarding(bus, work):
        await until(holders(logind), "an inhibitor")
        work.may_end.clear()
        await asyncio.to_thread(logind.ask, "prepare")
        assert await work.next() == 80.0
    await until(lambda: logind.ask("slept") == ["let"], "asleep")
