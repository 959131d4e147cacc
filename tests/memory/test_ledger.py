"""The books of memory: what is free is what there is, less what anybody has, whatever anybody has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from accelerd.memory.ledger import ENDED, Holding, Ledger, Phase
from accelerd.memory.model import RAM, MemoryRequirement, Pool

GIB = 1 << 30
CARD = "0000:03:00.0"
APU = "0000:c1:00.0"
PHASES: tuple[Phase, ...] = ("loading", "resident", "leaving", "reclaiming", "lost")


def machine(*, ram_foreign: int = 0, apu_foreign: int = 0, card_foreign: int = 0) -> tuple[Pool, ...]:
    return (
        Pool(RAM, "main memory", 128 * GIB, 8 * GIB, ram_foreign),
        Pool(APU, "Radeon 8060S", 120 * GIB, GIB, apu_foreign, backed_by=RAM, own=4 * GIB),
        Pool(CARD, "Radeon RX 7900 XTX", 24 * GIB, GIB, card_foreign),
    )


def test_what_is_free_is_what_nobody_has() -> None:
    ledger = Ledger(machine(ram_foreign=10 * GIB), [Holding("a", "resident", {RAM: 20 * GIB}, {RAM: 5 * GIB})])
    ram, apu, card = ledger.balances()
    assert (ram.free, ram.foreign, ram.held) == (90 * GIB, 10 * GIB, 20 * GIB)
    assert [(held.model, held.size, held.used) for held in ram.holdings] == [("a", 20 * GIB, 5 * GIB)]
    assert (apu.free, card.free) == (119 * GIB, 23 * GIB)


def test_what_a_gpu_in_the_processor_holds_beyond_its_own_lies_in_main_memory() -> None:
    ledger = Ledger(machine(), [Holding("a", "resident", {APU: 64 * GIB})])
    ram, apu, _ = ledger.balances()
    assert apu.free == 55 * GIB
    assert ram.spilled == 60 * GIB, "4 GiB are the GPU's own"
    assert ram.free == 60 * GIB
    short = ledger.shortages({RAM: 61 * GIB})
    assert [(one.balance.pool.id, one.missing) for one in short] == [(RAM, GIB)]
    assert ledger.counted({APU: 64 * GIB}, RAM) == 60 * GIB


def test_a_gpu_in_the_processor_gets_no_more_than_main_memory_has() -> None:
    ledger = Ledger(machine(ram_foreign=100 * GIB))
    assert not ledger.shortages({APU: 24 * GIB})
    (short,) = ledger.shortages({APU: 25 * GIB})
    assert (short.balance.pool.id, short.wanted, short.missing) == (RAM, 21 * GIB, GIB)


def test_pools_do_not_help_each_other() -> None:
    ledger = Ledger(machine(), [Holding("a", "resident", {RAM: 119 * GIB})])
    assert not ledger.shortages({CARD: 23 * GIB})
    (short,) = ledger.shortages({CARD: 24 * GIB, RAM: 1})
    assert short.balance.pool.id == CARD


def test_a_pool_that_is_short_does_not_stop_who_wants_nothing_of_it() -> None:
    assert not Ledger(machine(card_foreign=30 * GIB)).shortages({RAM: GIB, CARD: 0})


def test_what_an_ended_model_holds_is_not_counted_twice() -> None:
    """Without a process whoever looks takes it for somebody else's."""
    ledger = Ledger(machine(card_foreign=6 * GIB), [Holding("a", "reclaiming", {CARD: 5 * GIB})])
    card = ledger.balances()[2]
    assert (card.foreign, card.held, card.free) == (GIB, 5 * GIB, 17 * GIB)


def test_what_leaves_makes_room() -> None:
    ledger = Ledger(machine(), [Holding("a", "resident", {CARD: 20 * GIB}), Holding("b", "resident", {CARD: 2 * GIB})])
    assert ledger.shortages({CARD: 4 * GIB})
    assert not ledger.shortages({CARD: 4 * GIB}, without=[{CARD: 20 * GIB}])
    assert ledger.shortages({CARD: 4 * GIB}, without=[{CARD: 2 * GIB}])


amounts = st.dictionaries(st.sampled_from([RAM, APU, CARD, "gone"]), st.integers(0, 40 * GIB), max_size=3)
holdings = st.lists(st.builds(Holding, st.sampled_from("abc"), st.sampled_from(PHASES), amounts, amounts), max_size=6)
foreign = st.integers(0, 150 * GIB)


@given(ram=foreign, apu=foreign, card=foreign, held=holdings, wanted=amounts)
def test_the_sum_never_lies(ram: int, apu: int, card: int, held: list[Holding], wanted: dict[str, int]) -> None:
    ledger = Ledger(machine(ram_foreign=ram, apu_foreign=apu, card_foreign=card), held)
    for balance in ledger.balances():
        id = balance.pool.id
        assert balance.held == sum(one.amounts.get(id, 0) for one in held)
        ended = sum(one.amounts.get(id, 0) for one in held if one.phase in ENDED)
        assert balance.foreign == max(0, balance.pool.foreign - ended)
        parts = balance.free + balance.held + balance.foreign + balance.spilled
        assert parts == balance.pool.capacity - balance.pool.reserve
        assert balance.spilled >= 0
    after = Ledger(ledger.pools.values(), [*held, Holding("new", "loading", wanted)])
    short = {one.balance.pool.id for one in ledger.shortages(wanted)}
    before_free = {b.pool.id: b.free for b in ledger.balances()}
    for balance in after.balances():
        grows = balance.free < before_free[balance.pool.id]
        assert (balance.pool.id in short) == (grows and balance.free < 0), "short is what would be overdrawn by this"


@given(held=holdings, leaving=st.integers(0, 5), wanted=amounts)
def test_leaving_never_makes_it_worse(held: list[Holding], leaving: int, wanted: dict[str, int]) -> None:
    ledger = Ledger(machine(), held)
    resident = [one for one in held if one.phase not in ENDED]
    gone = [one.amounts for one in resident[:leaving]]
    missing = {one.balance.pool.id: one.missing for one in ledger.shortages(wanted)}
    for short in ledger.shortages(wanted, without=gone):
        assert short.missing <= missing[short.balance.pool.id]
    rest = [one for one in held if one not in resident[:leaving]]
    if len(rest) + len(gone) == len(held):
        again = Ledger(machine(), rest).shortages(wanted)
        assert [(s.balance.pool.id, s.missing) for s in again] == [
            (s.balance.pool.id, s.missing) for s in ledger.shortages(wanted, without=gone)
        ]


@given(amounts=st.dictionaries(st.sampled_from([RAM, CARD]), st.integers(0, 40 * GIB), max_size=2),
       total=st.integers(0, 100 * GIB))  # fmt: skip
def test_a_scaled_need_is_as_large_as_it_says(amounts: dict[str, int], total: int) -> None:
    scaled = MemoryRequirement(amounts, "estimate").scaled(total, "ran out of memory")
    assert scaled.total == total
    assert all(size >= 0 for size in scaled.amounts.values())
    assert set(scaled.amounts) <= {*amounts, RAM}
