"""The books of memory: what each pool has, who holds what of it, what is left. Pure; does no I/O and keeps no state.

A ledger is made anew from the models' records whenever one is wanted, so nothing can be released twice or forgotten:
what is counted is what the records say. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from accelerd.memory.model import RAM, Claim, Pool

Phase = Literal["loading", "resident", "asleep", "leaving", "reclaiming", "lost"]
ENDED = ("reclaiming", "lost")  # no process is left: whoever looks sees this memory as somebody else's


class Holding(Struct, frozen=True):
    model: str
    phase: Phase
    amounts: Mapping[str, int]  # what is counted, by pool
    used: Mapping[str, int] = field(default_factory=dict)  # what was seen in use, by pool
    claims: tuple[Claim, ...] = ()  # its places on NPUs, which are not counted in bytes
    cache: int = 0  # of what is counted in main memory, what is for its prompt cache


class PoolHolding(Struct, frozen=True):
    model: str
    phase: Phase
    size: int
    used: int | None  # None: not seen yet
    cache: int = 0  # of `size`, for its prompt cache


class Balance(Struct, frozen=True):
    pool: Pool
    holdings: tuple[PoolHolding, ...]
    foreign: int  # others' use, without what ended models have not given back
    spilled: int  # of pools that lie in this one, beyond what they have for themselves
    free: int  # what may still be given away; negative: more is held than should be

    @property
    def held(self) -> int:
        return sum(one.size for one in self.holdings)


class PoolShortage(Struct, frozen=True):
    balance: Balance
    wanted: int  # asked of this pool
    missing: int


class Ledger:
    def __init__(self, pools: Iterable[Pool], holdings: Iterable[Holding] = ()) -> None:
        """What is held of pools that are not there counts nowhere."""
        self.pools = {pool.id: pool for pool in pools}
        self.holdings = tuple(holdings)
        self._held = dict.fromkeys(self.pools, 0)
        ended = dict.fromkeys(self.pools, 0)
        for holding in self.holdings:
            for id, size in holding.amounts.items():
                if id in self._held:
                    self._held[id] += size
                    if holding.phase in ENDED:
                        ended[id] += size
        self._foreign = {id: max(0, pool.foreign - ended[id]) for id, pool in self.pools.items()}

    def balances(self) -> tuple[Balance, ...]:
        return tuple(self._balance(pool, self._spilled(self._held)) for pool in self.pools.values())

    def shortages(
        self, amounts: Mapping[str, int], without: Iterable[Mapping[str, int]] = ()
    ) -> tuple[PoolShortage, ...]:
        """The pools that have not enough for `amounts` more, if what is in `without` were gone. Empty: it fits."""
        spilled = self._spilled(self._held)
        return tuple(
            PoolShortage(self._balance(self.pools[id], spilled), wanted, missing)
            for id, wanted, missing in self._missing(amounts, without)
        )

    def fits(self, amounts: Mapping[str, int], without: Iterable[Mapping[str, int]] = ()) -> bool:
        """Is there room for `amounts` more, if what is in `without` were gone?"""
        return next(self._missing(amounts, without), None) is None

    def _missing(
        self, amounts: Mapping[str, int], without: Iterable[Mapping[str, int]]
    ) -> Iterator[tuple[str, int, int]]:
        """(pool, bytes asked of it, bytes it lacks)"""
        held = dict(self._held)
        for gone in without:
            for id, size in gone.items():
                if id in held:
                    held[id] -= size
        before = self._spilled(held)
        for id, size in amounts.items():
            if id in held:
                held[id] += size
        after = self._spilled(held)
        for id, pool in self.pools.items():
            wanted = amounts.get(id, 0) + after[id] - before[id]
            free = pool.room - self._foreign[id] - held[id] - after[id]
            if wanted > 0 and free < 0:
                yield id, wanted, -free

    def alone(self, *, foreign: bool = False) -> Ledger:
        """The same pools with no models, and nobody else unless `foreign`."""
        pools = self.pools.values()
        return Ledger(pools if foreign else [replace(pool, foreign=0) for pool in pools])

    def counted(self, amounts: Mapping[str, int], pool: str) -> int:
        """How much of `amounts` counts in a pool at most: what lies in it, and what may spill into it."""
        spills = sum(size for id, size in amounts.items() if id in self.pools and self.pools[id].backed_by == pool)
        return amounts.get(pool, 0) + min(spills, self._spilled(self._held).get(pool, 0))

    def _spilled(self, held: Mapping[str, int]) -> dict[str, int]:
        """Bytes that lie in each pool although they are held of others."""
        found = dict.fromkeys(self.pools, 0)
        for id, pool in self.pools.items():
            if pool.backed_by in found:
                found[pool.backed_by] += max(0, held[id] - max(0, pool.own - self._foreign[id]))
        return found

    def _balance(self, pool: Pool, spilled: Mapping[str, int]) -> Balance:
        holdings = tuple(
            PoolHolding(
                one.model,
                one.phase,
                one.amounts.get(pool.id, 0),
                one.used.get(pool.id) if one.used else None,
                one.cache if pool.id == RAM else 0,
            )
            for one in self.holdings
            if one.amounts.get(pool.id) or one.used.get(pool.id)
        )
        free = pool.room - self._foreign[pool.id] - self._held[pool.id] - spilled[pool.id]
        return Balance(pool, holdings, self._foreign[pool.id], spilled[pool.id], free)
