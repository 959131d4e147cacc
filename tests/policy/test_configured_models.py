"""Which programs are asked what their models would need: those of this machine, and no container."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from accelerd.base.events import EventStream
from accelerd.config import Config
from accelerd.config.model import ModelSpec
from accelerd.control.configured_models import ConfiguredModels
from accelerd.control.model_info import ModelInfo
from accelerd.memory.learned import Learned
from accelerd.memory.model import Forecast, in_ram
from accelerd.policy.battery import PowerSaving
from accelerd.scheduler.events import ModelLoaded

HERE, BOXED = ModelSpec("here", path="/m.gguf"), ModelSpec("boxed", path="/m.gguf", home="toolbox", container="llama")


class World:
    """ModelInfo and scheduler in one, noting what they hear."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.told: list[str] = []
        self.done = asyncio.Event()

    async def forecast(self, spec: Any, known: Any = None, *, ask: bool = False) -> Forecast:
        self.asked.append((spec.name, ask))
        return Forecast((in_ram(1, "test"),))

    def tell(self, name: str, forecast: Forecast) -> None:
        self.told.append(name)
        if name == BOXED.name:
            self.done.set()

    async def surveyed(self) -> list[tuple[str, bool]]:
        """What was asked until all models were told of."""
        await asyncio.wait_for(self.done.wait(), 10)
        self.done.clear()
        asked, self.asked = self.asked, []
        return asked


async def test_no_program_in_a_container_is_asked() -> None:
    """Who would end with the daemon in the middle of an answer leaves podman with a session that never ends."""
    world = World()
    config, events = Config(models={"here": HERE, "boxed": BOXED}), EventStream()
    scheduler: Any = SimpleNamespace(memory=SimpleNamespace(forecast=world.tell), configure=lambda *settings: None)
    models = ConfiguredModels(config, scheduler, world, PowerSaving(None, events), events)  # type: ignore[arg-type]
    models.configure(config, [])
    survey = asyncio.create_task(models.survey())
    try:
        assert await world.surveyed() == [("here", True), ("boxed", False)]
        for spec in (HERE, BOXED):
            events.publish(ModelLoaded(spec, in_ram(1, "test"), 1.0))
        assert await world.surveyed() == [("here", True), ("boxed", False)], "its plan has told what there is to know"
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
    one: Any = ModelInfo({"llama-server": Engine()}, store, None, tuple, learned, EventStream(), 0.05)  # type: ignore
    found = {spec.name: forecast for spec, forecast in await one.forecasts([HERE, BOXED])}
    assert found["here"].options[0].total == 7
    assert "did not answer" in found["boxed"].options[0].source


async def test_advice_for_a_model_that_was_seen_to_need_more_than_estimated_counts_that() -> None:
    asked: list[dict[str, int]] = []

    class Engine:
        async def forecast(self, spec: ModelSpec, devices: Any, *, ask: bool) -> Forecast:
            return Forecast((in_ram(100, "estimated"),), key="k")

        def suggest_smaller(self, spec: ModelSpec, room: dict[str, int]) -> str:
            asked.append(dict(room))
            return "it would fit with context = 4096" if room["ram"] < 100 else "it would fit as it is"

    store, learned = SimpleNamespace(load_seconds=lambda key: None), Learned((), lambda entries: None)
    one: Any = ModelInfo({"llama-server": Engine()}, store, None, tuple, learned, EventStream())  # type: ignore
    assert (await one.forecast(HERE)).options[0].total == 100
    assert "as it is" in one.suggest_smaller(HERE, {"ram": 150})
    learned.outgrown("k", in_ram(100, "estimated"), 200, model="here")
    assert one.suggest_smaller(HERE, {"ram": 150}) == "it would fit with context = 4096"
    assert asked == [{"ram": 150}, {"ram": 75}]
