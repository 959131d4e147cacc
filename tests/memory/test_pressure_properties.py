"""What holds for pressure whatever others do: any course of others' use, any models, looks at any times."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from accelerd.config.machine_settings import MemorySettings
from accelerd.memory.model import RAM, Pool, Stall
from accelerd.memory.pressure import EFFECT
from tests.memory.pressure_world import GIB, GPU, Model, World, card, ram, unified

COOL_DOWN = 30.0  # s: scheduler.cool_down

amounts = st.integers(0, 40).map(lambda n: n * GIB)
models = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(
        lambda ram, gpu, busy: Model({RAM: ram, GPU: gpu}, busy=busy),
        st.integers(0, 12).map(lambda n: n * GIB),
        st.integers(0, 12).map(lambda n: n * GIB),
        st.booleans(),
    ),
    max_size=6,
)
machines = st.sampled_from([(ram(), card()), (ram(), unified()), (ram(reserve=0), unified(own=0, reserve=0))])
courses = st.lists(
    st.tuples(amounts, amounts, st.floats(0.2, 7), st.sampled_from([None, Stall(), Stall(50, 5), Stall(90, 30)])),
    min_size=1,
    max_size=30,
)


@given(machines, models, courses, st.sampled_from([0.0, 3.0]), st.sampled_from([0.5, 4.0, 20.0]))
@settings(max_examples=300)
def test_orders_are_for_what_is_held_and_have_time_to_act(
    pools: tuple[Pool, ...],
    holders: dict[str, Model],
    course: list[tuple[int, int, float, Stall | None]],
    grace: float,
    leaving: float,
) -> None:
    world = World(*pools, settings=MemorySettings(soft_grace=grace), leaving=leaving)
    world.models = holders
    last: dict[str, tuple[float, bool, int]] = {}  # pool → when an order was given, whether it was hard, held then
    for foreign_ram, foreign_gpu, pause, stall in course:
        world.now += pause
        world.foreign, world.stall = {RAM: foreign_ram, GPU: foreign_gpu}, stall
        held = {b.pool.id: b.held + b.spilled for b in world.ledger().balances()}
        gone = {n for n, m in world.models.items() if m.phase == "leaving" and m.back_at <= world.now}
        most = {b.pool.id: b.spilled + b.held for b in world.ledger().balances()}
        orders = world.look()
        assert len({order.pool for order in orders}) == len(orders)
        for order in orders:
            assert 0 < order.size <= most[order.pool]
            assert order.why
            if order.pool in last:
                at, hard, then = last[order.pool]
                waited = world.now - at >= EFFECT
                assert waited or (order.hard and not hard) or held[order.pool] < then or gone
            last[order.pool] = (world.now, order.hard, held[order.pool])


@given(st.lists(st.tuples(amounts, st.floats(0.1, 5)), max_size=30))
@settings(max_examples=100)
def test_no_order_while_nothing_is_held(course: list[tuple[int, float]]) -> None:
    world = World(ram(), unified())
    for foreign, pause in course:
        world.now += pause
        world.foreign = {RAM: 64 * GIB - foreign, GPU: foreign}
        world.stall = Stall(90, 90)
        assert not world.look()
        assert not world.pressure.pressed


@given(st.floats(0.5, 40), st.floats(0.5, 40), st.integers(2, 30), st.integers(1, 4))
@settings(max_examples=100)
def test_use_that_oscillates_makes_no_model_flap(high: float, low: float, gib: int, count: int) -> None:
    """Models that come back by themselves, after a calm of 30 s: each leaves once in that time at most."""
    world = World()
    world.foreign[RAM] = 20 * GIB
    size = 40 * GIB // count
    world.models = {name: Model({RAM: size}) for name in "abcd"[:count]}
    names, left = set(world.models), 0

    def come_back() -> None:
        calm = world.pressure.calm_since
        if calm is not None and world.now - calm >= COOL_DOWN:
            for name in sorted(names - set(world.models)):
                if world.free() - 4 * GIB >= size:
                    world.models[name] = Model({RAM: size})

    began = world.now
    for _ in range(8):
        for seconds, foreign in ((high, 20 + gib), (low, 20)):
            world.foreign[RAM] = foreign * GIB
            before = world.resident()
            world.run(seconds, every=0.5, then=come_back)
            left += len(before - world.resident())
    assert left <= count * (1 + (world.now - began) / COOL_DOWN)


@given(st.integers(1, 60), st.floats(0.1, 1.0))
@settings(max_examples=100)
def test_idle_models_give_way_until_others_have_what_they_need(gib: int, every: float) -> None:
    """However much others take, in the end the reserve is free or no model is left; a hard need is met within 2 s."""
    world = World(leaving=0.5)
    world.models = {name: Model({RAM: 7 * GIB}) for name in "abcdefg"}
    world.foreign[RAM] = 4 * GIB
    world.run(1)
    world.foreign[RAM] += gib * GIB
    urgent = world.free() < 2 * GIB
    world.run(2 if urgent else 5, every=every)
    assert world.free() >= 3.75 * GIB or not world.models
