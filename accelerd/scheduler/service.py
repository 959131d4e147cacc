"""The scheduler on the event loop: Core with futures for those who wait and one timer for what becomes due.

Decides nothing itself; is what the instances report to as their Listener.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from functools import partial

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.exits import Exit
from accelerd.base.ports import Clock
from accelerd.config.model import SchedulerSettings
from accelerd.scheduler.core import Core
from accelerd.scheduler.events import SystemResumed
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.record import Lease, Snapshot, Waiter, snapshot

SLEPT = 1.0  # s of suspension that count as a sleep of the machine


class Ticket:
    """A place in the queue. `leave` must be called when the wait is over, however it ended."""

    __slots__ = ("_future", "_leave", "_release", "_taken", "waiter")

    def __init__(
        self,
        future: asyncio.Future[Lease | AccelError],
        leave: Callable[[Waiter], None],
        release: Callable[[Lease, bool | None], None],
    ) -> None:
        """`leave` takes the waiter out of the queue, `release` ends a lease that nobody took."""
        self._future = future
        self._leave = leave
        self._release = release
        self._taken = False
        self.waiter: Waiter

    def resolve(self, outcome: Lease | AccelError | None) -> None:
        assert outcome is not None
        if not self._future.done():
            self._future.set_result(outcome)
        elif isinstance(outcome, Lease):  # whoever waited was cancelled in the same turn of the loop
            asyncio.get_running_loop().call_soon(self._release, outcome, None)

    async def ready(self, within: float) -> bool:
        """Wait at most `within` seconds; has the place come up?"""
        await asyncio.wait((self._future,), timeout=within)
        return self._future.done()

    async def lease(self) -> Lease:
        """The lease, when it is its turn. AccelError if it was refused."""
        outcome = await asyncio.shield(self._future) if not self._future.done() else self._future.result()
        self._taken = True
        if isinstance(outcome, AccelError):
            raise outcome.bare()
        return outcome

    def leave(self) -> None:
        """Give up the place, or a lease that nobody took."""
        if self._taken:
            return
        if not self._future.done():
            self._leave(self.waiter)
            self._future.cancel()
            return
        outcome = self._future.result()
        if isinstance(outcome, Lease):
            self._release(outcome, None)


class Scheduler(Core):
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
        super().__init__(clock, settings, limits, events, stuck_after=stuck_after)
        self._asleep = asleep
        self._slept = asleep()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._armed = math.inf
        self._all_gone: asyncio.Future[None] | None = None

    # --- requests -----------------------------------------------------------------------------------------------

    def acquire(self, name: str) -> Lease | None:
        """A lease if one is free right now and nobody waits, else None: then `wait`."""
        self._notice_sleep()
        return super().acquire(name)

    def enqueue(self, name: str, arrived: float | None = None, *, moves_on: bool = False) -> Ticket:
        """Take a place in the queue. AccelError at once when waiting is pointless.

        `arrived`: when the request came, where that is not now; the limit on waiting counts from now. `moves_on`: see
        Waiter.
        """
        self._notice_sleep()
        ticket = Ticket(self._loop.create_future(), partial(self.cancel, name), self.release)
        now = self._clock.monotonic()
        since, deadline = now if arrived is None else arrived, now + self.settings.queue_timeout
        ticket.waiter = Waiter(ticket.resolve, since, deadline, moves_on=moves_on)
        self.submit(name, ticket.waiter)
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
        super().release(lease, ok)
        record = lease.record
        timeout = None if record.spec.elsewhere else record.idle_timeout
        if not record.active and timeout is not None and record.last_used + timeout < self._armed:
            self._rearm()

    def at_work_or(self, names: Collection[str]) -> list[Snapshot]:
        """The models of these names, and all that have requests."""
        now, records = self._clock.monotonic(), self._admission.records.values()
        wanted = [record for record in records if record.active or record.waiting or record.spec.name in names]
        return [snapshot(record, now, self.residues) for record in wanted]

    # --- commands -----------------------------------------------------------------------------------------------

    async def load(self, name: str, *, evict: bool = True, reset: bool = True) -> None:
        """Have the model ready, forgetting earlier failures if `reset`. AccelError when it cannot be."""
        if reset:
            self.reset(name)
        future: asyncio.Future[Lease | AccelError | None] = self._loop.create_future()
        waiter = Waiter(
            lambda outcome: None if future.done() else future.set_result(outcome),
            self._clock.monotonic(),
            None,
            wants_lease=False,
            may_evict=evict,
        )
        self.submit(name, waiter)
        try:
            outcome = await future
        finally:
            self.cancel(name, waiter)
        if isinstance(outcome, AccelError):
            raise outcome

    async def unload(self, name: str, *, force: bool = False) -> None:
        """Stop the model and wait until it is proven gone. AccelError model_stuck when it cannot be ended."""
        future: asyncio.Future[AccelError | None] = self._loop.create_future()

        def over(error: AccelError | None = None) -> None:
            if not future.done():
                future.set_result(error)

        self.begin_unload(name, force=force, done=over, failed=over)
        error = await future
        if error is not None:
            raise error

    def pause(self, paused: bool) -> None:
        """See DeviceEvents.pause. After a suspension every model is probed before it serves again."""
        if not paused:
            self._notice_sleep()
        self.devices.pause(paused)

    async def stop_all(self) -> None:
        """Stop every instance, the youngest first, and return when all are proven gone."""
        self.begin_stop_all()
        if self._admission.instances:
            self._all_gone = self._loop.create_future()
            await self._all_gone

    def instance_gone(self, instance: int, exit: Exit) -> None:
        super().instance_gone(instance, exit)
        if self._all_gone is not None and not self._admission.instances and not self._all_gone.done():
            self._all_gone.set_result(None)

    def close(self) -> None:
        """After the last instance."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._exits.close()

    # --- time ---------------------------------------------------------------------------------------------------

    def _rearm(self) -> None:
        due = self.next_deadline()
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
        self.tick()

    def _notice_sleep(self) -> None:
        """Was the machine suspended since the last call? Then every model is probed before it serves again."""
        slept = self._asleep() - self._slept
        if slept > SLEPT:
            self._slept += slept
            self._events.publish(SystemResumed(slept))
            self.devices.slept()

    # --- readers ------------------------------------------------------------------------------------------------

    def memory_moves(self) -> bool:
        """Is a model being loaded, or is the memory of one waited for?"""
        moving = (State.STARTING, State.OFFLOADING, State.WAKING, State.RECLAIMING)
        return any(s.state in moving and not s.spec.elsewhere for s in self.snapshots())

    def busy(self) -> bool:
        """Does any request hold a lease?"""
        return any(s.leases for s in self.snapshots())

    def is_alive(self) -> bool:
        """For the watchdog: is what is due being done? False when the timer is long overdue."""
        return self._armed == math.inf or self._clock.monotonic() - self._armed < 10.0
