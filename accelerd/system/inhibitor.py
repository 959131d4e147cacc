"""The machine's sleep, as logind tells of it: held up for the moments that are needed before, served again after.

Holds logind's "delay" inhibitor while the machine is awake and lets go of it when what must be done before a sleep is
done, at the latest a little before logind would go on by itself. Knows nothing of what is to be done. Without logind,
or where it gives no inhibitor, sleep is not held up and `degraded` says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from io import FileIO
from typing import Any, Final

from accelerd.system.dbus.client import BusClient, BusError
from accelerd.system.dbus.properties import PropertyWatch, WatchedProperty

log = logging.getLogger(__name__)

LOGIND: Final = "org.freedesktop.login1"
PATH: Final = "/org/freedesktop/login1"
MANAGER: Final = "org.freedesktop.login1.Manager"
PREPARING: Final = WatchedProperty(LOGIND, PATH, MANAGER, "PreparingForSleep", signals=("PrepareForSleep",))
WHY: Final = "requests end and memory is given back first"
CALL_TIMEOUT: Final = 2.0  # s
USUAL_DELAY: Final = 5.0  # s; logind's own InhibitDelayMaxSec
SHARE: Final = 0.8  # of logind's patience: then the inhibitor is let go of, whatever is not done
AWAKE_AFTER: Final = 60.0  # s awake after letting go: the machine does not sleep after all, whatever logind says


class SleepGuard:
    """See the module's text. All methods on the loop's thread."""

    def __init__(
        self,
        bus: BusClient,
        before: Callable[[float], Awaitable[None]],
        after: Callable[[], Awaitable[None]],
        awake_after: float = AWAKE_AFTER,
    ) -> None:
        """`bus`: the system bus; `before(seconds)`: cancelled after that time; `after()`: once for each sleep."""
        self._bus = bus
        self._before = before
        self._after = after
        self._watch = PropertyWatch(bus, (PREPARING,), lambda values: self._heard(values[0]))
        self._awake_after = awake_after
        self._hold = False
        self._there = False  # logind
        self._asleep = False
        self._lock: FileIO | None = None
        self._patience = USUAL_DELAY
        self._steps: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.degraded: str | None = None  # why sleep is not held up, although it should be

    def configure(self, *, hold: bool) -> None:
        """Hold sleep up or not, from now on. The first call begins."""
        self._hold = hold
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="sleep")
            self._watch.start()
        self._steps.put_nowait(self._settle)

    async def close(self) -> None:
        """Let go of everything; a sleep that waits for accelerd goes on."""
        self._watch.close()
        self._stop_timer()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._release()

    @property
    def held(self) -> bool:
        """Will the next sleep wait for accelerd?"""
        return self._lock is not None

    def report(self) -> dict[str, Any]:
        """For `status`."""
        return {"logind": self._there, "held": self.held, "asleep": self._asleep, "degraded": self.degraded}

    # --- inside -----------------------------------------------------------------------------------------------

    def _heard(self, value: Any) -> None:
        async def step() -> None:
            self._there = value is not None
            await (self._fall_asleep() if value is True else self._wake())

        self._steps.put_nowait(step)

    async def _run(self) -> None:
        """One thing after the other, in the order in which it was heard of."""
        while True:
            step = await self._steps.get()
            try:
                await step()
            except Exception:  # a bug; the next sleep is another chance
                log.exception("cannot follow the sleep of this machine")

    async def _fall_asleep(self) -> None:
        self._asleep = True
        seconds = self._patience * SHARE if self._lock is not None else 0.0
        try:
            async with asyncio.timeout(seconds or None):
                await self._before(seconds)
        except TimeoutError:
            log.warning("not all was done in the %.1f s that a sleep may wait", seconds)
        finally:
            self._release()
            self._stop_timer()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._awake_after, self._steps.put_nowait, self._wake)

    async def _wake(self) -> None:
        """The machine is awake, or has no logind any more."""
        self._stop_timer()
        await self._settle(waking=True)
        if self._asleep:
            self._asleep = False
            await self._after()

    async def _settle(self, *, waking: bool = False) -> None:
        """Have the inhibitor, or have it not."""
        if not self._hold:
            self.degraded = None
            self._release()
        elif not self._there:
            self.degraded = "sleep is not held up: logind is not there"
        elif waking or (self._lock is None and not self._asleep):
            await self._inhibit()

    async def _inhibit(self) -> None:
        """A new inhibitor in the place of the old one; a logind that was started again may not know that."""
        try:
            lock = await self._bus.call_for_file(
                LOGIND, PATH, MANAGER, "Inhibit", "(ssss)", "sleep", "accelerd", WHY, "delay", within=CALL_TIMEOUT
            )
            self._release()
            self._lock = lock
            delay = await self._bus.get_property(LOGIND, PATH, MANAGER, "InhibitDelayMaxUSec", within=CALL_TIMEOUT)
            self._patience = max(0.1, delay / 1e6)
            self.degraded = None
        except BusError as error:
            if self._lock is None:
                self.degraded = f"sleep is not held up: {error.message}"
                log.info("%s", self.degraded)
            else:
                log.debug("logind does not tell how long sleep may wait: %s", error.message)

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
