"""The line that `systemctl status` shows: how many models are loaded, what loads or failed, memory reserved."""

from __future__ import annotations

import asyncio

from accelerd.base.events import EventStream
from accelerd.base.sizes import human_size
from accelerd.scheduler.events import ModelTransition
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler
from accelerd.system.sd_notify import Notifier


def status_line(snapshots: list[Snapshot], held: int) -> str:
    """One line for people. `held`: bytes reserved."""
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


class StatusLine:
    """Tells the service manager after transitions, once for those of one turn of the event loop."""

    def __init__(self, notifier: Notifier, scheduler: Scheduler, events: EventStream) -> None:
        self._notifier = notifier
        self._scheduler = scheduler
        self._due = False
        events.subscribe(ModelTransition, self.on_transition)

    def text(self) -> str:
        return status_line(self._scheduler.snapshots(), self._scheduler.memory_held())

    def on_transition(self, event: ModelTransition) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._due = False
        self._notifier.status(self.text())
