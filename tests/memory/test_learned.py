"""What was measured takes the place of what was estimated, and what ran out of memory never gets less again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from accelerd.control.state_store import StateStore
from accelerd.memory.learned import KEPT, Learned, LearnedRecord, improved
from accelerd.memory.model import RAM, Forecast, MemoryRequirement

MIB = 1 << 20
GIB = 1 << 30
GPU = "0000:c1:00.0"
NOON = 1_750_000_000.0  # a day in June 2025, anywhere
DAY = "2025-06-15"


class Shelf:
    """A Store that counts."""

    def __init__(self) -> None:
        self.learned: Sequence[LearnedRecord] = ()
        self.writes = 0

    def learn(self, entries: Sequence[LearnedRecord]) -> None:
        self.learned = entries
        self.writes += 1


def learning(shelf: Shelf | None = None, now: Callable[[], float] = lambda: NOON) -> Learned:
    shelf = shelf or Shelf()
    return Learned(shelf.learned, shelf.learn, now)


def forecast(*options: MemoryRequirement, key: str = "k") -> Forecast:
    return Forecast(options, key)


def on_gpu(device: int, ram: int = 0, *, gpu: str = GPU) -> MemoryRequirement:
    return MemoryRequirement(
        {gpu: device, RAM: ram}, "estimated from the file's header", (gpu,), {gpu: {"weights": device}}
    )


def test_a_device_is_what_was_measured_whether_less_or_more() -> None:
    for measured in (6 * GIB, 10 * GIB):
        learned = learning()
        need = learned.apply(forecast(on_gpu(8 * GIB, MIB))).options[0]
        learned.saw("k", need, {GPU: measured, RAM: MIB}, settled=True)
        better = learned.apply(forecast(on_gpu(8 * GIB, MIB))).options[0]
        assert better.amounts == {GPU: measured, RAM: MIB}
        assert better.source == f"measured in an earlier run ({DAY}): the estimate was 8.0 GiB"
        assert (better.devices, better.parts) == ((GPU,), {}), "parts of an estimate do not add up to a measurement"


def test_main_memory_is_only_raised_since_untouched_pages_do_not_count() -> None:
    learned = learning()
    estimate = MemoryRequirement({RAM: 4 * GIB}, "estimated", shares={RAM: {"kv cache": GIB}})
    learned.saw("k", estimate, {RAM: GIB}, settled=True)
    assert learned.apply(forecast(estimate)).options == (estimate,), "the estimate stays, its source and parts too"
    learned.saw("k", estimate, {RAM: 5 * GIB}, settled=True)
    assert learned.apply(forecast(estimate)).options[0].amounts == {RAM: 5 * GIB}


def test_a_pool_that_nobody_thought_of_counts_when_it_was_used() -> None:
    learned = learning()
    learned.saw("k", on_gpu(GIB), {GPU: GIB, RAM: 300 * MIB, "0000:03:00.0": 0}, settled=True)
    assert learned.apply(forecast(on_gpu(GIB))).options[0].amounts == {GPU: GIB, RAM: 300 * MIB}


def test_a_load_that_was_not_over_lowers_nothing() -> None:
    learned = learning()
    learned.saw("k", on_gpu(8 * GIB), {GPU: 2 * GIB}, settled=False)
    assert learned.apply(forecast(on_gpu(8 * GIB))).options[0].amounts[GPU] == 8 * GIB
    learned.saw("k", on_gpu(8 * GIB), {GPU: 9 * GIB}, settled=False)
    assert learned.apply(forecast(on_gpu(8 * GIB))).options[0].amounts[GPU] == 9 * GIB


def test_a_device_that_could_not_be_read_proves_nothing() -> None:
    learned = learning()
    learned.saw("k", on_gpu(8 * GIB), {GPU: 0, RAM: MIB}, settled=True)
    assert learned.apply(forecast(on_gpu(8 * GIB))).options[0].amounts[GPU] == 8 * GIB


def test_what_a_person_has_declared_is_only_raised() -> None:
    learned = learning()
    declared = replace(on_gpu(8 * GIB), declared=True)
    learned.saw("k", declared, {GPU: 6 * GIB}, settled=True)
    assert learned.apply(forecast(declared)).options == (declared,)
    learned.saw("k", declared, {GPU: 9 * GIB}, settled=True)
    better = learned.apply(forecast(declared)).options[0]
    assert better.total == 9 * GIB
    assert "the figure in the configuration was 8.0 GiB" in better.source


def test_each_way_to_place_a_model_has_a_figure_of_its_own() -> None:
    learned = learning()
    split = MemoryRequirement({GPU: 4 * GIB, "b": 4 * GIB}, "estimated", (GPU, "b"))
    learned.saw("k", on_gpu(8 * GIB), {GPU: 7 * GIB}, settled=True)
    first, second = learned.apply(forecast(on_gpu(8 * GIB), split)).options
    assert first.total == 7 * GIB
    assert second is split
    other = forecast(on_gpu(8 * GIB), key="another build")
    assert learned.apply(other) == other


def test_nothing_is_learned_of_what_has_no_name() -> None:
    shelf = Shelf()
    learned = learning(shelf)
    nameless = forecast(on_gpu(GIB), key="")
    learned.saw("", on_gpu(GIB), {GPU: 9 * GIB}, settled=True)
    learned.outgrown("", on_gpu(GIB), 9 * GIB)
    assert learned.apply(nameless) is nameless
    assert (learned.entries(), shelf.writes) == ((), 0)


def test_what_ran_out_of_memory_is_raised_and_no_measurement_lowers_it() -> None:
    learned = learning()
    need = learned.apply(forecast(on_gpu(8 * GIB))).options[0]
    learned.outgrown("k", need, 10 * GIB, model="a")
    raised = learned.apply(forecast(on_gpu(8 * GIB))).options[0]
    assert raised.amounts == {GPU: 10 * GIB, RAM: 0}
    expected = f"ran out of memory with 8.0 GiB in an earlier run ({DAY}): the estimate was 8.0 GiB"
    assert raised.source == expected
    learned.saw("k", raised, {GPU: 5 * GIB}, settled=True)
    assert learned.apply(forecast(on_gpu(8 * GIB))).options[0].total == 10 * GIB
    learned.outgrown("k", raised, 9 * GIB)
    assert learned.apply(forecast(on_gpu(8 * GIB))).options[0].total == 10 * GIB
    learned.outgrown("k", replace(raised, amounts={GPU: 12 * GIB}), 12 * GIB)
    assert "ran out of memory with 10.0 GiB" in learned.apply(forecast(on_gpu(8 * GIB))).options[0].source
    [entry] = learned.entries()
    assert (entry.model, entry.shortages, entry.estimate[GPU]) == ("a", 3, 8 * GIB)
    assert learned.forget("k") == 1
    assert learned.apply(forecast(on_gpu(8 * GIB))).options == (on_gpu(8 * GIB),)


def test_people_see_what_is_known_the_newest_first() -> None:
    times = iter((NOON, NOON + 1, NOON + 9))
    learned = learning(now=lambda: next(times))
    learned.saw("a", on_gpu(GIB), {GPU: 2 * GIB}, settled=True, model="a", file="/m/a.gguf")
    learned.saw("b", on_gpu(GIB), {GPU: 2 * GIB}, settled=True, model="b", file="/m/b.gguf")
    known = learned.apply(forecast(on_gpu(3 * GIB), key="a")).options[0]
    learned.saw("a", known, {GPU: 2 * GIB}, settled=True)
    newest, oldest = learned.entries()
    assert (newest.model, newest.file, newest.devices) == ("a", "/m/a.gguf", (GPU,))
    assert (newest.estimate[GPU], newest.peak, newest.at) == (3 * GIB, {GPU: 2 * GIB}, NOON + 9)
    assert (oldest.model, oldest.runs, oldest.shortages) == ("b", 1, 0)
    assert learned.forget() == 2
    assert learned.entries() == ()
    assert learned.forget() == 0


def test_names_that_no_file_can_hold_are_written_as_well_as_can_be() -> None:
    shelf = Shelf()
    learned = learning(shelf)
    odd = b"/m/\xff.gguf".decode("utf-8", "surrogateescape")
    learned.saw(odd, on_gpu(GIB), {GPU: 2 * GIB}, settled=True, model=odd, file="/m" * 9999 + "/last.gguf")
    [entry] = learned.entries()
    assert entry.model == "/m/\\udcff.gguf"
    assert (entry.file[0], entry.file[-10:], len(entry.file)) == ("…", "/last.gguf", 500)
    assert msgspec.json.decode(msgspec.json.encode(entry), type=LearnedRecord) == entry
    assert learned.apply(forecast(on_gpu(GIB), key=odd)).options[0].total == 2 * GIB
    assert learned.forget(odd) == 1


def test_runs_are_counted_by_their_loads_not_by_the_looks() -> None:
    learned = learning()
    for _ in range(3):
        learned.loaded("k", on_gpu(GIB))
        for _ in range(4):
            learned.saw("k", on_gpu(GIB), {GPU: GIB}, settled=True)
    assert learned.entries()[0].runs == 3


def test_only_what_says_something_new_has_the_file_written() -> None:
    shelf = Shelf()
    learned = learning(shelf)
    peak = 1000 * MIB
    for grown in (0, 5, 9, 0, 9):
        learned.saw("k", on_gpu(GIB), {GPU: peak + grown * MIB}, settled=True)
    assert shelf.writes == 1
    learned.saw("k", on_gpu(GIB), {GPU: peak + 11 * MIB}, settled=True)
    assert shelf.writes == 2
    learned.saw("k", on_gpu(GIB), {GPU: peak + 11 * MIB, RAM: MIB}, settled=True)
    assert shelf.writes == 3
    assert shelf.learned[0].peak == {GPU: peak + 11 * MIB, RAM: MIB}


def test_only_so_many_are_kept_the_one_unused_for_longest_falls_out() -> None:
    shelf = Shelf()
    learned = learning(shelf)
    for number in range(KEPT):
        learned.saw(f"k{number}", on_gpu(GIB), {GPU: 2 * GIB}, settled=True)
    learned.saw("k0", on_gpu(GIB), {GPU: 2 * GIB}, settled=True)
    for number in range(KEPT, KEPT + 3):
        learned.saw(f"k{number}", on_gpu(GIB), {GPU: 2 * GIB}, settled=True)
        learned.apply(forecast(on_gpu(GIB), key=f"k{number}"))
    kept = {entry.key for entry in learned.entries()}
    assert len(kept) == len(shelf.learned) == KEPT
    assert "k0" in kept
    assert kept.isdisjoint({"k1", "k2", "k3"})


SIZES = st.integers(0, 1 << 42)
POOLS = st.dictionaries(st.sampled_from([RAM, GPU, "b"]), SIZES, max_size=3)
DEVICES = st.sampled_from([(), (GPU,), (GPU, "b")])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("saw"), POOLS, st.booleans()),
        st.tuples(st.just("outgrown"), SIZES, st.none()),
        st.tuples(st.just("loaded"), st.none(), st.none()),
    ),
    max_size=12,
)


@given(POOLS, DEVICES, STEPS)
def test_whatever_happens_no_figure_is_negative_or_below_what_was_outgrown(
    amounts: dict[str, int], devices: tuple[str, ...], steps: list[tuple[str, object, bool | None]]
) -> None:
    learned = learning()
    estimate = MemoryRequirement(amounts, "estimated", devices)
    floor, highest = 0, {RAM: 0}
    for what, value, settled in steps:
        need = learned.apply(forecast(estimate)).options[0]
        if what == "saw":
            assert isinstance(value, dict)
            learned.saw("k", need, value, settled=bool(settled))
            highest[RAM] = max(highest[RAM], value.get(RAM, 0))
        elif what == "outgrown":
            assert isinstance(value, int)
            learned.outgrown("k", need, value)
            floor = max(floor, value)
        else:
            learned.loaded("k", need)
        after = learned.apply(forecast(estimate)).options[0]
        assert all(size >= 0 for size in after.amounts.values())
        assert after.total >= floor
        assert after.devices == devices
        if floor == 0:
            assert amounts.get(RAM, 0) <= after.amounts.get(RAM, 0) <= max(amounts.get(RAM, 0), highest[RAM])
        assert learned.apply(forecast(estimate)).options[0] == after, "asking changes nothing"


ENTRIES = st.builds(
    LearnedRecord,
    key=st.text(min_size=1, max_size=8),
    devices=DEVICES,
    model=st.text(max_size=8),
    file=st.text(max_size=8),
    estimate=POOLS,
    peak=POOLS,
    settled=st.booleans(),
    need=SIZES,
    lacked=SIZES,
    shortages=st.integers(0, 99),
    runs=st.integers(0, 99),
    at=st.floats(0, 2.5e11),
)


@given(ENTRIES, POOLS)
def test_every_entry_that_a_file_may_have_makes_a_need(entry: LearnedRecord, amounts: dict[str, int]) -> None:
    better = improved(MemoryRequirement(amounts, "estimated", entry.devices), entry)
    assert all(size >= 0 for size in better.amounts.values())
    assert better.total >= entry.need


@given(st.lists(ENTRIES, max_size=4, unique_by=lambda entry: (entry.key, entry.devices)))
def test_what_was_learned_is_there_after_a_restart(entries: list[LearnedRecord]) -> None:
    """The whole way: through the file and back."""
    written: dict[Path, bytes] = {}

    class Memory:
        """An AtomicFile in memory."""

        def read(self) -> bytes | None:
            return written.get(Path("/x"))

        def write(self, data: bytes) -> None:
            written[Path("/x")] = data

        def set_aside(self) -> str:
            raise AssertionError("it must be readable")

    async def run() -> tuple[LearnedRecord, ...]:
        store = StateStore(Path("/x"), file=Memory())
        store.learn(entries)
        await store.close()
        again = StateStore(Path("/x"), file=Memory())
        again.read()
        return Learned(again.learned, again.learn).entries()

    assert asyncio.run(run()) == tuple(reversed(entries))


def test_what_one_large_request_took_once_is_forgotten_in_the_runs_after_it() -> None:
    learned = learning()
    estimate = MemoryRequirement({RAM: GIB}, "estimated")

    def run(*seen: int) -> int:
        learned.loaded("k", estimate)
        for size in seen:
            learned.saw("k", estimate, {RAM: size}, settled=True)
        return learned.apply(forecast(estimate)).options[0].amounts[RAM]

    assert run(2 * GIB, 3 * GIB) == 3 * GIB
    assert run(2 * GIB, 3 * GIB) == 3 * GIB, "what each run takes stays"
    assert run(2 * GIB, 7 * GIB) == 7 * GIB
    after = [run(2 * GIB, 3 * GIB) for _ in range(12)]
    assert after == sorted(after, reverse=True)
    assert after[-1] == 3 * GIB


def test_two_models_of_one_file_do_not_have_it_written_in_turns() -> None:
    shelf = Shelf()
    learned = learning(shelf)
    for model in ("a", "b") * 3:
        learned.saw("k", on_gpu(GIB), {GPU: GIB}, settled=True, model=model)
    assert shelf.writes == 1
    assert learned.entries()[0].model == "b"


def test_what_a_prompt_cache_holds_is_never_learned() -> None:
    learned = learning()
    fixed = on_gpu(8 * GIB, GIB).with_cache(2 * GIB)
    for cached in (fixed, on_gpu(8 * GIB, GIB).with_cache(4 * GIB)):  # a person's size, and what was to spare
        need = learned.apply(forecast(cached)).options[0]
        learned.saw("k", need, {GPU: 7 * GIB, RAM: GIB + need.cache}, settled=True)
        assert learned.entries()[0].peak == {GPU: 7 * GIB, RAM: GIB}
        better = learned.apply(forecast(cached)).options[0]
        assert better.amounts == {GPU: 7 * GIB, RAM: GIB + cached.cache}
    learned.outgrown("k", fixed, 14 * GIB)
    again = learned.apply(forecast(fixed)).options[0]
    assert (again.total, again.cache) == (14 * GIB, 2 * GIB)


def test_what_was_measured_with_one_context_says_nothing_of_another() -> None:
    learned = learning()
    ways = [replace(on_gpu(size * GIB), context=context) for context, size in ((65536, 12), (8192, 8))]
    learned.apply(forecast(*ways))
    learned.saw("k", ways[1], {GPU: 7 * GIB}, settled=True)
    assert [need.amounts[GPU] for need in learned.apply(forecast(*ways)).options] == [12 * GIB, 7 * GIB]
    assert learned.forget("k") == 1
    assert learned.entries() == ()
