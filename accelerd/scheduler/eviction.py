"""Which models leave so that another one has room: the cheapest set whose leaving is enough. Pure.

Cheap is a model that nobody is likely to want soon and that is loaded again quickly: seconds of reloading times
expected uses. An idle model leaves before one that works, one of lower priority before one of higher, and no model
leaves for nothing. Models on NPUs and on GPUs leave for each other where they share memory, by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from typing import Final

from msgspec import Struct

from accelerd.memory.model import MemoryRequirement
from accelerd.memory.npu_rules import lacking
from accelerd.scheduler.placement import SharedLimits, alike, rules_out, why_not_resident
from accelerd.scheduler.record import ModelRecord

MOST_PAIRS: Final = 16  # candidates of whom every pair is looked at; of more the greedy choice must do

Cost = tuple[bool, int, float, int, float]  # one works; highest priority; its cost; how many; when one was used last


class EvictionPlan(Struct, frozen=True):
    """How room is made."""

    need: MemoryRequirement  # where the model goes
    victims: tuple[ModelRecord, ...]


def value(record: ModelRecord, now: float) -> float:
    """Expected seconds of waiting for reloads, if it left now."""
    return record.reload_cost() * record.usage.likelihood(now)


def choose(
    target: ModelRecord,
    staying: Sequence[ModelRecord],
    candidates: Sequence[ModelRecord],
    limits: SharedLimits,
    now: float,
) -> EvictionPlan | None:
    """The cheapest way to have `target` in, with the longest context that it can have.

    `staying` cannot be asked to leave. None: not even the leaving of all candidates would be enough.
    """
    ways = target.ways
    for context in dict.fromkeys(need.context for need in ways):
        same = [need for need in ways if need.context == context]
        if (found := _cheapest(target, same, staying, candidates, limits, now)) is not None:
            return found
    return None


def _cheapest(
    target: ModelRecord,
    ways: Sequence[MemoryRequirement],
    staying: Sequence[ModelRecord],
    candidates: Sequence[ModelRecord],
    limits: SharedLimits,
    now: float,
) -> EvictionPlan | None:
    found: tuple[Cost, EvictionPlan] | None = None
    for need in ways:
        victims = _victims(target, need, staying, candidates, limits, now)
        if victims is None:
            continue
        cost = _cost(victims, {id(v): value(v, now) for v in victims})
        if found is None or cost < found[0]:
            found = cost, EvictionPlan(need, tuple(victims))
        if not victims:
            break  # the best of the ways that cost nothing
    return found[1] if found is not None else None


def _cost(victims: Collection[ModelRecord], worth: Mapping[int, float]) -> Cost:
    return (
        any(v.active or v.waiting for v in victims),
        max((v.spec.priority for v in victims), default=-(1 << 31)),
        sum(worth[id(v)] for v in victims),
        len(victims),
        max((v.last_used for v in victims), default=0.0),
    )


def _victims(
    target: ModelRecord,
    need: MemoryRequirement,
    staying: Sequence[ModelRecord],
    candidates: Sequence[ModelRecord],
    limits: SharedLimits,
    now: float,
) -> list[ModelRecord] | None:
    if why_not_resident(target, staying, limits, need) is not None:
        return None
    forced = [c for c in candidates if rules_out(target, need, c)]
    free = [c for c in candidates if c not in forced]
    if why_not_resident(target, [*staying, *free], limits, need) is None:
        return forced
    # From here on only memory, contexts and the number of models decide.
    held = {id(record): record.held() for record in (*staying, *free)}
    ledger = limits.ledger([*staying, *free])
    total = need.total + sum(r.size for r in limits.lost) + sum(sum(amounts.values()) for amounts in held.values())
    there = alike(need, (*staying, *free))
    most = (limits.max_loaded or there + 1) - 1

    def enough(leaving: Collection[ModelRecord]) -> bool:
        gone = [held[id(record)] for record in leaving]
        return (
            there - alike(need, leaving) <= most
            and _has_contexts(need, [r for r in (*staying, *free) if r not in leaving], limits)
            and (limits.memory is None or total - sum(sum(amounts.values()) for amounts in gone) <= limits.memory)
            and ledger.fits(need.amounts, gone)
        )

    # What holds nothing that is short cannot help, whatever it costs: models on other pools are left alone.
    useful = [c for c in free if _helps(held[id(c)], need, limits) or _on_its_device(need, c)] or free
    worth = {id(c): value(c, now) for c in useful}
    sets = [tuple(_greedy(useful, enough, worth)), *((c,) for c in useful if enough((c,)))]
    if len(useful) <= MOST_PAIRS:
        sets += [pair for pair in combinations(useful, 2) if enough(pair)]
    return [*forced, *min(sets, key=lambda one: _cost(one, worth))]


def _has_contexts(need: MemoryRequirement, others: Sequence[ModelRecord], limits: SharedLimits) -> bool:
    return not need.claims or next(lacking(need, (r.need for r in others), limits.pools), None) is None


def _on_its_device(need: MemoryRequirement, record: ModelRecord) -> bool:
    """Does it hold places on a device where some are wanted?"""
    wanted = {claim.device for claim in need.claims}
    return any(claim.device in wanted for claim in record.need.claims)


def _helps(held: Mapping[str, int], need: MemoryRequirement, limits: SharedLimits) -> bool:
    """Is anything of what a candidate holds in a pool that is wanted?"""
    if limits.memory is not None or limits.max_loaded is not None:
        return True
    wanted = {pool for pool, size in need.amounts.items() if size}
    pools = {pool.id: pool for pool in limits.pools}
    wanted |= {str(pools[id].backed_by) for id in wanted if id in pools and pools[id].backed_by}
    return any(size and (id in wanted or (id in pools and pools[id].backed_by in wanted)) for id, size in held.items())


def _greedy(
    useful: list[ModelRecord], enough: Callable[[Collection[ModelRecord]], bool], worth: Mapping[int, float]
) -> list[ModelRecord]:
    """The least valuable for its size first, until it is enough; then without whom it is enough too."""

    def rank(record: ModelRecord) -> tuple[bool, int, float, float]:
        busy, size = bool(record.active or record.waiting), max(1, sum(record.held().values()))
        return busy, record.spec.priority, worth[id(record)] / size, record.last_used

    chosen: list[ModelRecord] = []
    for record in sorted(useful, key=rank):
        chosen.append(record)
        if enough(chosen):
            break
    for record in sorted(chosen, key=rank, reverse=True):
        rest = [c for c in chosen if c is not record]
        if enough(rest):
            chosen = rest
    return chosen
