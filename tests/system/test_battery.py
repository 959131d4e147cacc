"""When power is to be saved, as UPower and two generations of power-profiles-daemon tell it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from accelerd.system.dbus.client import BusClient
from accelerd.system.desktop_state import watch_battery, why_save
from tests.harness import PATIENCE
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401
from tests.system.fake_services import Bus


class Ear:
    """What was told."""

    def __init__(self, bus: Bus) -> None:
        self.told: asyncio.Queue[str] = asyncio.Queue()
        self.client = BusClient(bus.address, "system bus")
        self.watch = watch_battery(self.client, self.told.put_nowait)
        self.watch.start()

    async def next(self) -> str:
        return await asyncio.wait_for(self.told.get(), PATIENCE)

    async def close(self) -> None:
        self.watch.close()
        await self.client.close()


async def test_the_plug_is_pulled_and_put_back(bus: Bus) -> None:
    upower = await asyncio.to_thread(bus.player, "upower", on_battery=True)
    ear = Ear(bus)
    assert await ear.next() == "on battery", "it was pulled before"
    for on_battery, why in ((False, ""), (True, "on battery")):
        await asyncio.to_thread(upower.ask, "battery", on_battery)
        assert await ear.next() == why
    await asyncio.to_thread(upower.stop)
    assert await ear.next() == "", "an UPower that is gone tells of no battery"
    await ear.close()


@pytest.mark.parametrize("old", [False, True])
async def test_a_person_chooses_to_save_power(bus: Bus, old: bool) -> None:
    profiles = await asyncio.to_thread(bus.player, "profiles", old=old)
    ear = Ear(bus)
    assert await ear.next() == ""
    await asyncio.to_thread(profiles.ask, "profile", "power-saver")
    assert await ear.next() == "the power profile is power-saver"
    upower = await asyncio.to_thread(bus.player, "upower", on_battery=True)
    assert await ear.next() == "on battery", "the better reason"
    await asyncio.to_thread(profiles.ask, "profile", "performance")
    await asyncio.to_thread(upower.ask, "battery", False)
    assert await ear.next() == ""
    await ear.close()
    assert ear.told.empty()


async def test_nobody_is_started_for_it(bus: Bus, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    for name in ("org.freedesktop.UPower", "net.hadess.PowerProfiles", "org.freedesktop.UPower.PowerProfiles"):
        bus.activatable(name, mark)
    ear = Ear(bus)
    assert await ear.next() == ""
    await ear.close()
    assert not mark.exists()


async def test_a_machine_without_a_system_bus_is_on_mains(bus: Bus) -> None:
    bus.stop()
    ear = Ear(bus)
    assert await ear.next() == ""
    await ear.close()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((None, None, None), ""),
        ((False, "balanced", "balanced"), ""),
        ((False, None, "power-saver"), "the power profile is power-saver"),
        ((False, "power-saver", None), "the power profile is power-saver"),
        ((True, "performance", "performance"), "on battery"),
        (("yes", 1, None), ""),
    ],
)
def test_what_the_properties_mean(values: tuple[object, ...], why: str) -> None:
    assert why_save(values) == why
