"""Yield and resume: whose memory counts as given back, and what cannot be ended. Models are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.ports import SystemClock
from accelerd.control import memory_release
from accelerd.control.jobs import Jobs
from accelerd.control.operations import operations_of, parse
from accelerd.memory.ledger import Ledger
from accelerd.memory.model import RAM, Pool
from accelerd.policy.yielding import YieldReport
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.lifecycle import State
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401

GPU = "0000:c1:00.0"


@dataclass
class Model:
    """A snapshot, as far as the routes look at it."""

    name: str
    held: dict[str, int]
    state: State = State.READY
    since: float = 0.0
    leases: int = 0
    displaced: bool = False
    used: dict[str, int] = field(default_factory=dict)

    @property
    def spec(self) -> Any:
        return SimpleNamespace(name=self.name)


class World:
    """A scheduler and a Yielding of one GPU. Each time that models are looked at, the next of `steps` is done."""

    def __init__(self, *models: Model) -> None:
        self.models = list(models)
        self.steps: list[Callable[[], None]] = []
        self.asked: list[tuple[float | None, bool, bool]] = []
        self.given = False

    def snapshots(self) -> list[Model]:
        if self.given and self.steps:
            self.steps.pop(0)()
        return list(self.models)

    @property
    def memory(self) -> World:
        """The scheduler's MemoryEvents."""
        return self

    def ledger(self) -> Ledger:
        return Ledger([Pool(RAM, "main memory", 64), Pool(GPU, "a GPU", 64)])

    async def ask(self, seconds: float | None = None, *, everything: bool = False, now: bool = False) -> None:
        self.asked.append((seconds, everything, now))
        self.given = True

    async def resume(self) -> bool:
        was, self.given = self.given, False
        return was

    def concerns(self, pool: str) -> bool:
        return self.given and pool == GPU

    @property
    def what(self) -> str:
        return "the GPU"

    def report(self) -> YieldReport | None:
        report = YieldReport(what="the GPU", pools=[GPU], remaining=None, why="w", holds=[])
        return report if self.given else None

    async def do(self, name: str, **query: str) -> list[dict[str, Any]]:
        """The events of the job. AccelError when there is none."""
        jobs = Jobs(SystemClock(), EventStream())
        parts = SimpleNamespace(scheduler=self, yielding=self, devices=SimpleNamespace(current=tuple), jobs=jobs)
        operation = operations_of(parts, memory_release)[name]
        job = await operation.call(parse(operation.request, query, text=True), "")
        with jobs.follow(job) as events:
            found = [msgspec.to_builtins(event) async for event in events]
        await jobs.close()
        return found


async def test_only_what_lies_in_the_memory_of_the_gpu_counts() -> None:
    big = Model("big", {GPU: 20, RAM: 3}, used={GPU: 18}, leases=1)
    world = World(big, Model("small", {RAM: 5}), Model("idle", {}, State.STOPPED))
    world.steps = [
        lambda: setattr(big, "state", State.DRAINING),
        lambda: setattr(big, "state", State.STOPPING),
        lambda: setattr(big, "held", {}),
    ]
    events = await world.do("yield", **{"for": "60.5", "now": "1"})
    assert world.asked == [(60.5, False, True)]
    assert [event["models"] for event in events[:-1]] == [
        [{"model": "big", "state": "draining", "leases": 1}],
        [{"model": "big", "state": "stopping", "leases": 1}],
    ]
    last = events[-1]
    assert last["event"] == "yielded"
    assert last["freed"] == [{"pool": GPU, "label": "a GPU", "size": 18}]
    assert (last["models"], last["stuck"]) == ([{"model": "big", "size": 18}], [])


async def test_a_process_that_cannot_be_ended_is_not_waited_for() -> None:
    stuck = Model("stuck", {GPU: 20}, State.KILLING, since=STUCK_AFTER + 1)
    gone = Model("gone", {GPU: 4})
    world = World(stuck, gone)
    world.steps = [lambda: setattr(gone, "held", {})]
    events = await world.do("yield", all="1")
    assert world.asked == [(None, True, False)]
    assert [event["event"] for event in events] == ["yielded"]
    assert events[0]["stuck"] == ["stuck"]
    assert events[0]["freed"] == [{"pool": GPU, "label": "a GPU", "size": 4}]


async def test_somebody_resumes_while_models_leave() -> None:
    world = World(Model("a", {GPU: 20}, State.DRAINING, leases=1))
    world.steps = [lambda: None, lambda: setattr(world, "given", False)]
    events = await world.do("yield")
    assert [event["event"] for event in events] == ["progress", "resumed"]


async def test_resume_names_those_that_come_back() -> None:
    world = World(Model("a", {}, State.STOPPED, displaced=True), Model("b", {}, State.STOPPED))
    world.given = True
    for resumed, words in ((True, ("the GPU", "w")), (False, (None, None))):
        [event] = await world.do("resume")
        assert (event["event"], event["resumed"], event["back"]) == ("resumed", resumed, ["a"])
        assert (event["what"], event["why"]) == words


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e10", "soon"])
async def test_a_time_that_is_none(text: str) -> None:
    world = World()
    with pytest.raises(AccelError) as refused:
        await world.do("yield", **{"for": text})
    assert (refused.value.code, refused.value.param) == ("bad_request", "for")
    assert world.asked == []
