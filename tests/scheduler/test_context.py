"""A model whose context is left open gets the longest that it can have at all; a shorter one only where it cannot."""

from __future__ import annotations

from accelerd.memory.model import RAM, Forecast, MemoryRequirement, MemorySnapshot, Pool
from accelerd.scheduler.lifecycle import State
from tests.scheduler.bench import Bench, model

GIB = 1 << 30
CARDS = ("0000:03:00.0", "0000:04:00.0")


def open_to(*sizes: tuple[int, int], cards: tuple[str, ...] = ()) -> Forecast:
    """Contexts in thousands of tokens with what they need in GiB, on main memory or on one of the cards."""
    return Forecast(
        tuple(
            MemoryRequirement({pool: size * GIB}, "estimated", (pool,) if cards else (), context=context * 1000)
            for context, size in sizes
            for pool in (cards or (RAM,))
        )
    )


def machine(forecasts: dict[str, Forecast], foreign: int = 0, pinned: tuple[str, ...] = ()) -> Bench:
    bench = Bench([model(name, pin=name in pinned) for name in forecasts], forecasts=forecasts)
    bench.somebody_looks = True
    look(bench, foreign)
    return bench


def look(bench: Bench, foreign: int) -> None:
    cards = [Pool(card, "card", 24 * GIB) for card in CARDS]
    pools = (Pool(RAM, "main memory", 32 * GIB, 0, foreign * GIB), *cards)
    bench.core.memory.seen(MemorySnapshot(bench.clock.now, pools, {}))


def small(size: int) -> Forecast:
    return Forecast((MemoryRequirement({RAM: size * GIB}, "estimated"),))


def test_with_room_it_is_the_longest() -> None:
    bench = machine({"a": open_to((128, 20), (64, 12), (8, 5))})
    bench.loaded("a")
    assert bench.placed["a"].context == 128_000


def test_an_idle_model_leaves_rather_than_that_the_context_is_short() -> None:
    bench = machine({"other": small(20), "a": open_to((128, 20), (64, 12), (8, 5))})
    bench.loaded("other")
    bench.request("a")
    bench.pass_time(1)
    assert bench.state("other") is State.STOPPING
    bench.gone("other")
    assert bench.placed["a"].context == 128_000


def test_what_stays_and_what_other_programs_use_make_it_shorter_and_nothing_is_refused() -> None:
    bench = machine({"other": small(16), "a": open_to((128, 20), (64, 12), (8, 5))}, pinned=("other",))
    bench.loaded("other")
    bench.loaded("a")
    assert bench.placed["a"].context == 64_000
    bench = machine({"a": open_to((128, 20), (64, 12), (8, 5))}, foreign=26)
    bench.loaded("a")
    assert bench.placed["a"].context == 8_000


def test_the_next_start_has_the_longest_again() -> None:
    bench = machine({"a": open_to((128, 20), (8, 5))}, foreign=26)
    bench.loaded("a")
    bench.core.begin_unload("a", force=True, done=lambda: None)
    bench.gone("a")
    assert bench.core.snapshot("a").need.context == 128_000
    look(bench, 0)
    bench.loaded("a")
    assert bench.placed["a"].context == 128_000


def test_another_card_comes_before_a_shorter_context() -> None:
    both = open_to((128, 20), (8, 5), cards=CARDS)
    bench = machine({"a": both, "b": both})
    bench.loaded("a")
    bench.loaded("b")
    assert [(bench.placed[name].devices, bench.placed[name].context) for name in "ab"] == [
        (CARDS[:1], 128_000),
        (CARDS[1:], 128_000),
    ]


def test_a_model_taken_over_holds_what_its_context_needs() -> None:
    bench = machine({"a": open_to((128, 20), (64, 12), (8, 5))})
    assert bench.core.adopt("a", "found", fits=True, context=64_000)
    assert bench.core.memory_held() == 12 * GIB
