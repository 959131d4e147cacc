"""The locks of containers: starts share one, a change waits for them and they wait for it."""

from __future__ import annotations

import asyncio

import pytest

from accelerd.supervise.homes.containers.podman_docker import MaintenanceLocks


class Workers:
    """Starts and changes of containers, and what they did, in order."""

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
    workers = Workers()
    async with asyncio.TaskGroup() as tasks:
        for who in "xyz":
            tasks.create_task(workers.start(who))
        await turn()
        assert workers.said == ["x in", "y in", "z in"]
        workers.go_on.set()


async def test_a_change_waits_for_those_inside_and_lets_nobody_in() -> None:
    workers = Workers()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(workers.start("x"))
        await turn()
        tasks.create_task(workers.change())
        await turn()
        tasks.create_task(workers.start("late"))
        tasks.create_task(workers.start("neighbour", "b"))
        await turn()
        assert workers.said == ["x in", "neighbour in"]
        workers.go_on.set()
    assert workers.said[2:] in (
        ["x out", "neighbour out", "closed", "open", "late in", "late out"],
        ["neighbour out", "x out", "closed", "open", "late in", "late out"],
    )


async def test_changes_come_one_after_the_other() -> None:
    workers = Workers()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(workers.change())
        tasks.create_task(workers.change())
    assert workers.said == ["closed", "open"] * 2


async def test_whoever_gives_up_leaves_the_door_as_it_should_be() -> None:
    workers = Workers()
    inside = asyncio.create_task(workers.start("x"))
    await turn()
    closing = asyncio.create_task(workers.change())
    await turn()
    waiting = asyncio.create_task(workers.start("late"))
    await turn()
    for task in (waiting, closing, inside):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    workers.go_on.set()
    await workers.start("next")
    await workers.change()
    assert workers.said == ["x in", "next in", "next out", "closed", "open"]


async def test_a_change_that_fails_opens_the_door() -> None:
    workers = Workers()
    with pytest.raises(OSError, match="no"):
        async with workers.locks.exclusive("a"):
            raise OSError("no")
    workers.go_on.set()
    await workers.start("x")
    assert workers.said == ["x in", "x out"]
