"""When memory is measured, and that nobody waits for a driver that does not answer.

Measures when somebody asks, when the kernel reports that programs wait for memory (`stall`), every second while models
work, and while they are idle so rarely that other programs cannot use up what is free in between. While nothing is
loaded no timer runs. Measures in a thread of its own. Decides nothing and knows no models: publishes a MemorySnapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from accelerd.base.events import EventStream
from accelerd.base.ports import Clock
from accelerd.devices.model import Device
from accelerd.memory.measure import Meter
from accelerd.memory.model import RAM, MemorySnapshot, Pool
from accelerd.memory.psi import StallTrigger
from accelerd.system.worker_thread import WorkerThread

log = logging.getLogger(__name__)

TOGETHER: Final = 0.05  # s: who asks within this time after a look gets one look together with the others
FASTEST: Final = 512 << 20  # bytes/s: other programs that take memory faster than this make some of them stall
STEADY: Final = 32 << 20  # bytes by which free memory may fall from one look to the next and still count as unchanged


class Rhythm(Struct, frozen=True):
    """Seconds."""

    usual: float = 1.0  # from one look to the next while a model works
    quick: float = 0.25  # … while something loads or is being given back, or memory has just become short
    tight: float = 2.0  # … at least, while models are idle: where main memory is involved
    card: float = 10.0  # … and where only cards are, whose drivers move what does not fit
    rest: float = 30.0  # … at most, while models are idle
    patience: float = 5.0  # until a look is told to hang


USUAL: Final = Rhythm()


class MemoryWatch:
    """All methods run on the event loop. Whoever starts an instance calls `want`."""

    def __init__(
        self,
        meter: Meter,
        devices: Callable[[], Iterable[Device]],
        processes: Callable[[], Callable[[], Mapping[int, Sequence[int]]]],
        events: EventStream,
        clock: Clock,
        *,
        moving: Callable[[], bool] = lambda: False,
        working: Callable[[], bool] = lambda: False,
        stall: StallTrigger | None = None,
        rhythm: Rhythm = USUAL,
    ) -> None:
        """`processes()`: a function that finds those of every live instance, to be called in a thread.

        `moving`: does something load, or wait for memory to come back? `working`: does a model serve a request?
        `stall`: who hears that programs wait for memory.
        """
        self._meter = meter
        self._devices = devices
        self._processes = processes
        self._events = events
        self._clock = clock
        self._moving = moving
        self._working = working
        self._stall = stall
        self._rhythm = rhythm
        self._thread = WorkerThread("memory look")
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._lives = False  # an instance did at the last look
        self._steady = 0  # looks since the memory of a pool that models use fell
        self._readers: list[asyncio.Future[MemorySnapshot]] = []
        self._task: asyncio.Task[None] | None = None
        self.last: MemorySnapshot | None = None
        self.degraded: str | None = None  # why nothing new is known

    # --- from outside -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look now, and from then on as often as it is worth it."""
        if self._task is None:
            self.want()
            if self._stall is not None:
                self._stall.start(self._stalled)
            self._task = asyncio.create_task(self._run(), name="memory watch")

    async def close(self) -> None:
        """Look no more. A look that hangs is left to itself."""
        if self._stall is not None:
            self._stall.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._thread.close(join_timeout=0)
        self._cancel_timer()
        left, self._readers = self._readers, []
        self._answer(left)

    def want(self) -> bool:
        """Look soon, whatever the rhythm. Cheap: any number of calls are one look. False: nothing will be seen soon."""
        self._wanted.set()
        return self._task is not None and self.degraded is None

    def on_model_in_use(self, event: object) -> None:
        """A model has begun or ceased to work: look within a second. Cheap."""
        self._within(self._rhythm.usual)

    async def look(self) -> MemorySnapshot:
        """A look that began after this call; the last one when looks hang or the watch does not run.

        With no pools when there has been none.
        """
        if self._task is None or self.degraded is not None:
            return self._latest()
        reader: asyncio.Future[MemorySnapshot] = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        self.want()
        return await reader

    # --- the life ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        ended = -TOGETHER
        while True:
            await self._wanted.wait()
            if (pause := ended + TOGETHER - loop.time()) > 0:
                await asyncio.sleep(pause)
            self._wanted.clear()
            self._cancel_timer()
            asked, self._readers = self._readers, []
            try:
                delay = await self._one_look(asked)
            except Exception as error:  # a bug, or a machine beyond belief: the next look may do better
                self._fails(error)
                delay = self._rhythm.patience
            finally:
                self._answer(asked)
            ended = loop.time()
            if delay is not None:
                self._within(delay)

    def _within(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer.when() > loop.time() + delay:
            self._cancel_timer()
            self._timer = loop.call_later(delay, self._wanted.set)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stalled(self) -> None:
        """The kernel says that programs wait for memory: it matters only where models could give some back."""
        if self._lives:
            self.want()

    async def _one_look(self, asked: Iterable[asyncio.Future[MemorySnapshot]]) -> float | None:
        """Seconds until the next; None: when somebody wants it."""
        looking = asyncio.ensure_future(self._look())
        try:
            done, _ = await asyncio.wait((looking,), timeout=self._rhythm.patience)
            if not done:
                self._hangs()
                self._answer(asked)
                await asyncio.wait((looking,))
        finally:
            looking.cancel()
            await asyncio.wait((looking,))
        seen, lives = looking.result()
        if self.degraded is not None:
            self.degraded = None
            log.warning("memory can be measured again")
        self._steady = 0 if self.last is None or has_fallen(self.last, seen) else self._steady + 1
        self.last, self._lives = seen, lives
        self._events.publish(seen)
        return next_look(
            seen,
            lives=lives,
            moving=self._moving(),
            working=self._working(),
            steady=self._steady,
            rhythm=self._rhythm,
        )

    async def _look(self) -> tuple[MemorySnapshot, bool]:
        find, devices = self._processes(), list(self._devices())

        def look() -> tuple[MemorySnapshot, bool]:
            processes = find()
            return self._meter.look(devices, processes), bool(processes)

        return await self._thread.call(look, None)

    def _hangs(self) -> None:
        self.degraded = (
            f"memory cannot be measured: a driver or /proc has not answered for {self._rhythm.patience:g} s; "
            "what is shown is what was last seen"
        )
        log.warning("%s", self.degraded)
        late, self._readers = self._readers, []
        self._answer(late)

    def _fails(self, error: Exception) -> None:
        """Told once, however often it happens."""
        why = f"memory cannot be measured: {type(error).__name__}: {error}"
        if why != self.degraded:
            log.error("%s", why, exc_info=error)
        self.degraded = why

    def _latest(self) -> MemorySnapshot:
        return self.last or MemorySnapshot(self._clock.monotonic(), (), {})

    def _answer(self, readers: Iterable[asyncio.Future[MemorySnapshot]]) -> None:
        for reader in readers:
            if not reader.done():
                reader.set_result(self._latest())


def next_look(
    seen: MemorySnapshot, *, lives: bool, moving: bool, working: bool, steady: int, rhythm: Rhythm = USUAL
) -> float | None:
    """Seconds until memory is to be looked at again; None: not until somebody wants it.

    `steady`: looks since the last at which free memory had fallen.
    """
    if moving:
        return rhythm.quick
    if not lives:
        return None
    pauses = [_pause(pool, free, steady, rhythm) for pool, free in free_of_used(seen)]
    return min([rhythm.usual if working else rhythm.rest, *pauses])


def _pause(pool: Pool, free: int, steady: int, rhythm: Rhythm) -> float:
    """Seconds until other programs could have used up what is free in it, less twice what nobody is to be given."""
    least = rhythm.tight if pool.id == RAM or pool.backed_by is not None else rhythm.card
    spare = free - 2 * pool.reserve
    if spare < 0:
        return min(rhythm.quick * float(1 << min(steady, 10)), least)
    return max(least, spare / FASTEST)


def has_fallen(before: MemorySnapshot, now: MemorySnapshot) -> bool:
    """Is there less free than before in a pool that models use?"""
    earlier = {pool.id: free for pool, free in free_of_used(before)}
    return any(earlier.get(pool.id, free + STEADY + 1) - free > STEADY for pool, free in free_of_used(now))


def free_of_used(seen: MemorySnapshot) -> list[tuple[Pool, int]]:
    """The pools in which models hold memory, and the bytes that are free in each."""
    found = []
    for pool in seen.pools:
        ours = sum(used.get(pool.id, 0) for used in seen.used.values())
        if not ours:
            continue
        # What our models hold of pools that lie in this one, beyond what those have for themselves.
        for other in seen.pools:
            if other.backed_by == pool.id:
                held = sum(used.get(other.id, 0) for used in seen.used.values())
                ours += max(0, held - max(0, other.own - other.foreign))
        found.append((pool, pool.capacity - pool.foreign - ours))
    return found
