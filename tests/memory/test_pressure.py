"""When other programs need the memory that models hold: thresholds, amounts and pauses, case by case."""

from __future__ import annotations

import pytest

from accelerd.config.machine_settings import MemorySettings
from accelerd.memory.ledger import Balance, PoolHolding
from accelerd.memory.model import RAM, ForeignUser, MemorySnapshot, Pool, Stall
from accelerd.memory.pressure import EFFECT, Pressure, RoomOrder
from tests.memory.pressure_world import GIB, GPU, Model, World, card, ram, unified


def machine(foreign: int = 20 * GIB, **models: int) -> World:
    """64 GiB of main memory with a reserve of 4, others' use, and models; it has been calm."""
    world = World()
    world.foreign[RAM] = foreign
    world.models = {name: Model({RAM: size * GIB}) for name, size in models.items()}
    assert not world.run(3)
    return world


# free after others have grown → seconds until the order (None: never) and whether it is hard; reserve 4 GiB, grace 3 s
@pytest.mark.parametrize(
    ("free", "after", "hard"),
    [
        (10.0, None, False),
        (4.0, None, False),
        (3.8, None, False),  # what a reserve is for
        (3.7, 4, False),
        (3.0, 4, False),
        (2.0, 4, False),
        (1.9, 1, True),
        (0.0, 1, True),
        (-1.0, 1, True),
    ],
)
def test_soft_and_hard_thresholds(free: float, after: int | None, hard: bool) -> None:
    world = machine(a=10, b=10, c=4)
    began = world.now
    world.foreign[RAM] = int((40 - free) * GIB)
    orders = world.run(4)
    if after is None:
        assert not orders
    else:
        at, order = world.orders[0]
        assert (at - began, order.hard, order.pool) == (after, hard, RAM)


def test_what_brought_less_than_was_thought_is_followed_by_the_next_at_once() -> None:
    """Models that hold half of what is reserved for them: who leaves brings back half of what was promised."""
    world = machine(a=10, b=10, c=10)
    for one in world.models.values():
        one.used = {RAM: 5 * GIB}
    world.foreign[RAM] = 58 * GIB
    world.run(4)
    times = [at for at, _ in world.orders]
    assert len(times) > 1
    assert times[1] - times[0] < EFFECT
    assert not world.resident()


def test_the_grace_begins_anew_when_there_was_room() -> None:
    world = machine(a=10, b=10)
    for _ in range(10):
        world.foreign[RAM] = 41 * GIB
        assert not world.run(3)
        world.foreign[RAM] = 40 * GIB
        assert not world.run(1)
    world.foreign[RAM] = 41 * GIB
    assert world.run(4)


def test_the_grace_is_the_users() -> None:
    world = World(settings=MemorySettings(soft_grace=0))
    world.models = {"a": Model({RAM: 20 * GIB})}
    world.run(1)
    world.foreign[RAM] = 41 * GIB
    assert [order.hard for order in world.run(1)] == [False]
    world = World()
    world.pressure.configure(MemorySettings(soft_grace=7))
    world.models = {"a": Model({RAM: 20 * GIB})}
    world.run(1)
    world.foreign[RAM] = 41 * GIB
    assert not world.run(7)
    assert world.run(1)


def test_an_order_is_for_more_than_is_missing() -> None:
    """The reserve, and a twentieth of the pool on top: it does not nibble."""
    world = machine(a=10, b=10, c=4)
    world.foreign[RAM] = 37 * GIB  # 3 free
    [order] = world.run(4)
    assert order.size == GIB + 64 * GIB // 20
    assert world.resident() == {"b", "c"}


def test_a_small_pool_asks_for_an_eighth_at_most() -> None:
    world = World(Pool(GPU, "a small card", GIB, 256 << 20))
    world.models = {"a": Model({GPU: 512 << 20})}
    world.run(1)
    world.foreign[GPU] = 400 << 20  # 112 MiB free
    [order] = world.run(1)
    assert order.size == (256 - 112 + 128) << 20


def test_an_order_never_exceeds_what_is_held() -> None:
    world = machine(a=1, b=1)
    world.foreign[RAM] = 64 * GIB
    [order] = world.run(1)
    assert order.size == 2 * GIB


def test_no_second_order_until_the_first_has_had_its_effect() -> None:
    world = machine(a=10, b=10, c=10, foreign=10 * GIB)
    world.leaving = 4.5
    world.foreign[RAM] = 33 * GIB  # 1 free
    [order] = world.run(4)
    assert order.hard
    assert world.resident() == {"b", "c"}
    world.run(10)
    assert len(world.orders) == 1, "one was enough"


