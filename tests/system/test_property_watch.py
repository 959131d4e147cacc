"""Properties of services, watched over a bus that comes and goes; several watches share its connection."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from accelerd.system.dbus.client import SYSTEM_BUS_ADDRESS, BusClient, session_bus_address, system_bus_address
from accelerd.system.dbus.properties import PropertyWatch, WatchedProperty
from accelerd.system.desktop_state import GAMEMODE, watch_games
from accelerd.system.suspend import PREPARING
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


@asynccontextmanager
async def games(bus: Bus) -> AsyncIterator[Ear]:
    ear = Ear()
    client = BusClient(bus.address)
    watch = watch_games(client, ear.told.put_nowait)
    watch.start()
    yield ear
    watch.close()
    await client.close()


@asynccontextmanager
async def watching(bus: Bus, *properties: WatchedProperty) -> AsyncIterator[Ear]:
    ear = Ear()
    client = BusClient(bus.address)
    watch = PropertyWatch(client, properties, ear.told.put_nowait)
    watch.start()
    yield ear
    watch.close()
    await client.close()


async def test_games_come_and_go(bus: Bus) -> None:
    gamemode = await elsewhere(bus.service, "gamemode", 1)
    async with games(bus) as ear:
        assert await ear.next() == 1, "a game was there before"
        for count in (2, 1, 0, 1):
            await elsewhere(gamemode.set, count)
            assert await ear.next() == count
    assert ear.told.empty()


async def test_a_gamemode_that_comes_later_and_dies(bus: Bus) -> None:
    async with games(bus) as ear:
        assert await ear.next() == 0
        gamemode = await elsewhere(bus.service, "gamemode", 2)
        assert await ear.next() == 2
        gamemode.stop()
        assert await ear.next() == 0


async def test_gamemode_is_never_started(bus: Bus, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    bus.activatable("gamemode", mark)
    async with games(bus) as ear:
        assert await ear.next() == 0
    assert not mark.exists()


async def test_a_bus_that_comes_goes_and_comes_again(bus: Bus) -> None:
    bus.stop()
    async with watching(bus, GAMEMODE) as ear:
        assert await ear.next() == (None,)
        for _ in range(2):
            await elsewhere(bus.start)
            gamemode = await elsewhere(bus.service, "gamemode", 3)
            while (told := await ear.next()) != (3,):
                assert told == (None,)
            bus.stop()
            assert await ear.next() == (None,)
            gamemode.stop()


async def test_a_sleep_begins_and_is_over(bus: Bus) -> None:
    logind = await elsewhere(bus.service, "logind")
    async with watching(bus, PREPARING) as ear:
        assert await ear.next() == (False,)
        await elsewhere(logind.set, 1)
        assert await ear.next() == (True,)
        await elsewhere(logind.set, 0)
        assert await ear.next() == (False,)


async def test_a_machine_without_the_service(bus: Bus) -> None:
    async with watching(bus, PREPARING) as ear:
        assert await ear.next() == (None,)


async def test_several_properties_of_one_bus_are_told_together(bus: Bus) -> None:
    logind = await elsewhere(bus.service, "logind")
    async with watching(bus, PREPARING, GAMEMODE) as ear:
        assert await ear.next() == (False, None)
        gamemode = await elsewhere(bus.service, "gamemode", 2)
        assert await ear.next() == (False, 2)
        await elsewhere(logind.set, 1)
        assert await ear.next() == (True, 2)
        gamemode.stop()
        assert await ear.next() == (True, None)


async def test_nothing_is_told_after_the_end(bus: Bus) -> None:
    ear = Ear()
    client = BusClient(bus.address)
    for _ in range(5):
        watch = watch_games(client, ear.told.put_nowait)
        watch.start()
        await asyncio.sleep(0)
        watch.close()
    watch_games(client, ear.told.put_nowait).close()
    await client.close()
    await asyncio.sleep(0)
    assert ear.told.empty()


async def test_a_listener_that_fails_hears_of_the_next_change(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    told: asyncio.Queue[Sequence[Any]] = asyncio.Queue()

    def changed(values: tuple[Any, ...]) -> None:
        told.put_nowait(values)
        if values == (None,):
            raise KeyError("a bug")

    client = BusClient(bus.address)
    watch = PropertyWatch(client, (GAMEMODE,), changed)
    watch.start()
    assert await asyncio.wait_for(told.get(), PATIENCE) == (None,)
    await elsewhere(bus.service, "gamemode", 1)
    assert await asyncio.wait_for(told.get(), PATIENCE) == (1,)
    assert "cannot follow a property" in caplog.text
    watch.close()
    await client.close()


async def test_many_watches_and_calls_need_one_thread_and_one_connection(bus: Bus) -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "D-Bus"]

    client = BusClient(bus.address)
    assert ours() == [], "none before it is needed"
    listed = (await client.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "ListNames"))[0]
    ears = [Ear() for _ in range(3)]
    watches = [watch_games(client, ear.told.put_nowait) for ear in ears]
    for watch in watches:
        watch.start()
    for ear in ears:
        assert await ear.next() == 0
    assert (await client.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "ListNames"))[0] == listed
    assert ours() == ["D-Bus"]
    for watch in watches:
        watch.close()
    await client.close()
    assert ours() == []


def test_the_addresses_of_the_buses() -> None:
    assert session_bus_address({"DBUS_SESSION_BUS_ADDRESS": "unix:path=/a"}) == "unix:path=/a"
    assert session_bus_address({"XDG_RUNTIME_DIR": "/run/user/7"}) == "unix:path=/run/user/7/bus"
    assert session_bus_address({}).startswith("unix:path=/run/user/")
    assert system_bus_address({}) == SYSTEM_BUS_ADDRESS
    assert system_bus_address({"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/b"}) == "unix:path=/b"
