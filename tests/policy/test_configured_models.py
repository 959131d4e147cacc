"""Which programs are asked what their models would need: those of this machine, and no container."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.ports import Roots
from accelerd.config import Config
from accelerd.config.model import ModelSpec
from accelerd.control.configured_models import ConfiguredModels
from accelerd.control.model_info import ModelInfo
from accelerd.engines import planning
from accelerd.memory.learned import Learned
from accelerd.memory.model import Forecast, in_ram
from accelerd.policy.battery import PowerSaving
from accelerd.scheduler.events import ModelLoaded

HERE, BOXED = ModelSpec("here", path="/m.gguf"), ModelSpec("boxed", path="/m.gguf", home="toolbox", container="llama")

ROOTS = Roots.from_env({"HOME": "/"})
PROVISIONAL = Forecast((in_ram(9, "nobody was asked"),), provisional=True)


class World:
    """Engine and scheduler in one, noting what they hear."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.told: dict[str, Forecast] = {}
        self.known: dict[str, Forecast] = {}  # forecasts that are not provisional
        self.wanted = self.silent = ""  # models: that a request waits for, whose program does not answer
        self.done = asyncio.Event()

    async def forecast(self, spec: ModelSpec, devices: Any, *, ask: bool) -> Forecast:
        self.asked.append((spec.name, ask))
        if spec.name == self.silent:
            await asyncio.Event().wait()
        return Forecast((in_ram(1, "test"),))

    def snapshots(self) -> list[Any]:
        return [SimpleNamespace(spec=spec, queue=int(spec.name == self.wanted)) for spec in (HERE, BOXED)]

    @property
    def memory(self) -> Any:
        return SimpleNamespace(forecast=self.tell)

    def configure(self, *settings: object) -> None:
        pass

    def tell(self, name: str, forecast: Forecast) -> None:
        self.told[name] = forecast
        if len(self.told) == 2:
            self.done.set()

    async def surveyed(self) -> list[tuple[str, bool]]:
        """What was asked until all models were told of."""
        await asyncio.wait_for(self.done.wait(), 10)
        self.done.clear()
        self.told.clear()
        asked, self.asked = self.asked, []
        return asked

    def models(self, events: EventStream, limit: float = 10.0) -> ConfiguredModels:
        store, learned = SimpleNamespace(load_seconds=lambda key: None), Learned((), lambda entries: None)
        info: Any = ModelInfo({"llama-server": self}, store, ROOTS, tuple, learned, events)  # type: ignore
        config = Config(models={"here": HERE, "boxed": BOXED})
        models = ConfiguredModels(config, self, info, PowerSaving(None, events), events, limit)  # type: ignore
        models.configure(config, [(spec, self.known.get(spec.name, PROVISIONAL)) for spec in (HERE, BOXED)])
        return models


async def test_no_program_in_a_container_is_asked() -> None:
    """Who would end with the daemon in the middle of an answer leaves podman with a session that never ends."""
    world, events = World(), EventStream()
    survey = asyncio.create_task(world.models(events).survey())
    try:
        assert await world.surveyed() == [("here", True), ("boxed", False)]
        for spec in (HERE, BOXED):
            events.publish(ModelLoaded(spec, in_ram(1, "test"), 1.0))
        assert await world.surveyed() == [("here", True), ("boxed", False)], "its plan has told what there is to know"
    finally:
        survey.cancel()


async def test_a_model_that_a_request_waits_for_is_asked_about_first() -> None:
    world = World()
    world.wanted = "boxed"
    survey = asyncio.create_task(world.models(EventStream()).survey())
    try:
        assert [name for name, _ in await world.surveyed()] == ["boxed", "here"]
    finally:
        survey.cancel()


async def test_those_come_last_of_which_nothing_better_is_expected() -> None:
    """Among them are those whose disk does not answer: no other model waits for them."""
    world = World()
    world.known["here"] = Forecast((in_ram(0, "unknown: its files did not answer"),))
    survey = asyncio.create_task(world.models(EventStream()).survey())
    try:
        assert [name for name, _ in await world.surveyed()] == ["boxed", "here"]
    finally:
        survey.cancel()


async def test_a_program_that_does_not_answer_leaves_what_is_known_and_holds_up_nobody() -> None:
    world = World()
    world.silent = "here"
    survey = asyncio.create_task(world.models(EventStream(), limit=1.0).survey())
    try:
        await asyncio.wait_for(world.done.wait(), 10)
        assert world.told["here"] == replace(PROVISIONAL, provisional=False)
        assert world.told["boxed"].options[0].total == 1
    finally:
        survey.cancel()


