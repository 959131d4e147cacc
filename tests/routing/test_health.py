"""What cools a deployment down, for how long, and what ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.base.errors import AccelError
from accelerd.routing.health import Health, HealthState, cools, may_go_on


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def answered(status: int, retry_after: float | None = None) -> AccelError:
    return AccelError("upstream_failed", "no", retry_after=retry_after, engine_status=status)


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 502, 503, 504, 529])
def test_what_says_that_a_deployment_does_not_work(status: int) -> None:
    assert cools(answered(status))
    assert may_go_on(status)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_what_another_one_may_have_cools_nothing(status: int) -> None:
    assert not cools(answered(status))
    assert may_go_on(status)


@pytest.mark.parametrize("status", [400, 409, 411, 413, 415, 422])
def test_what_a_client_has_caused_is_the_answer(status: int) -> None:
    assert not cools(answered(status))
    assert not may_go_on(status)


@pytest.mark.parametrize(
    ("code", "expected"),
    [("upstream_failed", True), ("upstream_timeout", True), ("does_not_fit", False), ("queue_full", False)],
)
def test_failures_without_an_answer(code: str, expected: bool) -> None:
    assert cools(AccelError(code, "no")) is expected


def test_a_server_without_the_model_is_not_there_until_it_is_tried_again() -> None:
    now = Clock()
    health = Health(now)
    missing = AccelError("upstream_failed", "no", engine_status=404, model_not_found=True)
    assert cools(missing)
    health.failed("a", missing, 30)
    assert health.of("a").state is HealthState.NO_MODEL
    assert health.why_not("a") == "is not there: its server has no model of that name, and is asked again in 30 s"
    now.at += 30
    assert (health.of("a").state, health.why_not("a")) == (HealthState.TRIAL, "")
    health.failed("a", answered(503), 30)
    assert health.of("a").state is HealthState.COOLING, "another trouble"


def test_one_request_tries_what_has_cooled_down() -> None:
    now = Clock()
    health = Health(now)
    assert health.why_not("a") == ""
    health.failed("a", answered(500), 30)
    assert health.of("a").state is HealthState.COOLING
    assert health.why_not("a") == "has failed and cools down for 30 s more"
    now.at += 30
    assert health.of("a").state is HealthState.TRIAL
    assert health.why_not("a") == "", "somebody may try it"
    health.begin("a")
    assert health.why_not("a") == "has failed, and a request tries it"
    health.succeeded("a")
    assert health.of("a").state is HealthState.USABLE
    assert health.why_not("a") == ""
    assert health.of("a").last_failure is not None
    assert (health.of("a").successes, health.of("a").failures) == (1, 1)


def test_a_trial_that_fails_begins_it_again() -> None:
    now = Clock()
    health = Health(now)
    health.failed("a", answered(500), 30)
    now.at += 31
    health.begin("a")
    health.failed("a", answered(503), 30)
    assert health.why_not("a") == "has failed and cools down for 30 s more"


def test_a_trial_that_says_nothing_leaves_it_to_the_next() -> None:
    now = Clock()
    health = Health(now)
    health.failed("a", answered(500), 30)
    now.at += 31
    health.begin("a")
    health.left("a")
    assert health.why_not("a") == ""
    health.begin("a")
    now.at += 30
    assert health.why_not("a") == "", "a long answer keeps nobody from trying"


def test_a_request_that_was_sent_while_it_cools_is_no_trial() -> None:
    now = Clock()
    health = Health(now)
    health.failed("a", answered(500), 30)
    health.begin("a")
    now.at += 30
    assert health.why_not("a") == ""


@pytest.mark.parametrize(("after", "expected"), [(None, 30.0), (5.0, 30.0), (60.0, 60.0), (1e9, 600.0)])
def test_a_longer_retry_after_counts_within_reason(after: float | None, expected: float) -> None:
    now = Clock()
    health = Health(now)
    health.failed("a", answered(429, after), 30)
    assert health.of("a").until == now.at + expected


def test_without_a_cooldown_nothing_cools() -> None:
    health = Health(Clock())
    health.failed("a", answered(500, 60), 0)
    assert (health.of("a").state, health.of("a").failures) == (HealthState.USABLE, 1)


def test_what_was_the_requests_fault_is_taken_back() -> None:
    health = Health(Clock())
    health.failed("a", answered(500), 30)
    health.excuse("a")
    assert health.of("a").state is HealthState.USABLE


def test_what_answers_again_may_be_tried_at_once() -> None:
    now = Clock()
    health = Health(now)
    health.failed("a", answered(500), 30)
    assert health.cooling() == ["a"]
    health.reachable("a")
    health.reachable("b")
    assert (health.of("a").state, health.of("b").state) == (HealthState.TRIAL, HealthState.USABLE)


def test_what_is_configured_no_more_is_forgotten() -> None:
    health = Health(Clock())
    for name in ("a", "b"):
        health.failed(name, answered(500), 30)
    health.keep({"b", "c"})
    assert health.cooling() == ["b"]


@given(st.lists(st.tuples(st.sampled_from(["fail", "ok", "begin", "left", "wait", "reach"]), st.floats(0, 40))))
def test_nothing_is_passed_over_for_longer_than_its_cooling_and_one_trial(events: list[tuple[str, float]]) -> None:
    now = Clock()
    health = Health(now)
    for event, seconds in events:
        match event:
            case "fail":
                health.failed("a", answered(500), 30)
            case "ok":
                health.succeeded("a")
                assert health.why_not("a") == ""
            case "begin":
                health.begin("a")
            case "left":
                health.left("a")
            case "reach":
                health.reachable("a")
            case _:
                now.at += seconds
    now.at += 60.1
    assert health.why_not("a") == ""
