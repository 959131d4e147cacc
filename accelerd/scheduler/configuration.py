"""What a configuration changes of the models that there are: new ones, others, none. Pure, driven by Core.

A model whose process depends on what changed is replaced when its requests have ended; until then it is outdated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.memory.model import Forecast
from accelerd.scheduler.admission import Admission
from accelerd.scheduler.holds import Holds
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.memory_events import MemoryEvents
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.record import ModelRecord


class Configuration:
    """Owns which records there are, and by which names."""

    def __init__(self, admission: Admission, names: dict[str, ModelRecord], holds: Holds, memory: MemoryEvents) -> None:
        """`names`: names and aliases, kept up to date here."""
        self._admission = admission
        self._names = names
        self._holds = holds
        self._memory = memory

    def apply(
        self,
        entries: Iterable[tuple[ModelSpec, Forecast]],
        settings: SchedulerSettings,
        limits: SharedLimits,
        relaunch: Collection[str],
    ) -> None:
        """See Core.configure."""
        self._admission.settings, self._admission.limits = settings, limits
        now = self._admission.clock.monotonic()
        gone = set(self._admission.records)
        for spec, forecast in entries:
            gone.discard(spec.name)
            record = self._admission.records.get(spec.name)
            if record is None:
                keep = spec.preload or spec.pin
                record = ModelRecord(
                    spec, forecast, since=now, keep_loaded=keep, device=self._admission.needs.device(spec)
                )
                self._admission.records[spec.name] = record
                if spec.elsewhere:
                    self._admission.request_load(record)
                continue
            record.removed = False
            changed = spec.name in relaunch or record.spec.launch_key() != spec.launch_key()
            if record.occupied and changed:
                record.next_spec, record.next_forecast = spec, forecast
            else:
                record.next_spec = None
                self._adopt_spec(record, spec, forecast, changed=changed)
        for name in gone:
            record = self._admission.records[name]
            record.removed = True
            self._holds.removed(record, f"it {record.spec.removal}")
            self._admission.reject_all(record, AccelError("model_not_found", f"{name} {record.spec.removal}"))
            if not record.occupied:
                del self._admission.records[name]
        self._names.clear()
        self._names.update({n: r for r in self._admission.records.values() for n in (r.spec.name, *r.spec.aliases)})
        self._memory.room_may_be_there()

    def over(self, record: ModelRecord, unloaded: bool) -> None:
        """An instance has ended."""
        self._memory.room_may_be_there()
        if record.removed:
            self._forget(record)
        elif record.next_spec is not None:
            self._replace(record, reload=not (unloaded or self._admission.closing))

    def _forget(self, record: ModelRecord) -> None:
        del self._admission.records[record.spec.name]
        for name in (record.spec.name, *record.spec.aliases):
            if self._names.get(name) is record:
                del self._names[name]

    def _replace(self, record: ModelRecord, *, reload: bool) -> None:
        assert record.next_spec is not None
        assert record.next_forecast is not None
        spec, forecast = record.next_spec, record.next_forecast
        record.next_spec = record.next_forecast = None
        self._adopt_spec(record, spec, forecast, changed=True)
        if reload and not record.waiting:
            self._admission.request_load(record)

    def _adopt_spec(self, record: ModelRecord, spec: ModelSpec, forecast: Forecast, *, changed: bool) -> None:
        """`changed`: what its process is started with, so that earlier failures say nothing of the next start."""
        if record.state is State.DOWNLOADING and (record.spec.model != spec.model or not forecast.missing):
            self._admission.move(record, Event.RESET, "configuration changed")
        redeclared = record.spec.memory != spec.memory
        record.spec = spec
        if not record.occupied:
            record.device = self._admission.needs.device(spec)
        record.expect(forecast)
        if redeclared:
            record.redeclared()
        record.keep_loaded = record.wants_loaded
        if changed and record.state in (State.BACKOFF, State.FAILED):
            record.failures.clear()
            record.unhealthy.clear()
            record.out_of_memory.clear()
            record.retry_at = record.error = None
            self._admission.move(record, Event.RESET, "configuration changed")
