"""Models whose containers publish the same port of this machine: one leaves for the other, whatever memory there is."""

from __future__ import annotations

import pytest

from accelerd.base.errors import AccelError
from accelerd.memory.model import Forecast, in_ram
from accelerd.scheduler.lifecycle import State
from tests.scheduler.bench import MIB, Bench, model

LOOPBACK = "127.0.0.1"


def publishing(*ports: tuple[str, int]) -> Forecast:
    return Forecast((in_ram(MIB, "test"),), ports=ports)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ([(LOOPBACK, 80)], [(LOOPBACK, 80)], 80),
        ([(LOOPBACK, 80)], [(LOOPBACK, 81)], None),
        ([(LOOPBACK, 80)], [("192.0.2.1", 80)], None),
        ([(LOOPBACK, 80)], [("0.0.0.0", 80)], 80),
        ([("::", 80)], [("192.0.2.1", 80)], 80),
        ([(LOOPBACK, 80), (LOOPBACK, 90)], [(LOOPBACK, 70), (LOOPBACK, 90)], 90),
        ([], [(LOOPBACK, 80)], None),
    ],
)
def test_when_two_containers_cannot_run_at_once(
    one: list[tuple[str, int]], other: list[tuple[str, int]], shared: int | None
) -> None:
    assert publishing(*one).shared_port(publishing(*other)) == shared
    assert publishing(*other).shared_port(publishing(*one)) == shared


def bench() -> Bench:
    forecasts = {"a": publishing((LOOPBACK, 80)), "b": publishing(("0.0.0.0", 80)), "c": publishing((LOOPBACK, 81))}
    return Bench([model("a"), model("b"), model("c")], forecasts=forecasts)


def test_the_one_makes_room_for_the_other() -> None:
    table = bench()
    for name in ("a", "c"):
        table.loaded(name)
    wanted = table.request("b")
    table.pass_time(1.0)  # beyond `linger`
    assert table.state("a") in (State.DRAINING, State.STOPPING)
    assert table.state("c") is State.READY
    table.gone("a")
    table.ready("b")
    assert wanted.lease is not None


def test_two_models_in_one_container_take_turns() -> None:
    table = Bench([model("a", home="container", container="x"), model("b", home="container", container="x")])
    table.loaded("a")
    table.request("b")
    table.pass_time(1.0)
    assert table.state("a") in (State.DRAINING, State.STOPPING)


def test_both_cannot_be_held() -> None:
    table = bench()
    table.core.holds.hold("a", "me", load=False)
    with pytest.raises(AccelError, match="publish the same port, 80"):
        table.core.holds.hold("b", "me", load=False)
    table.core.holds.hold("c", "me", load=False)
