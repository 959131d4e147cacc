"""Holds keep a model loaded for a client. Could it be resident, alone and beside what must stay? Ends unwanted loads.

A held model is not evicted for another model, for memory pressure or because it is idle. An explicit unload and
yielding memory still end it; after yielding it is loaded again. Driven by Core, pure like it; a hold is stored in the
model's record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.memory.ledger import Holding, Ledger
from accelerd.memory.model import MemoryRequirement
from accelerd.memory.npu_rules import clash, lacking, on_npu
from accelerd.scheduler.admission import Admission
from accelerd.scheduler.events import HoldsDropped
from accelerd.scheduler.eviction import choose
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.placement import (
    SharedLimits,
    excludes,
    fitting,
    why_not_resident,
)
from accelerd.scheduler.record import ELSEWHERE, ModelRecord

MOST_STEPS: Final = 2000  # of the search for places; what is not refuted by then may fit

# Loaded, or loaded again without being asked; one that has failed waits for a reset.
NEEDS_NO_LOAD = (State.STARTING, State.WAKING, State.READY, State.BACKOFF, State.FAILED)


class Holds:
    """The operations on holds."""

    def __init__(self, admission: Admission, find: Callable[[str], ModelRecord]) -> None:
        self._admission = admission
        self._find = find

    def hold(self, name: str, key: str, *, load: bool) -> str:
        """Keep the model where it is, for `key`; with `load` also have it loaded whenever that is possible.

        Its configured name. A second time with the same key says anew whether to load. AccelError model_not_found,
        does_not_fit, pin_conflict: then nothing is held.
        """
        record = self._find(name)
        check_hold(record, self._admission)
        before = record.holds.get(key)
        record.holds[key] = load
        if load:
            record.keep_loaded = True
            coming = record.state in NEEDS_NO_LOAD or record.waiting or record.stuck or record.displaced
            if not coming and not self._admission.closing:
                self._admission.request_load(record, held=True)
        elif before:
            self._let_go(record)
        self._admission.schedule()
        return record.spec.name

    def unhold(self, name: str, key: str) -> bool:
        """Release the hold. False: there was none for this key, or the model was removed."""
        record = self._admission.records.get(name)
        if record is None or key not in record.holds:
            return False
        del record.holds[key]
        self._let_go(record)
        self._admission.schedule()
        return True

    def removed(self, record: ModelRecord, why: str) -> None:
        """The model was removed from the configuration: drop its holds."""
        keys = tuple(record.holds)
        record.holds.clear()
        if keys:
            self._admission.events.publish(HoldsDropped(record.spec.name, keys, why))

    def abandon(self, name: str, why: str) -> bool:
        """Stop a load or a download that no client waits for and nothing keeps. False: there is none such."""
        record = self._admission.records.get(name)
        if record is None or record.waiting or record.keep_loaded or record.unevictable:
            return False
        if record.state is State.DOWNLOADING:
            self._admission.move(record, Event.RESET, why)
        elif record.state is State.STARTING:
            self._admission.stop(record, why)
        else:
            return False
        self._admission.schedule()
        return True

    def _let_go(self, record: ModelRecord) -> None:
        """Undo what only the released hold asked for."""
        record.keep_loaded = record.keep_loaded and record.wants_loaded
        if not (record.keep_loaded or record.unevictable):
            record.displaced = False
        if not record.keep_loaded:
            for waiter in [w for w in record.waiting if w.held]:
                self._admission.remove(record, waiter)


def placement(record: ModelRecord, admission: Admission) -> tuple[bool, str]:
    """Could the model be resident, and what would that take."""
    asking = _asking(record)
    if asking is None:
        return True, ELSEWHERE if record.spec.elsewhere else "it is loaded, or on its way in or out"
    room, others = admission.room, admission.others(record)
    if fitting(asking, others, room) is not None:
        return True, "it fits beside what is loaded now"
    why = why_not_resident(asking, others, room) or ""
    movable = [r for r in others if not r.unevictable]
    choice = choose(asking, [r for r in others if r.unevictable], movable, room, admission.clock.monotonic())
    if choice is None:
        return False, why
    return True, f"{', '.join(v.spec.name for v in choice.victims)} would make room for it: {why}"


def _asking(record: ModelRecord) -> ModelRecord | None:
    """The model as it would ask for room: one that sleeps, awake. None: it has its place."""
    if record.state is State.ASLEEP:
        return record.woken()
    return None if record.occupied else record


def displaced_by(record: ModelRecord, admission: Admission) -> tuple[str, ...]:
    """The models that would have to leave for it now."""
    asking, others = _asking(record), admission.others(record)
    if asking is None or record.spec.elsewhere or fitting(asking, others, admission.room) is not None:
        return ()
    movable, fixed = [r for r in others if not r.unevictable], [r for r in others if r.unevictable]
    choice = choose(asking, fixed, movable, admission.room, admission.clock.monotonic())
    return tuple(victim.spec.name for victim in choice.victims) if choice is not None else ()


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
    records = [record for record in records if not record.spec.elsewhere]
    kinds = Counter(on_npu(record.need) for record in records)  # counted apart, see placement.alike
    if limits.max_loaded is not None and max(kinds.values(), default=0) > limits.max_loaded:
        return False
    if any(excludes(a, b) for i, a in enumerate(records) for b in records[:i]):
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
        return [replace(record.need, amounts=(record.woken() if record.asleep else record).held())]
    least = {need.devices: need for need in record.forecast.options}  # of each place the last: the shortest context
    return list(least.values()) or [record.need]
