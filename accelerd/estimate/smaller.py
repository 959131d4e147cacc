"""What of a model would fit where the whole does not: a smaller context, a cache of fewer bits. Pure and quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from accelerd.memory.model import MemoryRequirement

STEP: Final = 1024  # tokens
SMALLER: Final = ("q8_0", "q4_0")  # types of the cache that are offered, the best first
BITS: Final = {"f32": 32, "bf16": 16, "f16": 16, "q8_0": 8, "q5_1": 6, "q5_0": 5, "q4_1": 5, "iq4_nl": 4, "q4_0": 4}
LARGEST: Final = 1 << 24  # tokens

# The ways to place the model with this context of one request and this type of its cache; None: as it is.
Ways = Callable[[int, str | None], Sequence[MemoryRequirement]]
# Pools that are part of another one: whose, and how many bytes they have for themselves.
Backing = Mapping[str, tuple[str, int]]


class SmallerSetting(Struct, frozen=True):
    """One setting that fits. `type`: of the cache; None: as it is."""

    context: int  # tokens of one request
    type: str | None = None


def fits(need: MemoryRequirement, room: Mapping[str, int], backing: Backing | None = None) -> bool:
    """Is there so much in every pool? What is not in `room` is not there."""
    return all(size <= room.get(pool, 0) for pool, size in counted(need, backing).items() if size > 0)


def counted(need: MemoryRequirement, backing: Backing | None = None) -> dict[str, int]:
    """What it takes of each pool, with what lies in it of others."""
    wanted = dict(need.amounts)
    for pool, (other, own) in (backing or {}).items():
        if (beyond := need.amounts.get(pool, 0) - own) > 0:
            wanted[other] = wanted.get(other, 0) + beyond
    return wanted


def largest_context(
    ways: Ways, room: Mapping[str, int], most: int, kind: str | None = None, backing: Backing | None = None
) -> int:
    """The largest context of one request that fits, a multiple of 1024 or all of `most`; 0: none does."""

    def enough(context: int) -> bool:
        return any(fits(need, room, backing) for need in ways(context, kind))

    most = max(0, min(most, LARGEST))
    if most and enough(most):
        return most
    low, high = 0, -(-most // STEP)  # `low` steps fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if enough(middle * STEP) else (low, middle)
    return low * STEP


def suggest_smaller(
    ways: Ways, room: Mapping[str, int], context: int, kind: str, backing: Backing | None = None
) -> tuple[SmallerSetting, ...]:
    """What fits of a model that does not with `context` and a cache of `kind`, each with more context than before."""
    found: list[SmallerSetting] = []
    for other in (None, *(one for one in SMALLER if BITS[one] < BITS.get(kind, 16))):
        best = largest_context(ways, room, context, other, backing)
        if best > (found[-1].context if found else 0):
            found.append(SmallerSetting(best, other))
    return tuple(found)


def setting(one: SmallerSetting) -> str:
    """In the words of the configuration: "kv_cache_type = "q8_0" and context = 32768"."""
    cache = f'kv_cache_type = "{one.type}" and ' if one.type else ""
    return f"{cache}context = {one.context}"


def describe(found: Sequence[SmallerSetting]) -> str:
    """For people: "it would fit with context = 16384, or with kv_cache_type = "q8_0" and context = 32768"."""
    return described([*map(setting, found)])


def described(settings: Sequence[str]) -> str:
    """The same, of settings in words."""
    return "it would fit with " + ", or with ".join(settings) if settings else ""
