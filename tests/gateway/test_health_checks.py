"""While a model elsewhere cools down, its server is asked whether it can be reached, and not otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from accelerd.engines.remote.state import RemoteState
from accelerd.gateway.health_checks import HealthChecks
from accelerd.routing.health import Health, HealthState
from tests.gateway.bench import on_both_loops, until

FAR = ModelSpec("far", engine="remote", remote="mac", model="m")
LOST = AccelError("upstream_failed", "cannot connect")


class FakeRemotes:
    """`answers`: what it is, each time; an error is raised."""

    def __init__(self, *answers: bool | AccelError) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def look(self, name: str) -> RemoteState:
        self.asked.append(name)
        answer = self.answers.pop(0)
        if isinstance(answer, AccelError):
            raise answer
        return RemoteState(reachable=answer)


def checks(remotes: Any) -> tuple[Health, HealthChecks]:
    health = Health(lambda: 0.0)
    return health, HealthChecks(health, remotes, every=0.001)


@on_both_loops
async def test_what_can_be_reached_again_may_be_tried_at_once() -> None:
    remotes = FakeRemotes(False, False, True)
    health, watched = checks(remotes)
    health.failed("far", LOST, 30)
    for _ in range(2):
        watched.begin(FAR, LOST)
    await until(lambda: not watched._checks, "it has an answer")
    assert remotes.asked == ["mac"] * 3
    assert health.of("far").state is HealthState.TRIAL


@on_both_loops
async def test_nobody_is_asked_when_it_has_been_tried_or_is_configured_no_more() -> None:
    remotes = FakeRemotes(AccelError("upstream_failed", "there is no remote 'mac' any more"))
    health, watched = checks(remotes)
    health.failed("far", LOST, 30)
    watched.begin(FAR, LOST)
    health.succeeded("far")
    await until(lambda: not watched._checks, "it is over")
    assert remotes.asked == []
    health.failed("far", LOST, 30)
    watched.begin(FAR, LOST)
    await until(lambda: not watched._checks, "it is over")
    assert (remotes.asked, health.of("far").state) == (["mac"], HealthState.COOLING)


@pytest.mark.parametrize(
    ("spec", "error", "cooldown"),
    [
        (ModelSpec("near", path="/m"), LOST, 30),
        (FAR, AccelError("upstream_failed", "no", engine_status=429), 30),
        (FAR, LOST, 0),
    ],
)
@on_both_loops
async def test_what_nobody_is_asked_for(spec: ModelSpec, error: AccelError, cooldown: float) -> None:
    health, watched = checks(FakeRemotes())
    health.failed(spec.name, error, cooldown)
    watched.begin(spec, error)
    assert not watched._checks


@on_both_loops
async def test_the_end_of_the_daemon_is_theirs() -> None:
    health, watched = checks(FakeRemotes(*[False] * 1000))
    health.failed("far", LOST, 30)
    watched.begin(FAR, LOST)
    watched.close()
    await until(lambda: not watched._checks, "it is over")
