"""What becomes of models when what they run on goes, comes back, or may have lost what they had on it.

Driven by Core, pure like it. Knows no devices: which model is on which is found out elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from accelerd.base.exits import Cause
from accelerd.scheduler.admission import Admission
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import ModelRecord, StopWatcher


class DeviceEvents:
    """See the module's text."""

    def __init__(self, admission: Admission, find: Callable[[str], ModelRecord], reset: Callable[[str], None]) -> None:
        self._admission = admission
        self._find = find
        self._reset = reset

    def pause(self, paused: bool) -> None:
        """The machine is about to be suspended, or serves again. Meanwhile requests wait; those that run go on."""
        self._admission.paused = paused
        self._admission.schedule()

    def slept(self) -> None:
        """The machine was suspended: what a device has lost meanwhile shows only in use."""
        for name in self._admission.records:
            self.suspect(name)

    def suspect(self, name: str) -> None:
        """What a ready model has on its device may be lost: it is asked before it serves anybody else."""
        record = self._find(name)
        if record.state is State.READY and not record.probing:
            assert record.instance is not None
            record.probing = True
            self._admission.effects.probe(record.instance)

    def lost(self, name: str, cause: Cause, why: str) -> None:
        """What the model runs on has gone or was reset: end it now, its requests with it. `cause` says what follows."""
        record = self._find(name)
        if record.state in (State.STARTING, State.READY, State.DRAINING):
            self._admission.stop(record, why, cause)
            self._admission.schedule()

    def back(self, name: str) -> None:
        """What the model ran on is there again. Nothing happens to one that failed for another reason."""
        record = self._find(name)
        if record.state in (State.STOPPING, State.KILLING, State.RECLAIMING):
            # It may be on its way to FAILED. One that is stuck gets no second life by this.
            record.stop_watchers.append(StopWatcher(lambda: self.back(name), lambda error: None))
        elif record.state is State.FAILED and record.error and record.error.cause is Cause.DEVICE_REMOVED:
            self._reset(name)
            if record.keep_loaded and not self._admission.closing:
                self._admission.request_load(record)
                self._admission.schedule()
