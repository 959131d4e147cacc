"""What of a model would fit into less."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from accelerd.estimate.smaller import SmallerSetting, describe, fits, largest_context, suggest_smaller
from accelerd.memory.model import RAM, MemoryRequirement

MIB = 1 << 20
PER_TOKEN = {None: 4096, "q8_0": 2176, "q4_0": 1152}
GPU = "0000:01:00.0"


def ways(context: int, kind: str | None) -> Sequence[MemoryRequirement]:
    """100 MiB, and the cache."""
    return (MemoryRequirement({GPU: 100 * MIB + context * PER_TOKEN[kind], RAM: MIB}, "test"),)


def test_a_need_fits_where_every_pool_has_enough() -> None:
    need = MemoryRequirement({RAM: 10, GPU: 100}, "test")
    assert fits(need, {RAM: 10, GPU: 100})
    assert not fits(need, {RAM: 9, GPU: 100})
    assert not fits(need, {RAM: 10})  # a pool that is not there
    assert fits(MemoryRequirement({RAM: 10, GPU: 0}, "test"), {RAM: 10})


def test_what_a_unified_gpu_has_not_for_itself_counts_in_main_memory() -> None:
    need = MemoryRequirement({RAM: 10, GPU: 100}, "test")
    assert fits(need, {RAM: 80, GPU: 100}, {GPU: (RAM, 30)})
    assert not fits(need, {RAM: 79, GPU: 100}, {GPU: (RAM, 30)})
    assert fits(need, {RAM: 10, GPU: 100}, {GPU: (RAM, 500)})


def test_the_largest_context_is_a_multiple_or_all_that_was_asked_for() -> None:
    room = {RAM: MIB, GPU: 100 * MIB + 20_000 * 4096}
    assert largest_context(ways, room, 131072) == 19 * 1024
    assert largest_context(ways, room, 5000) == 5000
    assert largest_context(ways, room, 131072, "q4_0") == 69 * 1024
    assert largest_context(ways, {RAM: MIB, GPU: MIB}, 131072) == 0
    assert largest_context(ways, {RAM: MIB, GPU: 1 << 60}, 1 << 40) == 1 << 24
    assert largest_context(ways, room, 0) == 0


def test_offers_come_in_order_of_context_and_end_where_all_fits() -> None:
    room = {RAM: MIB, GPU: 100 * MIB + 40 * 1024 * 4096}
    assert suggest_smaller(ways, room, 65536, "f16") == (SmallerSetting(40 * 1024), SmallerSetting(65536, "q8_0"))
    assert suggest_smaller(ways, room, 262144, "f16") == (
        SmallerSetting(40960),
        SmallerSetting(76800, "q8_0"),
        SmallerSetting(145408, "q4_0"),
    )
    assert suggest_smaller(ways, {RAM: 0}, 65536, "f16") == ()
    assert [one.type for one in suggest_smaller(ways, room, 262144, "q8_0")] == [None, "q4_0"]
    assert [one.type for one in suggest_smaller(ways, room, 262144, "q4_0")] == [None]


def test_offers_are_said_in_the_words_of_the_configuration() -> None:
    assert describe((SmallerSetting(16384), SmallerSetting(32768, "q8_0"))) == (
        'it would fit with context = 16384, or with kv_cache_type = "q8_0" and context = 32768'
    )
    assert describe(()) == ""


@settings(max_examples=50)
@given(st.integers(0, 1 << 34), st.integers(1, 300_000))
def test_what_is_offered_fits_and_a_step_more_does_not(size: int, most: int) -> None:
    room = {RAM: MIB, GPU: size}
    found = largest_context(ways, room, most)
    assert found <= most
    assert not found or fits(ways(found, None)[0], room)
    assert found == most or not fits(ways(min(found + 1024, most), None)[0], room)
