"""GameMode's games and logind's sleep, as they are heard of over a bus that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerd.system.dbus.client import ADDRESS, system_bus
from accelerd.system.dbus.properties import PropertiesWatch, PropertyWatch, session_bus
from accelerd.system.gamemode import GAMEMODE, watch_games
from accelerd.system.inhibitor import PREPARING, watch_sleep
from tests.harness import PATIENCE
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401
from tests.system.fake_services import Bus


class Ear:
    """What was told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Any] = asyncio.Queue()

    async def next(self) -> Any:
        return await asyncio.wait_for(self.told.get(), PATIENCE)


async def elsewhere(work: Callable[..., Any], *arguments: Any) -> Any:
    """What blocks, off the loop."""
    return await asyncio.to_thread(work, *arguments)


def env(bus: Bus) -> dict[str, str]:
    return {"DBUS_SESSION_BUS_ADDRESS": bus.address, "DBUS_SYSTEM_BUS_ADDRESS": bus.address}


async def test_games_come_and_go(bus: Bus) -> None:
    gamemode = await elsewhere(bus.service, "gamemode", 1)
    ear = Ear()
    watch = watch_games(ear.told.put_nowait, env(bus))
    watch.start()
    assert await ear.next() == 1, "a game was there before"
    for count in (2, 1, 0, 1):
        await elsewhere(gamemode.set, count)
        assert await ear.next() == count
    watch.close()
    assert ear.told.empty()


async def test_a_gamemode_that_comes_later_and_dies(bus: Bus) -> None:
    ear = Ear()
    watch = watch_games(ear.told.put_nowait, env(bus))
    watch.start()
    assert await ear.next() == 0
    gamemode = await elsewhere(bus.service, "gamemode", 2)
    assert await ear.next() == 2
    gamemode.stop()
    assert await ear.next() == 0
    watch.close()


async def test_gamemode_is_never_started(bus: Bus, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    bus.activatable("gamemode", mark)
    ear = Ear()
    watch = watch_games(ear.told.put_nowait, env(bus))
    watch.start()
    assert await ear.next() == 0
    watch.close()
    assert not mark.exists()


async def test_a_bus_that_comes_goes_and_comes_again(bus: Bus) -> None:
    bus.stop()
    ear = Ear()
    watch = PropertyWatch(bus.address, GAMEMODE, ear.told.put_nowait, again=0.05)
    watch.start()
    assert await ear.next() is None
    for _ in range(2):
        await elsewhere(bus.start)
        gamemode = await elsewhere(bus.service, "gamemode", 3)
        assert await ear.next() == 3
        bus.stop()
        assert await ear.next() is None
        gamemode.stop()
    watch.close()


async def test_a_sleep_begins_and_is_over(bus: Bus) -> None:
    logind = await elsewhere(bus.service, "logind")
    ear = Ear()
    watch = watch_sleep(ear.told.put_nowait, env(bus))
    watch.start()
    assert await ear.next() is False
    await elsewhere(logind.set, 1)
    assert await ear.next() is True
    await elsewhere(logind.set, 0)
    assert await ear.next() is False
    watch.close()


async def test_a_machine_without_logind(bus: Bus) -> None:
    ear = Ear()
    watch = watch_sleep(ear.told.put_nowait, env(bus))
    watch.start()
    assert await ear.next() is None
    watch.close()


async def test_several_properties_of_one_bus_are_told_together(bus: Bus) -> None:
    logind = await elsewhere(bus.service, "logind")
    ear = Ear()
    watch = PropertiesWatch(bus.address, (PREPARING, GAMEMODE), ear.told.put_nowait)
    watch.start()
    assert await ear.next() == (False, None)
    gamemode = await elsewhere(bus.service, "gamemode", 2)
    assert await ear.next() == (False, 2)
    await elsewhere(logind.set, 1)
    assert await ear.next() == (True, 2)
    gamemode.stop()
    assert await ear.next() == (True, None)
    watch.close()


async def test_nothing_is_told_after_the_end(bus: Bus) -> None:
    ear = Ear()
    for _ in range(5):
        watch = watch_games(ear.told.put_nowait, env(bus))
        watch.start()
        watch.close()
    PropertyWatch(bus.address, GAMEMODE, ear.told.put_nowait).close()
    await asyncio.sleep(0)
    assert ear.told.empty()


def test_the_addresses_of_the_buses() -> None:
    assert session_bus({"DBUS_SESSION_BUS_ADDRESS": "unix:path=/a"}) == "unix:path=/a"
    assert session_bus({"XDG_RUNTIME_DIR": "/run/user/7"}) == "unix:path=/run/user/7/bus"
    assert session_bus({}).startswith("unix:path=/run/user/")
    assert system_bus({}) == ADDRESS
