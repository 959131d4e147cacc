"""The pools and who holds what of them as answers, as docs/control.md describes them, and back.

What is shown is enough to compute with: `ledger_of` makes the ledger that a report was made of. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from accelerd.memory.ledger import ENDED, Balance, Holding, Ledger, Phase
from accelerd.memory.model import Claim, ForeignUser, MemorySnapshot, Pool, Stall

NAMED: Final = 5  # others' processes that are named of a pool
UNSET: Final = msgspec.UNSET


class ForeignUserReport(msgspec.Struct):
    pid: int
    process: str
    size: int


class HolderFacts(msgspec.Struct):
    """What decides whether a model that holds memory may leave. Seconds."""

    leases: int = 0
    idle: float | None = None
    pin: bool = False
    priority: int = 0


class HoldingReport(msgspec.Struct):
    """What a model holds of a pool. Bytes; `used` None: not seen yet. The rest is known of configured models alone."""

    model: str
    phase: Phase
    reserved: int
    used: int | None
    prompt_cache: int = 0  # of what is reserved
    leases: int | msgspec.UnsetType = UNSET
    idle: float | msgspec.UnsetType | None = UNSET
    pin: bool | msgspec.UnsetType = UNSET
    priority: int | msgspec.UnsetType = UNSET


class NpuHolding(msgspec.Struct):
    """A model's place on an NPU, with all of its memory."""

    model: str
    phase: Phase
    family: str
    kind: str
    contexts: int
    host: str
    memory: int


class NpuReport(msgspec.Struct):
    """`contexts` None: not known, and no limit."""

    contexts: int | None
    contexts_used: int
    columns: int | None
    models: list[NpuHolding]


class PoolReport(msgspec.Struct, kw_only=True):
    """One pool. Bytes."""

    id: str
    label: str
    capacity: int
    reserve: int
    backed_by: str | None
    own: int
    foreign: int
    foreign_users: list[ForeignUserReport] = []
    spilled: int = 0
    free: int = 0
    holdings: list[HoldingReport]
    npu: NpuReport | msgspec.UnsetType = UNSET


class MemoryReport(msgspec.Struct):
    """Who holds what, and whether programs wait for memory."""

    pools: list[PoolReport]
    stall: Stall | None


Facts = Callable[[str], HolderFacts]  # what else is told of a model that holds memory, by its name


def report(ledger: Ledger, seen: MemorySnapshot, facts: Facts | None = None) -> MemoryReport:
    """`facts` None: models are not known."""
    return MemoryReport(
        [_pool(balance, seen.foreign, facts, ledger.holdings) for balance in ledger.balances()], seen.stall
    )


def _pool(
    balance: Balance, foreign: Iterable[ForeignUser], facts: Facts | None, holdings: Iterable[Holding]
) -> PoolReport:
    pool = balance.pool
    claims = [_claim(held, claim) for held in holdings for claim in held.claims if claim.device == pool.id]
    npu = NpuReport(pool.contexts, sum(claim.contexts for claim in claims), pool.columns, claims)
    named = [user for user in foreign if user.pool == pool.id][:NAMED]
    return PoolReport(
        id=pool.id,
        label=pool.label,
        capacity=pool.capacity,
        reserve=pool.reserve,
        backed_by=pool.backed_by,
        own=pool.own,
        foreign=balance.foreign,
        foreign_users=[ForeignUserReport(user.pid, user.process, user.size) for user in named],
        spilled=balance.spilled,
        free=balance.free,
        holdings=[
            HoldingReport(
                held.model,
                held.phase,
                held.size,
                held.used,
                held.cache,
                **(msgspec.structs.asdict(facts(held.model)) if facts is not None else {}),
            )
            for held in balance.holdings
        ],
        npu=npu if claims or pool.contexts is not None or pool.columns is not None else UNSET,
    )


def _claim(held: Holding, claim: Claim) -> NpuHolding:
    memory = sum((held.used or held.amounts).values())
    return NpuHolding(held.model, held.phase, claim.family, claim.kind, claim.contexts, claim.host, memory)


def ledger_of(answer: Mapping[str, Any]) -> Ledger:
    """The ledger that such a report, as JSON has it, was made of."""
    pools: list[Pool] = []
    amounts: dict[str, dict[str, int]] = {}
    used: dict[str, dict[str, int]] = {}
    phases: dict[str, Phase] = {}
    claims: dict[str, list[Claim]] = {}
    caches: dict[str, int] = {}
    for one in msgspec.convert(answer.get("pools") or [], list[PoolReport]):
        ended = 0
        for held in one.holdings:
            phases[held.model] = held.phase
            amounts.setdefault(held.model, {})[one.id] = held.reserved
            caches[held.model] = caches.get(held.model, 0) + held.prompt_cache
            if held.used is not None:
                used.setdefault(held.model, {})[one.id] = held.used
            ended += held.reserved if held.phase in ENDED else 0
        foreign = one.foreign + ended  # to who looks, what ended models left behind is somebody else's
        npu = one.npu or NpuReport(None, 0, None, [])
        pools.append(
            Pool(one.id, one.label, one.capacity, one.reserve, foreign, one.backed_by, one.own,
                 npu.contexts, npu.columns)
        )  # fmt: skip
        for place in npu.models:
            claim = Claim(one.id, place.family, place.kind, place.contexts, place.host)
            claims.setdefault(place.model, []).append(claim)
            phases.setdefault(place.model, place.phase)
            amounts.setdefault(place.model, {})
    return Ledger(
        pools,
        [
            Holding(name, phases[name], held, used.get(name, {}), tuple(claims.get(name, ())), caches.get(name, 0))
            for name, held in amounts.items()
        ],
    )
