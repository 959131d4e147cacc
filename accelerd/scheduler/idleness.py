"""Models without requests: after their idle_timeout they leave their device, asleep if they can sleep, else stopped.

A model is asleep when its engine says so and the memory of its device is seen to be back; if that does not come, it is
stopped, and one that does not wake up is started anew. Driven by Core, pure like it.
"""

from __future__ import annotations

import math
from typing import Final

from accelerd.base.sizes import human_size
from accelerd.memory.model import RAM, MemorySnapshot
from accelerd.scheduler.admission import Admission
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.record import ModelRecord
from accelerd.scheduler.transitions import NOTHING

SLEEP_PATIENCE: Final = 10.0  # s until the memory of the device must be back
LOOK_AGAIN: Final = 0.25  # s between looks whether it is
KEPT: Final = 2  # more than one part in so many of it is not back: then the sleep is worth nothing


class Idleness:
    """Reacts to time, to memory snapshots and to what instances report of sleep."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._looked_at = -math.inf

    def asleep(self, instance: int, trouble: str) -> None:
        """See Listener.instance_asleep."""
        record = self._admission.instances.get(instance)
        if record is None or record.state is not State.OFFLOADING:
            return
        record.slept_at = self._looked_at = self._admission.clock.monotonic()
        if trouble:
            self._admission.stop(record, f"{record.reason}; it does not go to sleep: {trouble}")
        elif not self._admission.look():
            self._slept(record)  # nobody can see whether its memory is back
        self._admission.schedule()

    def awake(self, instance: int, trouble: str) -> None:
        """See Listener.instance_awake. Requests wait on for a new start of one that does not wake up."""
        record = self._admission.instances.get(instance)
        if record is None or record.state is not State.WAKING:
            return
        now = self._admission.clock.monotonic()
        if trouble:
            self._admission.stop(record, f"it does not wake up: {trouble}")
        else:
            record.offloaded, record.last_used, record.bad_outcomes = {}, now, 0
            self._admission.move(record, Event.LOADED, f"awake in {now - record.since:.1f} s")
        self._admission.schedule()

    def seen(self, seen: MemorySnapshot) -> None:
        """Memory was measured."""
        for record in self._admission.records.values():
            if record.slept_at is not None and seen.at >= record.slept_at and record.state is State.OFFLOADING:
                left, had = self._on_device(record)
                if left * KEPT <= had:
                    self._slept(record)
        self._admission.schedule()

    def tick(self, now: float) -> None:
        for record in self._admission.records.values():
            if self._due(record) > now:
                continue
            if record.state is State.READY:
                self._admission.evict(record, _why(record), beside=NOTHING)
            elif record.state is State.ASLEEP:
                self._admission.stop(record, f"asleep for {now - record.since:.0f} s")
            elif record.slept_at is not None and now < record.slept_at + SLEEP_PATIENCE:
                self._looked_at = now
                self._admission.look()
            else:
                left, _ = self._on_device(record)
                text = f"asleep, but {human_size(left)} of its device's memory did not come back"
                self._admission.stop(record, f"{record.reason}; {text}" if left else record.reason)

    def deadline(self) -> float:
        """When `tick` is due."""
        return min(map(self._due, self._admission.records.values()), default=math.inf)

    def _due(self, record: ModelRecord) -> float:
        if record.state is State.OFFLOADING and record.slept_at is not None:
            return min(record.slept_at + SLEEP_PATIENCE, self._looked_at + LOOK_AGAIN)
        if record.active or record.waiting or record.unevictable or record.spec.elsewhere:
            return math.inf
        if record.state is State.READY and (limit := record.idle_timeout) is not None:
            return record.last_used + limit
        if record.state is State.ASLEEP and record.spec.sleep_timeout is not None:
            return record.since + record.spec.sleep_timeout
        return math.inf

    def _slept(self, record: ModelRecord) -> None:
        record.asleep, record.slept_at = True, None
        self._admission.move(record, Event.SLEPT, f"asleep: {record.reason}")

    def _on_device(self, record: ModelRecord) -> tuple[int, int]:
        """Bytes that it was seen to have of devices, and that are reserved for it there."""
        left = sum(size for pool, size in record.used.items() if pool != RAM)
        return left, sum(size for pool, size in record.held().items() if pool != RAM)


def _why(record: ModelRecord) -> str:
    by_client = record.idle_timeout != record.spec.idle_timeout
    return f"idle for {record.idle_timeout:.0f} s" + (", as its client asked (keep_alive)" if by_client else "")
