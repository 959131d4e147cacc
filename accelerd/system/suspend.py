"""Suspend, as logind announces it: delayed for the work that must be done before, with another callback after.

Holds logind's "delay" inhibitor while the machine is awake, and releases it when the work before a suspend is done, at
the latest shortly before logind would go on without it. Does not know what the work is. Without logind, or if logind
refuses the inhibitor, suspend is not delayed and `degraded` says why.
"""

from __future__ import annotations

import asyncio
import logging
import time
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
ACCESS_DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
NEEDS_POLKIT: Final = "without polkit (package polkitd) only root may do it"
WHY: Final = "finishing requests and freeing memory"
CALL_TIMEOUT: Final = 2.0  # s
DEFAULT_DELAY: Final = 5.0  # s; logind's InhibitDelayMaxSec
DELAY_SHARE: Final = 0.8  # of logind's delay: then the inhibitor is released, whatever is not done
RESUMED_AFTER: Final = 60.0  # s awake after the release: the machine has not suspended, whatever logind says


def time_asleep() -> float:
    """Seconds suspended since boot: CLOCK_BOOTTIME counts them, CLOCK_MONOTONIC does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class SleepGuard:
    """All methods on the loop's thread."""

    def __init__(
        self,
        bus: BusClient,
        before: Callable[[float], Awaitable[None]],
        after: Callable[[], Awaitable[None]],
        resumed_after: float = RESUMED_AFTER,
    ) -> None:
        """`bus`: the system bus; `before(seconds)`: cancelled after that time; `after()`: once for each suspend."""
        self._bus = bus
        self._before = before
        self._after = after
        self._watch = PropertyWatch(bus, (PREPARING,), lambda values: self._on_preparing(values[0]))
        self._resumed_after = resumed_after
        self._hold = False
        self._logind_present = False
        self._asleep = False
        self._inhibitor: FileIO | None = None
        self._delay = DEFAULT_DELAY
        self._steps: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.degraded: str | None = None  # why suspend is not delayed, although it should be

    def configure(self, *, hold: bool) -> None:
        """Delay suspend or not. The first call begins."""
        self._hold = hold
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="suspend")
            self._watch.start()
        self._steps.put_nowait(self._update_inhibitor)

    async def close(self) -> None:
        """Release the inhibitor: a suspend that waits for it goes on."""
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
        """Will the next suspend wait for accelerd?"""
        return self._inhibitor is not None

    def report(self) -> dict[str, Any]:
        return {
            "logind": self._logind_present,
            "held": self.held,
            "asleep": self._asleep,
            "degraded": self.degraded,
        }

    # --- inside -----------------------------------------------------------------------------------------------

    def _on_preparing(self, value: Any) -> None:
        """PreparingForSleep; None: there is no logind."""

        async def step() -> None:
            self._logind_present = value is not None
            await (self._suspend() if value is True else self._resume())

        self._steps.put_nowait(step)

    async def _run(self) -> None:
        """One step after the other, in the order of the events."""
        while True:
            step = await self._steps.get()
            try:
                await step()
            except Exception:  # a bug; the next suspend is another chance
                log.exception("cannot prepare for suspend")

    async def _suspend(self) -> None:
        self._asleep = True
        seconds = self._delay * DELAY_SHARE if self._inhibitor is not None else 0.0
        try:
            async with asyncio.timeout(seconds or None):
                await self._before(seconds)
        except TimeoutError:
            log.warning("suspending although not all requests ended within %.1f s", seconds)
        finally:
            self._release()
            self._stop_timer()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._resumed_after, self._steps.put_nowait, self._resume)

    async def _resume(self) -> None:
        """The machine is awake, or logind is gone."""
        self._stop_timer()
        await self._update_inhibitor(resumed=True)
        if self._asleep:
            self._asleep = False
            await self._after()

    async def _update_inhibitor(self, *, resumed: bool = False) -> None:
        """Take or release the inhibitor, as configured."""
        if not self._hold:
            self.degraded = None
            self._release()
        elif not self._logind_present:
            self.degraded = "suspend is not delayed: logind does not run"
        elif resumed or (self._inhibitor is None and not self._asleep):
            await self._inhibit()

    async def _inhibit(self) -> None:
        """Take a new inhibitor before the old one is released: a restarted logind does not know the old one."""
        try:
            inhibitor = await self._bus.call_for_file(
                LOGIND, PATH, MANAGER, "Inhibit", "(ssss)", "sleep", "accelerd", WHY, "delay", within=CALL_TIMEOUT
            )
            self._release()
            self._inhibitor = inhibitor
            delay = await self._bus.get_property(LOGIND, PATH, MANAGER, "InhibitDelayMaxUSec", within=CALL_TIMEOUT)
            self._delay = max(0.1, delay / 1e6)
            self.degraded = None
        except BusError as error:
            if self._inhibitor is None and error.name == ACCESS_DENIED:
                self.degraded = f"suspend is not delayed: logind does not permit it; {NEEDS_POLKIT}"
                log.debug("%s", self.degraded)  # so it is at every start on this machine
            elif self._inhibitor is None:
                self.degraded = f"suspend is not delayed: {error.message}"
                log.info("%s", self.degraded)
            else:
                log.debug("cannot read logind's InhibitDelayMaxUSec: %s", error.message)

    def _release(self) -> None:
        inhibitor, self._inhibitor = self._inhibitor, None
        if inhibitor is not None:
            inhibitor.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
