"""What systemd shows of models: what happens to them, in the journal with fields and message ids, and a line of status.
Decides nothing.

Prompts and secrets never reach it.
"""

from __future__ import annotations

import asyncio
import logging

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.base.exits import Cause
from accelerd.base.sizes import human_size
from accelerd.scheduler.events import MemoryNotReturned, ModelTransition, SystemResumed
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler
from accelerd.system.records import NOTICE, event
from accelerd.system.sd_notify import Notifier

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

    def engine_line(self, model: str, line: str, level: int, unit: str | None = None) -> None:
        """A line that an engine printed; in the journal it belongs to the engine's own `unit`, where it has one."""
        event(log, level, line, model=model, stream="engine", USER_UNIT=unit)


WORTH_SAYING = (
    State.DOWNLOADING, State.STARTING, State.WAKING, State.ASLEEP, State.RECLAIMING, State.BACKOFF, State.FAILED,
)  # fmt: skip


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
    if before in (State.READY, State.ASLEEP, State.WAKING) and after is State.STOPPED and error is not None:
        return logging.WARNING, names.MSG_CHILD_DIED
    if transition.event is Event.ADOPT:
        return NOTICE, names.MSG_ADOPTED
    return logging.INFO, names.MSG_STATE_CHANGED


def status_line(snapshots: list[Snapshot], held: int) -> str:
    """One line for people. `held`: bytes reserved."""
    if not snapshots:
        return "no models are configured; try: accelctl add FILE.gguf"
    own = [s for s in snapshots if not s.spec.elsewhere]
    ready = [s.spec.name for s in own if s.state is State.READY]
    parts = [f"{len(ready)} of {len(own)} models loaded" + (f": {', '.join(ready)}" if ready else "")] if own else []
    if far := [s.spec.name for s in snapshots if s.spec.elsewhere and s.state is State.READY]:
        parts.append(f"elsewhere: {', '.join(far)}")
    for state in WORTH_SAYING:
        found = [s.spec.name for s in snapshots if s.state is state]
        if found:
            parts.append(f"{state}: {', '.join(found)}")
    if held:
        parts.append(f"{human_size(held)} reserved")
    return "; ".join(parts)


class StatusLine:
    """Tells the service manager after transitions, once for those of one turn of the event loop."""

    def __init__(self, notifier: Notifier, scheduler: Scheduler, events: EventStream) -> None:
        self._notifier = notifier
        self._scheduler = scheduler
        self._due = False
        self.first = ""  # what has to be known first, as a clause: the configuration on disk is not in use
        events.subscribe(ModelTransition, self.on_transition)

    def text(self) -> str:
        models = status_line(self._scheduler.snapshots(), self._scheduler.memory_held())
        return f"{self.first}; {models}" if self.first else models

    def on_transition(self, event: ModelTransition) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._due = False
        self._notifier.status(self.text())
