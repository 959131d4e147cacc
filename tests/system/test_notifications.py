"""Notifications as a desktop gets them: few, replaced, taken back, and none where nobody shows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from accelerd.base.ports import SystemClock
from accelerd.system.dbus.client import BusClient
from accelerd.system.notifications import AT_ONCE, Note, Notifications, condensed, plain
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401
from tests.system.buses import until
from tests.system.fake_services import Bus, Player


@asynccontextmanager
async def notifying(bus: Bus, spacing: float = 0.0) -> AsyncIterator[Notifications]:
    client = BusClient(bus.address)
    notifications = Notifications(client, SystemClock(), spacing)
    try:
        yield notifications
    finally:
        await notifications.close()
        await client.close()


def shown(service: Player, *summaries: str) -> Any:
    return lambda: [note["summary"] for note in service.ask("shown").values()] == list(summaries)


async def test_a_note_is_shown_replaced_and_taken_back(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications")
    async with notifying(bus) as notifications:
        notifications.say(Note("model a", "a failed", "its <file> & more", urgent=True))
        await until(shown(service, "a failed"), "shown")
        notifications.say(Note("model b", "b failed"))
        await until(shown(service, "a failed", "b failed"), "another")
        notifications.say(Note("model a", "a cannot be ended"))
        await until(shown(service, "a cannot be ended", "b failed"), "replaced")
        log = await asyncio.to_thread(service.ask, "log")
        assert log[0]["app"] == "accelerd"
        assert (log[0]["body"], log[0]["urgency"]) == ("its &lt;file&gt; &amp; more", 2)
        assert [note["replaces"] for note in log] == [0, 0, 1]
        assert log[1]["urgency"] == 1
        notifications.take_back("model a")
        await until(shown(service, "b failed"), "taken back")
        await asyncio.to_thread(service.ask, "dismiss", 2)
        notifications.take_back("model b")
        notifications.take_back("nobody's")
        notifications.say(Note("model c", "c failed"))
        await until(shown(service, "c failed"), "what a person has seen is no fault")
        assert notifications.why_not is None


async def test_words_for_a_service_that_knows_no_markup(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications", capabilities=["body"])
    async with notifying(bus) as notifications:
        notifications.say(Note("x", "a\x1b[1m failed\x00", "a < b"))
        await until(shown(service, "a�[1m failed�"), "shown")
        assert (await asyncio.to_thread(service.ask, "log"))[0]["body"] == "a < b"


async def test_when_much_goes_wrong_at_once_it_is_one_note(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications")
    async with notifying(bus) as notifications:
        for number in range(20):
            notifications.say(Note(f"model {number}", f"{number} failed", urgent=number == 7))
        notifications.say(Note("model 3", "3 failed again"))
        notifications.take_back("model 19")
        await until(shown(service, "19 things went wrong: accelctl status"), "one")
        [note] = await asyncio.to_thread(service.ask, "log")
        assert note["body"] == "0 failed\n1 failed\n2 failed\n3 failed again\n4 failed\nand 14 more"
        assert note["urgency"] == 2


async def test_the_next_one_waits_for_a_while_and_is_the_newest(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications")
    async with notifying(bus, spacing=0.3) as notifications:
        notifications.say(Note("x", "first"))
        await until(shown(service, "first"), "at once")
        await notifications.settle()
        began = asyncio.get_running_loop().time()
        for number in range(50):
            notifications.say(Note("x", f"flapping {number}"))
            await asyncio.sleep(0)
        await until(shown(service, "flapping 49"), "the newest")
        assert asyncio.get_running_loop().time() - began >= 0.25
        assert len(await asyncio.to_thread(service.ask, "log")) == 2


async def test_nobody_is_started_to_show_them(bus: Bus, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    bus.activatable("org.freedesktop.Notifications", mark)
    async with notifying(bus) as notifications:
        notifications.say(Note("x", "nobody sees this"))
        await until(lambda: notifications.why_not, "said so")
        assert notifications.why_not == "nobody shows notifications"
        await notifications.settle()
        service = await asyncio.to_thread(bus.player, "notifications")
        notifications.say(Note("y", "somebody sees this"))
        await until(shown(service, "somebody sees this"), "shown")
        assert notifications.why_not is None
    assert not mark.exists()


async def test_numbers_of_a_service_that_has_ended_are_not_those_of_the_next(bus: Bus) -> None:
    first = await asyncio.to_thread(bus.player, "notifications")
    async with notifying(bus) as notifications:
        notifications.say(Note("x", "one"))
        await until(shown(first, "one"), "shown")
        await notifications.settle()
        await asyncio.to_thread(first.stop)
        second = await asyncio.to_thread(bus.player, "notifications")
        notifications.say(Note("x", "two"))
        await until(shown(second, "two"), "shown")
        assert (await asyncio.to_thread(second.ask, "log"))[0]["replaces"] == 0, "1 is somebody else's there"


async def test_B20_a_session_without_a_bus_costs_nothing(bus: Bus) -> None:
    bus.stop()
    async with notifying(bus) as notifications:
        notifications.say(Note("x", "nobody sees this"))
        await until(lambda: notifications.why_not, "said so")
        await asyncio.to_thread(bus.start)
        service = await asyncio.to_thread(bus.player, "notifications")
        notifications.say(Note("y", "the bus is back"))
        await until(shown(service, "the bus is back"), "shown")


async def test_who_wants_none_gets_none(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications")
    async with notifying(bus) as notifications:
        notifications.enabled = False
        notifications.say(Note("x", "unwanted"))
        notifications.enabled = True
        notifications.say(Note("y", "wanted"))
        await until(shown(service, "wanted"), "shown")
        assert len(await asyncio.to_thread(service.ask, "log")) == 1


def test_a_few_stay_as_they_are_and_lines_are_short() -> None:
    notes = [Note(str(number), f"{number} failed") for number in range(AT_ONCE)]
    assert condensed(notes) == notes
    assert condensed([]) == []
    six = condensed([Note(str(number), f"{number}") for number in range(6)])[0]
    assert six.body == "0\n1\n2\n3\n4\n5"
    assert len(plain("x" * 1000)) == 400
