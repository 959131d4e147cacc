"""What happens to models when their device disappears, comes back, is reset, or was suspended.

Driven by Core, pure like it. Knows no devices: which model runs on which is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from accelerd.base.exits import Cause
from accelerd.scheduler.admission import Admission
from accelerd.scheduler.lifecycle import WARM, State
from accelerd.scheduler.record import ModelRecord, StopWatcher


class DeviceEvents:
    """The scheduler's reactions to devices."""

    def __init__(self, admission: Admission, find: Callable[[str], ModelRecord], reset: Callable[[str], None]) -> None:
        self._admission = admission
        self._find = find
        self._reset = reset

    def pause(self, paused: bool) -> None:
        """The machine is about to be suspended, or serves again. Meanwhile requests wait; those that run go on."""
        self._admission.paused = paused
        self._admission.schedule()

    def slept(self) -> None:
        """The machine was suspended: whether a device lost its memory shows only in use."""
        for name in self._admission.records:
            self.suspect(name)

    def suspect(self, name: str) -> None:
        """The memory of a ready model may be lost: probe it before it serves further requests."""
        record = self._find(name)
        if record.state is State.READY and not (record.probing or record.spec.elsewhere):
            assert record.instance is not None
            record.probing = True
            self._admission.supervisor.probe(record.instance, thorough=True)

    def lost(self, name: str, cause: Cause, why: str) -> None:
        """The model's device disappeared or was reset: stop the model and its requests now. `cause` decides what
        follows."""
        record = self._find(name)
        if record.state in (State.STARTING, State.READY, State.DRAINING) or record.state in WARM:
            self._admission.stop(record, why, cause)
            self._admission.schedule()

    def back(self, name: str) -> None:
        """The model's device is back. A model that failed for another reason stays failed."""
        record = self._find(name)
        if record.state in (State.STOPPING, State.KILLING, State.RECLAIMING):
            # It may end in FAILED. A stuck one stays stuck.
            record.stop_watchers.append(StopWatcher(lambda: self.back(name), lambda error: None))
        elif record.state is State.FAILED and record.error and record.error.cause is Cause.DEVICE_REMOVED:
            self._reset(name)
            if record.keep_loaded and not self._admission.closing:
                self._admission.request_load(record)
                self._admission.schedule()
