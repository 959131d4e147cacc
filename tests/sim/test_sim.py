"""accelerd's scheduler over simulated days: nothing fails, nobody is evicted at work, the game has its memory, and it
needs fewer loads than the others. `python -m tests.sim` shows the figures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from tests.sim.machine import Machine, Result
from tests.sim.ours import Ours
from tests.sim.report import MANAGERS, play
from tests.sim.trace import GAME, Trace, make_trace

SEEDS = (1, 2, 3, 4)


@cache
def trace(kind: str, seed: int) -> Trace:
    return make_trace(seed, 1.0, kind)


@cache
def played(manager: str, kind: str, seed: int) -> Result:
    return play(trace(kind, seed), manager)


@pytest.mark.parametrize("kind", ["day", "random"])
@pytest.mark.parametrize("seed", SEEDS)
def test_everybody_is_served_and_nobody_evicted_at_work(kind: str, seed: int) -> None:
    result = played("accelerd", kind, seed)
    assert not result.failed
    assert result.failed_loads == 0
    assert result.evicted_in_use == 0
    assert len(result.waits) == trace(kind, seed).requests
    assert result.peak <= trace(kind, seed).capacity


@pytest.mark.parametrize("seed", SEEDS)
def test_a_game_gets_its_memory(seed: int) -> None:
    """Others leave it without, as long as nobody asks for another model."""
    assert max(size for _, size in trace("day", seed).foreign) == GAME
    assert played("accelerd", "day", seed).game_lacked <= 5.0
    assert sum(played("lru", "day", s).game_lacked for s in SEEDS) > 60.0


@pytest.mark.parametrize("kind", ["day", "random"])
def test_it_loads_less_often_than_the_least_recently_used_order(kind: str) -> None:
    ours = [played("accelerd", kind, seed) for seed in SEEDS]
    lru = [played("lru", kind, seed) for seed in SEEDS]
    assert sum(r.loads for r in ours) < 0.96 * sum(r.loads for r in lru)
    assert sum(r.bytes_moved for r in ours) < 1.1 * sum(r.bytes_moved for r in lru)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_game_it_loads_less_often_every_day(seed: int) -> None:
    """Then nothing but the choice of who leaves is compared."""
    calm = replace(trace("day", seed), foreign=((0.0, 0),))
    ours, lru = play(calm, "accelerd"), play(calm, "lru")
    assert ours.loads < 0.97 * lru.loads
    assert ours.bytes_moved < 1.05 * lru.bytes_moved


@pytest.mark.parametrize("other", ["ollama", "ollama, no limit", "llama-swap groups"])
def test_it_loads_less_often_and_waits_less_than_others(other: str) -> None:
    ours = [played("accelerd", "day", seed) for seed in SEEDS]
    theirs = [played(other, "day", seed) for seed in SEEDS]
    assert sum(r.loads for r in ours) < sum(r.loads for r in theirs)
    assert sum(sum(r.waits) for r in ours) < sum(sum(r.waits) for r in theirs)


@pytest.mark.parametrize("manager", sorted(MANAGERS))
def test_the_same_seed_gives_the_same_day(manager: str) -> None:
    short = make_trace(7, 0.4)
    assert play(short, manager) == play(make_trace(7, 0.4), manager)
    assert make_trace(8, 0.4) != short


@pytest.mark.parametrize("manager", sorted(MANAGERS))
def test_the_baselines_are_honest_too(manager: str) -> None:
    """No manager of the comparison cuts requests; only those that know nothing of memory have loads that fail."""
    result = played(manager, "day", 1)
    assert result.evicted_in_use == 0
    assert result.failed_loads == 0 or manager == "llama-swap groups"


def test_the_machine_holds_an_eviction_at_work_against_its_manager() -> None:
    """What the tests above ask for can be violated: a model that is stopped at work is counted."""
    short = make_trace(1, 0.1)
    first = short.sessions[0]
    machine = Machine(short, "careless")
    model = machine.models[first.steps[0].model]
    machine.at(first.start + model.load_time + first.steps[0].service / 2, lambda: machine.unload(model.name))
    assert machine.run(Ours(machine)).evicted_in_use == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_models_on_an_npu_and_the_others_make_room_for_each_other(seed: int) -> None:
    day = trace("day", seed)
    npu = frozenset(model.name for model in sorted(day.models, key=lambda model: model.size)[:5])
    machine = Machine(day, "accelerd")
    ours = Ours(machine, npu=npu)
    result = machine.run(ours)
    across = {pair[0] in npu for pair in ours.made_room if (pair[0] in npu) != (pair[1] in npu)}
    assert across == {True, False}, "both ways: they share the machine's memory"
    assert result.failed_loads == 0
    assert result.evicted_in_use == 0
    assert result.peak <= day.capacity
    assert not result.failed
