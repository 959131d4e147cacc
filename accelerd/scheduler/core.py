"""The one writer of all lifecycle state: pure, synchronous, driven by requests, by events of instances and by a clock.

The entry point for everything that reaches the scheduler: requests, commands, configurations, reports of instances,
time. What follows for the queue and the state changes is Admission's, which it owns. Never does I/O, never waits,
imports neither gateway nor bus nor devices. What follows is calls of what `attach` connects, and published events.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Collection, Iterable

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.exits import Cause, Exit
from accelerd.base.names import ANY
from accelerd.base.ports import Clock
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.engines.base import Endpoint
from accelerd.instances import Supervisor
from accelerd.memory.model import Forecast, MemoryRequirement, MemorySnapshot
from accelerd.memory.npu_rules import first_device
from accelerd.memory.reclaim import Reclaimer
from accelerd.scheduler.admission import Admission
from accelerd.scheduler.configuration import Configuration
from accelerd.scheduler.device_events import DeviceEvents
from accelerd.scheduler.events import ModelInUse, ModelsConfigured
from accelerd.scheduler.exit_handling import STUCK_AFTER, ExitHandling
from accelerd.scheduler.file_gate import FileGate
from accelerd.scheduler.holds import Holds, displaced_by, placement
from accelerd.scheduler.idleness import Idleness
from accelerd.scheduler.lifecycle import WARM, Event, State
from accelerd.scheduler.memory_events import MemoryEvents
from accelerd.scheduler.placement import SharedLimits, fitting, with_spare_cache
from accelerd.scheduler.quiet import disturbed
from accelerd.scheduler.record import ELSEWHERE, Lease, ModelRecord, Residue, Snapshot, StopWatcher, Waiter, snapshot
from accelerd.scheduler.transitions import ModelRequirements

BAD_OUTCOMES_BEFORE_PROBE = 3
ALIVE = frozenset({State.STARTING, State.READY, State.DRAINING, *WARM})
PROGRESS_WINDOW = 30.0  # s: an engine that sent something this lately is busy, not hung


class Core:
    """The scheduler without its event loop. All methods run on one thread; times are `clock.monotonic()` seconds."""

    def __init__(
        self,
        clock: Clock,
        settings: SchedulerSettings,
        limits: SharedLimits,
        events: EventStream,
        *,
        stuck_after: float = STUCK_AFTER,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`stuck_after`: seconds of killing until nobody counts on an end any more."""
        self._clock = clock
        self._events = events
        self._admission = Admission(clock, settings, limits, events, self._rearm)
        self._names: dict[str, ModelRecord] = {}  # names and aliases
        self.devices = DeviceEvents(self._admission, self._find, self.reset)
        self.memory = MemoryEvents(self._admission, self._names)
        self.holds = Holds(self._admission, self._configured)
        self.files = FileGate(self._admission)
        self._idleness = Idleness(self._admission)
        self._configuration = Configuration(self._admission, self._names, self.holds, self.memory)
        self._exits = ExitHandling(self._admission, self._configuration.over, stuck_after, jitter)

    def attach(
        self, supervisor: Supervisor, needs: ModelRequirements, look: Callable[[], bool], reclaimer: Reclaimer
    ) -> None:
        """Connect what runs processes and what knows models and memory; before the first request.

        `look()` asks for a memory snapshot soon. False: memory is not measured here.
        """
        admission = self._admission
        admission.supervisor, admission.needs, admission.look, admission.reclaimer = supervisor, needs, look, reclaimer
        self._events.subscribe(MemorySnapshot, self.memory.seen)
        self._events.subscribe(MemorySnapshot, self._idleness.seen)

    def _rearm(self) -> None:
        """`next_deadline` may have changed."""

    # --- requests -----------------------------------------------------------------------------------------------

    def acquire(self, name: str) -> Lease | None:
        """The fast path: a lease when the model is ready, has a free slot and nobody waits for anything."""
        record = self._names.get(name)
        if (
            record is None
            or self._admission.queued
            or self._admission.paused
            or record.state is not State.READY
            or record.probing
            or len(record.active) >= record.spec.slots
            or disturbed(record, self._admission.records)
        ):
            return None
        return self._admission.grant(record)

    def submit(self, name: str, waiter: Waiter) -> None:
        """Queue a request or a load. Resolves it at once, with an AccelError, when waiting is pointless."""
        error = self._refusal(name, waiter)
        if error is not None:
            waiter.resolve(error)
            return
        self._admission.enqueue(self._names[name], waiter)
        self._admission.schedule()

    def cancel(self, name: str, waiter: Waiter) -> None:
        """The client has disconnected. A load that has begun goes on, for the next request, until another model wants
        its place."""
        record = self._names.get(name)
        if record is not None and self._admission.remove(record, waiter):
            self._admission.schedule()

    def release(self, lease: Lease, ok: bool | None) -> None:
        """The request has ended. `ok`: did the engine do its work? None: unknown (the client disconnected or made the
        error)."""
        record = lease.record
        if lease not in record.active:
            return  # the instance ended first
        record.active.discard(lease)
        if not record.active:
            record.last_used, record.keep = self._clock.monotonic(), lease.keep
            self._events.publish(ModelInUse(record.spec, False))
        if ok is True:
            record.bad_outcomes = 0
        elif ok is False:
            self._bad_outcome(record)
        # While other requests use the model, this frees neither a slot that is waited for nor any memory.
        if record.state is not State.READY or record.waiting or (self._admission.queued and not record.active):
            self._admission.schedule()

    def _refusal(self, name: str, waiter: Waiter) -> AccelError | None:
        if self._admission.closing:
            return AccelError("shutting_down", "accelerd is shutting down", retry_after=5)
        record = self._names.get(name)
        if record is None or record.removed:
            close = difflib.get_close_matches(name, [one for one in self._names if ANY not in one], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; see GET /v1/models"
            return AccelError("model_not_found", f"there is no model {name!r}{hint}", param="model")
        now = self._clock.monotonic()
        if record.stuck:
            return self._exits.stuck_error(record)
        waits_out = record.waited_out and waiter.arrived < record.since and not waiter.moves_on
        failed = record.state in (State.BACKOFF, State.FAILED) and not self._admission.startable(record, now)
        if failed and not waits_out:
            return self._exits.failure(record, now)
        if waiter.wants_lease and self._admission.queued >= self._admission.settings.max_queue:
            return AccelError(
                "queue_full",
                f"{self._admission.queued} requests wait already (scheduler.max_queue)",
                retry_after=self._patience(),
            )
        return None

    def _patience(self) -> float:
        return min(30.0, max(1.0, self._admission.settings.max_overtake / 4))

    def doubt(self, lease: Lease) -> None:
        """Its engine has hung up: nobody else is sent there before it is known whether it lives."""
        record = lease.record
        if record.instance == lease.instance and record.state is State.READY:
            self._probe(record)

    def _bad_outcome(self, record: ModelRecord) -> None:
        record.bad_outcomes += 1
        if record.bad_outcomes >= BAD_OUTCOMES_BEFORE_PROBE and record.state is State.READY:
            self._probe(record)

    def _probe(self, record: ModelRecord) -> None:
        assert record.instance is not None
        if not (record.probing or record.spec.elsewhere):  # what a server elsewhere loads for it is not ours to ask for
            record.probing = True
            self._admission.supervisor.probe(record.instance)

    # --- commands -----------------------------------------------------------------------------------------------

    def reset(self, name: str, *, memory: bool = False) -> None:
        """Forget the failures of a model; with `memory` also that it needs more than estimated. AccelError."""
        record = self._find(name)
        record.failures.clear()
        record.unhealthy.clear()
        record.out_of_memory.clear()
        if memory and not record.occupied:
            record.expect(self._admission.needs.estimate_anew(record.spec))
        record.keep_loaded = record.wants_loaded
        if record.state in (State.BACKOFF, State.FAILED):
            record.retry_at = record.error = None
            self._admission.move(record, Event.RESET, "reset")
            self._admission.schedule()

    def begin_unload(
        self,
        name: str,
        *,
        force: bool,
        done: Callable[[], None],
        failed: Callable[[AccelError], None] = lambda _: None,
    ) -> None:
        """Let running requests end (unless `force`), then stop. `done` is called when it is stopped, or `failed` when
        it cannot be."""
        record = self._find(name)
        record.keep_loaded = record.displaced = record.kept_out = False
        self._admission.reject_all(
            record, AccelError("model_unloaded", f"{record.spec.name} was unloaded", retry_after=1)
        )
        if not record.occupied:
            if record.state is not State.STOPPED:
                record.retry_at = None
                self._admission.move(record, Event.RESET, "unloaded")
            done()
            return
        if record.stuck:
            failed(self._exits.stuck_error(record))
            return
        record.stop_watchers.append(StopWatcher(done, failed))
        if record.state in (ALIVE if force else ALIVE - {State.READY, State.DRAINING}):
            self._admission.stop(record, "unloaded")
        elif record.state is State.READY:
            self._admission.move(record, Event.DRAIN, "unloaded")
        self._admission.schedule()

    def configure(
        self,
        entries: Iterable[tuple[ModelSpec, Forecast]],
        settings: SchedulerSettings,
        limits: SharedLimits,
        relaunch: Collection[str] = (),
    ) -> None:
        """Take over a new configuration: every model, with what it will need.

        Models whose process does not depend on what changed go on untouched; the others, and those that `relaunch`
        names, drain and are replaced.
        """
        self._configuration.apply(entries, settings, limits, relaunch)
        self._admission.schedule()
        self._events.publish(ModelsConfigured())

    def adopt(
        self, name: str, found: object, *, fits: bool, cache: int = 0, context: int | None = None, asleep: bool = False
    ) -> bool:
        """Take over what an earlier daemon started: `found` is for the supervisor. False: the model has another life.

        `cache`: bytes that it has for its prompt cache. `context`: its tokens, where the setting leaves that open.
        `asleep`: its weights are in main memory.

        Its memory is on the ledger from now on. One that would be started differently now (not `fits`) is replaced; one
        that no longer has room is stopped, as soon as a forecast that is not provisional says so.
        """
        record = self._admission.records.get(name)
        if record is None or record.state is not State.STOPPED:
            return False
        self._admission.adopt(record, found, cache, context, asleep=asleep)
        ended = not record.unsure and self.memory.end_without_room(record)
        if not fits and not ended:
            record.next_spec, record.next_forecast = record.spec, record.forecast
        self._admission.schedule()
        return True

    def shutdown(self, *, keep: bool = False) -> int:
        """No more leases: refuse everybody who waits, stop what is only loading unless `keep`. Requests go on.

        Returned: how many requests were refused.
        """
        self._admission.closing = True
        records = self._admission.records.values()
        refused = sum(waiter.wants_lease for record in records for waiter in record.waiting)
        for record in self._admission.records.values():
            self._admission.reject_all(record, AccelError("shutting_down", "accelerd is shutting down", retry_after=5))
            if record.state is State.STARTING and not keep:
                self._admission.stop(record, "shutting down")
        return refused

    def begin_stop_all(self) -> None:
        """Stop every instance, the youngest first, whatever it is doing."""
        alive = [r for r in self._admission.records.values() if r.state in ALIVE]
        for record in sorted(alive, key=lambda r: r.started_at, reverse=True):
            self._admission.stop(record, "shutting down")

    # --- reports of instances -----------------------------------------------------------------------------------

    def instance_ready(self, instance: int, endpoint: Endpoint, secret: str) -> None:
        record = self._admission.instances[instance]
        if record.state is not State.STARTING:
            return  # it is being stopped
        now = self._clock.monotonic()
        record.endpoint, record.secret, record.last_used = endpoint, secret, now
        record.bad_outcomes, record.probing, record.error = 0, False, None
        if not record.adopted:
            record.load_seconds = now - record.started_at
        if record.usage.last is None:
            record.usage.note(now)  # it would not be loaded if it were not wanted
        how = f"{'taken over' if record.adopted else 'loaded'} in {now - record.started_at:.1f} s"
        event, more = (Event.SLEPT, ", asleep") if record.asleep else (Event.LOADED, "")
        self._admission.move(record, event, ELSEWHERE if record.spec.elsewhere else how + more)
        self._admission.schedule()

    def instance_killing(self, instance: int) -> None:
        record = self._admission.instances[instance]
        if record.state in (State.READY, State.DRAINING) or record.state in WARM:
            self._admission.move(record, Event.KILL, "exited, but left processes that do not end")
        elif record.state in (State.STARTING, State.STOPPING):
            self._admission.move(record, Event.KILL, "did not end after SIGTERM")
        self._admission.schedule()

    def instance_probed(self, instance: int, ok: bool) -> None:
        """The result of `probe`. A model that fails it while no request makes progress is stopped."""
        record = self._admission.instances.get(instance)
        if record is None or not record.probing:
            return
        record.probing = False
        record.bad_outcomes = 0
        now = self._clock.monotonic()
        busy = any(now - lease.progress < PROGRESS_WINDOW for lease in record.active)
        if not ok and not busy and record.state in (State.READY, State.DRAINING):
            self._admission.stop(record, "answers health checks but no requests", Cause.UNHEALTHY)
        self._admission.schedule()

    def instance_asleep(self, instance: int, trouble: str) -> None:
        self._idleness.asleep(instance, trouble)

    def instance_awake(self, instance: int, trouble: str) -> None:
        self._idleness.awake(instance, trouble)

    def instance_gone(self, instance: int, exit: Exit) -> None:
        self._exits.gone(instance, exit)
        self._admission.schedule()

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what has become due: queue deadlines, back-off, idle models, the bound on overtaking."""
        now = self._clock.monotonic()
        self._exits.tick(now)
        self.memory.tick(now)
        for record in self._admission.records.values():
            for waiter in self._late(record, now):
                self._admission.remove(record, waiter)
                limit = self._admission.settings.queue_timeout
                text = f"{record.spec.name} was not free in {limit:.0f} s (scheduler.queue_timeout)"
                waiter.resolve(AccelError("queue_timeout", text, retry_after=self._patience()))
            if record.state is State.KILLING and not record.stuck and record.since + self._exits.stuck_after <= now:
                self._exits.stuck(record)
            elif record.state is State.BACKOFF and record.retry_at is not None and record.retry_at <= now:
                if record.waiting:
                    continue  # it has its chance in `schedule`
                record.retry_at = None
                self._admission.move(record, Event.RESET, "may be tried again")
                if record.keep_loaded and not self._admission.closing:
                    # Refused while memory is yielded: then it is displaced, and loaded again later.
                    self._admission.request_load(record)
        self._idleness.tick(now)
        self._admission.schedule()

    def _late(self, record: ModelRecord, now: float) -> list[Waiter]:
        """Those who have waited for too long. Nobody has while the files are downloaded."""
        if record.state is State.DOWNLOADING:
            return []
        return [waiter for waiter in record.waiting if waiter.deadline is not None and waiter.deadline <= now]

    def next_deadline(self) -> float:
        """When `tick` should be called next, math.inf for never."""
        due = min(self._admission.wake, self._exits.deadline(), self.memory.deadline(), self._idleness.deadline())
        for record in self._admission.records.values():
            for waiter in record.waiting:
                if waiter.deadline is not None and record.state is not State.DOWNLOADING:
                    due = min(due, waiter.deadline)
            if record.state is State.BACKOFF and record.retry_at is not None and not record.waiting:
                due = min(due, record.retry_at)  # else `schedule` decides by its own reading of the clock
            if record.state is State.KILLING and not record.stuck:
                due = min(due, record.since + self._exits.stuck_after)
        return due

    # --- readers ------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> ModelRecord:
        record = self._names.get(name)
        if record is None:
            raise AccelError("model_not_found", f"there is no model {name!r}", param="model")
        return record

    def _configured(self, name: str) -> ModelRecord:
        record = self._find(name)
        if record.removed:
            raise AccelError("model_not_found", f"{name} {record.spec.removal}", param="model")
        return record

    def snapshot(self, name: str) -> Snapshot:
        """One model by name or alias. AccelError model_not_found."""
        return snapshot(self._find(name), self._clock.monotonic(), self.residues)

    def snapshots(self) -> list[Snapshot]:
        now = self._clock.monotonic()
        return [snapshot(record, now, self.residues) for record in self._admission.records.values()]

    def alone(self, name: str) -> bool:
        """Is the model loaded with a free slot, and no other at work? Quick."""
        record = self._names.get(name)
        if record is None or record.state is not State.READY or record.waiting or record.leases >= record.spec.slots:
            return False
        others = self._admission.records.values()
        return all(one is record for one in others if one.active or one.waiting)

    def placed(self, name: str) -> str:
        """The first device that a model was placed on, a GPU before an NPU; "": on none, or that was not decided."""
        record = self._names.get(name)
        return first_device(record.need) if record is not None else ""

    def placement(self, name: str) -> tuple[bool, str]:
        """Could the model be resident, and what would that take?"""
        return placement(self._find(name), self._admission)

    def displaced_by(self, name: str) -> tuple[str, ...]:
        """The models that would have to leave for it now."""
        return displaced_by(self._find(name), self._admission)

    def would_need(self, name: str) -> MemoryRequirement:
        """What it has; of a model that is not loaded, what it would get if it were started now."""
        record, admission = self._find(name), self._admission
        if record.occupied:
            return record.need
        room = admission.room
        need = fitting(record, admission.occupied(), room) or record.need
        return with_spare_cache(record, need, admission.records.values(), room)

    @property
    def settings(self) -> SchedulerSettings:
        return self._admission.settings

    @property
    def limits(self) -> SharedLimits:
        return self._admission.limits

    @property
    def residues(self) -> tuple[Residue, ...]:
        """Memory of ended models that is not back."""
        return tuple(self._admission.residues.values())

    @property
    def queued(self) -> int:
        return self._admission.queued

    def memory_held(self) -> int:
        """Bytes reserved by models that have, or may have, a process."""
        occupied = sum(sum(r.held().values()) for r in self._admission.occupied())
        return occupied + sum(residue.size for residue in self._admission.lost)
