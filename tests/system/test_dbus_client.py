"""Calls of services over one connection: errors by name, a service that hangs, a bus that comes back, no PyGObject."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from accelerd.system.dbus.client import DBUS, DBUS_PATH, BusClient, BusError, Buses
from accelerd.system.dbus.port import Variant
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401
from tests.system.fake_services import Bus

GAMEMODE, GAMEMODE_PATH = "com.feralinteractive.GameMode", "/com/feralinteractive/GameMode"


@asynccontextmanager
async def calling(bus: Bus) -> AsyncIterator[BusClient]:
    client = BusClient(bus.address)
    try:
        yield client
    finally:
        await client.close()


async def test_a_service_that_hangs_delays_nobody_else(bus: Bus) -> None:
    notifications = await asyncio.to_thread(bus.player, "notifications")
    hung = await asyncio.to_thread(bus.service, "gamemode", 1)
    async with calling(bus) as client:
        hung.suspend()
        try:
            late = asyncio.create_task(
                client.get_property(GAMEMODE, GAMEMODE_PATH, GAMEMODE, "ClientCount", within=0.5)
            )
            await asyncio.sleep(0)
            path = "/org/freedesktop/Notifications"
            answer = await client.call("org.freedesktop.Notifications", path, "GetCapabilities")
            assert answer == (["body", "body-markup"],)
            assert not late.done(), "the other one still waits"
            with pytest.raises(BusError, match=r"GameMode has not answered within 0\.5 s") as caught:
                await late
            assert caught.value.name == "", "there was no answer"
        finally:
            hung.resume()
        assert await client.get_property(GAMEMODE, GAMEMODE_PATH, GAMEMODE, "ClientCount") == 1
    notifications.stop()


async def test_an_error_has_its_name_and_its_text(bus: Bus) -> None:
    async with calling(bus) as client:
        with pytest.raises(BusError) as caught:
            await client.call(DBUS, DBUS_PATH, "GetNameOwner", "(s)", "org.nobody")
        assert caught.value.name == f"{DBUS}.Error.NameHasNoOwner"
        assert "GDBus.Error" not in caught.value.message
        with pytest.raises(BusError, match=r"cannot send .* as \(su\): "):
            await client.call(DBUS, DBUS_PATH, "RequestName", "(su)", "org.x", "five")
        assert await client.owner("org.nobody") == ""
        assert not await client.owner("org.nobody")


async def test_variants_are_sent_with_their_types(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications")
    async with calling(bus) as client:
        hints = {"urgency": Variant("y", 2), "desktop-entry": "accelerd"}
        arguments = ("accelerd", 0, "", "hello", "", [], hints, -1)
        path = "/org/freedesktop/Notifications"
        assert await client.call("org.freedesktop.Notifications", path, "Notify", "(susssasa{sv}i)", *arguments) == (1,)
        assert (await asyncio.to_thread(service.ask, "log"))[0]["urgency"] == 2


async def test_a_call_connects_again_after_the_bus_was_away(bus: Bus) -> None:
    async with calling(bus) as client:
        assert not await client.owner(GAMEMODE)
        await asyncio.to_thread(bus.stop)
        with pytest.raises(BusError) as caught:
            await client.owner(GAMEMODE)
        assert "session bus" in caught.value.message or caught.value.name
        await asyncio.to_thread(bus.start)
        assert not await client.owner(GAMEMODE), "at once, without waiting for a retry"


async def test_a_call_that_nobody_waits_for_any_more_harms_nothing(bus: Bus) -> None:
    async with calling(bus) as client:
        task = asyncio.create_task(client.call(DBUS, DBUS_PATH, "ListNames"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.call(DBUS, DBUS_PATH, "ListNames"))[0]


async def test_both_buses_share_the_thread(bus: Bus) -> None:
    buses = Buses.from_env({"DBUS_SESSION_BUS_ADDRESS": bus.address, "DBUS_SYSTEM_BUS_ADDRESS": bus.address})
    names = {
        (await client.call(DBUS, DBUS_PATH, "GetConnectionUnixProcessID", "(s)", DBUS))[0]
        for client in (buses.session, buses.system)
    }
    assert len(names) == 1
    assert buses.session.thread is buses.system.thread
    await buses.close()


async def test_without_pygobject_a_call_says_what_is_missing(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gi.repository.GLib", None)
    async with calling(bus) as client:
        for _ in range(2):
            with pytest.raises(BusError, match=r"missing \(packages python3-gi and python3-pydbus\)"):
                await client.owner(GAMEMODE)