async def test_a_disk_that_does_not_answer_holds_up_no_start() -> None:
    never = asyncio.Event()

    class Engine:
        async def forecast(self, spec: ModelSpec, devices: Any, *, ask: bool) -> Forecast:
            if spec is BOXED:
                await never.wait()
            return Forecast((in_ram(7, "estimated"),))

    store, learned = SimpleNamespace(load_seconds=lambda key: None), Learned((), lambda entries: None)
    one: Any = ModelInfo({"llama-server": Engine()}, store, ROOTS, tuple, learned, EventStream(), 0.05)  # type: ignore
    found = {spec.name: forecast for spec, forecast in await one.forecasts([HERE, BOXED])}
    assert found["here"].options[0].total == 7
    assert "did not answer" in found["boxed"].options[0].source
    assert [found[name].provisional for name in ("here", "boxed")] == [False, True]


async def test_an_engine_whose_forecast_raises_is_the_trouble_of_its_model_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Engine:
        mended = False

        async def forecast(self, spec: ModelSpec, devices: Any, *, ask: bool) -> Forecast:
            if spec is BOXED and not self.mended:
                raise KeyError("a header that nobody has thought of")
            return Forecast((in_ram(7, "estimated"),))

    engine = Engine()
    store, learned = SimpleNamespace(load_seconds=lambda key: None), Learned((), lambda entries: None)
    one: Any = ModelInfo({"llama-server": engine}, store, ROOTS, tuple, learned, EventStream())  # type: ignore
    found = {spec.name: forecast for spec, forecast in await one.forecasts([BOXED, HERE])}
    assert found["here"].options[0].total == 7
    assert found["boxed"].options[0].source == "unknown: a bug in accelerd, see its log (KeyError)"
    assert found["boxed"].provisional, "its program may be asked with success"
    assert not (await one.forecast(BOXED, ask=True)).provisional, "now it was: nobody waits any longer"
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (said.fields["ACCELERD_MODEL"], said.exc_info[0]) == ("boxed", KeyError)  # type: ignore[attr-defined,index]
    engine.mended = True
    assert (await one.forecast(BOXED)).options[0].total == 7
    engine.mended = False
    assert (await one.forecast(BOXED)).options[0].total == 7, "what was known before"
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2, "it is a new trouble"


async def test_a_slow_disk_is_not_known_yet_and_is_waited_for_when_nobody_else_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = asyncio.Event()

    async def answer(spec: ModelSpec, home: Path, within: float) -> None:
        if spec is HERE and not answers.is_set():
            if within < 1.0:
                raise AccelError("model_failed", "cannot read the files of here")
            order.append("waits")
            await answers.wait()

    order: list[str] = []
    monkeypatch.setattr(planning, "answer", answer)
    world = World()
    world.wanted = "here"
    models = world.models(EventStream())
    found = await models.forecasts(Config(models={"here": HERE, "boxed": BOXED}))
    assert [(one.provisional, one.options[0].total) for _, one in found] == [(True, 0), (False, 1)]
    world.asked.clear()
    survey = asyncio.create_task(models.survey())
    try:
        while not order:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert list(world.told) == ["boxed"], "the other one did not wait for it"
        answers.set()
        await world.done.wait()
        assert (world.told["here"].provisional, world.told["here"].options[0].total) == (False, 1)
    finally:
        survey.cancel()


async def test_advice_for_a_model_that_was_seen_to_need_more_than_estimated_counts_that() -> None:
    asked: list[dict[str, int]] = []

    class Engine:
        async def forecast(self, spec: ModelSpec, devices: Any, *, ask: bool) -> Forecast:
            return Forecast((in_ram(100, "estimated"),), key="k")

        def suggest_smaller(self, spec: ModelSpec, room: dict[str, int]) -> str:
            asked.append(dict(room))
            return "it would fit with context = 4096" if room["ram"] < 100 else "it would fit as it is"

    store, learned = SimpleNamespace(load_seconds=lambda key: None), Learned((), lambda entries: None)
    one: Any = ModelInfo({"llama-server": Engine()}, store, ROOTS, tuple, learned, EventStream())  # type: ignore
    assert (await one.forecast(HERE)).options[0].total == 100
    assert "as it is" in one.suggest_smaller(HERE, {"ram": 150})
    learned.outgrown("k", in_ram(100, "estimated"), 200, model="here")
    assert one.suggest_smaller(HERE, {"ram": 150}) == "it would fit with context = 4096"
    assert asked == [{"ram": 150}, {"ram": 75}]
