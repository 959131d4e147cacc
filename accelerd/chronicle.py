"""What happens to models, told: journal events with fields, the service manager's status line, remembered load times.

Hears every transition from the scheduler; decides nothing. Prompts and secrets never come near it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from accelerd import names
from accelerd.config.model import ModelSpec
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import gib
from accelerd.scheduler.record import Record, Snapshot, Transition
from accelerd.system.notify import Notifier
from accelerd.system.records import event

log = logging.getLogger(__name__)

ALIVE = frozenset({State.STARTING, State.READY, State.DRAINING})


def status_line(snapshots: list[Snapshot], held: int) -> str:
    """One line that a person understands, for `systemctl status`. `held` in bytes."""
    if not snapshots:
        return "no models are configured; try: accelctl add FILE.gguf"
    ready = [s.spec.name for s in snapshots if s.state is State.READY]
    parts = [f"{len(ready)} of {len(snapshots)} models loaded" + (f": {', '.join(ready)}" if ready else "")]
    for state in (State.STARTING, State.BACKOFF, State.FAILED):
        found = [s.spec.name for s in snapshots if s.state is state]
        if found:
            parts.append(f"{state}: {', '.join(found)}")
    if held:
        parts.append(f"{gib(held)} reserved")
    return "; ".join(parts)


class Chronicle:
    """See the module's text."""

    def __init__(
        self,
        notifier: Notifier,
        *,
        status: Callable[[], str],
        loaded: Callable[[ModelSpec, float], None],
        retire: Callable[[int], None],
    ) -> None:
        """`loaded(spec, seconds)` hears of finished loads, `retire(instance)` of instances on their way out."""
        self._notifier = notifier
        self._status = status
        self._loaded = loaded
        self._retire = retire
        self._due = False

    def moved(self, record: Record, transition: Transition) -> None:
        """A model changed its state."""
        spec, before, after = record.spec, transition.before, transition.after
        if record.instance is not None and after not in ALIVE:
            self._retire(record.instance)
        if after is State.READY:
            self._loaded(spec, transition.at - record.started_at)
        level, message_id = logging.INFO, names.MSG_STATE_CHANGED
        if after in (State.BACKOFF, State.FAILED):
            level, message_id = logging.ERROR, names.MSG_LOAD_FAILED
        elif before is State.READY and after is State.STOPPED:
            level, message_id = logging.WARNING, names.MSG_CHILD_DIED
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
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._tell_status)

    def engine_line(self, model: str, line: str) -> None:
        """A line that an engine printed."""
        event(log, logging.INFO, line, model=model, stream="engine")

    def _tell_status(self) -> None:
        self._due = False
        self._notifier.status(self._status())
