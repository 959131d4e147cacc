"""Notifications as a desktop gets them: few, replaced, taken back, and none where nobody shows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from accelerd.base.ports import SystemClock
from accelerd.system.dbus.client import BusClient
from accelerd.system.desktop_notifications import MOST_AT_ONCE, Notification, NotificationSender, condensed, printable
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401
from tests.system.buses import until
from tests.system.fake_services import Bus, Player


@asynccontextmanager
async def notifying(bus: Bus, spacing: float = 0.0) -> AsyncIterator[NotificationSender]:
    client = BusClient(bus.address)
    notifications = NotificationSender(client, SystemClock(), spacing)
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
        notifications.show(Notification("model a", "a failed", "its <file> & more", urgent=True))
        await until(shown(service, "a failed"), "shown")
        notifications.show(Notification("model b", "b failed"))
        await until(shown(service, "a failed", "b failed"), "another")
        notifications.show(Notification("model a", "a cannot be ended"))
        await until(shown(service, "a cannot be ended", "b failed"), "replaced")
        log = await asyncio.to_thread(service.ask, "log")
        assert log[0]["app"] == "accelerd"
        assert (log[0]["body"], log[0]["urgency"]) == ("its &lt;file&gt; &amp; more", 2)
        assert [note["replaces"] for note in log] == [0, 0, 1]
        assert log[1]["urgency"] == 1
        notifications.withdraw("model a")
        await until(shown(service, "b failed"), "taken back")
        await asyncio.to_thread(service.ask, "dismiss", 2)
        notifications.withdraw("model b")
        notifications.withdraw("nobody's")
        notifications.show(Notification("model c", "c failed"))
        await until(shown(service, "c failed"), "what a person has seen is no fault")
        assert notifications.degraded is None


async def test_words_for_a_service_that_knows_no_markup(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications", capabilities=["body"])
    async with notifying(bus) as notifications:
        notifications.show(Notification("x", "a\x1b[1m failed\x00", "a < b"))
        await until(shown(service, "a�[1m failed�"), "shown")
        assert (await asyncio.to_thread(service.ask, "log"))[0]["body"] == "a < b"


async def test_when_much_goes_wrong_at_once_it_is_one_note(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications")
    async with notifying(bus) as notifications:
        for number in range(20):
            notifications.show(Notification(f"model {number}", f"{number} failed", urgent=number == 7))
        notifications.show(Notification("model 3", "3 failed again"))
        notifications.withdraw("model 19")
        await until(shown(service, "19 problems, see: accelctl status"), "one")
        [note] = await asyncio.to_thread(service.ask, "log")
        assert note["body"] == "0 failed\n1 failed\n2 failed\n3 failed again\n4 failed\nand 14 more"
        assert note["urgency"] == 2


async def test_the_next_one_waits_for_a_while_and_is_the_newest(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications")
    async with notifying(bus, spacing=0.3) as notifications:
        notifications.show(Notification("x", "first"))
        await until(shown(service, "first"), "at once")
        await notifications.wait_until_sent()
        began = asyncio.get_running_loop().time()
        for number in range(50):
            notifications.show(Notification("x", f"flapping {number}"))
            await asyncio.sleep(0)
        await until(shown(service, "flapping 49"), "the newest")
        assert asyncio.get_running_loop().time() - began >= 0.25
        assert len(await asyncio.to_thread(service.ask, "log")) == 2


async def test_nobody_is_started_to_show_them(bus: Bus, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    bus.activatable("org.freedesktop.Notifications", mark)
    async with notifying(bus) as notifications:
        notifications.show(Notification("x", "nobody sees this"))
        await until(lambda: notifications.degraded, "said so")
        assert notifications.degraded == "no notification service runs"
        await notifications.wait_until_sent()
        service = await asyncio.to_thread(bus.player, "notifications")
        notifications.show(Notification("y", "somebody sees this"))
        await until(shown(service, "somebody sees this"), "shown")
        assert notifications.degraded is None
    assert not mark.exists()


async def test_numbers_of_a_service_that_has_ended_are_not_those_of_the_next(bus: Bus) -> None:
    first = await asyncio.to_thread(bus.player, "notifications")
    async with notifying(bus) as notifications:
        notifications.show(Notification("x", "one"))
        await until(shown(first, "one"), "shown")
        await notifications.wait_until_sent()
        await asyncio.to_thread(first.stop)
        second = await asyncio.to_thread(bus.player, "notifications")
        notifications.show(Notification("x", "two"))
        await until(shown(second, "two"), "shown")
        assert (await asyncio.to_thread(second.ask, "log"))[0]["replaces"] == 0, "1 is somebody else's there"


async def test_a_session_without_a_bus_costs_nothing(bus: Bus) -> None:
    bus.stop()
    async with notifying(bus) as notifications:
        notifications.show(Notification("x", "nobody sees this"))
        await until(lambda: notifications.degraded, "said so")
        await asyncio.to_thread(bus.start)
        service = await asyncio.to_thread(bus.player, "notifications")
        notifications.show(Notification("y", "the bus is back"))
        await until(shown(service, "the bus is back"), "shown")


async def test_who_wants_none_gets_none(bus: Bus) -> None:
    service = await asyncio.to_thread(bus.player, "notifications")
    async with notifying(bus) as notifications:
        notifications.enabled = False
        notifications.show(Notification("x", "unwanted"))
        notifications.enabled = True
        notifications.show(Notification("y", "wanted"))
        await until(shown(service, "wanted"), "shown")
        assert len(await asyncio.to_thread(service.ask, "log")) == 1


def test_a_few_stay_as_they_are_and_lines_are_short() -> None:
    notes = [Notification(str(number), f"{number} failed") for number in range(MOST_AT_ONCE)]
    assert condensed(notes) == notes
    assert condensed([]) == []
    six = condensed([Notification(str(number), f"{number}") for number in range(6)])[0]
    assert six.body == "0\n1\n2\n3\n4\n5"
    assert len(printable("x" * 1000)) == 400
