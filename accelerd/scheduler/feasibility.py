"""Could a model be resident? Asked before a person loads it, and before it is held beside others.

Pure, changes nothing: reads the models' records and the room there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.memory.ledger import Holding, Ledger
from accelerd.memory.model import MemoryRequirement
from accelerd.memory.npu_rules import clash, lacking, on_npu
from accelerd.scheduler.admission import Admission
from accelerd.scheduler.eviction import choose
from accelerd.scheduler.placement import (
    SharedLimits,
    excludes,
    fitting,
    never_for,
    why_never_resident,
    why_not_resident,
)
from accelerd.scheduler.record import ModelRecord

MOST_STEPS: Final = 2000  # of the search for places; what is not refuted by then may fit


def placement(record: ModelRecord, admission: Admission) -> tuple[bool, str]:
    """Could the model be resident, and what would that take."""
    if record.occupied:
        return True, "it is loaded, or on its way in or out"
    room, others = admission.room, admission.occupied()
    if fitting(record, others, room) is not None:
        return True, "it fits beside what is loaded now"
    why = why_not_resident(record, others, room) or ""
    movable = [r for r in others if not r.unevictable]
    choice = choose(record, [r for r in others if r.unevictable], movable, room, admission.clock.monotonic())
    if choice is None:
        staying = [r for r in others if r.unevictable or never_for(record, record.need, r)]
        never = why_never_resident(record, staying, room)
        return False, never if never is not None and any(not r.unevictable for r in staying) else why
    return True, f"{', '.join(v.spec.name for v in choice.victims)} would make room for it: {why}"


def check_hold(record: ModelRecord, admission: Admission) -> None:
    """AccelError does_not_fit or pin_conflict when the model can never be resident, or not beside what must stay.

    Memory in use by other programs, yielded, or not given back yet is ignored: all of that is temporary.
    """
    room = replace(admission.room.undisturbed(), lost=(), quarantined={})
    fixed = [r for r in admission.records.values() if r.unevictable and not r.removed and r is not record]
    if not together(fixed, room):
        fixed = [r for r in fixed if r.occupied]  # a conflict among the others was reported when they were pinned
    name = record.spec.name
    if not together([record], room):
        why = why_not_resident(record, [], room) or "it does not fit"
        raise AccelError("does_not_fit", f"cannot pin {name}: {why}", param="model")
    if not together([record, *fixed], room):
        others = ", ".join(r.spec.name for r in fixed)
        why = why_not_resident(record, fixed, room) or "their memory together is more than there is"
        text = f"cannot pin {name} beside {others}, which must stay too: {why}; unpin one of them first"
        raise AccelError("pin_conflict", text, param="model", pinned=[r.spec.name for r in fixed])


def together(records: Sequence[ModelRecord], limits: SharedLimits) -> bool:
    """Is there any way to have all of them resident at once? What is loaded stays where it is."""
    kinds = Counter(on_npu(record.need) for record in records)  # counted apart, see placement.alike
    if limits.max_loaded is not None and max(kinds.values(), default=0) > limits.max_loaded:
        return False
    if any(excludes(a.spec, b.spec) for i, a in enumerate(records) for b in records[:i]):
        return False
    ways = [_ways(record) for record in records]
    if limits.memory is not None and sum(min(way.total for way in one) for one in ways) > limits.memory:
        return False
    ways.sort(key=len)
    names = [str(index) for index in range(len(ways))]
    steps = 0

    def place(placed: list[MemoryRequirement]) -> bool:
        nonlocal steps
        if len(placed) == len(ways) or steps > MOST_STEPS:
            return True
        steps += 1
        held = zip(names, placed, strict=False)
        ledger = Ledger(limits.pools, [Holding(name, "resident", way.amounts) for name, way in held])
        return any(
            ledger.fits(way.amounts)
            and not any(clash(way, other) for other in placed)
            and next(lacking(way, placed, limits.pools), None) is None
            and place([*placed, way])
            for way in ways[len(placed)]
        )

    return place([])


def _ways(record: ModelRecord) -> list[MemoryRequirement]:
    """Each way to have the model resident; of one that is, with what it holds."""
    if record.occupied:
        return [replace(record.need, amounts=record.held())]
    return list(record.forecast.options or (record.need,))
