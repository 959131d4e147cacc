"""When Ollama is told to unload a model: once its own idle_timeout is over, and not while it is used."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.config.model import ModelSpec, Origin
from accelerd.policy.remote_idle import RemoteIdle
from accelerd.scheduler.events import ModelInUse

WRITTEN = {"idle_timeout": Origin("model")}


def far(**settings: Any) -> ModelSpec:
    return ModelSpec("far", **{"engine": "remote", "remote": "box", "model": "m", "idle_timeout": 0.0, **settings})


class Box:
    """Takes the place of Remotes."""

    def __init__(self, answer: bool | AccelError = True) -> None:
        self.answer = answer
        self.told: list[str] = []

    async def unload(self, spec: ModelSpec) -> bool:
        self.told.append(spec.name)
        if isinstance(self.answer, AccelError):
            raise self.answer
        return self.answer


def told(box: Box, *uses: tuple[ModelSpec, bool], close: bool = False) -> list[str]:
    async def play() -> None:
        events = EventStream()
        policy = RemoteIdle(box, events)  # type: ignore[arg-type]
        for spec, in_use in uses:
            events.publish(ModelInUse(spec, in_use))
        if close:
            policy.close()
        for _ in range(5):  # turns of the loop: the timers are due at once
            await asyncio.sleep(0)
        policy.close()

    asyncio.run(play())
    return box.told


def test_it_is_told_once_the_last_request_is_long_enough_ago() -> None:
    spec = far(origins=WRITTEN)
    assert told(Box(), (spec, True), (spec, False)) == ["far"]
    assert told(Box(), (spec, False), (spec, True)) == []
    assert told(Box(), (spec, False), (spec, True), (spec, False)) == ["far"]
    assert told(Box(), (spec, False), close=True) == []


@pytest.mark.parametrize(
    "spec",
    [
        far(),
        far(origins={"idle_timeout": Origin("defaults", table=("defaults",))}),
        far(origins=WRITTEN, idle_timeout=None),
        ModelSpec("here", path="/m.gguf", idle_timeout=0.0, origins=WRITTEN),
    ],
)
def test_what_nobody_has_written_a_time_for_is_left_alone(spec: ModelSpec) -> None:
    assert told(Box(), (spec, True), (spec, False)) == []


def test_one_that_cannot_be_told_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = AccelError("upstream_failed", "far was not unloaded: the remote box: it cannot be reached")
    with caplog.at_level(logging.INFO):
        assert told(Box(error), (far(origins=WRITTEN), False)) == ["far"]
        assert told(Box(False), (far(origins=WRITTEN), False)) == ["far"]
    assert [record.getMessage() for record in caplog.records] == [error.message]
