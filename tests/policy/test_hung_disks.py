"""Processes that look at a disk that does not answer get a scope of their own, each once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from accelerd.base import volumes
from accelerd.policy import hung_disks
from accelerd.policy.hung_disks import HungDisks
from accelerd.system.dbus.client import BusError


class Manager:
    """A UserManager that takes out what still lives."""

    def __init__(self, ended: int = 0) -> None:
        self.ended, self.asked = ended, cast(list[int], [])

    async def until(self, *asked: int) -> None:
        while self.asked != [*asked]:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def take_out(self, scope: str, pid: int, description: str) -> None:
        assert scope == f"accelerd-look-{pid}.scope"
        self.asked.append(pid)
        if pid == self.ended:
            raise BusError("cannot start a unit: no such process")


class Deaf(Manager):
    async def take_out(self, scope: str, pid: int, description: str) -> None:
        await asyncio.Event().wait()


def disks(manager: Manager | None) -> HungDisks:
    return HungDisks(cast(Any, manager))


async def test_who_looked_before_who_hangs_and_who_looks_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager(ended=2)
    monkeypatch.setattr(volumes, "looking", lambda: [1])
    one = disks(manager)
    task = asyncio.create_task(one.run())
    await manager.until(1)
    for pid in (2, 3):
        (tell,) = volumes._listeners
        await asyncio.to_thread(tell, pid)
    await manager.until(1, 2, 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert volumes._listeners == []
    monkeypatch.setattr(volumes, "looking", lambda: [1, 3, 4])
    await one.close()
    assert manager.asked == [1, 2, 3, 4]


@pytest.mark.parametrize("manager", [None, Deaf()], ids=["none", "deaf"])
async def test_the_end_waits_for_no_systemd_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, manager: Manager | None
) -> None:
    monkeypatch.setattr(volumes, "looking", lambda: [1])
    monkeypatch.setattr(hung_disks, "PATIENCE", 0.01)
    await disks(manager).close()
