"""The pools as JSON: what the route tells is enough to reckon with the same ledger elsewhere."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from accelerd.memory.ledger import Holding, Ledger
from accelerd.memory.model import RAM, ForeignUser, MemorySnapshot, Pool, Stall
from accelerd.memory.report import NAMED, HolderFacts, ledger_of, report

GIB = 1 << 30
SLOT = "0000:c4:00.0"
POOLS = (
    Pool(RAM, "main memory", 128 * GIB, 8 * GIB, 20 * GIB),
    Pool(SLOT, "AMD Radeon 8060S", 98 * GIB, GIB, 6 * GIB, RAM, 2 * GIB),
)


def seen(*users: ForeignUser, stall: Stall | None = None) -> MemorySnapshot:
    return MemorySnapshot(0.0, POOLS, {}, users, stall)


def test_what_is_told_of_a_pool() -> None:
    users = [ForeignUser(SLOT, 7, "game", 5 * GIB)] + [ForeignUser(RAM, n, "x", GIB) for n in range(9)]
    ledger = Ledger(POOLS, [Holding("qwen", "resident", {SLOT: 20 * GIB, RAM: GIB}, {SLOT: 19 * GIB})])
    told = report(ledger, seen(*users, stall=Stall(1.5, 0.25)), lambda name: HolderFacts(pin=name == "qwen"))
    ram, gpu = msgspec.to_builtins(told)["pools"]
    assert told.stall == Stall(1.5, 0.25)
    assert gpu == {
        "id": SLOT, "label": "AMD Radeon 8060S", "capacity": 98 * GIB, "reserve": GIB, "backed_by": RAM, "own": 2 * GIB,
        "foreign": 6 * GIB, "foreign_users": [{"pid": 7, "process": "game", "size": 5 * GIB}], "spilled": 0,
        "free": 71 * GIB,
        "holdings": [{"model": "qwen", "phase": "resident", "reserved": 20 * GIB, "used": 19 * GIB, "prompt_cache": 0,
                      "leases": 0, "idle": None, "pin": True, "priority": 0}],
    }  # fmt: skip
    assert len(ram["foreign_users"]) == NAMED
    assert ram["spilled"] == 20 * GIB, "others have all that the GPU has for itself"
    assert ram["holdings"][0]["used"] is None


def test_a_kernel_that_tells_no_pressure() -> None:
    assert report(Ledger(POOLS), seen()).stall is None


sizes = st.integers(0, 64 * GIB)
phases = st.sampled_from(["loading", "resident", "leaving", "reclaiming", "lost"])
holdings = st.lists(
    st.builds(
        Holding,
        st.sampled_from("abcdef"),
        phases,
        st.dictionaries(st.sampled_from([RAM, SLOT]), sizes, min_size=1),
        st.dictionaries(st.sampled_from([RAM, SLOT]), sizes),
    ),
    unique_by=lambda one: one.model,
    max_size=5,
)


@given(holdings, sizes, sizes, st.dictionaries(st.sampled_from([RAM, SLOT]), sizes))
def test_the_way_back_is_the_same_ledger(held: list[Holding], main: int, device: int, wanted: dict[str, int]) -> None:
    pools = (
        Pool(RAM, "main memory", 128 * GIB, 8 * GIB, main),
        Pool(SLOT, "GPU", 98 * GIB, GIB, device, RAM, 2 * GIB),
    )
    ledger = Ledger(pools, held)
    back = ledger_of(msgspec.json.decode(msgspec.json.encode(report(ledger, seen()))))
    free = [(one.pool.id, one.free, one.spilled) for one in ledger.balances()]
    assert [(one.pool.id, one.free, one.spilled) for one in back.balances()] == free
    missing = [(one.balance.pool.id, one.missing) for one in ledger.shortages(wanted)]
    assert [(one.balance.pool.id, one.missing) for one in back.shortages(wanted)] == missing
