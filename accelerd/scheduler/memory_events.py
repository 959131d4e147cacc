"""What the scheduler does about memory: snapshots, better forecasts, pressure, and yielding the GPU to other programs.

Driven by Core, pure like it. A model that is to be kept loaded but had to leave is loaded again once the memory has
been free for a while.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec.structs import replace

from accelerd.memory.ledger import Ledger
from accelerd.memory.model import RAM, Forecast, MemorySnapshot
from accelerd.scheduler.admission import FRESH, Admission
from accelerd.scheduler.lifecycle import LEAVING, WARM, State
from accelerd.scheduler.placement import YieldedMemory, fitting, why_not_resident
from accelerd.scheduler.record import ModelRecord
from accelerd.scheduler.transitions import NOTHING

YIELD_GRACE = 10.0  # s that running requests still get when memory is yielded
LOOK_EVERY = 5.0  # s between snapshots while a displaced model waits for room


class MemoryEvents:
    """Reacts to what is learned about memory; changes only what Admission owns."""

    def __init__(self, admission: Admission, names: Mapping[str, ModelRecord]) -> None:
        self._admission = admission
        self._names = names
        self._calm_from = -math.inf  # the last time that memory had to be freed
        self._looked_at = -math.inf
        self._retry_at = math.inf  # when models that were kept out are tried again

    def forecast(self, name: str, forecast: Forecast) -> None:
        """A better estimate of what a model needs. One that is loaded keeps its reservation, unless it was a guess."""
        record = self._names.get(name)
        if record is None:
            return
        if record.next_spec is not None:
            record.next_forecast = forecast
        if record.need.raised:  # it stays: what a run has shown
            record.forecast = replace(record.forecast, provisional=forecast.provisional)
        else:
            if not record.occupied:
                record.device = self._admission.needs.device(record.spec)
            record.expect(forecast)
        if record.unsure and not forecast.provisional:
            record.unsure = False
            record.redeclared()
            self.end_without_room(record)
        if record.kept_out:
            self.room_may_be_there()
        self._admission.schedule()

    def end_without_room(self, record: ModelRecord) -> bool:
        """End a model that an earlier daemon started and that no longer has room, when its requests have ended.

        What other programs seem to use includes its process: only accelerd's models count here.
        """
        admission = self._admission
        others = [one for one in admission.occupied() if one is not record]
        need = replace(record.need, amounts=record.held()) if record.asleep else None
        why = why_not_resident(record, others, admission.room.undisturbed(), need)
        if why is None or record.state not in (State.STARTING, State.READY):
            return False
        (admission.stop if record.state is State.STARTING else admission.evict)(record, f"no longer fits: {why}")
        return True

    def seen(self, seen: MemorySnapshot) -> None:
        """Memory was measured."""
        self._admission.on_memory_snapshot(seen)
        for instance, used in seen.used.items():
            record = self._admission.instances.get(instance)
            if record is not None:
                record.used = used
                if record.offloaded:
                    continue  # what it has now is not what it needs
                pools = {*used, *record.peak}
                record.peak = {pool: max(used.get(pool, 0), record.peak.get(pool, 0)) for pool in pools}
                record.settled |= record.state is State.READY and seen.at >= record.since
        self._bring_back()
        self._admission.schedule()
        for record in self._admission.records.values():
            if record.state is State.READY and record.settled:
                self._admission.needs.record_peak(record.spec, record.need, record.peak)

    def ledger(self) -> Ledger:
        """What is held in each pool now."""
        return self._admission.room.ledger(self._admission.occupied())

    # --- pressure -----------------------------------------------------------------------------------------------

    def make_room(self, pool: str, size: int, why: str, *, busy: bool) -> int:
        """Have models leave a pool until `size` bytes of it come back: idle ones, the largest first.

        `busy`: then also those that work, when their requests have ended. Pinned and held ones stay. Returned: bytes
        that will come back.
        """
        admission = self._admission
        ledger = admission.room.ledger(admission.occupied())
        self._calm_from = admission.clock.monotonic()

        def gain(record: ModelRecord) -> int:
            return ledger.counted(record.used or record.held(), pool)  # what was only reserved does not come back

        coming = sum(gain(r) for r in admission.occupied() if r.state in LEAVING and not (pool == RAM and r.offloaded))
        ready = [r for r in admission.records.values() if r.displaceable and not r.unevictable and gain(r) > 0]
        idle = [r for r in ready if not r.active and not r.waiting]
        working = [r for r in ready if r not in idle] if busy else []
        for record in (*sorted(idle, key=gain, reverse=True), *sorted(working, key=gain, reverse=True)):
            if coming >= size:
                break
            coming += gain(record)
            record.displaced = record.keep_loaded
            if record.state is State.ASLEEP:
                admission.stop(record, why)
            else:
                admission.evict(record, why, beside=None if pool == RAM else NOTHING)
        admission.schedule()
        return coming

    # --- yielding -----------------------------------------------------------------------------------------------

    def yield_memory(self, pools: frozenset[str] | None, until: float | None, why: str, *, now: bool) -> None:
        """Give up these pools (None: all) and start nothing there until then. Requests may end, unless `now`."""
        admission, time = self._admission, self._admission.clock.monotonic()
        admission.yielded = wanted = YieldedMemory(pools, until, why)
        for record in list(admission.records.values()):
            if not record.occupied or not _holds(record, wanted):
                continue
            record.displaced = record.keep_loaded or bool(record.holds)
            alive = record.state in (State.READY, State.DRAINING)
            if record.state is State.STARTING or record.state in WARM or (now and alive):
                admission.stop(record, why)
            elif record.state is State.READY:
                record.cut_at = time + YIELD_GRACE
                admission.evict(record, why)
            elif record.state is State.DRAINING:
                record.sleeps_beside = None
                record.cut_at = min(record.cut_at, time + YIELD_GRACE)
        admission.schedule()

    def resume(self) -> None:
        """End yielding."""
        self._admission.yielded = None
        self._calm_from = -math.inf
        self._bring_back()
        self._admission.schedule()

    @property
    def yielded(self) -> YieldedMemory | None:
        return self._admission.yielded

    def room_may_be_there(self) -> None:
        """A model has left, or limits or needs are others: what was kept out is tried again."""
        admission = self._admission
        if any(record.kept_out for record in admission.records.values()):
            self._retry_at = max(admission.clock.monotonic(), self._calm_from + admission.settings.cool_down)

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        yielded = self._admission.yielded
        if yielded is not None and yielded.until is not None and yielded.until <= now:
            self.resume()
        for record in self._admission.records.values():
            if record.cut_at <= now and record.state is State.DRAINING:
                self._admission.stop(record, f"{record.reason}; its requests were cut after {YIELD_GRACE:.0f} s")
        if self._look_due() <= now:
            self._looked_at, self._retry_at = now, math.inf
            self._admission.look()
            self._bring_back()

    def deadline(self) -> float:
        """When `tick` is due."""
        yielded = self._admission.yielded
        due = yielded.until if yielded is not None and yielded.until is not None else math.inf
        for record in self._admission.records.values():
            if record.state is State.DRAINING:
                due = min(due, record.cut_at)
        return min(due, self._look_due())

    def _displaced(self) -> list[ModelRecord]:
        return [
            r
            for r in self._admission.records.values()
            if r.displaced and r.state in (State.STOPPED, State.ASLEEP) and not r.waiting
        ]

    def _look_due(self) -> float:
        """When memory is to be looked at for displaced models; math.inf for none."""
        if all(record.kept_out for record in self._displaced()):
            return self._retry_at
        return max(self._looked_at + LOOK_EVERY, self._calm_from + self._admission.settings.cool_down)

    def _bring_back(self) -> None:
        """Load displaced models that fit without evicting any other."""
        admission, now = self._admission, self._admission.clock.monotonic()
        if admission.closing or self._calm_from + admission.settings.cool_down > now:
            return
        if admission.view is not None and now - admission.view.at > FRESH:
            return  # a fresh snapshot was asked for
        for record in self._displaced():
            asking = record.woken() if record.state is State.ASLEEP else record
            if fitting(asking, admission.others(record), admission.room) is not None:
                record.displaced = False
                admission.request_load(record, held=True)


def _holds(record: ModelRecord, wanted: YieldedMemory) -> bool:
    if record.spec.elsewhere:
        return False
    if record.asleep:
        return any(size > 0 and (wanted.pools is None or pool in wanted.pools) for pool, size in record.held().items())
    return wanted.covers(record.need) or any(
        size > 0 and pool != RAM and pool in (wanted.pools or ()) for pool, size in record.peak.items()
    )
