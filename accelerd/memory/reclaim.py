"""Is the memory of ended models back? Looks until it is, and tells what is missing: the scheduler's port Reclaim.

A driver may hold a device's memory for seconds after the process, or for ever. What nobody holds any more is seen as
others' use: how far that has risen since the model was seen alive is what is not back, unless named processes have
taken just that meanwhile. Decides nothing, ends nothing; who waits has a patience of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from msgspec import Struct, field

from accelerd.base.events import EventStream
from accelerd.base.ports import Clock
from accelerd.memory.model import RAM, MemorySnapshot

log = logging.getLogger(__name__)

QUICK: Final = 0.25  # s between looks …
QUICK_FOR: Final = 15.0  # … for so long; what is missing then comes back late or never
SLOW: Final = 5.0  # s between looks from then on
STEADY: Final = 3.0  # s that a reading stays before others are believed to have taken the memory
SLACK: Final = 32 << 20  # bytes that may be missing: a driver keeps some for itself
SLACK_SHARE: Final = 20  # or this part of what was held
ALIVE_KEPT: Final = 256  # instances of which is known what others used beside them

Changed = Callable[[int, str], None]
Look = Callable[[], Awaitable[MemorySnapshot]]
Pause = Callable[[float], Awaitable[None]]


class OtherPrograms(Struct, frozen=True):
    """What others than our models use of one pool."""

    foreign: int  # by the driver's figures
    named: int  # of that, by processes with a name
    beside: int = 0  # bytes that the instance had then


class UnreturnedMemory(Struct, eq=False):
    """What one ended instance has not given back. The Watch that is handed out."""

    reclaimer: Reclaimer
    instance: int
    model: str
    held: Mapping[str, int]  # by pool of a device
    changed: Changed
    since: float
    left: dict[str, int] = field(default_factory=dict)
    told: int | None = None

    def cancel(self) -> None:
        """Look no longer; `changed` is not called any more."""
        self.reclaimer.drop(self)

    def slack(self, pool: str) -> int:
        """Bytes of a pool that may be missing when it counts as back."""
        return max(SLACK, self.held[pool] // SLACK_SHARE)


class PoolAccount(Struct):
    """One pool with debts: what is missing in it. Pure, but for its own figures."""

    others: OtherPrograms  # what others are believed to use
    label: str
    missing: int = -1  # as it was for a while
    steady_since: float = 0.0
    absent_since: float | None = None  # the pool is seen no more: its device has gone

    def look(self, at: float, now: OtherPrograms) -> int:
        """Bytes that nobody can be named for, beyond what others used before."""
        foreign, named = self.others.foreign, self.others.named
        if now.named < named:  # somebody has left: what he had is not ours
            foreign, named = max(0, foreign - (named - now.named)), now.named
        missing = max(0, now.foreign - foreign)
        if self.missing < 0 or abs(missing - self.missing) > SLACK:
            self.missing, self.steady_since = missing, at
        elif at - self.steady_since >= STEADY and now.named > named:
            taken = min(missing, now.named - named)
            foreign, named, missing = foreign + taken, named + taken, missing - taken
            self.missing, self.steady_since = missing, at
        self.others = OtherPrograms(foreign, named)
        return missing


class Reclaimer:
    """Watches whether the memory of ended instances comes back. Used on the event loop."""

    def __init__(self, look: Look, clock: Clock, events: EventStream, *, pause: Pause = asyncio.sleep) -> None:
        """`look` takes a look at all memory; `pause` waits so many seconds between looks."""
        self._look = look
        self._clock = clock
        self._pause = pause
        self._last: MemorySnapshot | None = None
        self._alive: dict[int, dict[str, OtherPrograms]] = {}  # what others used beside an instance, by pool
        self._debts: list[UnreturnedMemory] = []  # the oldest first
        self._accounts: dict[str, PoolAccount] = {}  # by pool; of pools with debts
        self._poller: asyncio.Task[None] | None = None
        events.subscribe(MemorySnapshot, self.on_memory_snapshot)

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: Changed) -> UnreturnedMemory | None:
        """See the scheduler's Reclaim. None too when nobody has ever looked: then nothing can be compared."""
        before = self._alive.pop(instance, {})
        labels = {pool.id: pool.label for pool in self._last.pools} if self._last is not None else {}
        on_devices = {pool: size for pool, size in held.items() if pool != RAM and size > SLACK and pool in labels}
        if not on_devices:
            return None
        for pool in on_devices:
            if pool not in self._accounts:
                self._accounts[pool] = PoolAccount(before.get(pool) or _others(self._last, pool), labels[pool])
        debt = UnreturnedMemory(self, instance, model, on_devices, changed, self._clock.monotonic())
        self._debts.append(debt)
        if self._poller is None:
            self._poller = asyncio.get_running_loop().create_task(self._poll(), name="reclaim")
        return debt

    def on_memory_snapshot(self, seen: MemorySnapshot) -> None:
        """A look at memory, whoever took it. Those at live instances must come here too: they are compared with."""
        if seen is self._last or not seen.pools:
            return  # known, or of somebody who could not look
        self._last = seen
        self._note_living(seen)
        for pool in list(self._accounts):
            self._settle(pool, seen)
        for debt in list(self._debts):
            if debt.since <= seen.at and debt in self._debts:  # what is told may end other watches
                self._tell(debt)

    def drop(self, debt: UnreturnedMemory) -> None:
        if debt not in self._debts:
            return
        self._debts.remove(debt)
        for pool in debt.held:
            if not any(pool in other.held for other in self._debts):
                del self._accounts[pool]
        if not self._debts and self._poller is not None:
            poller, self._poller = self._poller, None
            if poller is not asyncio.current_task():  # that one ends by itself
                poller.cancel()

    # --- inside -----------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        """One for all debts: every look is at all memory."""
        me = asyncio.current_task()
        while self._poller is me:
            newest = max(debt.since for debt in self._debts)
            try:
                last = self._last.at if self._last is not None else newest
                if last <= newest or last < self._clock.monotonic() - QUICK / 2:  # nobody else has just looked
                    self.on_memory_snapshot(await self._look())
            except Exception:  # a look that fails must not be the last
                names = ", ".join(sorted({debt.model for debt in self._debts}))
                log.warning("cannot look whether the memory of %s is back; trying again", names, exc_info=True)
            if self._poller is me:
                await self._pause(QUICK if self._clock.monotonic() - newest < QUICK_FOR else SLOW)

    def _note_living(self, seen: MemorySnapshot) -> None:
        """Keep what others use beside each instance, as long as it has most of its memory.

        One that is just ending may still be there, while its memory counts as others' already.
        """
        ended = {debt.instance for debt in self._debts}
        for instance, used in seen.used.items():
            if instance in ended:
                continue
            known = self._alive.pop(instance, {})
            self._alive[instance] = known
            for pool, size in used.items():
                if pool != RAM and (pool not in known or 2 * size >= known[pool].beside):
                    known[pool] = _others(seen, pool, size)
        while len(self._alive) > ALIVE_KEPT:
            del self._alive[next(iter(self._alive))]

    def _settle(self, pool: str, seen: MemorySnapshot) -> None:
        """What is missing in a pool, shared out: the latest end is the likeliest not to be over."""
        debts = [debt for debt in self._debts if pool in debt.held]
        if any(debt.since > seen.at or seen.used.get(debt.instance, {}).get(pool) for debt in debts):
            return  # the look began before an end that it should be about
        account = self._accounts[pool]
        if not any(one.id == pool for one in seen.pools):
            account.absent_since = seen.at if account.absent_since is None else account.absent_since
            if seen.at - account.absent_since >= STEADY:
                for debt in debts:
                    debt.left[pool] = 0
            return
        account.absent_since = None
        missing = account.look(seen.at, _others(seen, pool))
        for debt in reversed(debts):
            share = min(debt.held[pool], missing)
            missing -= share
            debt.left[pool] = share if share > debt.slack(pool) else 0

    def _tell(self, debt: UnreturnedMemory) -> None:
        if len(debt.left) < len(debt.held):
            return  # a pool has not been seen yet
        left = {pool: size for pool, size in debt.left.items() if size}
        total = sum(left.values())
        if total == debt.told:
            return
        debt.told = total
        where = " and ".join(f"memory of {self._accounts[pool].label}" for pool in left)
        if not total:
            self.drop(debt)
        debt.changed(total, where)


def _others(seen: MemorySnapshot | None, pool: str, beside: int = 0) -> OtherPrograms:
    if seen is None:
        return OtherPrograms(0, 0, beside)
    foreign = sum(one.foreign for one in seen.pools if one.id == pool)
    named = sum(user.size for user in seen.foreign if user.pool == pool)
    return OtherPrograms(foreign, named, beside)
