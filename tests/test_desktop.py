"""What is done before a sleep and after, what saving power means, and what a person is told in which words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from accelerd.base.exits import Cause, Exit
from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.devices.watch import Diff
from accelerd.memory.model import Forecast, in_ram
from accelerd.policy.notifications import CAUSES, DesktopNotifications
from accelerd.policy.sleep_and_power import Battery, Sleep, modest
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.record import Record, Residue, Snapshot, Transition, snapshot
from accelerd.system.notifications import Note
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401

GPU = "0000:c1:00.0"
SPEC = ModelSpec(name="qwen", path="/models/qwen.gguf", env=(("TOKEN", "hunter2"),), preload=True)


@dataclass
class World:
    """Scheduler, Yielding and devices in one, noting what they are told."""

    told: list[Any] = field(default_factory=list)
    requests: bool = False
    held: int = 0
    pool: str = GPU
    answers: bool = True  # the drivers
    sleep: Sleep = field(init=False)

    def __post_init__(self) -> None:
        self.sleep = Sleep(self, self, self.rescan)

    def pause(self, paused: bool) -> None:
        self.told.append("paused" if paused else "served")

    def busy(self) -> bool:
        return self.requests

    def snapshots(self) -> list[Snapshot]:
        one = snapshot(Record(SPEC, Forecast((in_ram(1, "test"),))), 0.0, ())
        return [replace(one, held={self.pool: self.held})]

    def sleeping(self, asleep: bool) -> None:
        self.told.append("given up" if asleep else "taken back")

    def concerns(self, pool: str) -> bool:
        return pool == GPU

    async def rescan(self) -> None:
        self.told.append("looked")
        if not self.answers:
            await asyncio.Event().wait()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_requests_end_before_the_memory_goes_and_that_is_waited_for() -> None:
    world = World(requests=True, held=7)
    world.sleep.give_up = True
    before = asyncio.create_task(world.sleep.before(20.0))
    await turns()
    assert world.told == ["paused"]
    world.sleep.changed()
    await turns()
    assert world.told == ["paused"], "one of several requests has ended"
    world.requests = False
    world.sleep.changed()
    await turns()
    assert world.told == ["paused", "given up"]
    assert not before.done()
    world.held = 0
    world.sleep.changed()
    await before
    await world.sleep.after()
    assert world.told[2:] == ["looked", "taken back", "served"], "devices are known before anybody is served"


async def test_only_the_memory_that_is_given_up_is_waited_for() -> None:
    world = World(held=7, pool="ram")
    world.sleep.give_up = True
    await world.sleep.before(20.0)
    assert world.told == ["paused", "given up"]


async def test_models_that_may_stay_stay() -> None:
    world = World(held=7)
    await world.sleep.before(20.0)
    assert world.told == ["paused"]


async def test_half_the_time_is_for_requests_where_memory_is_given_back_too() -> None:
    world = World(requests=True)
    world.sleep.give_up = True
    await world.sleep.before(0.1)
    assert world.told == ["paused", "given up"]


async def test_a_sleep_that_is_not_held_up_waits_for_nothing() -> None:
    world = World(requests=True, held=7)
    world.sleep.give_up = True
    await world.sleep.before(0.0)
    assert world.told == ["paused", "given up"]


async def test_a_driver_that_does_not_answer_after_the_sleep_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerd.policy.sleep_and_power.RESCAN", 0.01)
    world = World(answers=False)
    await world.sleep.after()
    assert world.told == ["looked", "taken back", "served"]


# --- battery --------------------------------------------------------------------------------------------------


class Source:
    """A watch that a test drives."""

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = lambda why: None
        self.runs = 0

    def __call__(self, tell: Callable[[str], None]) -> Source:
        self.tell = tell
        return self

    def start(self) -> None:
        self.runs += 1

    def close(self) -> None:
        self.runs -= 1


class Told:
    """A battery, and what was so whenever it had the models configured again."""

    def __init__(self) -> None:
        self.source = Source()
        self.whys: list[str] = []
        self.battery = Battery(self.source, lambda: self.whys.append(self.battery.why))


async def test_saving_begins_and_ends_once_each() -> None:
    told = Told()
    told.battery.configure("save")
    told.battery.configure("save")
    assert told.source.runs == 1
    for why in ("", "on battery", "on battery"):
        told.source.tell(why)
    waiting = asyncio.create_task(told.battery.mains())
    await turns()
    assert not waiting.done(), "nothing is loaded unasked"
    told.source.tell("")
    told.source.tell("")
    await waiting
    assert told.whys == ["on battery", ""]
    told.battery.close()
    assert told.source.runs == 0


async def test_who_ignores_the_battery_saves_nothing_from_now_on() -> None:
    told = Told()
    told.battery.configure("save")
    told.source.tell("on battery")
    told.battery.configure("ignore")
    assert (told.whys, told.source.runs) == (["on battery", ""], 0)
    await told.battery.mains()


async def test_a_battery_that_nobody_tells_of_is_waited_for_only_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerd.policy.sleep_and_power.FIRST_WORD", 0.01)
    told = Told()
    told.battery.configure("save")
    await told.battery.mains()
    assert told.whys == []
    told.battery.close()


@pytest.mark.parametrize(("own", "saved"), [(600.0, 60.0), (30.0, 30.0), (None, 60.0)])
def test_what_saving_changes_of_a_model(own: float | None, saved: float) -> None:
    spec = replace(SPEC, idle_timeout=own, pin=True)
    found = modest(spec, 60.0)
    assert (found.preload, found.idle_timeout, found.pin) == (False, saved, True)
    assert found.launch_key() == spec.launch_key(), "no process is started anew for it"


# --- news -----------------------------------------------------------------------------------------------------


class Wall:
    """Notifications that a test reads."""

    def __init__(self) -> None:
        self.notes: dict[str, Note] = {}
        self.enabled = True
        self.why_not: str | None = None

    def say(self, note: Note) -> None:
        self.notes[note.key] = note

    def take_back(self, key: str) -> None:
        self.notes.pop(key, None)

    async def close(self) -> None:
        self.notes.clear()


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def news(wall: Wall) -> DesktopNotifications:
    return DesktopNotifications(wall)  # type: ignore[arg-type]


def record(cause: Cause | None = None, *, name: str = "qwen", retry_at: float | None = None) -> Record:
    made = Record(replace(SPEC, name=name), Forecast((in_ram(1, "test"),)))
    made.retry_at = retry_at
    made.error = Exit(cause, "the prompt was hunter2", tail=("hunter2",)) if cause is not None else None
    return made


def moved(event: Event, after: State, before: State = State.STARTING) -> Transition:
    return Transition(0.0, before, after, "the prompt was hunter2", event)


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause not in (Cause.STOPPED, Cause.DEVICE_REMOVED)])
def test_a_model_that_is_given_up_is_told_in_words_of_our_own(
    wall: Wall, news: DesktopNotifications, cause: Cause
) -> None:
    news.moved(record(cause), moved(Event.GIVE_UP, State.FAILED))
    note = wall.notes["model qwen"]
    assert note.summary == f"qwen failed: {CAUSES[cause]}"
    assert "not tried again by itself" in note.body
    assert "hunter2" not in note.summary + note.body
    news.moved(record(), moved(Event.RESET, State.STOPPED, State.FAILED))
    assert not wall.notes


def test_what_the_next_request_tries_again_is_said_so(wall: Wall, news: DesktopNotifications) -> None:
    news.moved(record(Cause.NO_MODEL, retry_at=5.0), moved(Event.GIVE_UP, State.FAILED))
    assert wall.notes["model qwen"].body.startswith("The next request tries it again")
    news.moved(record(), moved(Event.LOADED, State.READY))
    assert not wall.notes


def test_nobody_is_told_what_comes_right_by_itself(wall: Wall, news: DesktopNotifications) -> None:
    news.moved(record(Cause.EXITED), moved(Event.BACK_OFF, State.BACKOFF))
    news.moved(record(Cause.OOM_KILLED), moved(Event.OUT_OF_MEMORY, State.STOPPED))
    news.moved(record(Cause.DEVICE_REMOVED), moved(Event.GIVE_UP, State.FAILED))
    news.moved(record(Cause.EXITED, name="qwen@tune"), moved(Event.GIVE_UP, State.FAILED))
    assert not wall.notes


def test_what_cannot_be_ended_and_memory_that_is_not_back(wall: Wall, news: DesktopNotifications) -> None:
    news.moved(record(), moved(Event.STUCK, State.KILLING, State.KILLING))
    news.lost(Residue("qwen", 3 << 30, "VRAM of card0", 4 << 30, waited_for=False))
    assert wall.notes["model qwen"].urgent
    assert wall.notes["memory of qwen"].summary == "3.0 GiB of VRAM of card0 do not come back"


def device(name: str) -> Device:
    return Device("gpu", name, "amdgpu", slot=GPU)


def test_a_device_that_goes_and_comes(wall: Wall, news: DesktopNotifications) -> None:
    card = device("Radeon")
    news.devices(Diff((card,), (), removed=(card,)))
    assert wall.notes[f"device {GPU}"].summary == "Radeon has gone"
    news.devices(Diff((), (card,), added=(card,)))
    assert not wall.notes
    news.devices(Diff((card,), (card,), removed=(card,), added=(card,)))
    assert not wall.notes, "it was bound again"
    news.devices(Diff((card,), (card,), reset=(card,)))
    assert wall.notes[f"device {GPU}"].summary == "Radeon was reset by its driver"


def test_every_end_has_its_words() -> None:
    assert set(CAUSES) == set(Cause) - {Cause.STOPPED}
