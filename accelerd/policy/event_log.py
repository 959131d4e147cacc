"""The event log: what happens to models, written to the journal with fields and message ids. Decides nothing.

Prompts and secrets never reach it.
"""

from __future__ import annotations

import logging

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.base.exits import Cause
from accelerd.base.sizes import human_size
from accelerd.scheduler.events import MemoryNotReturned, ModelTransition, SystemResumed
from accelerd.scheduler.lifecycle import Event, State
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)


class EventLog:
    """Subscribes to what the scheduler publishes."""

    def __init__(self, events: EventStream) -> None:
        events.subscribe(ModelTransition, self.on_transition)
        events.subscribe(MemoryNotReturned, self.on_memory_not_returned)
        events.subscribe(SystemResumed, self.on_system_resumed)

    def on_transition(self, moved: ModelTransition) -> None:
        name, transition = moved.spec.name, moved.transition
        level, message_id = _severity(moved)
        event(
            log,
            level,
            f"{name}: {transition.before} → {transition.after}: {transition.reason}",
            message_id=message_id,
            model=name,
            state_from=transition.before,
            state_to=transition.after,
            reason=transition.reason,
        )

    def on_memory_not_returned(self, lost: MemoryNotReturned) -> None:
        residue = lost.residue
        size = human_size(residue.size)
        text = f"{residue.model} has ended, but {size} of {residue.where} were not freed: they stay reserved"
        event(log, logging.WARNING, text, message_id=names.MSG_RESIDUE, model=residue.model)

    def on_system_resumed(self, resumed: SystemResumed) -> None:
        text = f"the machine was suspended for {resumed.seconds:.0f} s: loaded models are checked before they serve"
        event(log, NOTICE, text)

    def engine_line(self, model: str, line: str, unit: str | None = None) -> None:
        """A line that an engine printed; in the journal it belongs to the engine's own `unit`, where it has one."""
        event(log, logging.INFO, line, model=model, stream="engine", USER_UNIT=unit)


def _severity(moved: ModelTransition) -> tuple[int, str]:
    """Log level and message id of a transition."""
    transition, error = moved.transition, moved.error
    before, after = transition.before, transition.after
    killed = error is not None and error.cause is Cause.OOM_KILLED
    if transition.event is Event.OUT_OF_MEMORY or (transition.event is Event.GIVE_UP and killed):
        return logging.ERROR, names.MSG_OUT_OF_MEMORY
    if transition.event is Event.STUCK:
        return logging.ERROR, names.MSG_STUCK
    if after in (State.BACKOFF, State.FAILED):
        return logging.ERROR, names.MSG_LOAD_FAILED
    if before is State.READY and after is State.STOPPED and error is not None:
        return logging.WARNING, names.MSG_CHILD_DIED
    if transition.event is Event.ADOPT:
        return NOTICE, names.MSG_ADOPTED
    return logging.INFO, names.MSG_STATE_CHANGED
