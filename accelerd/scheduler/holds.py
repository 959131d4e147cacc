"""Holds keep a model loaded for a client; also ends loads that no client waits for any more.

A held model is not evicted for another model, for memory pressure or because it is idle. An explicit unload and
yielding memory still end it; after yielding it is loaded again. Driven by Core, pure like it; a hold is stored in the
model's record.
"""

from __future__ import annotations

from collections.abc import Callable

from accelerd.scheduler.admission import Admission
from accelerd.scheduler.events import HoldsDropped
from accelerd.scheduler.feasibility import check_hold
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import ModelRecord

# Loaded, or loaded again without being asked; one that has failed waits for a reset.
NEEDS_NO_LOAD = (State.STARTING, State.READY, State.BACKOFF, State.FAILED)


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
        """Stop a load that no client waits for and nothing keeps. False: it is needed, or the model is not loading."""
        record = self._admission.records.get(name)
        if record is None or record.state is not State.STARTING or record.waiting or record.keep_loaded or record.holds:
            return False
        self._admission.stop(record, why)
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
