"""GET events: what clients are told of what rooms publish."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from accelerd.base.errors import AccelError
from accelerd.base.events import DaemonState, DaemonStateChanged, DegradationChanged, EventStream
from accelerd.base.exits import Cause, Exit
from accelerd.config.model import Config, ConfigApplied, ModelSpec
from accelerd.control.event_feed import STEP, EventFeed
from accelerd.control.jobs import Job, JobChanged, JobForgotten
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.model import Device
from accelerd.memory.ledger import Ledger
from accelerd.memory.model import RAM, MemorySnapshot, Pool
from accelerd.policy.battery import PowerSavingChanged
from accelerd.policy.pins import Pin, PinChanged
from accelerd.policy.yielding import YieldChanged
from accelerd.scheduler.events import ModelsConfigured, ModelTransition
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.record import Transition
from tests.fakes.clock import FakeClock

SPEC = ModelSpec("qwen")


class World:
    """A scheduler and a daemon that say what the test sets."""

    def __init__(self) -> None:
        self.models: list[Any] = []
        self.pools = [Pool(RAM, "main memory", 8 << 30)]
        self.state, self.degraded, self.yielded = "running", None, None
        self.config = SimpleNamespace(in_use=True)
        memory = SimpleNamespace(ledger=lambda: Ledger(self.pools))
        scheduler = SimpleNamespace(snapshots=lambda: self.models, memory=memory)
        daemon = SimpleNamespace(overview=lambda: self)
        self.feed = EventFeed(cast(Any, SimpleNamespace(scheduler=scheduler, daemon=daemon)))

    def told(self, published: object) -> list[dict[str, Any]]:
        return [msgspec.json.decode(msgspec.json.encode(event)) for event in self.feed.of(published)]


@pytest.fixture
def world() -> World:
    return World()


def transition(after: State, error: Exit | None = None) -> ModelTransition:
    return ModelTransition(SPEC, Transition(1.0, State.STARTING, after, "because", Event.LOADED), 1, error, False)


def test_a_state_that_changes(world: World) -> None:
    assert world.told(transition(State.READY)) == [
        {"event": "model", "model": "qwen", "state": "ready", "before": "starting", "reason": "because"}
    ]


def test_a_failure_has_its_cause_and_an_older_one_is_not_repeated(world: World) -> None:
    error = Exit(Cause.EXITED, "llama-server exited with status 1")
    [event] = world.told(transition(State.FAILED, error))
    assert event["error"] == {"code": Cause.EXITED.value, "message": "llama-server exited with status 1"}
    assert "error" not in world.told(transition(State.READY, error))[0]


def snapshot(name: str, *, outdated: bool = False) -> Any:
    return SimpleNamespace(spec=ModelSpec(name), state=State.READY, outdated=outdated)


def test_models_that_come_go_and_are_outdated(world: World) -> None:
    world.models = [snapshot("a"), snapshot("b")]
    assert [(e["model"], e["change"]) for e in world.told(ModelsConfigured())] == [("a", "added"), ("b", "added")]
    world.models = [snapshot("a", outdated=True)]
    told = world.told(ConfigApplied(Config()))
    assert told[0] == {"event": "manager", "change": "configuration", "in_use": True}
    assert [(e["model"], e["change"]) for e in told[1:]] == [("a", "outdated"), ("b", "removed")]
    assert world.told(ModelsConfigured()) == []


def test_devices(world: World) -> None:
    gpu, npu = Device("gpu", "Radeon", "amdgpu"), Device("npu", "NPU", "amdxdna", problem="no firmware")
    told = world.told(DevicesChanged((), (), added=(gpu,), changed=(npu,)))
    assert [(e["name"], e["change"], e["reason"]) for e in told] == [
        ("Radeon", "added", ""), ("NPU", "changed", "no firmware"),
    ]  # fmt: skip


def test_a_job_is_told_by_phase_and_once_at_its_end(world: World) -> None:
    job = Job(
        id=3,
        kind="load",
        subject="qwen",
        key=None,
        created=0.0,
        cancellable=True,
        clock=FakeClock(),
        events=EventStream(),
    )  # fmt: skip
    assert [e["state"] for e in world.told(JobChanged(job))] == ["waiting"]
    job.report(progress=0.1, phase="starting")
    assert [e["phase"] for e in world.told(JobChanged(job))] == ["starting"]
    job.report(progress=0.5)
    assert world.told(JobChanged(job)) == []
    job.state, job.result, job.finished = "done", "failed", 1.0
    job.error = AccelError("model_failed", "it exited")
    [end] = world.told(JobChanged(job))
    assert (end["result"], end["subject"]) == ("failed", "qwen")
    assert end["error"] == {"code": "model_failed", "message": "it exited"}
    assert world.told(JobChanged(job)) == []
    assert world.told(JobForgotten(job)) == []


def test_memory_is_told_when_it_has_changed_noticeably(world: World) -> None:
    seen = MemorySnapshot(0.0, tuple(world.pools), {}, ())
    assert world.told(seen)[0]["pools"] == [{"id": RAM, "label": "main memory", "capacity": 8 << 30, "free": 8 << 30}]
    world.pools = [Pool(RAM, "main memory", (8 << 30) - STEP + 1)]
    assert world.told(seen) == []
    world.pools = [Pool(RAM, "main memory", (8 << 30) - STEP)]
    assert len(world.told(seen)) == 1


def test_what_concerns_accelerd_as_a_whole(world: World) -> None:
    pin = Pin(1, "qwen", "a talk", "org.example.Talk", ":1.7", True, 0.0)
    assert world.told(PinChanged(pin, None)) == [
        {"event": "manager", "change": "pin", "model": "qwen", "pinned": True, "hold": True,
         "who": "org.example.Talk", "reason": "a talk"},
    ]  # fmt: skip
    world.yielded = cast(Any, {"what": "the GPU", "why": "gamemode"})
    assert world.told(YieldChanged()) == [{"event": "manager", "change": "yield", "yielded": world.yielded}]
    assert world.told(PowerSavingChanged("on battery")) == [
        {"event": "manager", "change": "power", "reason": "on battery"}
    ]
    assert world.told(DegradationChanged()) == []
    world.degraded = cast(Any, "there is no systemd")
    world.state = "draining"
    assert world.told(DaemonStateChanged(DaemonState.DRAINING)) == [
        {"event": "manager", "change": "state", "state": "draining", "degraded": "there is no systemd"}
    ]


def test_a_configuration_that_is_not_in_use_is_told_once(world: World) -> None:
    world.config.in_use = False
    assert world.told(DegradationChanged()) == [{"event": "manager", "change": "configuration", "in_use": False}]
    assert world.told(DegradationChanged()) == []
    assert world.told(ConfigApplied(Config())) == [{"event": "manager", "change": "configuration", "in_use": True}]
    world.config.in_use = True
    assert world.told(DegradationChanged()) == []
