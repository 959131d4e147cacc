"""accelerd's place on the desktop and in the system: sleep, battery and notifications, each of them optional.

Puts together what `accelerd/system` hears and says with what the scheduler and the devices do. A machine that lacks one
of the services has all the rest. Decides nothing about models beyond the two policies below.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol

from accelerd.base import names
from accelerd.config.model import DesktopSettings, ModelSpec
from accelerd.memory.model import Forecast
from accelerd.policy.notifications import DesktopNotifications
from accelerd.scheduler.record import Record, Residue, Snapshot, Transition
from accelerd.system.inhibitor import SleepGuard
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

DRAIN_SHARE: Final = 0.5  # of the time that a sleep waits, until requests are cut for the memory's sake
RESCAN: Final = 5.0  # s after a sleep; a driver that does not answer stops nobody
FIRST_WORD: Final = 2.0  # s from the start until a battery that nobody told of counts as none


class Models(Protocol):
    """The scheduler, as it is asked here."""

    def pause(self, paused: bool) -> None: ...
    def busy(self) -> bool: ...
    def snapshots(self) -> list[Snapshot]: ...


class Memory(Protocol):
    """Yielding, as it is asked here."""

    def sleeping(self, asleep: bool) -> None: ...
    def concerns(self, pool: str) -> bool: ...


class Watch(Protocol):
    def start(self) -> None: ...
    def close(self) -> None: ...


class Sleep:
    """What is done before the machine sleeps, and after."""

    def __init__(self, models: Models, memory: Memory, rescan: Callable[[], Awaitable[None]]) -> None:
        """`rescan()` looks at the devices anew."""
        self._models = models
        self._memory = memory
        self._rescan = rescan
        self._changed = asyncio.Event()  # something of the models has
        self.give_up = False  # the memory of the GPUs too

    async def before(self, seconds: float) -> None:
        """Let requests end and give the memory back, in so much time; with none of it the memory alone, at once."""
        event(log, NOTICE, "the machine goes to sleep: requests wait until it is awake", message_id=names.MSG_SLEEP)
        self._models.pause(True)
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds * DRAIN_SHARE if self.give_up else seconds):
                    await self._until(lambda: not self._models.busy())
        if self.give_up:
            self._memory.sleeping(True)
            if seconds > 0:
                await self._until(lambda: not self._occupied())

    async def after(self) -> None:
        """Serve again, with the devices as they are now. Models are asked before they serve, see Scheduler.pause."""
        try:
            async with asyncio.timeout(RESCAN):
                await self._rescan()
        except TimeoutError:
            log.warning("the devices do not answer after the sleep: they count as they were")
        finally:
            self._memory.sleeping(False)
            self._models.pause(False)
            event(log, NOTICE, "the machine is awake: requests are served again", message_id=names.MSG_SLEEP)

    def _occupied(self) -> bool:
        """Is there still something in the memory that was given up?"""
        held = [one.held for one in self._models.snapshots()]
        return any(size > 0 and self._memory.concerns(pool) for pools in held for pool, size in pools.items())

    def changed(self) -> None:
        """A model changed its state, or has no more requests."""
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class Battery:
    """Whether power is saved now."""

    def __init__(self, watch: Callable[[Callable[[str], None]], Watch], again: Callable[[], None]) -> None:
        """`again()` is called when that changes."""
        self._make = watch
        self._again = again
        self._watch: Watch | None = None
        self._heard = asyncio.Event()
        self._mains = asyncio.Event()
        self._mains.set()
        self.why = ""  # power is saved; empty: it is not

    def configure(self, policy: str) -> None:
        if policy == "save" and self._watch is None:
            self._heard.clear()
            self._watch = self._make(self._tell)
            self._watch.start()
        elif policy != "save":
            self.close()
            self._tell("")

    async def mains(self) -> None:
        """Returns while power is not saved, or nobody tells."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_WORD):
                await self._heard.wait()
        self._heard.set()  # who did not tell is not waited for again
        await self._mains.wait()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _tell(self, why: str) -> None:
        self._heard.set()
        if why != self.why:
            self.why = why
            text = f"power is saved ({why}): nothing is loaded unasked, and models leave sooner"
            event(log, NOTICE, text if why else "power is not saved any more", message_id=names.MSG_POWER, reason=why)
            self._again()
            if why:
                self._mains.clear()
            else:
                self._mains.set()


def modest(spec: ModelSpec, idle_timeout: float) -> ModelSpec:
    """The same model while power is saved. No process has to be started anew for it."""
    own = spec.idle_timeout
    return replace(spec, preload=False, idle_timeout=idle_timeout if own is None else min(own, idle_timeout))


class Desktop:
    """See the module's text. All methods on the loop's thread."""

    def __init__(
        self, sleep: Sleep, guard: SleepGuard, battery: Battery, news: DesktopNotifications, close: Callable[[], None]
    ) -> None:
        """`close()` lets go of the buses, at the very end."""
        self._sleep = sleep
        self._guard = guard
        self._battery = battery
        self._news = news
        self._close = close
        self._settings = DesktopSettings()

    def configure(self, settings: DesktopSettings, *, give_up: bool) -> None:
        """The settings in force; the first call begins. `give_up`: the memory of the GPUs before a sleep."""
        self._settings = settings
        self._sleep.give_up = give_up
        self._guard.configure(hold=settings.delay_sleep)
        self._battery.configure(settings.on_battery)
        self._news.configure(notify=settings.notify)

    async def may_preload(self) -> None:
        """Returns when a model may be loaded that nobody asked for."""
        await self._battery.mains()

    def fitted(self, models: list[tuple[ModelSpec, Forecast]]) -> list[tuple[ModelSpec, Forecast]]:
        """The models as they are to be now, with what they need."""
        if not self._battery.why:
            return models
        limit = self._settings.battery_idle_timeout
        return [(modest(spec, limit), forecast) for spec, forecast in models]

    def report(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "sleep": self._guard.report(),
            "saving": self._battery.why or None,
            "notifications": self._news.report(),
        }

    async def close(self) -> None:
        self._battery.close()
        await self._guard.close()
        await self._news.close()
        self._close()

    # --- what happens to models -------------------------------------------------------------------------------

    def moved(self, record: Record, transition: Transition) -> None:
        """A model changed its state."""
        self._sleep.changed()
        self._news.moved(record, transition)

    def lost(self, residue: Residue) -> None:
        """Memory of an ended model does not come back."""
        self._news.lost(residue)

    def in_use(self, busy: bool) -> None:
        """A model got its first request, or has none any more. On the path of requests: must be cheap."""
        if not busy:
            self._sleep.changed()
