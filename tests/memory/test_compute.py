"""Places of results: the search itself, and that the few layers that are looked at stand for all."""

from __future__ import annotations

import pytest

from accelerd.estimate.compute import build
from accelerd.estimate.compute.graph import Graph
from accelerd.estimate.compute.place import Buffer, sizes
from accelerd.estimate.estimate import Settings, estimate
from tests.memory.animals import MIB, animal


def test_the_smallest_gap_that_fits_is_taken_and_neighbours_merge() -> None:
    buffer = Buffer(32)
    places = [buffer.take(size) for size in (320, 64, 640, 64, 128)]
    assert places == [0, 320, 384, 1024, 1088]
    buffer.give(0, 320)
    buffer.give(384, 640)
    assert buffer.take(300) == 0  # rounded up, in the smaller gap
    assert buffer.take(600) == 384
    buffer.give(384, 600)
    buffer.give(320, 64)
    assert buffer.take(700) == 320  # what lay beside each other is one again
    assert buffer.peak == 1216
    buffer.give(1088, 128)
    assert buffer.take(2000) == 1088  # the end of all grows


def test_nothing_takes_no_place() -> None:
    buffer = Buffer(32)
    assert buffer.take(0) == 0
    buffer.give(0, 0)
    assert (buffer.peak, len(buffer.free)) == (0, 1)


def test_the_last_user_of_a_result_overwrites_it() -> None:
    g = Graph()
    x = g.linear(g.input((8, 16, 1, 1)), 64)
    g.expand(g.like(g.like(x)))
    assert sizes(g, 1) == [(8 + 64) * 16 * 4]  # the input, and one result three times
    g = Graph()
    x = g.linear(g.input((8, 16, 1, 1)), 64)
    g.expand(g.like(g.like(x), x))  # x is needed later
    assert sizes(g, 1) == [(8 + 64 + 64) * 16 * 4]


def test_what_comes_out_is_never_overwritten_and_views_keep_what_they_look_into() -> None:
    g = Graph()
    x = g.linear(g.input((8, 16, 1, 1)), 64)
    x.output = True
    g.expand(g.like(x))
    assert sizes(g, 1) == [(8 + 64 + 64) * 16 * 4]
    g = Graph()
    x = g.linear(g.input((8, 16, 1, 1)), 64)
    half = g.view(x, (32, 16, 1, 1), (256, 4096, 4096))
    g.expand(g.linear(g.like(half), 64))  # and what is seen through one is not overwritten
    assert sizes(g, 1) == [(8 + 64 + 32) * 16 * 4]


def test_what_crosses_to_a_gpu_is_there_as_well() -> None:
    g = Graph()
    entry = g.input((64, 16, 1, 1))
    g.here = 1
    x = g.linear(entry, 128)
    g.here = 2
    g.expand(g.linear(x, 64))
    one, two = 64 * 16 * 4, 128 * 16 * 4
    assert sizes(g, 3) == [one, one + two, one + two]
    # In turns there are four of everything that crosses, and of what comes in.
    assert sizes(g, 3, 4) == [4 * one, 4 * one + two, 4 * two + one]


@pytest.mark.parametrize(
    ("kind", "more"),
    [("llama", {}), ("qwen3moe", {"experts": 8}), ("gemma3", {"attention__sliding_window": 512, "tied": True})],
)
@pytest.mark.parametrize("places", [1, 2, 3])
def test_few_layers_stand_for_all(kind: str, more: dict[str, object], places: int) -> None:
    model = animal(kind, layers=26, **more)  # type: ignore[arg-type]
    found = estimate(model, Settings(context=8192))
    where = [min(i * places // 26, places - 1) for i in range(26)]
    picked = build.chosen(found.facts.layers, where)
    assert len(picked) < 22
    few = build.buffers(found.facts, found.batch, where, places - 1)
    assert few == build.buffers(found.facts, found.batch, where, places - 1, enough=1000)
    assert few[-1] > MIB