def test_what_others_take_meanwhile_is_ordered_when_the_first_is_back() -> None:
    world = machine(a=10, b=10, c=10, foreign=10 * GIB)
    world.foreign[RAM] = 33 * GIB
    world.run(1)
    world.foreign[RAM] = 45 * GIB
    assert not world.run(0.5, every=0.5), "its effect is not there"
    [order] = world.run(1, every=0.5)
    assert order.hard
    assert world.free() == -1 * GIB
    assert world.resident() == {"c"}


def test_an_order_without_effect_is_given_again_after_a_while() -> None:
    world = machine(a=20)
    world.models["a"].busy = True
    world.foreign[RAM] = 41 * GIB
    world.run(20)
    times = [at - world.orders[0][0] for at, _ in world.orders]
    assert times == [n * EFFECT for n in range(len(times))]
    assert len(times) > 2
    assert world.resident() == {"a"}
    world.models["a"].busy = False
    world.run(EFFECT)
    assert world.resident() == set(), "it ended its work, and left"


def test_what_becomes_urgent_does_not_wait_for_the_effect() -> None:
    world = machine(a=20, b=1)
    world.models["a"].busy = True
    world.models["b"].busy = True
    world.foreign[RAM] = 40 * GIB
    [soft] = world.run(4)
    assert not soft.hard
    world.foreign[RAM] = 42 * GIB
    [hard] = world.run(1)
    assert hard.hard
    assert world.resident() == {"b"}


def test_what_is_on_its_way_back_counts() -> None:
    world = machine(a=10, b=10)
    world.models["a"].phase, world.models["a"].back_at = "leaving", world.now + 30
    world.foreign[RAM] = 43 * GIB  # 1 free, 10 to come
    assert not world.run(10)
    world.foreign[RAM] = 54 * GIB
    [order] = world.run(1)
    assert order.size == 14 * GIB + 64 * GIB // 20, "with what comes anyway"
    assert "10.0 GiB are on their way back" in order.why


def test_models_within_their_reservations_cause_nothing() -> None:
    """The core has given away more than there is: that is its own affair, and orders would fight it."""
    world = machine(a=10)
    world.models["b"] = Model({RAM: 33 * GIB}, phase="loading")
    assert not world.run(10)
    world.models["b"].phase = "resident"
    assert not world.run(10)
    world.foreign[RAM] += GIB
    assert world.run(1), "others have grown"


def test_a_model_that_grows_beyond_its_reservation_makes_room() -> None:
    world = machine(a=30, b=9)
    world.models["a"].used = {RAM: 33 * GIB}
    world.run(4)
    [(_, order)] = world.orders
    assert "3.0 GiB more than was reserved for them" in order.why
    assert order.size == 2 * GIB + 64 * GIB // 20


def test_others_have_taken_what_was_reserved_and_not_touched_yet() -> None:
    world = machine(a=40)
    world.models["a"].used = {RAM: 10 * GIB}
    world.foreign[RAM] = 40 * GIB
    assert not world.run(10), "there is memory"
    world.models["a"].used = {RAM: 23 * GIB}
    [order] = world.run(1)
    assert order.hard


def test_a_load_and_its_blink() -> None:
    """What a model has just taken may look like somebody else's for one look."""
    world = machine(a=10, foreign=20 * GIB)
    world.models["b"] = Model({RAM: 30 * GIB}, {RAM: 10 * GIB}, phase="loading")
    assert not world.run(2)
    world.foreign[RAM] += 3 * GIB
    assert not world.run(1)
    world.foreign[RAM] -= 3 * GIB
    assert not world.run(5)
    world.foreign[RAM] += 3 * GIB
    assert [order.hard for order in world.run(2)] == [True], "it is no blink"


def test_a_pool_without_models_causes_nothing() -> None:
    world = World(ram(), card())
    world.models = {"a": Model({GPU: 10 * GIB})}
    world.foreign[RAM] = 64 * GIB
    world.stall = Stall(90, 80)
    assert not world.run(30)


def test_the_order_names_the_pool_and_the_numbers() -> None:
    world = World(ram(), card())
    world.models = {"a": Model({GPU: 10 * GIB, RAM: GIB}), "b": Model({RAM: 9 * GIB})}
    world.foreign = {RAM: 10 * GIB, GPU: 2 * GIB}
    world.run(1)
    world.foreign[GPU] = 14 * GIB
    world.users = (ForeignUser(RAM, 1, "firefox", 9 * GIB), ForeignUser(GPU, 2, "game.exe", 11 * GIB))
    [order] = world.run(1)
    assert order == RoomOrder(
        GPU,
        2 * GIB + 24 * GIB // 20 - GIB,
        "a card is short: 0 B of 24.0 GiB free, 1.0 GiB must stay free; others use 14.0 GiB "
        "(12.0 GiB more than when there was room), game.exe alone 11.0 GiB; models 10.0 GiB",
        True,
    )
    assert world.resident() == {"b"}


