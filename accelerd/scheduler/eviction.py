"""Which models leave so that another one has room: the cheapest set whose leaving is enough. Pure.

Cheap is a model that nobody is likely to want soon and that is loaded again quickly: seconds of reloading times
expected uses. An idle model leaves before one that works, one of lower priority before one of higher, and no model
leaves for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from accelerd.memory.model import Need
from accelerd.scheduler.placement import Limits, excludes, obstacle
from accelerd.scheduler.record import Record

MOST_PAIRS: Final = 16  # candidates of whom every pair is looked at; of more the greedy choice must do

Cost = tuple[bool, int, float, int, float]  # one works; highest priority; its cost; how many; when one was used last


@dataclass(frozen=True)
class Choice:
    """How room is made."""

    need: Need  # where the model goes
    victims: tuple[Record, ...]


def value(record: Record, now: float) -> float:
    """Expected seconds of waiting for reloads, if it left now."""
    return record.reload_cost() * record.usage.likelihood(now)


def choose(
    target: Record, staying: Sequence[Record], candidates: Sequence[Record], limits: Limits, now: float
) -> Choice | None:
    """The cheapest way to have `target` in. `staying` cannot be asked to leave.

    None: not even the leaving of all candidates would be enough.
    """
    found: tuple[Cost, Choice] | None = None
    for need in target.forecast.options or (target.need,):
        victims = _victims(target, need, staying, candidates, limits, now)
        if victims is None:
            continue
        cost = _cost(victims, now)
        if found is None or cost < found[0]:
            found = cost, Choice(need, tuple(victims))
        if not victims:
            break  # the best of the ways that cost nothing
    return found[1] if found is not None else None


def _cost(victims: Iterable[Record], now: float) -> Cost:
    victims = list(victims)
    return (
        any(v.active or v.waiting for v in victims),
        max((v.spec.priority for v in victims), default=-(1 << 31)),
        sum(value(v, now) for v in victims),
        len(victims),
        max((v.last_used for v in victims), default=0.0),
    )


def _victims(
    target: Record, need: Need, staying: Sequence[Record], candidates: Sequence[Record], limits: Limits, now: float
) -> list[Record] | None:
    forced = [c for c in candidates if excludes(target.spec, c.spec)]
    free = [c for c in candidates if c not in forced]

    def enough(leaving: Iterable[Record]) -> bool:
        gone = {id(record) for record in leaving}
        return obstacle(target, [*staying, *(c for c in free if id(c) not in gone)], limits, need) is None

    if enough(()):
        return forced
    if not enough(free):
        return None
    # What holds nothing that is short cannot help, whatever it costs: models on other pools are left alone.
    useful = [c for c in free if _helps(c, target, need, limits)] or free
    sets = [tuple(_greedy(useful, enough, now)), *((c,) for c in useful if enough((c,)))]
    if len(useful) <= MOST_PAIRS:
        sets += [pair for pair in combinations(useful, 2) if enough(pair)]
    best = min(sets, key=lambda one: _cost(one, now))
    return [*forced, *best]


def _helps(candidate: Record, target: Record, need: Need, limits: Limits) -> bool:
    """Does the candidate hold anything of a pool that the target wants?"""
    if limits.memory is not None or limits.max_loaded is not None:
        return True
    wanted = {pool for pool, size in need.amounts.items() if size}
    pools = {pool.id: pool for pool in limits.pools}
    wanted |= {str(pools[id].backed_by) for id in wanted if id in pools and pools[id].backed_by}
    for id, size in candidate.held().items():
        if size and (id in wanted or (id in pools and pools[id].backed_by in wanted)):
            return True
    return False


def _greedy(useful: list[Record], enough: Callable[[Iterable[Record]], bool], now: float) -> list[Record]:
    """The least valuable for its size first, until it is enough; then without whom it is enough too."""

    def rank(record: Record) -> tuple[bool, int, float, float]:
        busy, size = bool(record.active or record.waiting), max(1, sum(record.held().values()))
        return busy, record.spec.priority, value(record, now) / size, record.last_used

    chosen: list[Record] = []
    for record in sorted(useful, key=rank):
        chosen.append(record)
        if enough(chosen):
            break
    for record in sorted(chosen, key=rank, reverse=True):
        rest = [c for c in chosen if c is not record]
        if enough(rest):
            chosen = rest
    return chosen
