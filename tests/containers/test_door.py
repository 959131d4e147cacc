"""The doors of containers: starts go through side by side, a change waits for them and they for it."""

from __future__ import annotations

import asyncio

import pytest

from accelerd.supervise.homes.containers.maintenance_locks import MaintenanceLocks


class InstanceContext:
    """Whoever goes through the door of "a", and what they did, in order."""

    def __init__(self) -> None:
        self.locks = MaintenanceLocks()
        self.said: list[str] = []
        self.go_on = asyncio.Event()

    async def start(self, who: str, name: str = "a") -> None:
        async with self.locks.shared(name):
            self.said.append(f"{who} in")
            await self.go_on.wait()
            self.said.append(f"{who} out")

    async def change(self) -> None:
        async with self.locks.exclusive("a"):
            self.said.append("closed")
            await asyncio.sleep(0)
            self.said.append("open")


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_starts_do_not_wait_for_each_other() -> None:
    house = InstanceContext()
    async with asyncio.TaskGroup() as tasks:
        for who in "xyz":
            tasks.create_task(house.start(who))
        await turn()
        assert house.said == ["x in", "y in", "z in"]
        house.go_on.set()


async def test_a_change_waits_for_those_inside_and_lets_nobody_in() -> None:
    house = InstanceContext()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(house.start("x"))
        await turn()
        tasks.create_task(house.change())
        await turn()
        tasks.create_task(house.start("late"))
        tasks.create_task(house.start("neighbour", "b"))
        await turn()
        assert house.said == ["x in", "neighbour in"]
        house.go_on.set()
    assert house.said[2:] in (
        ["x out", "neighbour out", "closed", "open", "late in", "late out"],
        ["neighbour out", "x out", "closed", "open", "late in", "late out"],
    )


async def test_changes_come_one_after_the_other() -> None:
    house = InstanceContext()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(house.change())
        tasks.create_task(house.change())
    assert house.said == ["closed", "open"] * 2


async def test_whoever_gives_up_leaves_the_door_as_it_should_be() -> None:
    house = InstanceContext()
    inside = asyncio.create_task(house.start("x"))
    await turn()
    closing = asyncio.create_task(house.change())
    await turn()
    waiting = asyncio.create_task(house.start("late"))
    await turn()
    for task in (waiting, closing, inside):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    house.go_on.set()
    await house.start("next")
    await house.change()
    assert house.said == ["x in", "next in", "next out", "closed", "open"]


async def test_a_change_that_fails_opens_the_door() -> None:
    house = InstanceContext()
    with pytest.raises(OSError, match="no"):
        async with house.locks.exclusive("a"):
            raise OSError("no")
    house.go_on.set()
    await house.start("x")
    assert house.said == ["x in", "x out"]
