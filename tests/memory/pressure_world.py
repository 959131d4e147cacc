"""A machine for tests of pressure: pools, models that hold of them, others that take and give; time under control.

Models leave as the scheduler has them leave: idle ones, the largest first, and the others only when it is urgent. What
leaves is back after a while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from accelerd.config.machine_settings import MemorySettings
from accelerd.memory.ledger import Holding, Ledger, Phase
from accelerd.memory.model import RAM, ForeignUser, MemorySnapshot, Pool, Stall
from accelerd.memory.pressure import Pressure, RoomOrder

GIB = 1 << 30
GPU = "0000:03:00.0"


@dataclass
class Model:
    amounts: dict[str, int]  # reserved
    used: dict[str, int] = field(default_factory=dict)  # empty: what is reserved
    busy: bool = False
    phase: Phase = "resident"
    back_at: float = 0.0  # when it is gone, if it leaves


class World:
    """`looks` are a second apart unless a test says otherwise."""

    def __init__(self, *pools: Pool, settings: MemorySettings | None = None, leaving: float = 1.0) -> None:
        """`leaving`: seconds until the memory of a model that leaves is back."""
        self.pools = {pool.id: pool for pool in pools or (ram(),)}
        self.foreign = {pool.id: pool.foreign for pool in self.pools.values()}
        self.models: dict[str, Model] = {}
        self.users: tuple[ForeignUser, ...] = ()
        self.stall: Stall | None = None
        self.now = 100.0
        self.leaving = leaving
        self.pressure = Pressure(settings or MemorySettings(soft_grace=3))
        self.orders: list[tuple[float, RoomOrder]] = []

    def ledger(self) -> Ledger:
        pools = [
            Pool(p.id, p.label, p.capacity, p.reserve, self.foreign[p.id], p.backed_by, p.own)
            for p in self.pools.values()
        ]
        return Ledger(pools, [Holding(n, m.phase, m.amounts, m.used or m.amounts) for n, m in self.models.items()])

    def look(self) -> tuple[RoomOrder, ...]:
        """One look, and what follows of it."""
        self.models = {n: m for n, m in self.models.items() if m.phase != "leaving" or m.back_at > self.now}
        ledger = self.ledger()
        seen = MemorySnapshot(self.now, tuple(ledger.pools.values()), {}, self.users, self.stall)
        orders = self.pressure.look(seen, ledger.balances(), self.now)
        for order in orders:
            self.orders.append((self.now, order))
            self.pressure.answered(order, self.make_room(order))
        return orders

    def run(self, seconds: float, *, every: float = 1.0, then: Callable[[], None] | None = None) -> list[RoomOrder]:
        """Looks for so long; `then` is done after each. All orders."""
        found: list[RoomOrder] = []
        end = self.now + seconds
        while self.now < end:
            self.now += every
            found += self.look()
            if then is not None:
                then()
        return found

    def make_room(self, order: RoomOrder) -> int:
        ledger = self.ledger()

        def gain(model: Model) -> int:
            return ledger.counted(model.amounts, order.pool)

        coming = sum(gain(m) for m in self.models.values() if m.phase == "leaving")
        staying = [m for m in self.models.values() if m.phase == "resident" and gain(m) > 0]
        for busy in (False, True) if order.hard else (False,):
            for model in sorted((m for m in staying if m.busy == busy), key=gain, reverse=True):
                if coming >= order.size:
                    return coming
                coming += gain(model)
                model.phase, model.back_at = "leaving", self.now + self.leaving
        return coming

    def held(self, pool: str) -> int:
        return sum(m.amounts.get(pool, 0) for m in self.models.values())

    def free(self, pool: str = RAM) -> int:
        return self.pools[pool].capacity - self.foreign[pool] - self.held(pool)

    def resident(self) -> set[str]:
        return {name for name, model in self.models.items() if model.phase == "resident"}


def ram(capacity: int = 64 * GIB, reserve: int = 4 * GIB) -> Pool:
    return Pool(RAM, "main memory", capacity, reserve)


def card(capacity: int = 24 * GIB, reserve: int = GIB) -> Pool:
    return Pool(GPU, "a card", capacity, reserve)


def unified(capacity: int = 60 * GIB, own: int = GIB, reserve: int = GIB) -> Pool:
    return Pool(GPU, "the GPU in the processor", capacity, reserve, backed_by=RAM, own=own)
