"""How far a load is: weights that were read, memory that is there, dots; never back, nothing where nothing is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.control.jobs import UNKNOWN
from accelerd.control.models import ALMOST, load_progress, loaded_bytes
from accelerd.memory.model import RAM, Forecast, MemoryRequirement, MemorySnapshot, Pool
from accelerd.scheduler.lifecycle import State
from tests.scheduler.bench import MIB, Bench, model

CARD = "card"
ON_CARD = {RAM: 10 * MIB, CARD: 90 * MIB}
SHARES = {RAM: {"kv cache": 10 * MIB}, CARD: {"weights": 80 * MIB, "kv cache": 10 * MIB}}


@dataclass(frozen=True)
class Shown:
    line: str = ""
    resident: int | None = None
    taken_in: int | None = None


class Load:
    """One model that loads."""

    def __init__(self, amounts: dict[str, int] = ON_CARD, shares: Mapping[str, Mapping[str, int]] = SHARES) -> None:
        need = MemoryRequirement(amounts, "test", (CARD,), shares)
        self.bench = Bench([model("a")], forecasts={"a": Forecast((need,))})
        self.bench.request_load("a")

    def seen(self, **used: int) -> None:
        pools = (Pool(RAM, "main memory", 512 * MIB), Pool(CARD, "a card", 512 * MIB))
        sizes = {name: size * MIB for name, size in used.items()}
        self.bench.core.memory.seen(MemorySnapshot(self.bench.clock.now, pools, {self.bench.instance("a"): sizes}))

    def progress(self, shown: Shown | None = None, before: float = UNKNOWN) -> float:
        return load_progress(self.bench.core.snapshot("a"), shown, before)


def test_nothing_is_said_while_nothing_is_known() -> None:
    load = Load()
    assert load.progress(None) == UNKNOWN
    assert load.progress(Shown(line="loading model tensors")) == UNKNOWN
    waiting = Bench([model("a")])
    assert load_progress(waiting.core.snapshot("a"), None) == UNKNOWN
    unknown = Load({RAM: 0}, {})
    assert unknown.progress(Shown(resident=MIB, taken_in=MIB)) == UNKNOWN, "nobody knows what it needs"


def test_memory_that_a_driver_sets_aside_at_once_is_not_a_model_that_was_read() -> None:
    load = Load()
    load.seen(card=90, ram=1)
    read = [load.progress(Shown(resident=MIB, taken_in=size * MIB)) for size in (0, 20, 40, 80)]
    assert read == [pytest.approx(part) for part in (0.11, 0.31, 0.51, 0.91)]


def test_where_reads_cannot_be_seen_resident_bytes_count() -> None:
    load = Load()
    load.seen(card=45, ram=2)
    assert load.progress(Shown(resident=5 * MIB)) == pytest.approx(0.5)
    assert load.progress(Shown(resident=500 * MIB)) == pytest.approx(0.55), (
        "no pool counts for more than is needed of it"
    )
    assert load.progress(None) == pytest.approx(0.47)


def test_what_is_loaded_is_never_more_than_what_is_expected() -> None:
    load = Load()
    snapshot = load.bench.core.snapshot("a")
    assert loaded_bytes(snapshot, Shown()) is None
    # A file that is mapped whole is resident in main memory although its weights go to the card.
    assert loaded_bytes(snapshot, Shown(resident=80 * MIB)) == 10 * MIB
    load.seen(card=300, ram=80)
    assert loaded_bytes(load.bench.core.snapshot("a"), Shown(resident=80 * MIB)) == snapshot.memory


def test_what_a_model_uses_is_the_sum_of_its_pools() -> None:
    load = Load()
    assert load.bench.core.snapshot("a").memory_used is None
    load.seen(card=259, ram=68)
    assert load.bench.core.snapshot("a").memory_used == 327 * MIB


def test_a_processor_alone() -> None:
    load = Load({RAM: 100 * MIB})
    assert load.progress(Shown(resident=30 * MIB, taken_in=30 * MIB)) == pytest.approx(0.3)
    assert load.progress(Shown(resident=90 * MIB, taken_in=85 * MIB)) == pytest.approx(0.9)


def test_without_parts_everything_is_to_be_read() -> None:
    load = Load({RAM: 100 * MIB}, {})
    assert load.progress(Shown(resident=40 * MIB, taken_in=50 * MIB)) == pytest.approx(0.5)


@pytest.mark.parametrize(("line", "part"), [("....", 0.032), ("." * 100, 0.8), ("." * 300, 0.8)])
def test_dots_of_an_older_engine_count(line: str, part: float) -> None:
    assert Load().progress(Shown(line=line)) == pytest.approx(part)
    assert Load().progress(Shown(line=line, taken_in=0)) == pytest.approx(part)


def test_dots_in_a_sentence_are_no_figure() -> None:
    assert Load().progress(Shown(line="loading ...")) == UNKNOWN


def test_all_is_there_only_when_it_is_ready() -> None:
    load = Load()
    load.seen(card=90, ram=10)
    assert load.progress(Shown(resident=10 * MIB, taken_in=500 * MIB)) == ALMOST
    load.bench.ready("a")
    assert load.progress(None) == 1.0


def test_a_load_that_begins_anew_does_not_go_back() -> None:
    load = Load()
    first = load.progress(Shown(taken_in=60 * MIB))
    assert load.progress(Shown(taken_in=5 * MIB), first) == first
    load.bench.core.begin_unload("a", force=True, done=lambda: None)
    assert load.bench.state("a") is State.STOPPING
    assert load.progress(None, first) == first


@given(
    looks=st.lists(
        st.tuples(
            st.none() | st.integers(0, 300), st.none() | st.integers(0, 300), st.integers(0, 300), st.integers(0, 120)
        ),
        max_size=20,
    )
)
def test_it_is_a_part_of_one_that_only_grows(looks: list[tuple[int | None, int | None, int, int]]) -> None:
    load, before = Load(), UNKNOWN
    for resident, taken, used, dots in looks:
        load.seen(card=used, ram=used // 9)
        sizes = [size * MIB if size is not None else None for size in (resident, taken)]
        now = load.progress(Shown("." * dots, *sizes), before)
        assert before <= now <= ALMOST
        assert now == UNKNOWN or now >= 0
        before = now
