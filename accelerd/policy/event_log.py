"""What happens to models, told: journal events with fields, the service manager's status line, remembered load times.

Hears every transition from the scheduler; decides nothing. Prompts and secrets never come near it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from accelerd.base import names
from accelerd.base.exits import Cause
from accelerd.base.sizes import human_size
from accelerd.config.model import ModelSpec
from accelerd.memory.model import MemoryRequirement
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.ports import Witness
from accelerd.scheduler.record import Record, Residue, Snapshot, Transition
from accelerd.system.notify import Notifier
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

ALIVE = frozenset({State.STARTING, State.READY, State.DRAINING})


def status_line(snapshots: list[Snapshot], held: int) -> str:
    """One line that a person understands, for `systemctl status`. `held` in bytes."""
    if not snapshots:
        return "no models are configured; try: accelctl add FILE.gguf"
    ready = [s.spec.name for s in snapshots if s.state is State.READY]
    parts = [f"{len(ready)} of {len(snapshots)} models loaded" + (f": {', '.join(ready)}" if ready else "")]
    for state in (State.STARTING, State.RECLAIMING, State.BACKOFF, State.FAILED):
        found = [s.spec.name for s in snapshots if s.state is state]
        if found:
            parts.append(f"{state}: {', '.join(found)}")
    if held:
        parts.append(f"{human_size(held)} reserved")
    return "; ".join(parts)


class Witnesses(Witness):
    """The chronicle, and after it whoever else shows what becomes of models: there need not be one."""

    def __init__(self, first: Witness, second: Callable[[], Witness | None]) -> None:
        self._first = first
        self._second = second

    def moved(self, record: Record, transition: Transition) -> None:
        self._first.moved(record, transition)
        if (second := self._second()) is not None:
            second.moved(record, transition)

    def lost(self, residue: Residue) -> None:
        self._first.lost(residue)
        if (second := self._second()) is not None:
            second.lost(residue)

    def woken(self, slept: float) -> None:
        self._first.woken(slept)
        if (second := self._second()) is not None:
            second.woken(slept)

    def in_use(self, spec: ModelSpec, busy: bool) -> None:
        self._first.in_use(spec, busy)
        if (second := self._second()) is not None:
            second.in_use(spec, busy)


class EventLog(Witness):
    """See the module's text."""

    def __init__(
        self,
        notifier: Notifier,
        *,
        status: Callable[[], str],
        loaded: Callable[[ModelSpec, MemoryRequirement, float], None],
        retire: Callable[[int], None],
        in_use: Callable[[ModelSpec, bool], None],
        moved: Callable[[Record, Transition], None],
        lost: Callable[[Residue], None],
    ) -> None:
        """`loaded(spec, need, seconds)` hears of finished loads, `retire(instance)` of instances on their way out.

        `in_use(spec, busy)` hears of a model's first lease and of the end of its last, `moved` and `lost` of the rest.
        """
        self._notifier = notifier
        self._status = status
        self._loaded = loaded
        self._retire = retire
        self._in_use = in_use
        self._moved = moved
        self._lost = lost
        self._due = False

    def moved(self, record: Record, transition: Transition) -> None:
        """A model changed its state."""
        spec, before, after = record.spec, transition.before, transition.after
        if record.instance is not None and after not in ALIVE:
            self._retire(record.instance)
        if after is State.READY and not record.adopted and not spec.name.endswith(names.TRIAL_SUFFIX):
            self._loaded(spec, record.need, transition.at - record.started_at)
        level, message_id = _weight(record, transition)
        event(
            log,
            level,
            f"{spec.name}: {before} → {after}: {transition.reason}",
            message_id=message_id,
            model=spec.name,
            state_from=before,
            state_to=after,
            reason=transition.reason,
        )
        self._moved(record, transition)
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._tell_status)

    def lost(self, residue: Residue) -> None:
        """Memory of an ended model does not come back."""
        lost = f"{human_size(residue.size)} of {residue.where}"
        text = f"{residue.model} has ended, but {lost} are not back: they stay counted"
        event(log, logging.WARNING, text, message_id=names.MSG_RESIDUE, model=residue.model)
        self._lost(residue)

    def woken(self, slept: float) -> None:
        """The machine was suspended for so many seconds."""
        event(log, NOTICE, f"the machine was suspended for {slept:.0f} s: loaded models are asked before they serve")

    def in_use(self, spec: ModelSpec, busy: bool) -> None:
        """Requests use the model, or none does any more."""
        self._in_use(spec, busy)

    def engine_line(self, model: str, line: str, unit: str | None = None) -> None:
        """A line that an engine printed; in the journal it belongs to its own `unit`, where it has one."""
        event(log, logging.INFO, line, model=model, stream="engine", USER_UNIT=unit)

    def _tell_status(self) -> None:
        self._due = False
        self._notifier.status(self._status())


def _weight(record: Record, transition: Transition) -> tuple[int, str]:
    """Log level and message id of a move."""
    before, after = transition.before, transition.after
    killed = record.error is not None and record.error.cause is Cause.OOM_KILLED
    if transition.event is Event.OUT_OF_MEMORY or (transition.event is Event.GIVE_UP and killed):
        return logging.ERROR, names.MSG_OUT_OF_MEMORY
    if transition.event is Event.STUCK:
        return logging.ERROR, names.MSG_STUCK
    if after in (State.BACKOFF, State.FAILED):
        return logging.ERROR, names.MSG_LOAD_FAILED
    if before is State.READY and after is State.STOPPED and record.error is not None:
        return logging.WARNING, names.MSG_CHILD_DIED
    if transition.event is Event.ADOPT:
        return NOTICE, names.MSG_ADOPTED
    return logging.INFO, names.MSG_STATE_CHANGED
