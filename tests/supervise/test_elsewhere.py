"""An instance without a process: what goes wrong in its plan ends it, with a reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import fail
from accelerd.supervise.elsewhere import InstanceElsewhere
from accelerd.supervise.process.processes import InstanceTag


def instance(plan: Any) -> InstanceElsewhere:
    async def planned(*_: object) -> Any:
        return plan()

    spec = ModelSpec("far", engine="remote", remote="mac", model="x")
    nobody = cast(Any, SimpleNamespace())
    return InstanceElsewhere(
        1, spec, cast(Any, SimpleNamespace(plan=planned)), InstanceTag("1", "/run"), nobody, nobody, 0
    )


async def test_a_refused_plan_says_why() -> None:
    ended = await instance(lambda: fail(Cause.REFUSED, "there is no such remote")).run()
    assert (ended.cause, "no such remote" in ended.message) == (Cause.REFUSED, True)


async def test_a_bug_ends_it_too(caplog: pytest.LogCaptureFixture) -> None:
    ended = await instance(lambda: {}["absent"]).run()
    assert ended.cause is Cause.SPAWN_FAILED
    assert "a bug in accelerd: far cannot be asked for" in caplog.text
