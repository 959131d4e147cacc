"""Who follows whom: what a daemon concludes from systemd's answers, and what the reaper may touch."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.gateway.handover import Parcel, Waiting
from accelerd.policy.takeover import Successor, reap, take_over
from accelerd.supervise.homes.home import InstanceRecord
from accelerd.supervise.instance_records import Adoptable, Phase, StoredInstance, fingerprint
from accelerd.supervise.process.processes import InstanceTag
from accelerd.system.dbus.client import BusError
from accelerd.system.lock import InstanceLock
from accelerd.system.sd_notify import Notifier


class Answers:
    """A UserManager that knows one unit and its job; an exception or a coroutine function stands for itself."""

    def __init__(self, unit: Any, job: Any = None) -> None:
        self.unit, self.job = unit, job

    async def unit_of(self, pid: int) -> str | None:
        assert pid == os.getpid()
        return await self._give(self.unit)

    async def job_type(self, unit: str) -> str | None:
        assert unit == self.unit
        return await self._give(self.job)

    @staticmethod
    async def _give(what: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return await what() if callable(what) else what


async def silence() -> None:
    await asyncio.Event().wait()


UNIT = "accelerd.service"


@pytest.mark.parametrize(
    ("unit", "job", "crashed", "expected"),
    [
        (UNIT, "restart", False, True),
        (UNIT, "stop", False, False),
        (UNIT, "start", False, False),
        (UNIT, None, False, False),  # a plain kill: nobody brings the next one
        (UNIT, None, True, True),  # Restart= does, or the reaper comes
        (UNIT, "stop", True, False),
        ("vte-spawn-1.scope", "restart", False, False),  # in a terminal
        (None, None, True, False),
        (BusError("the bus has gone"), None, True, False),
        (UNIT, BusError("the bus has gone"), False, False),
        (UNIT, silence, False, False),
    ],
)
async def test_whether_the_models_are_left_to_a_successor(unit: Any, job: Any, crashed: bool, expected: bool) -> None:
    successor = Successor(Answers(unit, job), Notifier(None), patience=0.05)  # type: ignore[arg-type]
    assert await successor.expected(crashed=crashed) is expected
    assert not await Successor(None, Notifier(None)).expected(crashed=crashed)


# --- requests that wait -------------------------------------------------------------------------------------------


class Shelf(Answers):
    """A manager that keeps at most so many descriptors, and what is sent to it."""

    def __init__(self, room: int, unit: Any = UNIT) -> None:
        super().__init__(unit)
        self.room = room
        self.kept: dict[str, int] = {}
        self.active = True

    async def stored(self, unit: str) -> int:
        assert unit == UNIT
        return sum(self.kept.values())

    def store(self, name: str, *descriptors: int, until_closed: bool) -> bool:
        if sum(self.kept.values()) + len(descriptors) <= self.room:
            self.kept[name] = len(descriptors)
        return True

    def remove_stored(self, name: str) -> bool:
        self.kept.pop(name, None)
        return True


def parcels(count: int) -> list[Parcel]:
    return [Parcel(os.dup(0), Waiting(False, False), b"POST / HTTP/1.1", "/", http10=False) for _ in range(count)]


@pytest.mark.parametrize(
    ("room", "unit", "taken"),
    [(1024, UNIT, True), (6, UNIT, True), (5, UNIT, False), (0, UNIT, False), (1024, None, False),
     (1024, BusError("the bus has gone"), False)],
)  # fmt: skip
async def test_requests_are_kept_all_or_none(room: int, unit: Any, taken: bool) -> None:
    shelf = Shelf(room, unit)
    given = parcels(3)
    try:
        assert await Successor(shelf, shelf, patience=0.2).keep(given) is taken  # type: ignore[arg-type]
        assert sum(shelf.kept.values()) == (6 if taken else 0)
        assert not await Successor(None, Notifier(None)).keep(given)
    finally:
        for parcel in given:
            parcel.close()


# --- taking over --------------------------------------------------------------------------------------------------


def spec(name: str, **settings: Any) -> ModelSpec:
    return ModelSpec(name=name, path=f"/models/{name}.gguf", **settings)


def left(model: ModelSpec, phase: Phase = Phase.READY, number: int = 1) -> Adoptable:
    plan = LaunchPlan(model.name, ("/bin/engine",), {}, Endpoint(unix="/run/x.sock"), "", ())
    kept = InstanceRecord(
        model=model.name,
        home="systemd",
        fingerprint=fingerprint(model),
        tag=InstanceTag(f"{number}-{model.name}", "/run/a"),
        place=f"accelerd-{model.name}.service",
        unix="/run/x.sock",
        port=None,
        secret="secret",
    )
    return Adoptable(StoredInstance(kept, plan, phase), ())


class Scheduler:
    """Takes every model once."""

    def __init__(self) -> None:
        self.adopted: list[tuple[str, bool]] = []
        self.asleep: list[str] = []

    def adopt(self, name: str, found: object, *, fits: bool, **placed: object) -> bool:
        if name in [known for known, _ in self.adopted]:
            return False
        self.adopted.append((name, fits))
        self.asleep += [name] if placed["asleep"] else []
        return True


def test_what_matters_most_is_taken_over_first() -> None:
    models = {m.name: m for m in (spec("a"), spec("b"), spec("c", pin=True))}
    scheduler = Scheduler()
    starting = Phase.STARTING
    found = [left(models["a"], starting), left(models["b"]), left(models["c"], starting), left(spec("gone"))]
    taken = take_over(found, models, scheduler)
    assert scheduler.adopted == [("c", True), ("b", True), ("a", True)]
    assert [one.record.model for one in taken] == ["c", "b", "a"], "what is not configured is left to the sweep"


def test_what_sleeps_is_taken_over_as_such() -> None:
    scheduler = Scheduler()
    take_over([left(spec("a"), Phase.ASLEEP), left(spec("b"), number=2)], {n: spec(n) for n in "ab"}, scheduler)
    assert scheduler.adopted == [("a", True), ("b", True)]
    assert scheduler.asleep == ["a"]


def test_another_launch_setting_means_that_it_no_longer_fits() -> None:
    scheduler = Scheduler()
    now = {m.name: m for m in (spec("a", context=1), spec("b", idle_timeout=5.0))}
    take_over([left(replace(now["a"], context=2)), left(replace(now["b"], idle_timeout=9.0))], now, scheduler)
    assert sorted(scheduler.adopted) == [("a", False), ("b", True)]


def test_of_two_instances_of_a_model_one_is_taken_over() -> None:
    scheduler = Scheduler()
    taken = take_over([left(spec("a"), number=1), left(spec("a"), number=2)], {"a": spec("a")}, scheduler)
    assert len(taken) == len(scheduler.adopted) == 1


# --- the reaper ---------------------------------------------------------------------------------------------------


def sweeper(count: int, calls: list[int]) -> Callable[[], Awaitable[int]]:
    async def sweep() -> int:
        calls.append(count)
        return count

    return sweep


async def test_the_reaper_sweeps_under_the_lock_and_lets_it_go(tmp_path: Path) -> None:
    calls: list[int] = []
    lock = tmp_path / "run" / "accelerd.lock"

    async def sweep() -> int:
        assert await reap(lock, sweeper(1, calls)) == 0, "a second one has nothing to do"
        return 2

    assert await reap(lock, sweep) == 2
    assert calls == []
    InstanceLock.acquire(lock).release()


async def test_the_reaper_touches_nothing_while_a_daemon_holds_the_lock(tmp_path: Path) -> None:
    calls: list[int] = []
    with InstanceLock.acquire(tmp_path / "run" / "accelerd.lock"):
        assert await reap(tmp_path / "run" / "accelerd.lock", sweeper(3, calls)) == 0
    assert calls == []
