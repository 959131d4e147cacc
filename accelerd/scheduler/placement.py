"""Which models may be resident together, and which must leave for another. Pure functions over sets of models.

Knows no state of waiting requests and no time: Core says who may be asked to leave, and in which order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.scheduler.record import Record, Residue

OUTGROWN: Final = "ran out of memory with"  # so begins the source of a memory figure that was raised


@dataclass(frozen=True)
class Limits:
    """What all models share. `memory` in bytes; None: no limit."""

    memory: int | None
    memory_source: str
    max_loaded: int | None
    lost: tuple[Residue, ...] = ()  # memory that ended models have not given back
    quarantined: Mapping[str, str] = field(default_factory=dict)  # device → the model there that cannot be ended


def gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 29 else f"{size / (1 << 20):.1f} MiB"


def excludes(a: ModelSpec, b: ModelSpec) -> str | None:
    """Why `a` and `b` can never be resident together, None if they can."""
    if a.exclusive or b.exclusive:
        alone = a if a.exclusive else b
        return f"{alone.name} is exclusive"
    if a.group is not None and a.group == b.group:
        return f"{a.name} and {b.name} share the group {a.group}"
    return None


def outgrown(record: Record) -> bool:
    """Is the reserved memory what the model turned out to need, rather than an estimate?"""
    return record.memory_source.startswith(OUTGROWN)


def obstacle(target: Record, others: Iterable[Record], limits: Limits) -> str | None:
    """Why `target` cannot be resident beside `others`, with the arithmetic; None if it can."""
    others = list(others)
    stuck = limits.quarantined.get(target.device)
    if stuck is not None:
        return f"{stuck} cannot be ended and may hold the {target.device}: nothing starts there until it has gone"
    for other in others:
        if why := excludes(target.spec, other.spec):
            return why
    if limits.max_loaded is not None and len(others) + 1 > limits.max_loaded:
        return f"max_loaded = {limits.max_loaded} and {len(others)} loaded"
    own_limit = target.spec.memory_max
    if own_limit is not None and outgrown(target) and target.memory > own_limit:
        return f"it needs {gib(target.memory)} ({target.memory_source}) and its memory_max is {gib(own_limit)}"
    if limits.memory is not None:
        held = sum(other.memory for other in others)
        lost = sum(residue.size for residue in limits.lost)
        if held + lost + target.memory > limits.memory:
            beside = f", {gib(held)} held by {', '.join(o.spec.name for o in others)}" if others else ""
            beside += "".join(f", {gib(r.size)} of {r.where} not given back by {r.model}" for r in limits.lost)
            return (
                f"it needs {gib(target.memory)} ({target.memory_source}), "
                f"{gib(limits.memory)} are there in all ({limits.memory_source}){beside}"
            )
    return None


def choose_victims(
    target: Record, staying: Sequence[Record], candidates: Sequence[Record], limits: Limits
) -> list[Record] | None:
    """The smallest prefix-greedy set of `candidates` (best victim first) whose leaving lets `target` in.

    `staying` cannot be asked to leave. None: not even all of them would be enough.
    """
    victims = [c for c in candidates if excludes(target.spec, c.spec)]
    remaining = [c for c in candidates if c not in victims]
    while obstacle(target, [*staying, *remaining], limits) is not None:
        if not remaining:
            return None
        victims.append(remaining.pop(0))
    # A later, larger victim may have made an earlier one unnecessary.
    for victim in list(victims):
        others = [*staying, *remaining, victim]
        if obstacle(target, others, limits) is None:
            victims.remove(victim)
            remaining.append(victim)
    return victims
