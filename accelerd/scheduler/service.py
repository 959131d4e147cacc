"""The scheduler on the event loop: futures for those who wait, one timer for what becomes due, effects carried out.

Owns Core and is the only one to call it; hears the instances as their Listener. Decides nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.exits import Cause, Exit
from accelerd.base.names import TRIAL_SUFFIX
from accelerd.base.ports import Clock
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.engines.base import Endpoint
from accelerd.instances import Supervisor
from accelerd.memory.ledger import Ledger
from accelerd.memory.model import Forecast, MemoryRequirement, MemorySnapshot
from accelerd.scheduler import events as published
from accelerd.scheduler.core import Core
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits, YieldedMemory
from accelerd.scheduler.ports import InstantReclaim, ModelRequirements, Reclaim, ReclaimWatch
from accelerd.scheduler.record import Lease, ModelRecord, Residue, Snapshot, Transition, Waiter
from accelerd.scheduler.ticket import Ticket

log = logging.getLogger(__name__)

SLEPT = 1.0  # s of suspension that count as a sleep of the machine


class Scheduler:
    """Leases of ready models. A lease is got by `acquire` (at once or None) or `wait`, and ended by `release`."""

    def __init__(
        self,
        clock: Clock,
        settings: SchedulerSettings,
        limits: SharedLimits,
        events: EventStream,
        *,
        asleep: Callable[[], float] = lambda: 0.0,
        stuck_after: float = STUCK_AFTER,
    ) -> None:
        """`asleep()`: seconds that this machine was suspended, since whenever. `stuck_after`: see Core."""
        self._clock = clock
        self._core = Core(clock, self, settings, limits, stuck_after)
        self._events = events
        self._core.holds.dropped = self.holds_dropped
        self._reclaim: Reclaim = InstantReclaim()
        self._watches: dict[int, ReclaimWatch] = {}
        self._asleep = asleep
        self._slept = asleep()
        self._loop = asyncio.get_running_loop()
        self._supervisor: Supervisor | None = None
        self._needs: ModelRequirements | None = None
        self._look: Callable[[], bool] = lambda: False
        self._timer: asyncio.TimerHandle | None = None
        self._armed = math.inf
        self._all_gone: asyncio.Future[None] | None = None

    def attach(
        self,
        supervisor: Supervisor,
        needs: ModelRequirements,
        look: Callable[[], bool] = lambda: False,
        reclaim: Reclaim | None = None,
    ) -> None:
        """Connect what runs processes and what knows the models' requirements; before the first request.

        `look()` asks for a memory snapshot soon; `on_memory_snapshot` follows. False: memory is not measured here.
        """
        self._supervisor, self._needs, self._look = supervisor, needs, look
        self._reclaim = reclaim or self._reclaim
        self._events.subscribe(MemorySnapshot, self.on_memory_snapshot)

    # --- requests -----------------------------------------------------------------------------------------------

    def acquire(self, name: str) -> Lease | None:
        """A lease if one is free right now and nobody waits, else None: then `wait`."""
        self._notice_sleep()
        return self._core.acquire(name)

    def enqueue(self, name: str) -> Ticket:
        """Take a place in the queue. AccelError at once when waiting is pointless."""
        self._notice_sleep()
        ticket = Ticket(self._loop.create_future(), partial(self._core.cancel, name), self.release)
        deadline = self._clock.monotonic() + self._core.settings.queue_timeout
        ticket.waiter = Waiter(ticket.resolve, self._clock.monotonic(), deadline)
        self._core.submit(name, ticket.waiter)
        self._rearm()
        return ticket

    async def wait(self, name: str) -> Lease:
        """A lease as soon as it is this request's turn. AccelError when it never will be; leaves when cancelled."""
        ticket = self.enqueue(name)
        try:
            return await ticket.lease()
        finally:
            ticket.leave()

    def release(self, lease: Lease, ok: bool | None) -> None:
        """End a lease. `ok`: the engine did its work, failed, or (None) it cannot be said."""
        core = self._core
        core.release(lease, ok)
        record = lease.record
        if core.queued or not record.active:
            timeout = record.spec.idle_timeout
            if core.queued or (timeout is not None and record.last_used + timeout < self._armed):
                self._rearm()

    # --- commands -----------------------------------------------------------------------------------------------

    async def load(self, name: str, *, evict: bool = True, reset: bool = True) -> None:
        """Have the model ready, forgetting earlier failures if `reset`. AccelError when it cannot be."""
        if reset:
            self._core.reset(name)
        future: asyncio.Future[Lease | AccelError | None] = self._loop.create_future()
        waiter = Waiter(
            lambda outcome: None if future.done() else future.set_result(outcome),
            self._clock.monotonic(),
            None,
            wants_lease=False,
            may_evict=evict,
        )
        self._core.submit(name, waiter)
        self._rearm()
        try:
            outcome = await future
        finally:
            self._core.cancel(name, waiter)
        if isinstance(outcome, AccelError):
            raise outcome

    async def unload(self, name: str, *, force: bool = False) -> None:
        """Stop the model and wait until it is proven gone. AccelError model_stuck when it cannot be ended."""
        future: asyncio.Future[AccelError | None] = self._loop.create_future()

        def over(error: AccelError | None = None) -> None:
            if not future.done():
                future.set_result(error)

        self._core.unload(name, force=force, done=over, failed=over)
        self._rearm()
        error = await future
        if error is not None:
            raise error

    def reset(self, name: str) -> None:
        """Forget the failures of a model, and that it needs more memory than estimated."""
        self._core.reset(name, memory=True)
        self._rearm()

    def device_lost(self, name: str, cause: Cause, why: str) -> None:
        """See DeviceEvents.lost."""
        self._core.devices.lost(name, cause, why)
        self._rearm()

    def device_back(self, name: str) -> None:
        """See DeviceEvents.back."""
        self._core.devices.back(name)
        self._rearm()

    def suspect(self, name: str) -> None:
        """See DeviceEvents.suspect."""
        self._core.devices.suspect(name)

    def pause(self, paused: bool) -> None:
        """See DeviceEvents.pause. After a suspension every model is probed before it serves again."""
        if not paused:
            self._notice_sleep()
        self._core.devices.pause(paused)
        self._rearm()

    # --- holds, see Holds ---------------------------------------------------------------------------------------

    def hold(self, name: str, key: str, *, load: bool) -> str:
        held = self._core.holds.hold(name, key, load=load)
        self._rearm()
        return held

    def unhold(self, name: str, key: str) -> bool:
        found = self._core.holds.unhold(name, key)
        self._rearm()
        return found

    def abandon(self, name: str, why: str) -> bool:
        stopped = self._core.holds.abandon(name, why)
        self._rearm()
        return stopped

    # --- memory, see MemoryEvents -------------------------------------------------------------------------------

    def on_memory_snapshot(self, snapshot: MemorySnapshot) -> None:
        memory = self._core.memory
        memory.seen(snapshot)
        if self._needs is not None:
            for record in memory.measured():
                self._needs.record_peak(record.spec, record.need, record.peak)
        self._rearm()

    def forecast(self, name: str, forecast: Forecast) -> None:
        self._core.memory.forecast(name, forecast)
        self._rearm()

    def make_room(self, pool: str, size: int, why: str, *, busy: bool) -> int:
        coming = self._core.memory.make_room(pool, size, why, busy=busy)
        self._rearm()
        return coming

    def yield_memory(self, pools: frozenset[str] | None, until: float | None, why: str, *, now: bool) -> None:
        self._core.memory.yield_memory(pools, until, why, now=now)
        self._rearm()

    def resume(self) -> None:
        self._core.memory.resume()
        self._rearm()

    @property
    def yielded(self) -> YieldedMemory | None:
        return self._core.memory.yielded

    def ledger(self) -> Ledger:
        return self._core.memory.ledger()

    def placed(self, name: str) -> str:
        """See Core.placed. Cheap."""
        return self._core.placed(name)

    def memory_moves(self) -> bool:
        """Is a model being loaded, or is the memory of one waited for?"""
        return any(s.state in (State.STARTING, State.RECLAIMING) for s in self._core.snapshots())

    # --- models of others ---------------------------------------------------------------------------------------

    def adopt(self, name: str, found: object, *, fits: bool) -> bool:
        """Take over what an earlier daemon started, see Core.adopt."""
        adopted = self._core.adopt(name, found, fits=fits)
        self._rearm()
        return adopted

    def configure(
        self,
        entries: Iterable[tuple[ModelSpec, Forecast]],
        settings: SchedulerSettings,
        limits: SharedLimits,
        relaunch: Collection[str] = (),
    ) -> None:
        """See Core.configure."""
        self._core.configure(entries, settings, limits, relaunch)
        self._events.publish(published.ModelsConfigured())
        self._rearm()

    def shutdown(self, *, keep: bool = False) -> None:
        """Refuse waiting and new requests; running ones go on. Models that are still loading are stopped unless
        `keep`."""
        self._core.shutdown(keep=keep)
        self._rearm()

    async def stop_all(self) -> None:
        """Stop every instance, the youngest first, and return when all are proven gone."""
        self._core.stop_all()
        if self._core.live_instances:
            self._all_gone = self._loop.create_future()
            await self._all_gone

    def close(self) -> None:
        """After the last instance."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for watch in self._watches.values():
            watch.cancel()
        self._watches.clear()

    # --- Listener -----------------------------------------------------------------------------------------------

    def instance_ready(self, instance: int, endpoint: Endpoint, secret: str) -> None:
        self._core.instance_ready(instance, endpoint, secret)
        self._rearm()

    def instance_killing(self, instance: int) -> None:
        self._core.instance_killing(instance)
        self._rearm()

    def instance_probed(self, instance: int, ok: bool) -> None:
        self._core.instance_probed(instance, ok)
        self._rearm()

    def instance_gone(self, instance: int, exit: Exit) -> None:
        self._core.instance_gone(instance, exit)
        if self._all_gone is not None and not self._core.live_instances and not self._all_gone.done():
            self._all_gone.set_result(None)
        self._rearm()

    # --- Effects ------------------------------------------------------------------------------------------------

    def start(self, instance: int, spec: ModelSpec, need: MemoryRequirement) -> None:
        assert self._supervisor is not None
        self._supervisor.start(instance, spec, need.devices)
        self._look()  # memory is not measured while no instance lives; from now on it is

    def stop(self, instance: int, cause: Cause) -> None:
        assert self._supervisor is not None
        self._supervisor.stop(instance, cause)

    def probe(self, instance: int) -> None:
        assert self._supervisor is not None
        self._supervisor.probe(instance)

    def adopt_found(self, instance: int, spec: ModelSpec, found: object) -> None:
        assert self._supervisor is not None
        self._supervisor.adopt(instance, spec, found)
        self._look()

    def reclaim(self, instance: int, spec: ModelSpec, held: Mapping[str, int]) -> bool:
        def changed(size: int, where: str) -> None:
            if size <= 0:
                self._watches.pop(instance, None)
            self._core.memory_residue(instance, size, where)
            self._rearm()

        watch = self._reclaim.watch(instance, spec.name, held, changed)
        if watch is not None:
            self._watches[instance] = watch
        return watch is not None

    def look(self) -> bool:
        return self._look()

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        assert self._needs is not None
        return self._needs.suggest_smaller(spec, room)

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None:
        assert self._needs is not None
        self._needs.raise_requirement(spec, need)

    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        assert self._needs is not None
        return self._needs.estimate_anew(spec)

    def device(self, spec: ModelSpec) -> str:
        assert self._needs is not None
        return self._needs.device(spec)

    def moved(self, record: ModelRecord, transition: Transition) -> None:
        spec, retry = record.spec, record.retry_at is not None
        self._events.publish(published.ModelTransition(spec, transition, record.instance, record.error, retry))
        if transition.after is State.READY and not record.adopted and not spec.name.endswith(TRIAL_SUFFIX):
            self._events.publish(published.ModelLoaded(spec, record.need, transition.at - record.started_at))

    def lost(self, residue: Residue) -> None:
        self._events.publish(published.MemoryNotReturned(residue))

    def in_use(self, spec: ModelSpec, busy: bool) -> None:
        self._events.publish(published.ModelInUse(spec, busy))

    def holds_dropped(self, model: str, keys: tuple[str, ...], reason: str) -> None:
        self._events.publish(published.HoldsDropped(model, keys, reason))

    def jitter(self) -> float:
        return random.random()

    # --- time ---------------------------------------------------------------------------------------------------

    def _rearm(self) -> None:
        due = self._core.next_deadline()
        if due == self._armed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = due
        if due < math.inf:
            self._timer = self._loop.call_later(max(0.0, due - self._clock.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer, self._armed = None, math.inf
        self._notice_sleep()
        self._core.tick()
        self._rearm()

    def _notice_sleep(self) -> None:
        """Was the machine suspended since the last call? Then every model is probed before it serves again."""
        slept = self._asleep() - self._slept
        if slept > SLEPT:
            self._slept += slept
            self._events.publish(published.SystemResumed(slept))
            self._core.devices.slept()

    # --- readers ------------------------------------------------------------------------------------------------

    def snapshot(self, name: str) -> Snapshot:
        return self._core.snapshot(name)

    def snapshots(self) -> list[Snapshot]:
        return self._core.snapshots()

    @property
    def queued(self) -> int:
        return self._core.queued

    @property
    def settings(self) -> SchedulerSettings:
        return self._core.settings

    @property
    def limits(self) -> SharedLimits:
        return self._core.limits

    @property
    def residues(self) -> tuple[Residue, ...]:
        """Memory of ended models that is not back."""
        return self._core.residues

    def memory_held(self) -> int:
        return self._core.memory_held()

    def busy(self) -> bool:
        """Does any request hold a lease?"""
        return any(s.leases for s in self._core.snapshots())

    def is_alive(self) -> bool:
        """For the watchdog: is what is due being done? False when the timer is long overdue."""
        return self._armed == math.inf or self._clock.monotonic() - self._armed < 10.0

    def placement(self, name: str) -> tuple[bool, str]:
        """Could the model be resident, and what would that take."""
        return self._core.placement(name)
