"""What is done before a sleep and after, what saving power means, and what a person is told in which words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from msgspec import structs

from accelerd.base.events import EventStream
from accelerd.base.exits import Cause, Exit
from accelerd.config.machine_settings import DesktopSettings, MemorySettings
from accelerd.config.model import Config, ConfigApplied, ModelSpec
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.model import Device
from accelerd.memory.model import Forecast, in_ram
from accelerd.policy.battery import PowerSaving, PowerSavingChanged
from accelerd.policy.notifications import CAUSES, DesktopNotifications
from accelerd.policy.sleep import SleepPolicy
from accelerd.scheduler.events import MemoryNotReturned, ModelInUse, ModelTransition
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.record import ModelRecord, Residue, Snapshot, Transition, snapshot
from accelerd.system.desktop_notifications import Notification
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
    events: EventStream = field(default_factory=EventStream)
    sleep: SleepPolicy = field(init=False)

    def __post_init__(self) -> None:
        self.sleep = SleepPolicy(self, self, self.rescan, lambda before, after: self, self.events)

    def pause(self, paused: bool) -> None:
        self.told.append("paused" if paused else "served")

    def busy(self) -> bool:
        return self.requests

    def snapshots(self) -> list[Snapshot]:
        one = snapshot(ModelRecord(SPEC, Forecast((in_ram(1, "test"),))), 0.0, ())
        return [structs.replace(one, held={self.pool: self.held})]

    def sleeping(self, asleep: bool) -> None:
        self.told.append("given up" if asleep else "taken back")

    def concerns(self, pool: str) -> bool:
        return pool == GPU

    def configure(self, *, hold: bool) -> None:
        self.told.append("held" if hold else "not held")

    def report(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None: ...

    def yield_on_sleep(self) -> None:
        config = Config(memory=MemorySettings(yield_on=("sleep",)), desktop=DesktopSettings(delay_sleep=False))
        self.events.publish(ConfigApplied(config))
        assert self.told.pop() == "not held"

    def changed(self) -> None:
        """A model has no more requests."""
        self.events.publish(ModelInUse(SPEC, False))

    async def rescan(self) -> None:
        self.told.append("looked")
        if not self.answers:
            await asyncio.Event().wait()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_requests_end_before_the_memory_goes_and_that_is_waited_for() -> None:
    world = World(requests=True, held=7)
    world.yield_on_sleep()
    before = asyncio.create_task(world.sleep.before(20.0))
    await turns()
    assert world.told == ["paused"]
    world.changed()
    await turns()
    assert world.told == ["paused"], "one of several requests has ended"
    world.requests = False
    world.changed()
    await turns()
    assert world.told == ["paused", "given up"]
    assert not before.done()
    world.held = 0
    world.changed()
    await before
    await world.sleep.after()
    assert world.told[2:] == ["looked", "taken back", "served"], "devices are known before anybody is served"


async def test_only_the_memory_that_is_given_up_is_waited_for() -> None:
    world = World(held=7, pool="ram")
    world.yield_on_sleep()
    await world.sleep.before(20.0)
    assert world.told == ["paused", "given up"]


async def test_models_that_may_stay_stay() -> None:
    world = World(held=7)
    await world.sleep.before(20.0)
    assert world.told == ["paused"]


async def test_half_the_time_is_for_requests_where_memory_is_given_back_too() -> None:
    world = World(requests=True)
    world.yield_on_sleep()
    await world.sleep.before(0.1)
    assert world.told == ["paused", "given up"]


async def test_a_sleep_that_is_not_held_up_waits_for_nothing() -> None:
    world = World(requests=True, held=7)
    world.yield_on_sleep()
    await world.sleep.before(0.0)
    assert world.told == ["paused", "given up"]


async def test_a_driver_that_does_not_answer_after_the_sleep_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerd.policy.sleep.RESCAN", 0.01)
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
    """Power saving, and what it published."""

    def __init__(self) -> None:
        self.source = Source()
        self.whys: list[str] = []
        self.events = EventStream()
        self.battery = PowerSaving(self.source, self.events)
        self.events.subscribe(PowerSavingChanged, lambda event: self.whys.append(event.reason))

    def configure(self, policy: Literal["save", "ignore"]) -> None:
        self.events.publish(ConfigApplied(Config(desktop=DesktopSettings(on_battery=policy))))


async def test_saving_begins_and_ends_once_each() -> None:
    told = Told()
    told.configure("save")
    told.configure("save")
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
    told.configure("save")
    told.source.tell("on battery")
    told.configure("ignore")
    assert (told.whys, told.source.runs) == (["on battery", ""], 0)
    await told.battery.mains()


async def test_a_battery_that_nobody_tells_of_is_waited_for_only_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerd.policy.battery.FIRST_READING", 0.01)
    told = Told()
    told.configure("save")
    await told.battery.mains()
    assert told.whys == []
    told.battery.close()


@pytest.mark.parametrize(("own", "saved"), [(600.0, 60.0), (30.0, 30.0), (None, 60.0)])
async def test_what_saving_changes_of_a_model(own: float | None, saved: float) -> None:
    spec = replace(SPEC, idle_timeout=own, pin=True)
    told = Told()
    told.configure("save")
    assert told.battery.adapted(spec) is spec
    told.source.tell("on battery")
    found = told.battery.adapted(spec)
    assert (found.preload, found.idle_timeout, found.pin) == (False, saved, True)
    assert found.launch_key() == spec.launch_key(), "no process is started anew for it"


# --- news -----------------------------------------------------------------------------------------------------


class Wall:
    """Notifications that a test reads."""

    def __init__(self) -> None:
        self.notes: dict[str, Notification] = {}
        self.enabled = True
        self.degraded: str | None = None

    def show(self, note: Notification) -> None:
        self.notes[note.key] = note

    def withdraw(self, key: str) -> None:
        self.notes.pop(key, None)

    async def close(self) -> None:
        self.notes.clear()


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def news(wall: Wall) -> DesktopNotifications:
    return DesktopNotifications(wall, EventStream())  # type: ignore[arg-type]


def moved(
    event: Event, after: State, before: State = State.STARTING, cause: Cause | None = None, *, name: str = "qwen",
    retry: bool = False,
) -> ModelTransition:  # fmt: skip
    error = Exit(cause, "the prompt was hunter2", tail=("hunter2",)) if cause is not None else None
    transition = Transition(0.0, before, after, "the prompt was hunter2", event)
    return ModelTransition(replace(SPEC, name=name), transition, None, error, retry)


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause not in (Cause.STOPPED, Cause.DEVICE_REMOVED)])
def test_a_model_that_is_given_up_is_told_in_words_of_our_own(
    wall: Wall, news: DesktopNotifications, cause: Cause
) -> None:
    news.on_transition(moved(Event.GIVE_UP, State.FAILED, cause=cause))
    note = wall.notes["model qwen"]
    assert note.summary == f"qwen failed: {CAUSES[cause]}"
    assert "not retried automatically" in note.body
    assert "hunter2" not in note.summary + note.body
    news.on_transition(moved(Event.RESET, State.STOPPED, State.FAILED))
    assert not wall.notes


def test_what_the_next_request_tries_again_is_said_so(wall: Wall, news: DesktopNotifications) -> None:
    news.on_transition(moved(Event.GIVE_UP, State.FAILED, cause=Cause.NO_MODEL, retry=True))
    assert wall.notes["model qwen"].body.startswith("The next request tries again")
    news.on_transition(moved(Event.LOADED, State.READY))
    assert not wall.notes


def test_nobody_is_told_what_comes_right_by_itself(wall: Wall, news: DesktopNotifications) -> None:
    news.on_transition(moved(Event.BACK_OFF, State.BACKOFF, cause=Cause.EXITED))
    news.on_transition(moved(Event.OUT_OF_MEMORY, State.STOPPED, cause=Cause.OOM_KILLED))
    news.on_transition(moved(Event.GIVE_UP, State.FAILED, cause=Cause.DEVICE_REMOVED))
    news.on_transition(moved(Event.GIVE_UP, State.FAILED, cause=Cause.EXITED, name="qwen@tune"))
    assert not wall.notes


def test_what_cannot_be_ended_and_memory_that_is_not_back(wall: Wall, news: DesktopNotifications) -> None:
    news.on_transition(moved(Event.STUCK, State.KILLING, State.KILLING))
    news.on_memory_not_returned(MemoryNotReturned(Residue("qwen", 3 << 30, "VRAM of card0", 4 << 30, waited_for=False)))
    assert wall.notes["model qwen"].urgent
    assert wall.notes["memory of qwen"].summary == "3.0 GiB of VRAM of card0 were not freed"


def device(name: str) -> Device:
    return Device("gpu", name, "amdgpu", slot=GPU)


def test_a_device_that_goes_and_comes(wall: Wall, news: DesktopNotifications) -> None:
    card = device("Radeon")
    news.on_devices_changed(DevicesChanged((card,), (), removed=(card,)))
    assert wall.notes[f"device {GPU}"].summary == "Radeon has gone"
    news.on_devices_changed(DevicesChanged((), (card,), added=(card,)))
    assert not wall.notes
    news.on_devices_changed(DevicesChanged((card,), (card,), removed=(card,), added=(card,)))
    assert not wall.notes, "it was bound again"
    news.on_devices_changed(DevicesChanged((card,), (card,), reset=(card,)))
    assert wall.notes[f"device {GPU}"].summary == "Radeon was reset by its driver"


def test_every_end_has_its_words() -> None:
    assert set(CAUSES) == set(Cause) - {Cause.STOPPED}
