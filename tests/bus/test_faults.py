"""What the bus, its other users and its clients do to accelerd: hangs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from accelerd.base import names
from accelerd.system.dbus import peers
from accelerd.system.dbus.peers import (
    BURST,
    CALLS_IN_ALL,
    CALLS_PER_CLIENT,
    INTERVAL,
    LARGEST_ARGUMENTS,
    Callers,
)
from accelerd.system.dbus.port import Call
from tests.bus.world import JOB, MODEL, BusService, Client, SessionBus, blank, busctl, call, furnish, on_bus, run, until
from tests.system.fake_services import Bus

LIMITS = "org.accelerd1.Error.LimitsExceeded"


class Slow(BusService):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()
        self.given_up = 0

    async def __call__(self, call: Call) -> tuple[Any, ...]:
        answer = await super().__call__(call)
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return answer


def daemon(broker: Bus) -> psutil.Process:
    """dbus-daemon."""
    [found] = [
        child
        for child in psutil.Process(os.getpid()).children()
        if child.name() == "dbus-daemon" and any(broker.address.partition("=")[2] in word for word in paths(child))
    ]
    return found


def paths(process: psutil.Process) -> list[str]:
    return [connection.laddr for connection in process.net_connections("unix")]


def kill(broker: Bus) -> None:
    daemon(broker).kill()
    broker.stop()


async def reachable(broker: Bus) -> bool:
    """Does somebody have the name?"""
    status, out, _ = await run(
        "busctl", f"--address={broker.address}", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus",
        "org.freedesktop.DBus", "NameHasOwner", "s", names.BUS_NAME,
    )  # fmt: skip
    return status == 0 and out.strip() == "b true"


async def test_the_broker_dies_and_the_name_and_the_objects_come_back(
    broker: Bus, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[str | None] = []
    bus = SessionBus(broker.address, changed=lambda: changes.append(bus.degraded))
    furnish(bus, BusService())
    assert await bus.start() is None
    gone: list[str] = []
    assert await client.ask(MODEL, names.BUS_MODEL, "ResetFailed") == ()
    bus.watch(client.name, gone.append)
    with caplog.at_level(logging.INFO, "accelerd"):
        kill(broker)
        await until(lambda: bus.degraded is not None, "it is noticed")
        assert gone == [client.name], "for us everybody has left"
        assert bus.listeners == 0
        bus.update(MODEL, names.BUS_MODEL, {"State": "ready"})
        bus.remove(JOB)
        bus.signal(JOB, names.BUS_JOB, "Event", ("{}",))
        broker.start()
        await until(lambda: bus.degraded is None, "the name is back")
    assert await busctl(broker, "get-property", names.BUS_NAME, MODEL, names.BUS_MODEL, "State") == 's "ready"\n'
    assert JOB not in await busctl(broker, "tree", "--list", names.BUS_NAME)
    assert await call(broker, MODEL, names.BUS_MODEL, "Load", "a{sv}", "0") == f'o "{JOB}"'
    assert "cannot reach" in (changes[0] or "")
    assert changes[-1] is None
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
    await bus.close()


async def test_calls_under_way_when_the_broker_dies_hurt_nobody(broker: Bus, client: Client) -> None:
    slow = Slow()
    async with on_bus(broker, slow) as bus:
        client.send(MODEL, names.BUS_MODEL, "ResetFailed")
        client.send(JOB, names.BUS_JOB, "Wait")
        await until(lambda: len(slow.calls) == 2, "both are under way")
        kill(broker)
        await until(lambda: slow.given_up == 1, "nobody waits for the job any more")
        slow.let.set()
        broker.start()
        await until(lambda: bus.degraded is None, "the name is back")
        assert await call(broker, MODEL, names.BUS_MODEL, "ResetFailed") == ""


async def test_a_bus_that_comes_later(broker: Bus) -> None:
    broker.stop()
    bus = SessionBus(broker.address)
    furnish(bus, BusService())
    assert "cannot reach the session bus" in (await bus.start() or "")
    broker.start()
    await until(lambda: bus.degraded is None, "it is found")
    assert await call(broker, MODEL, names.BUS_MODEL, "ResetFailed") == ""
    await bus.close()


async def test_a_broker_that_hangs_holds_up_nobody(broker: Bus) -> None:
    process = daemon(broker)
    process.send_signal(signal.SIGSTOP)
    bus = SessionBus(broker.address, connect_timeout=0.2)
    furnish(bus, BusService())
    try:
        assert "does not answer" in (await bus.start() or "")
    finally:
        process.send_signal(signal.SIGCONT)
    await until(lambda: bus.degraded is None, "it answers again")
    process.send_signal(signal.SIGSTOP)
    try:
        bus.update(MODEL, names.BUS_MODEL, {"State": "ready"})
        await bus.close()
    finally:
        process.send_signal(signal.SIGCONT)


async def test_the_name_is_taken_and_not_queued_for(broker: Bus, caplog: pytest.LogCaptureFixture) -> None:
    async with on_bus(broker, BusService()) as first:
        second = SessionBus(broker.address)
        furnish(second, BusService())
        with caplog.at_level(logging.INFO, "accelerd"):
            trouble = await second.start()
        assert trouble == "another program has the name org.accelerd1 on the session bus"
        assert second.degraded == trouble
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        queued = await busctl(
            broker, "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
            "ListQueuedOwners", "s", names.BUS_NAME,
        )  # fmt: skip
        assert queued.startswith("as 1 "), "the one who has it"
        assert first.degraded is None
    await until(lambda: second.degraded is None, "it is free now")
    assert await reachable(broker)
    await second.close()
    assert not await reachable(broker)


async def test_who_vanishes_is_told_of_once(broker: Bus, client: Client) -> None:
    gone: list[str] = []
    async with on_bus(broker, BusService()) as bus:
        assert await client.ask(MODEL, names.BUS_MODEL, "ResetFailed") == ()
        assert bus.listeners == 1
        bus.watch(client.name, gone.append)
        client.leave()
        await until(lambda: gone, "it has left")
        assert bus.listeners == 0
        bus.watch(client.name, gone.append)
        await until(lambda: len(gone) == 2, "who has left before")
    assert gone == [client.name] * 2


async def test_a_client_that_is_there_at_the_end(broker: Bus, client: Client) -> None:
    gone: list[str] = []
    async with on_bus(broker, BusService()) as bus:
        assert await client.ask(MODEL, names.BUS_MODEL, "ResetFailed") == ()
        bus.watch(client.name, gone.append)
    assert gone == [client.name]


async def test_nobody_waits_for_a_job_for_one_who_has_gone(broker: Bus, client: Client) -> None:
    slow = Slow()
    async with on_bus(broker, slow):
        client.send(JOB, names.BUS_JOB, "Wait")
        client.send(MODEL, names.BUS_MODEL, "ResetFailed")
        await until(lambda: len(slow.calls) == 2, "both are under way")
        client.leave()
        await until(lambda: slow.given_up == 1, "the wait is over; what was wanted is still done")
        slow.let.set()


async def test_one_client_floods(broker: Bus, client: Client) -> None:
    slow = Slow()
    async with on_bus(broker, slow):
        for _ in range(CALLS_PER_CLIENT):
            client.send(MODEL, names.BUS_MODEL, "Load", "(a{sv})", {})
        for _ in range(3):
            assert await client.ask(MODEL, names.BUS_MODEL, "Load", "(a{sv})", {}) == LIMITS
        assert len(slow.calls) == CALLS_PER_CLIENT, "what is refused is not done"
        slow.let.set()
        assert await call(broker, MODEL, names.BUS_MODEL, "Load", "a{sv}", "0") == f'o "{JOB}"'
        await until(lambda: len(slow.calls) == CALLS_PER_CLIENT + 1, "another client is served")
        assert await client.ask(MODEL, names.BUS_MODEL, "Load", "(a{sv})", {}) == (JOB,)


async def test_all_together_flood(broker: Bus, client: Client) -> None:
    slow = Slow()
    flood = [Client(broker.address) for _ in range(CALLS_IN_ALL // CALLS_PER_CLIENT)]
    async with on_bus(broker, slow):
        for one in flood:
            for _ in range(CALLS_PER_CLIENT):
                one.send(MODEL, names.BUS_MODEL, "ResetFailed")
        await until(lambda: len(slow.calls) == CALLS_IN_ALL, "all are under way")
        assert await client.ask(MODEL, names.BUS_MODEL, "ResetFailed") == LIMITS
        state = await client.ask(MODEL, "org.freedesktop.DBus.Properties", "Get", "(ss)", names.BUS_MODEL, "State")
        assert state == ("stopped",), "properties are read all the same"
        slow.let.set()
        while (answer := await client.ask(MODEL, names.BUS_MODEL, "ResetFailed")) == LIMITS:
            assert slow.given_up == 0, "none is lost"
        assert answer == ()
    for one in flood:
        one.leave()


async def test_calls_of_clients_that_have_left_keep_nobody_waiting(broker: Bus, client: Client) -> None:
    class Patient(Slow):
        """Answers one client at once."""

        async def __call__(self, call: Call) -> tuple[Any, ...]:
            return await (BusService.__call__(self, call) if call.sender == client.name else super().__call__(call))

    desk = Patient()
    flood = [Client(broker.address) for _ in range(CALLS_IN_ALL // CALLS_PER_CLIENT)]
    async with on_bus(broker, desk) as bus:
        for one in flood:
            for _ in range(CALLS_PER_CLIENT):
                one.send(MODEL, names.BUS_MODEL, "ResetFailed")
        await until(lambda: len(desk.calls) == CALLS_IN_ALL, "all are under way")
        assert await client.ask(MODEL, names.BUS_MODEL, "ResetFailed") == LIMITS
        for one in flood:
            one.leave()
        await until(lambda: bus.listeners == 1, "they have left")
        assert await client.ask(MODEL, names.BUS_MODEL, "ResetFailed") == ()
        desk.let.set()


def calls_of(sender: str, count: int, answers: list[Any]) -> list[tuple[Call, Callable[[Any], None]]]:
    return [(Call(sender, MODEL, names.BUS_MODEL, "GetOutput", (n,)), answers.append) for n in range(count)]


async def test_calls_begin_in_turns_and_not_those_of_clients_that_have_left(broker: Bus) -> None:
    desk, answers = BusService(), cast(list[Any], [])
    async with on_bus(broker, desk) as bus:
        gone = [f":9.{number}" for number in range(20)]
        for sender in gone:
            bus.on_caller(sender)
            for one in calls_of(sender, CALLS_PER_CLIENT, answers):
                bus.on_call(*one)
        for one in calls_of(":8.1", 5, []) + calls_of(":8.2", 2, []):
            bus.on_call(*one)
        for sender in gone:
            bus.on_caller_gone(sender)
        assert {answer.code for answer in answers} == {"canceled"}
        assert len(answers) == len(gone) * CALLS_PER_CLIENT, "each is answered, or its memory would be lost"
        await until(lambda: len(desk.calls) == 7, "the others are served")
        order = [(call.sender[-1], call.args[0]) for call in desk.calls]
        assert order == [("1", 0), ("2", 0), ("1", 1), ("2", 1), ("1", 2), ("1", 3), ("1", 4)]


async def test_queued_calls_are_refused_at_the_end(broker: Bus) -> None:
    desk, answers = BusService(), cast(list[Any], [])
    async with on_bus(broker, desk) as bus:
        for one in calls_of(":8.1", 3, answers):
            bus.on_call(*one)
    assert [answer.code for answer in answers] == ["shutting_down"] * 3
    assert desk.calls == []


def test_who_calls_without_end_is_slowed_and_others_are_not() -> None:
    now = 1000.0
    callers = Callers(str, str, clock=lambda: now)
    assert [callers.pace(":1.1") for _ in range(BURST)] == [0] * BURST
    assert [callers.pace(":1.1") for _ in range(3)] == [5, 10, 15]
    assert callers.pace(":1.2") == 0
    now += 4 * INTERVAL
    assert callers.pace(":1.1") == 0
    assert callers.pace(":1.1") == 5
    now += 60
    assert [callers.pace(":1.1") for _ in range(BURST + 1)] == [0] * BURST + [5]


def test_with_a_new_bus_a_client_of_the_same_name_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one's calls that still wait for their turn are not carried out."""
    come: list[str] = []
    gone: list[str] = []
    monkeypatch.setattr(peers, "follow_owner", lambda bus, name, changed: SimpleNamespace(unsubscribe=lambda: None))
    monkeypatch.setattr(peers, "ask_owner", lambda bus, name, told: None)
    callers = Callers(come.append, gone.append)
    callers.attach(object())
    old = callers.see(":1.1")
    for _ in range(CALLS_PER_CLIENT):
        callers.begin(":1.1", 0)
    assert callers.see(":1.1") is old
    assert callers.there(":1.1", old)
    callers.detach()
    assert not callers.there(":1.1", old)
    callers.attach(object())
    new = callers.see(":1.1")
    assert (callers.there(":1.1", new), callers.there(":1.1", old)) == (True, False)
    callers.begin(":1.1", 0)  # none of the old ones counts
    assert (come, gone) == ([":1.1", ":1.1"], [":1.1"])


