"""The event stream: order, isolation of subscribers, slow readers."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import pytest

from accelerd.base.events import EventStream


@dataclass(frozen=True)
class Door:
    number: int


@dataclass(frozen=True)
class FrontDoor(Door):
    pass


@dataclass(frozen=True)
class Bell:
    times: int


def test_a_subscriber_hears_its_class_alone_until_it_unsubscribes() -> None:
    events, heard = EventStream(), []
    unsubscribe = events.subscribe(Door, heard.append)
    for event in (Door(1), Bell(1), FrontDoor(2)):
        events.publish(event)
    unsubscribe()
    unsubscribe()
    events.publish(Door(3))
    assert heard == [Door(1)]


def test_subscribers_are_called_in_the_order_in_which_they_subscribed() -> None:
    events, heard = EventStream(), []
    events.subscribe(Door, lambda door: heard.append("first"))
    events.subscribe(Door, lambda door: heard.append("second"))
    events.publish(Door(1))
    assert heard == ["first", "second"]


def test_a_subscriber_that_fails_is_logged_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    events, heard = EventStream(), []

    def fail(door: Door) -> None:
        raise LookupError(f"door {door.number}")

    events.subscribe(Door, fail)
    events.subscribe(Door, heard.append)
    with caplog.at_level(logging.ERROR):
        events.publish(Door(1))
        events.publish(Door(2))
    assert heard == [Door(1), Door(2)]
    assert [record.getMessage() for record in caplog.records] == ["a subscriber failed on Door"] * 2
    assert "door 1" in caplog.text


def test_everybody_hears_events_in_the_order_in_which_they_were_published() -> None:
    events = EventStream()
    early: list[object] = []
    late: list[object] = []

    def ring(door: Door) -> None:
        if door.number < 3:
            events.publish(Bell(door.number))
            events.publish(Door(door.number + 1))
            assert late == early[: len(late)]

    for heard in (early, late):
        for kind in (Door, Bell):
            events.subscribe(kind, heard.append)
        events.subscribe(Door, ring) if heard is early else None
    events.publish(Door(1))
    assert early == late == [Door(1), Bell(1), Door(2), Bell(2), Door(3)]


def test_who_unsubscribes_another_during_delivery_does_not_disturb_it() -> None:
    events, heard = EventStream(), []
    events.subscribe(Door, lambda door: unsubscribe())
    unsubscribe = events.subscribe(Door, heard.append)
    events.publish(Door(1))
    events.publish(Door(2))
    assert heard == [Door(1)]


async def test_a_reader_gets_what_came_while_it_was_busy_and_loses_the_oldest_first() -> None:
    events = EventStream()
    with events.reader(Door, Bell, limit=2) as reader:
        for event in (Door(1), Bell(1), Door(2)):
            events.publish(event)
        assert [await anext(reader), await anext(reader)] == [Bell(1), Door(2)]
        assert reader.dropped == 1
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        assert not waiting.done()
        events.publish(Door(3))
        assert await waiting == Door(3)


async def test_a_reader_that_has_ended_hears_nothing_more() -> None:
    events = EventStream()
    with events.reader(Door, limit=1) as reader:
        events.publish(Door(1))
    events.publish(Door(2))
    assert reader.dropped == 0
    assert await anext(reader) == Door(1)
