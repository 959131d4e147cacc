"""Suspend: what is done before the machine sleeps and after it resumes.

Lets requests end, frees GPU memory where `yield_on` says so, and looks at the devices anew after resuming. SleepGuard
owns the inhibitor and logind's signals.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.config.model import ConfigApplied
from accelerd.policy.yielding import SLEEP, Yielding
from accelerd.scheduler.events import ModelInUse, ModelTransition
from accelerd.scheduler.service import Scheduler
from accelerd.system.records import NOTICE, event
from accelerd.system.suspend import SleepGuard

log = logging.getLogger(__name__)

Before = Callable[[float], Awaitable[None]]  # seconds until the suspend
After = Callable[[], Awaitable[None]]

DRAIN_SHARE: Final = 0.5  # of the time until the suspend: then requests are cut, where memory must be freed too
RESCAN: Final = 5.0  # s for the drivers to answer after resuming


class SleepPolicy:
    """Subscribes to models and the configuration; owns the guard. All methods on the event loop's thread."""

    def __init__(
        self,
        models: Scheduler,
        memory: Yielding,
        rescan: Callable[[], Awaitable[None]],
        make_guard: Callable[[Before, After], SleepGuard],
        events: EventStream,
    ) -> None:
        """`rescan()` looks at the devices anew; `make_guard(before, after)`: what calls them."""
        self._models = models
        self._memory = memory
        self._rescan = rescan
        self._changed = asyncio.Event()  # a model changed its state, or has no more requests
        self._yields = False  # GPU memory too
        self.guard = make_guard(self.before, self.after)
        events.subscribe(ModelTransition, self.on_transition)
        events.subscribe(ModelInUse, self.on_model_in_use)
        events.subscribe(ConfigApplied, self.on_config)

    def on_config(self, event: ConfigApplied) -> None:
        self._yields = SLEEP in event.config.memory.yield_on
        self.guard.configure(hold=event.config.desktop.delay_sleep)

    async def before(self, seconds: float) -> None:
        """Let requests end and free memory within this time; with 0 only free memory, at once."""
        event(log, NOTICE, "the machine is about to be suspended: new requests wait", message_id=names.MSG_SLEEP)
        self._models.pause(True)
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds * DRAIN_SHARE if self._yields else seconds):
                    await self._until(lambda: not self._models.busy())
        if self._yields:
            self._memory.sleeping(True)
            if seconds > 0:
                await self._until(lambda: not self._occupied())

    async def after(self) -> None:
        """Serve again, with the devices as they are now. Models are checked before they serve, see Scheduler.pause."""
        try:
            async with asyncio.timeout(RESCAN):
                await self._rescan()
        except TimeoutError:
            log.warning("the devices do not answer after the suspend: assuming that they are unchanged")
        finally:
            self._memory.sleeping(False)
            self._models.pause(False)
            event(log, NOTICE, "the machine has resumed: requests are served again", message_id=names.MSG_SLEEP)

    def on_transition(self, event: ModelTransition) -> None:
        self._changed.set()

    def on_model_in_use(self, event: ModelInUse) -> None:
        if not event.in_use:
            self._changed.set()

    def _occupied(self) -> bool:
        """Is there still something in the memory to be freed?"""
        held = [one.held for one in self._models.snapshots()]
        return any(size > 0 and self._memory.concerns(pool) for pools in held for pool, size in pools.items())

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()
