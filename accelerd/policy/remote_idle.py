"""Has Ollama give back the memory of a model that has been idle for the `idle_timeout` that is written for it.

Without one that is Ollama's own affair. The model stays ready here: only what it has loaded there goes.
"""

from __future__ import annotations

import asyncio
import logging

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.config.model import ModelSpec
from accelerd.engines.remote.remotes import Remotes
from accelerd.scheduler.events import ModelInUse

log = logging.getLogger(__name__)


class RemoteIdle:
    """Subscribes to ModelInUse. All methods on the event loop's thread."""

    def __init__(self, remotes: Remotes, events: EventStream) -> None:
        self._remotes = remotes
        self._timers: dict[str, asyncio.TimerHandle] = {}  # by model, of those that are idle
        self._unloading: set[asyncio.Task[None]] = set()
        events.subscribe(ModelInUse, self.on_model_in_use)

    def on_model_in_use(self, event: ModelInUse) -> None:
        spec = event.spec
        if not spec.elsewhere:
            return
        if (timer := self._timers.pop(spec.name, None)) is not None:
            timer.cancel()
        if not event.in_use and spec.idle_after is not None:
            loop = asyncio.get_running_loop()
            self._timers[spec.name] = loop.call_later(spec.idle_after, self._idle, spec)

    def _idle(self, spec: ModelSpec) -> None:
        del self._timers[spec.name]
        task = asyncio.create_task(self._unload(spec), name=f"unloading {spec.name}")
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    async def _unload(self, spec: ModelSpec) -> None:
        try:
            if await self._remotes.unload(spec):
                log.info("%s: idle for %g s: %s gives back its memory", spec.name, spec.idle_after, spec.remote)
        except AccelError as error:
            log.warning("%s", error.message)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in self._unloading:
            task.cancel()
        self._timers.clear()
