"""A load whose clients have all left gives way; a model that has served nobody has no claim to its place."""

from __future__ import annotations

import pytest

from accelerd.base.exits import Cause
from accelerd.config.model import SchedulerSettings
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, Request, model

ONE = SharedLimits(None, "test", 1)
SETTINGS = SchedulerSettings(linger=0.5, max_overtake=20.0, min_resident=30.0)


def table(**settings: object) -> Bench:
    return Bench([model("a", **settings), model("b")], limits=ONE, settings=SETTINGS)


def leave(bench: Bench, request: Request) -> None:
    assert request.waiter is not None
    bench.core.cancel(request.model, request.waiter)


def test_a_load_that_nobody_waits_for_gives_way() -> None:
    bench = table()
    gone = bench.request("a")
    wanted = bench.request("b")
    bench.pass_time(5)
    assert bench.state("a") is State.STARTING, "somebody waits for it"
    leave(bench, gone)
    assert bench.state("a") is State.STARTING, "its client may try again"
    bench.pass_time(SETTINGS.linger)
    assert bench.state("a") is State.STOPPING
    assert "nobody waits for it any more: made room for b: max_loaded = 1" in bench.core.snapshot("a").reason
    bench.gone("a")
    bench.ready("b")
    assert wanted.lease is not None
    assert bench.core.snapshot("a").error is None, "that was no failure"
    assert bench.request("a").error is None


def test_it_goes_on_while_nobody_else_wants_the_place() -> None:
    bench = table()
    leave(bench, bench.request("a"))
    bench.pass_time(600)
    assert bench.state("a") is State.STARTING
    bench.ready("a")
    assert bench.request("a").lease is not None


def test_a_client_that_tries_again_finds_it() -> None:
    bench = table()
    leave(bench, bench.request("a"))
    bench.request("b")
    bench.pass_time(SETTINGS.linger / 2)
    again = bench.request("a")
    bench.pass_time(5)
    bench.ready("a")
    assert again.lease is not None


def test_a_client_whose_patience_ends_has_left_too() -> None:
    bench = Bench([model("a"), model("b")], limits=ONE, settings=SchedulerSettings(linger=0.5, queue_timeout=60.0))
    bench.request("a")
    bench.pass_time(30)
    wanted = bench.request("b")
    bench.pass_time(31)
    assert bench.state("a") is State.STOPPING
    bench.gone("a")
    bench.ready("b")
    assert wanted.lease is not None


def test_only_one_of_its_clients_has_left() -> None:
    bench = table()
    first, second = bench.request("a"), bench.request("a")
    bench.request("b")
    leave(bench, first)
    bench.pass_time(10)
    assert bench.state("a") is State.STARTING
    bench.ready("a")
    assert second.lease is not None


@pytest.mark.parametrize("settings", [{"preload": True}, {"pin": True}])
def test_what_is_to_be_kept_loaded_needs_no_client(settings: dict[str, bool]) -> None:
    bench = table(**settings)
    leave(bench, bench.request("a"))
    bench.request("b")
    bench.pass_time(10)
    assert bench.state("a") is State.STARTING


def test_a_hold_is_enough() -> None:
    bench = table()
    gone = bench.request("a")
    bench.core.holds.hold("a", "client", load=True)
    leave(bench, gone)
    assert bench.request("b").error is not None, "it never leaves for it"
    assert bench.state("a") is State.STARTING
    bench.core.holds.unhold("a", "client")
    bench.request("b")
    bench.pass_time(1)
    assert bench.state("a") is State.STOPPING


def test_a_model_that_has_served_nobody_leaves_at_once() -> None:
    bench = table()
    leave(bench, bench.request("a"))
    bench.pass_time(5)
    bench.ready("a")
    bench.request("b")
    assert bench.state("a") is State.STOPPING, "min_resident protects what was worth its load"


def test_one_that_has_served_stays_as_long_as_the_settings_say() -> None:
    bench = table()
    request = bench.request("a")
    bench.ready("a")
    bench.end(request)
    bench.request("b")
    bench.pass_time(15)
    assert bench.state("a") is State.READY
    bench.pass_time(6)
    assert bench.state("a") is State.STOPPING, "max_overtake"


def test_a_load_that_was_asked_for_and_waited_for_has_a_claim() -> None:
    bench = table()
    bench.loaded("a")
    bench.request("b")
    bench.pass_time(15)
    assert bench.state("a") is State.READY


def test_a_preload_pushes_no_load_out() -> None:
    bench = table()
    leave(bench, bench.request("a"))
    bench.request_load("b", may_evict=False)
    bench.pass_time(10)
    assert bench.state("a") is State.STARTING


def test_it_leaves_no_more_than_is_needed() -> None:
    """Two such loads, and room for one more after either has gone: the other goes on."""
    limits = SharedLimits(3 * MIB, "test", None)
    memory = {"a": MIB, "b": 2 * MIB, "c": MIB}
    bench = Bench([model(name) for name in "abc"], limits=limits, settings=SETTINGS, memory=memory)
    for name in ("a", "b"):
        leave(bench, bench.request(name))
    bench.pass_time(5)
    bench.request("c")
    assert [bench.state(name) for name in "ab"].count(State.STOPPING) == 1


def test_a_load_that_fails_while_it_gives_way_is_no_failure() -> None:
    bench = table()
    leave(bench, bench.request("a"))
    bench.pass_time(1)
    bench.request("b")
    bench.gone("a", Cause.STOPPED)
    assert bench.state("a") is State.STOPPED
    assert bench.state("b") is State.STARTING
