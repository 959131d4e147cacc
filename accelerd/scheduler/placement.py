"""May a model be resident beside others, by memory and by rule, and if not why: with the arithmetic. Pure.

Knows no state of waiting requests and no time; choosing who leaves is eviction.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from accelerd.base.sizes import human_size
from accelerd.memory.ledger import Holding, Ledger, PoolShortage
from accelerd.memory.model import RAM, MemoryRequirement, Pool
from accelerd.memory.npu_rules import apart, clash, lacking
from accelerd.scheduler.record import ModelRecord, Residue

CACHE_STEP: Final = 1 << 20  # bytes: what engines count prompt caches in
LEAST_CACHE: Final = 64 << 20  # bytes: less holds no conversation


class YieldedMemory(Struct, frozen=True):
    """Memory that is yielded to other programs: nothing is started in it."""

    pools: frozenset[str] | None  # None: all
    until: float | None  # monotonic seconds; None: until `resume`
    why: str  # "accelctl yield", "GameMode: 1 game"

    def covers(self, need: MemoryRequirement) -> bool:
        return self.pools is None or any(size > 0 and pool in self.pools for pool, size in need.amounts.items())


class SharedLimits(Struct, frozen=True):
    """What all models share. `memory` in bytes; None: no limit but the pools."""

    memory: int | None
    memory_source: str
    max_loaded: int | None
    lost: tuple[Residue, ...] = ()  # memory that ended models have not given back
    quarantined: Mapping[str, str] = field(default_factory=dict)  # device → the model there that cannot be ended
    pools: tuple[Pool, ...] = ()  # as they were seen last; empty: nothing is known of this machine
    yielded: YieldedMemory | None = None

    def undisturbed(self) -> SharedLimits:
        """The same with nobody but our models, and what they have not given back, on the machine."""
        return replace(self, yielded=None, pools=tuple(replace(pool, foreign=0) for pool in self.pools))

    def ledger(self, records: Iterable[ModelRecord]) -> Ledger:
        """The books with these models resident."""
        return self.ledger_of(record.holding() for record in records)

    def ledger_of(self, holdings: Iterable[Holding]) -> Ledger:
        lost = [Holding(r.model, "lost", {r.pool: r.size}) for r in self.lost]
        return Ledger(self.pools, [*holdings, *lost])


def with_spare_cache(
    target: ModelRecord,
    need: MemoryRequirement,
    records: Iterable[ModelRecord],
    limits: SharedLimits,
) -> MemoryRequirement:
    """The need with what main memory has to spare for its prompt cache, within the bounds that are set.

    `records`: of all models. One that ran out of memory gets nothing beside its need.
    """
    most = target.forecast.spare_cache
    if not most or need.raised:
        return need
    records, spec = [one for one in records if one is not target and not one.spec.elsewhere], target.spec
    there, apart = [r for r in records if r.occupied], [r.need for r in records if not (r.occupied or r.removed)]
    if limits.max_loaded is not None:
        apart = sorted(apart, key=lambda one: one.total)[: max(0, limits.max_loaded - 1 - alike(need, there))]
    left = [bound - need.amounts.get(RAM, 0) for bound in (spec.memory_max, spec.memory_high) if bound is not None]
    if limits.pools:
        ledger = limits.ledger_of([*(r.holding() for r in there), Holding(spec.name, "loading", need.amounts)])
        free = {one.pool.id: one.free for one in ledger.balances()}
        main = {RAM, *(pool.id for pool in limits.pools if pool.backed_by == RAM)}
        left.append(_share(free.get(RAM, 0), [sum(n for p, n in one.amounts.items() if p in main) for one in apart]))
    if limits.memory is not None:
        held = sum(sum(r.held().values()) for r in there) + sum(residue.size for residue in limits.lost)
        left.append(_share(limits.memory - held - need.total, [one.total for one in apart]))
    size = min([most, *left]) // CACHE_STEP * CACHE_STEP
    return need.with_cache(size) if size >= LEAST_CACHE else need


def _share(free: int, others: Iterable[int]) -> int:
    """What one cache may take of so many bytes, at most half, when as many others as can be there are to find room.

    Each of those gets the same for its own. Where not all can be there, they make room for each other anyway, and a
    cache gets a sixteenth at least.
    """
    left, caches, all_fit = free, 1, True
    for size in sorted(others):
        all_fit = all_fit and size <= left
        if all_fit:
            left, caches = left - size, caches + 1
    fair = left // caches
    return min(free // 2, fair if all_fit else max(fair, free // 16))


def excludes(one: ModelRecord, other: ModelRecord) -> str | None:
    """Why the two can never be resident together, None if they can."""
    a, b = one.spec, other.spec
    if a.exclusive or b.exclusive:
        alone = a if a.exclusive else b
        return f"{alone.name} is exclusive"
    if a.group is not None and a.group == b.group:
        return f"{a.name} and {b.name} share the group {a.group}"
    if a.same_container(b):
        return f"{a.name} and {b.name} are the same container, {a.container}"
    place, theirs = one.forecast.shared, other.forecast.shared
    if place is not None and theirs is not None and (place.server, place.model) == (theirs.server, theirs.model):
        return f"{a.name} and {b.name} are one model of {place.server}, {place.model}"
    if (port := one.forecast.shared_port(other.forecast)) is not None:
        return f"the containers of {a.name} and {b.name} publish the same port, {port}"
    return None


def rules_out(target: ModelRecord, need: MemoryRequirement, other: ModelRecord) -> str | None:
    """Why `target`, placed as `need` says, can never be resident beside `other`, by any rule; None if it can.

    Who sleeps computes nothing: only its memory counts.
    """
    if target.asleep or other.asleep:
        return None
    if why := excludes(target, other):
        return why
    if why := clash(need, other.need):
        return f"{other.spec.name} is loaded, and {why}"
    return None


def fitting(
    target: ModelRecord, others: Iterable[ModelRecord], limits: SharedLimits, like: MemoryRequirement | None = None
) -> MemoryRequirement | None:
    """The best way to place `target` beside `others`; None: there is none. `like`: with the context of this one."""
    others = list(others)
    if target.occupied or len(target.forecast.options) <= 1:
        return target.need if why_not_resident(target, others, limits) is None else None
    ways = [need for need in target.forecast.options if like is None or need.context == like.context]
    return next((need for need in ways if why_not_resident(target, others, limits, need) is None), None)


def why_not_resident(
    target: ModelRecord, others: Iterable[ModelRecord], limits: SharedLimits, need: MemoryRequirement | None = None
) -> str | None:
    """Why `target`, placed as `need` says, cannot be resident beside `others`, with the arithmetic; None if it can."""
    if target.spec.elsewhere:
        return None
    others, need = list(others), need or target.need
    stuck = next((limits.quarantined[d] for d in (*need.devices, target.device) if d in limits.quarantined), None)
    if stuck is not None:
        return f"{stuck} cannot be ended and may hold the {target.device}: nothing starts there until it has gone"
    if limits.yielded is not None and limits.yielded.covers(need):
        return f"the memory it needs is yielded ({limits.yielded.why}); accelctl resume ends that"
    for other in others:
        if why := rules_out(target, need, other):
            return why
    count = alike(need, others)
    if limits.max_loaded is not None and count + 1 > limits.max_loaded and not target.asleep:
        return f"max_loaded = {limits.max_loaded} and {count} loaded"
    for pool, wanted, taken in lacking(need, (other.need for other in others), limits.pools):
        return of_contexts(pool, wanted, taken, others)
    own_limit = target.spec.memory_max
    if own_limit is not None and need.raised and need.total > own_limit:
        return f"it needs {human_size(need.total)} ({need.source}) and its memory_max is {human_size(own_limit)}"
    if limits.memory is not None:
        held = sum(sum(other.held().values()) for other in others)
        lost = sum(residue.size for residue in limits.lost)
        if held + lost + need.total > limits.memory:
            beside = f", {human_size(held)} held by {', '.join(o.spec.name for o in others)}" if others else ""
            beside += "".join(f", {human_size(r.size)} of {r.where} not given back by {r.model}" for r in limits.lost)
            return (
                f"it needs {human_size(need.total)} ({need.source}), "
                f"{human_size(limits.memory)} are there in all ({limits.memory_source}){beside}"
            )
    if limits.pools and (short := limits.ledger(others).shortages(need.amounts)):
        return in_words(short[0], need)
    return None


def why_sleepless(
    record: ModelRecord, there: Iterable[ModelRecord], limits: SharedLimits, beside: MemoryRequirement
) -> str | None:
    """Why a resident model cannot sleep so that there is room for `beside`, too; None if it can. Nobody leaves for it.

    `there`: all that are resident.
    """
    there, weights = list(there), record.forecast.asleep or {}
    pools = {pool.id: pool for pool in limits.pools}
    size = sum(weights.values())
    if not any(id != RAM and not (id in pools and pools[id].backed_by == RAM) for id in record.need.devices):
        return "its device has no memory of its own"
    amounts = {RAM: beside.amounts.get(RAM, 0) + size}
    if short := limits.ledger(there).shortages(amounts):
        return in_words(short[0], MemoryRequirement(amounts, "its weights"))
    if limits.memory is not None:
        held = sum(sum(other.held().values()) for other in there if other is not record)
        asleep = record.held().get(RAM, 0) + size
        if held + asleep + beside.total + sum(residue.size for residue in limits.lost) > limits.memory:
            return f"its weights need {human_size(size)}, {human_size(limits.memory)} are there in all"
    return None


def alike(need: MemoryRequirement, others: Iterable[ModelRecord]) -> int:
    """How many of them count against the same max_loaded: models on NPUs are counted apart from all others, and who
    sleeps is not counted."""
    return sum(not (other.asleep or apart(need, other.need)) for other in others)


def of_contexts(pool: Pool, wanted: int, taken: int, others: Iterable[ModelRecord]) -> str:
    """The arithmetic of the places on an NPU."""
    text = f"it needs {wanted} of {pool.contexts} hardware contexts of {pool.label}"
    names = [o.spec.name for o in others if any(claim.device == pool.id for claim in o.need.claims)]
    return f"{text}, {taken} held by {', '.join(names)}" if names else text


def in_words(short: PoolShortage, need: MemoryRequirement) -> str:
    """The arithmetic of one pool."""
    balance, pool = short.balance, short.balance.pool
    where = "main memory" if pool.id == RAM else f"the memory of {pool.label}"
    parts = [f"it needs {human_size(short.wanted)} of {where} ({need.source}), which has {human_size(pool.capacity)}"]
    if pool.reserve:
        parts.append(f"{human_size(pool.reserve)} kept free")
    if balance.foreign:
        parts.append(f"{human_size(balance.foreign)} in use by other programs")
    if balance.spilled:
        parts.append(f"{human_size(balance.spilled)} held for GPUs")
    if balance.holdings:
        names = ", ".join(held.model for held in balance.holdings)
        parts.append(f"{human_size(balance.held)} held by {names}")
    return f"{', '.join(parts)}: {human_size(short.missing)} are missing"
