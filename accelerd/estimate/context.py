"""How long a model's context is where nobody says: as long as it was trained for, within the memory of this machine.

The context takes a part of what the rest of the model leaves, so that other models and programs still find room. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from accelerd.config.model import USUAL_CONTEXT
from accelerd.estimate.smaller import STEP, Backing, Ways, counted, fits, largest_context
from accelerd.memory.model import RAM, MemoryRequirement

LEAST: Final = 4096  # tokens; less is no use for most requests
CARD_PART: Final = (3, 4)  # of what a card has left: only models use it
MAIN_PART: Final = (1, 2)  # of what main memory has left


def contexts(
    ways: Ways, room: Mapping[str, int], trained: int, backing: Backing | None = None, limit: int | None = None
) -> tuple[int, ...]:
    """Contexts of one request, the one that is wanted first; the smaller ones are for where it finds no place.

    `room`: what the pools have for models. `trained`: tokens; 0: not known. `limit`: bytes for all models together, of
    which the context may take the same part as of main memory. The usual context is never refused here.
    """
    best = usual = min(trained or USUAL_CONTEXT, USUAL_CONTEXT)
    found = next(((at, need) for at, need in enumerate(ways(usual, None)) if fits(need, room, backing)), None)
    if found is not None and trained > usual:
        place, need = found
        most = None if limit is None else need.total + _part(limit - need.total, MAIN_PART)

        def there(context: int, kind: str | None) -> Sequence[MemoryRequirement]:
            return [one for one in ways(context, kind)[place : place + 1] if most is None or one.total <= most]

        best = max(usual, largest_context(there, _bound(need, room, backing), trained, backing=backing))
    steps = [best]
    while (half := steps[-1] // 2 // STEP * STEP) > usual:
        steps.append(half)
    return tuple(dict.fromkeys((*steps, usual, min(usual, LEAST))))


def _bound(need: MemoryRequirement, room: Mapping[str, int], backing: Backing | None) -> dict[str, int]:
    """What of each pool the model may take with the longest context, when it takes `need` with the usual one."""
    taken, found = counted(need, backing), {}
    for pool, size in room.items():
        held = taken.get(pool, 0)
        found[pool] = held + _part(size - held, MAIN_PART if pool == RAM or pool in (backing or {}) else CARD_PART)
    return found


def _part(size: int, part: tuple[int, int]) -> int:
    return max(0, size) * part[0] // part[1]