# --- unified memory -------------------------------------------------------------------------------------------


def test_main_memory_that_is_short_is_helped_by_models_on_the_gpu_that_lies_in_it() -> None:
    world = World(ram(), unified())
    world.models = {"a": Model({GPU: 30 * GIB}), "b": Model({RAM: GIB})}
    world.foreign = {RAM: 10 * GIB, GPU: 0}
    world.run(1)
    world.foreign[RAM] = 33 * GIB  # 1 free: of 64 others have 33, the models 30, less 1 of the GPU
    [order] = world.run(1)
    assert (order.pool, order.hard, order.size) == (RAM, True, 3 * GIB + 64 * GIB // 20)
    assert world.resident() == {"b"}, "the model on the GPU left"


def test_what_the_gpu_has_for_itself_is_no_help_for_main_memory() -> None:
    world = World(ram(), unified(own=40 * GIB))
    world.models = {"a": Model({GPU: 30 * GIB})}
    world.run(1)
    world.foreign[RAM] = 63 * GIB
    assert not world.run(10)


def test_a_game_in_unified_memory_takes_from_both_and_one_answer_is_enough() -> None:
    world = World(ram(), unified())
    world.models = {name: Model({GPU: 10 * GIB}) for name in "abcde"}
    world.foreign = {RAM: 5 * GIB, GPU: GIB}
    world.run(1)
    world.foreign = {RAM: 14 * GIB, GPU: 10 * GIB}
    world.run(10)
    assert world.resident() == {"b", "c", "d", "e"}


# --- stalls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stall", "free", "ordered"),
    [
        (Stall(0, 10), 5, True),
        (Stall(40, 0), 5, True),
        (Stall(39, 9.9), 5, False),
        (Stall(90, 90), 9, False),  # memory to spare: a program is at a limit of its own
        (None, 5, False),
    ],
)
def test_programs_that_stand_still(stall: Stall | None, free: int, ordered: bool) -> None:
    world = machine(a=10, b=10, c=4)
    world.foreign[RAM] = (40 - free) * GIB
    world.run(1)
    world.stall = stall
    orders = world.run(1)
    assert [order.hard for order in orders] == [True] * ordered
    if ordered:
        assert orders[0].size == 64 * GIB // 20
        assert "programs waited for memory" in orders[0].why


def test_a_stall_is_not_blamed_on_a_load() -> None:
    world = machine(a=10, b=10)
    world.foreign[RAM] = 36 * GIB
    world.models["c"] = Model({RAM: GIB}, phase="loading")
    world.stall = Stall(90, 60)
    assert not world.run(10)
    world.models["c"].phase = "resident"
    assert not world.run(14)
    assert world.run(2)


def test_the_average_of_the_past_takes_no_second_model() -> None:
    world = machine(a=10, b=10, c=10)
    world.foreign[RAM] = 28 * GIB
    world.stall = Stall(90, 60)
    assert len(world.run(14)) == 1
    assert world.resident() == {"b", "c"}


# --- calm -----------------------------------------------------------------------------------------------------


def test_calm_begins_when_there_is_room_again() -> None:
    world = machine(a=10, b=10)
    assert world.pressure.calm_since == 101
    world.foreign[RAM] = 43 * GIB
    world.run(1)
    assert (world.pressure.pressed, world.pressure.calm_since) == ((RAM,), None)
    world.run(5)
    assert (world.pressure.pressed, world.pressure.calm_since) == ((), 105)
    world.foreign[RAM] = 62 * GIB
    world.run(20)
    assert world.resident() == set()
    assert world.pressure.calm_since is None, "all have left, and it is still full"
    world.foreign[RAM] = 10 * GIB
    world.run(1)
    assert world.pressure.calm_since == world.now


def test_before_the_first_look_nothing_is_known() -> None:
    assert Pressure(MemorySettings()).calm_since is None


def test_a_pool_that_goes_is_forgotten() -> None:
    pressure = Pressure(MemorySettings())
    pool = card()
    balance = Balance(pool, (PoolHolding("a", "resident", 23 * GIB, None),), 10 * GIB, 0, -10 * GIB)
    [order] = pressure.look(MemorySnapshot(1, (pool,), {}), (balance,), 1)
    assert pressure.pressed == (GPU,)
    assert pressure.look(MemorySnapshot(2, (), {}), (), 2) == ()
    pressure.answered(order, GIB)
    assert pressure.pressed == ()