async def test_after_a_new_broker_no_call_of_the_old_one_is_carried_out(broker: Bus, client: Client) -> None:
    desk = BusService()
    get = ("org.freedesktop.DBus.Properties", "Get", "(ss)", names.BUS_MODEL, "InFlight")
    async with on_bus(broker, desk) as bus:
        for _ in range(BURST // 50):
            for _ in range(50):
                client.send(MODEL, *get)
            assert await client.ask(MODEL, *get) == (0,)
        for number in range(CALLS_PER_CLIENT):
            client.send(MODEL, names.BUS_MODEL, "GetOutput", "(u)", number)
        await until(lambda: desk.calls, "the first of those that wait is carried out")
        kill(broker)
        await until(lambda: bus.degraded is not None, "it is noticed")
        carried_out = len(desk.calls)
        broker.start()
        await until(lambda: bus.degraded is None, "the name is back")
        assert await call(broker, MODEL, names.BUS_MODEL, "ResetFailed") == ""
        assert [one.method for one in desk.calls[carried_out:]] == ["ResetFailed"]


async def test_slowed_calls_are_answered_in_their_order(broker: Bus, client: Client) -> None:
    desk = BusService()
    async with on_bus(broker, desk) as bus:
        get = ("org.freedesktop.DBus.Properties", "Get", "(ss)", names.BUS_MODEL, "InFlight")
        for _ in range(BURST // 50):
            for _ in range(50):
                client.send(MODEL, *get)
            assert await client.ask(MODEL, *get) == (0,)
        for number in range(10):
            client.send(MODEL, names.BUS_MODEL, "GetOutput", "(u)", number)
        assert await client.ask(MODEL, *get) == (0,)
        await until(lambda: len(desk.calls) == 10, "all have come")
        assert [call.args for call in desk.calls] == [(number,) for number in range(10)]
        assert bus.listeners == 1


async def test_large_arguments(broker: Bus, client: Client) -> None:
    desk = BusService()
    async with on_bus(broker, desk):
        answer = await client.ask(names.BUS_PATH, names.BUS_MANAGER, "GetModel", "(s)", "x" * LARGEST_ARGUMENTS)
        assert answer == LIMITS
        assert desk.calls == []


async def test_who_waits_at_the_end_is_told(broker: Bus, client: Client) -> None:
    slow = Slow()
    async with on_bus(broker, slow):
        waiting = asyncio.create_task(client.ask(JOB, names.BUS_JOB, "Wait"))
        await until(lambda: slow.calls, "it waits")
    assert await waiting == "org.accelerd1.Error.ShuttingDown"


async def test_an_object_that_is_published_again_is_another(broker: Bus, client: Client) -> None:
    async with on_bus(broker, BusService()) as bus:
        bus.publish(MODEL, {names.BUS_MODEL: blank(names.BUS_MODEL, Name="other")}, BusService())
        get = ("org.freedesktop.DBus.Properties", "Get", "(ss)", names.BUS_MODEL, "Name")
        assert await client.ask(MODEL, *get) == ("other",)
        bus.remove(MODEL)
        assert await client.ask(MODEL, *get) == "org.freedesktop.DBus.Error.UnknownMethod"
