"""Downloads for models that are asked for: when the scheduler wants a model's files, they are fetched.

Starts one download for each such model and tells the scheduler how it goes and how it ended; a download that nobody
wants any more is given up. Neither downloads itself nor chooses files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.model_source import Source
from accelerd.config.model import ModelSpec
from accelerd.downloads.download import DownloadProgress as Fetched
from accelerd.memory.model import Forecast
from accelerd.scheduler.events import FilesWanted, ModelsConfigured, ModelTransition
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import DownloadProgress
from accelerd.scheduler.service import Scheduler

log = logging.getLogger(__name__)

Hear = Callable[[Fetched], None]


class ModelDownloads:
    """Subscribes to models. All methods on the event loop's thread."""

    fetch: Callable[[Source, Hear], Awaitable[None]]  # has the files here, or AccelError; set before the first request

    def __init__(
        self, scheduler: Scheduler, forecast: Callable[[ModelSpec], Awaitable[Forecast]], events: EventStream
    ) -> None:
        """`forecast`: what the model will need, as its files are now."""
        self._scheduler = scheduler
        self._forecast = forecast
        self._tasks: dict[str, asyncio.Task[None]] = {}
        events.subscribe(FilesWanted, self.on_files_wanted)
        events.subscribe(ModelTransition, self.on_transition)
        events.subscribe(ModelsConfigured, self.on_models_configured)

    def on_files_wanted(self, event: FilesWanted) -> None:
        spec = event.spec
        self._give_up(spec.name)
        self._tasks[spec.name] = asyncio.get_running_loop().create_task(self._run(spec), name=f"download {spec.name}")

    def on_transition(self, event: ModelTransition) -> None:
        if event.transition.before is State.DOWNLOADING:
            self._give_up(event.spec.name)

    def on_models_configured(self, event: ModelsConfigured) -> None:
        there = {snapshot.spec.name for snapshot in self._scheduler.snapshots()}
        for name in set(self._tasks) - there:
            self._give_up(name)

    async def close(self) -> None:
        """End all downloads; what has arrived is kept."""
        tasks = list(self._tasks.values())
        for name in list(self._tasks):
            self._give_up(name)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _give_up(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _run(self, spec: ModelSpec) -> None:
        files, name = self._scheduler.files, spec.name

        def hear(now: Fetched) -> None:
            files.progress(name, DownloadProgress(now.bytes, now.total or None, now.rate, now.remaining, now.file))

        try:
            await self.fetch(Source.parse(spec.model or ""), hear)
            forecast = await self._forecast(spec)
            if forecast.missing:
                text = f"{spec.model} was downloaded, but its files are not there"
                raise AccelError("download_failed", text, hint="were they deleted?")
        except AccelError as error:
            files.failed(name, error, again=error.kind.retryable and error.code != "canceled")
        except Exception:
            log.exception("a download failed")
            files.failed(name, AccelError("internal", f"cannot download {spec.model}; see the journal"), again=False)
        else:
            files.arrived(name, forecast)
