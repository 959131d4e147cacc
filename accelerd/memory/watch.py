"""When memory is looked at, and that nobody waits for a driver that does not answer.

Looks while an instance lives, more often while memory is short or on its way; while nothing lives and nobody asks, no
timer runs. Every look runs in a thread of its own, one at a time. Decides nothing and knows no models: publishes what
a look found, a MemorySnapshot.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from accelerd.base.events import EventStream
from accelerd.base.ports import Clock
from accelerd.devices.model import Device
from accelerd.memory.model import MemorySnapshot, Pool

log = logging.getLogger(__name__)

T = TypeVar("T")

TOGETHER: Final = 0.05  # s: who asks within this time after a look gets one look together with the others


class Measure(Protocol):
    """`Meter`, to the watch."""

    def look(self, devices: Iterable[Device], processes: Mapping[int, Sequence[int]]) -> MemorySnapshot: ...


@dataclass(frozen=True)
class Rhythm:
    """Seconds."""

    usual: float = 1.0  # from one look to the next while an instance lives
    quick: float = 0.25  # … while memory is short, or something loads or is being given back
    patience: float = 5.0  # until a look is told to hang


USUAL: Final = Rhythm()


class MemoryWatch:
    """See the module's text. All methods run on the event loop. Who starts an instance calls `want`."""

    def __init__(
        self,
        meter: Measure,
        devices: Callable[[], Iterable[Device]],
        processes: Callable[[], Awaitable[Mapping[int, Sequence[int]]]],
        events: EventStream,
        clock: Clock,
        *,
        moving: Callable[[], bool] = lambda: False,
        rhythm: Rhythm = USUAL,
    ) -> None:
        """`processes`: those of every live instance; `moving`: does something load, or wait for memory to come back?"""
        self._meter = meter
        self._devices = devices
        self._processes = processes
        self._events = events
        self._clock = clock
        self._moving = moving
        self._rhythm = rhythm
        self._wanted = asyncio.Event()
        self._readers: list[asyncio.Future[MemorySnapshot]] = []
        self._task: asyncio.Task[None] | None = None
        self.last: MemorySnapshot | None = None
        self.degraded: str | None = None  # why nothing new is known

    # --- from outside -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look now, and from then on as often as it is worth it."""
        if self._task is None:
            self.want()
            self._task = asyncio.create_task(self._run(), name="memory watch")

    async def close(self) -> None:
        """Look no more. A look that hangs is left to itself."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        left, self._readers = self._readers, []
        self._answer(left)

    def want(self) -> bool:
        """Look soon, whatever the rhythm. Cheap: any number of calls are one look. False: nothing will be seen soon."""
        self._wanted.set()
        return self._task is not None and self.degraded is None

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
        delay: float | None = None
        while True:
            await self._until_wanted(delay)
            self._wanted.clear()
            asked, self._readers = self._readers, []
            try:
                delay = await self._one_look(asked)
            except Exception as error:  # a bug, or a machine beyond belief: the next look may do better
                self._fails(error)
                delay = self._rhythm.patience
            finally:
                self._answer(asked)
            await asyncio.sleep(TOGETHER)

    async def _until_wanted(self, delay: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), delay)

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
        self.last = seen
        self._events.publish(seen)
        return next_look(seen, lives=lives, moving=self._moving(), rhythm=self._rhythm)

    async def _look(self) -> tuple[MemorySnapshot, bool]:
        processes = await self._processes()
        devices = list(self._devices())
        seen = await in_thread(lambda: self._meter.look(devices, processes))
        return seen, bool(processes)

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


def next_look(seen: MemorySnapshot, *, lives: bool, moving: bool, rhythm: Rhythm = USUAL) -> float | None:
    """Seconds until memory is to be looked at again; None: not until somebody wants it."""
    if moving:
        return rhythm.quick
    if not lives:
        return None
    return rhythm.quick if any(is_short(pool, seen) for pool in seen.pools) else rhythm.usual


def is_short(pool: Pool, seen: MemorySnapshot) -> bool:
    """Do we use this pool, with less free in it than twice what nobody is to be given?"""
    ours = sum(used.get(pool.id, 0) for used in seen.used.values())
    if not ours:
        return False
    # What our models hold of pools that lie in this one, beyond what those have for themselves.
    for other in seen.pools:
        if other.backed_by == pool.id:
            held = sum(used.get(other.id, 0) for used in seen.used.values())
            ours += max(0, held - max(0, other.own - other.foreign))
    return pool.capacity - pool.foreign - ours < 2 * pool.reserve


async def in_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises, from a thread that nothing at the end of the process waits for."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="memory look", daemon=True).start()
    return await asyncio.wrap_future(future)
