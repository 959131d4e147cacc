"""The models, the queue in front of them, and the only code that moves a model from state to state.

Does what Core and Admission decide, and decides nothing itself. Pure like them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.exits import Cause
from accelerd.base.names import TRIAL_SUFFIX
from accelerd.base.ports import Clock
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.instances import Supervisor
from accelerd.memory.model import Forecast, MemoryRequirement, MemorySnapshot
from accelerd.memory.reclaim import Reclaimer
from accelerd.scheduler.events import ModelInUse, ModelLoaded, ModelTransition
from accelerd.scheduler.lifecycle import Event, State, step
from accelerd.scheduler.placement import SharedLimits, YieldedMemory, why_sleepless, with_spare_cache
from accelerd.scheduler.record import ELSEWHERE, Lease, ModelRecord, Residue, Transition, Waiter

CPU: Final = "cpu"
NOTHING: Final = MemoryRequirement({}, "")


class ModelRequirements(Protocol):
    """What models need: estimated, measured, and raised when they ran out of memory."""

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None:
        """It ran out of memory: remember that it needs this much."""
        ...

    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        """Forget what was measured; the estimate alone."""
        ...

    def record_peak(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None:
        """The most, by pool, that a loaded model was measured to use; called after every snapshot."""
        ...

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """Smaller settings with which the model would fit into this much of each pool: one clause, or nothing."""
        ...

    def device(self, spec: ModelSpec) -> str:
        """What the model runs on, by name; CPU is the one that a hanging process does not spoil for others."""
        ...


class Transitions:
    """What there is of models, requests and memory, and what becomes of them."""

    # What it works with, given by Core.attach. No call of theirs may re-enter the scheduler before it returns.
    supervisor: Supervisor
    needs: ModelRequirements
    reclaimer: Reclaimer
    look: Callable[[], bool]  # asks for a memory snapshot soon; False: memory is not measured here

    def __init__(
        self,
        clock: Clock,
        settings: SchedulerSettings,
        limits: SharedLimits,
        events: EventStream,
        rearm: Callable[[], None],
    ) -> None:
        """`rearm` is called when `next_deadline` may have changed."""
        self.clock = clock
        self.settings = settings
        self.limits = limits
        self.events = events
        self._rearm = rearm
        self.closing = False
        self.paused = False  # nothing is served or started; requests wait
        self.records: dict[str, ModelRecord] = {}
        self.instances: dict[int, ModelRecord] = {}
        self.residues: dict[int, Residue] = {}  # by instance
        self.queued = 0  # waiters of all models together
        self.wake = math.inf  # when the queue wants `schedule` called again
        self.view: MemorySnapshot | None = None  # the last memory snapshot
        self.yielded: YieldedMemory | None = None
        self._looking_since: float | None = None
        self._next_instance = 1

    @property
    def lost(self) -> list[Residue]:
        """Memory on the ledger that belongs to no model's life any more."""
        return [residue for residue in self.residues.values() if not residue.waited_for]

    @property
    def room(self) -> SharedLimits:
        """The limits as they are now: with the pools, less what is lost, given up, or held by what cannot be ended."""
        stuck = {r.device: r.spec.name for r in self.records.values() if r.stuck and r.device != CPU}
        pools = self.view.pools if self.view is not None else ()
        if not (stuck or self.residues or pools or self.yielded):
            return self.limits
        return replace(self.limits, lost=tuple(self.lost), quarantined=stuck, pools=pools, yielded=self.yielded)

    def occupied(self) -> list[ModelRecord]:
        """The models that are here, and so in each other's way."""
        return [record for record in self.records.values() if record.occupied and not record.spec.elsewhere]

    def others(self, record: ModelRecord) -> list[ModelRecord]:
        """The same without the model of `record`, which may be a copy of it."""
        return [one for one in self.occupied() if one.spec.name != record.spec.name]

    def enqueue(self, record: ModelRecord, waiter: Waiter) -> None:
        """In the order of arrival; one that has had its turn before is older than the others."""
        at = len(record.waiting)
        while at and record.waiting[at - 1].arrived > waiter.arrived:
            at -= 1
        record.waiting.insert(at, waiter)
        self.queued += 1

    def remove(self, record: ModelRecord, waiter: Waiter) -> bool:
        """Take a waiter out of the queue without resolving it; False if it is not in it."""
        if waiter not in record.waiting:
            return False
        record.waiting.remove(waiter)
        record.left_at = self.clock.monotonic()
        self.queued -= 1
        return True

    def grant(self, record: ModelRecord) -> Lease:
        assert record.instance is not None
        assert record.endpoint is not None
        lease = Lease(record, record.instance, record.endpoint, record.secret, self.clock.monotonic())
        record.active.add(lease)
        record.earned = True
        record.usage.note(lease.progress)
        if len(record.active) == 1:
            self.events.publish(ModelInUse(record.spec, True))
        return lease

    def start(self, record: ModelRecord, need: MemoryRequirement) -> None:
        """Start its process, or wake it up."""
        asked = "a request needs it" if record.waiting and record.waiting[0].wants_lease else "asked to load"
        if record.state is State.ASLEEP:
            assert record.instance is not None
            record.asleep = False
            self.move(record, Event.WAKE, asked)
            self.supervisor.wake(record.instance)
            return
        instance = self._new_instance(record, adopted=False)
        record.need = need = with_spare_cache(record, need, self.records.values(), self.room)
        if need.devices:
            record.device = need.devices[0]
        self.move(record, Event.START, ELSEWHERE if record.spec.elsewhere else asked)
        self.supervisor.start(instance, record.spec, need)
        if not record.spec.elsewhere:
            self.look()  # memory is not measured while no instance lives; from now on it is

    def adopt(self, record: ModelRecord, found: object, cache: int, context: int | None, *, asleep: bool) -> None:
        """`cache`: bytes that its engine was given for its prompt cache."""
        instance = self._new_instance(record, adopted=True)
        record.asleep, record.offloaded = asleep, (record.forecast.asleep or {}) if asleep else {}
        record.need = replace(record.like(context).with_cache(cache), context=context)
        self.move(record, Event.ADOPT, "an earlier accelerd started it")
        self.supervisor.adopt(instance, record.spec, found)
        self.look()

    def _new_instance(self, record: ModelRecord, *, adopted: bool) -> int:
        record.instance = instance = self._next_instance
        self._next_instance += 1
        self.instances[instance] = record
        record.started_at, record.retry_at, record.adopted = self.clock.monotonic(), None, adopted
        record.earned, record.keep = adopted, None
        record.unsure = adopted and record.forecast.provisional
        record.used, record.peak, record.settled = {}, {}, False
        record.offloaded, record.asleep, record.slept_at = {}, False, None
        record.displaced, record.kept_out, record.cut_at = False, False, math.inf
        return instance

    def evict(self, record: ModelRecord, reason: str, *, beside: MemoryRequirement | None = None) -> None:
        """Have it leave its device when its requests have ended. `beside`: it may sleep, if there is room for this
        too."""
        record.sleeps_beside = beside
        self.move(record, Event.DRAIN, reason)
        if not record.active:
            self.rest(record, reason)

    def rest(self, record: ModelRecord, reason: str) -> None:
        """It has drained: put it to sleep, or stop it."""
        assert record.instance is not None
        asked = record.stop_watchers or record.removed or record.next_spec is not None or self.closing
        beside, record.sleeps_beside = record.sleeps_beside, None
        if asked or beside is None or record.forecast.asleep is None:
            self.stop(record, reason)
        elif (why := why_sleepless(record, self.occupied(), self.room, beside)) is not None:
            self.stop(record, f"{reason}; it cannot sleep: {why}")
        else:
            record.offloaded = record.forecast.asleep
            self.move(record, Event.SLEEP, reason)
            self.supervisor.sleep(record.instance)

    def stop(self, record: ModelRecord, reason: str, cause: Cause = Cause.STOPPED) -> None:
        assert record.instance is not None
        self.move(record, Event.STOP, reason)
        record.stop_reason = reason
        if cause is Cause.STOPPED:  # else the engine has failed, or its device: that is what the clients see
            code, why = ("shutting_down", "accelerd is shutting down") if self.closing else ("model_unloaded", reason)
            error = AccelError(code, f"{record.spec.name} was stopped before it had answered: {why}", retry_after=1)
            for lease in record.active:
                if lease.cut is not None:
                    lease.cut(error)
        self.supervisor.stop(record.instance, cause)

    def request_load(self, record: ModelRecord, *, held: bool = False) -> None:
        """Queue a load without a client; evicts other models only if this one is pinned or held. `held`: see Waiter."""
        now = self.clock.monotonic()
        waiter = Waiter(lambda _: None, now, None, wants_lease=False, may_evict=record.unevictable, held=held)
        self.enqueue(record, waiter)

    def reject_all(self, record: ModelRecord, error: AccelError) -> None:
        waiting = list(record.waiting)
        record.waiting.clear()
        self.queued -= len(waiting)
        for waiter in waiting:
            waiter.resolve(error)

    def move(self, record: ModelRecord, event: Event, reason: str) -> None:
        before, now = record.state, self.clock.monotonic()
        record.state = step(before, event)
        record.since = record.since if record.state is before else now
        record.reason = reason
        transition = Transition(now, before, record.state, reason, event)
        record.history.append(transition)
        if record.state is not State.DOWNLOADING:
            record.download = None
        if record.state is not State.FAILED:
            record.download_error = None
        if record.state is not State.BACKOFF:
            record.waited_out = False
        spec, retry = record.spec, record.retry_at is not None
        self.events.publish(ModelTransition(spec, transition, record.instance, record.error, retry))
        loaded = before is State.STARTING and record.state is State.READY
        if loaded and not record.adopted and not spec.name.endswith(TRIAL_SUFFIX):
            self.events.publish(ModelLoaded(spec, record.need, now - record.started_at))
