"""What the scheduler is configured with: every configured model and what it needs, as it is to be run now.

Reconfigures the scheduler when the configuration, power saving or a tuning trial changes; asks engines anew what models
need when models or devices change; preloads. Decides nothing about the lifecycle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.config.model import Config, ModelSpec
from accelerd.control.jobs import JobChanged
from accelerd.control.model_info import ModelInfo
from accelerd.devices.current_devices import DevicesChanged
from accelerd.engines.remote.engine import NOTHING
from accelerd.memory.model import Forecast
from accelerd.policy.battery import PowerSaving, PowerSavingChanged
from accelerd.scheduler.events import FilesWanted, ModelLoaded
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.service import Scheduler
from accelerd.system.records import event

log = logging.getLogger(__name__)

SILENT_AGAIN = 10.0  # s until models whose volume did not answer are asked again
SURVEY_LIMIT = 20.0  # s that a model's program and files have to say what it needs

Forecasts = list[tuple[ModelSpec, Forecast]]


def limits_of(config: Config) -> SharedLimits:
    """What all models share beside the pools of the machine."""
    return SharedLimits(config.scheduler.memory, "scheduler.memory", config.scheduler.max_loaded)


class ConfiguredModels:
    """Subscribes to loads, devices and power saving. All methods on the event loop's thread."""

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        model_info: ModelInfo,
        power: PowerSaving,
        events: EventStream,
        survey_limit: float = SURVEY_LIMIT,
        silent_again: float = SILENT_AGAIN,
    ) -> None:
        """`survey_limit`: s for each model."""
        self._silent_again = silent_again
        self._survey_limit = survey_limit
        self._config = config
        self._scheduler = scheduler
        self._model_info = model_info
        self._power = power
        self._forecasts: Forecasts = []  # of every configured model
        self._offered: Sequence[ModelSpec] = ()  # what remotes offer beside these
        self._trial: tuple[ModelSpec, Forecast] | None = None  # what a tuning run tries
        self._survey_due = asyncio.Event()
        events.subscribe(ModelLoaded, self.on_model_loaded)
        events.subscribe(FilesWanted, self.on_files_wanted)
        events.subscribe(DevicesChanged, self.on_devices_changed)
        events.subscribe(PowerSavingChanged, self.on_power_saving)
        events.subscribe(JobChanged, self.on_job_changed)

    async def forecasts(self, config: Config) -> Forecasts:
        """What the models of a configuration will need."""
        return await self._model_info.forecasts(config.models.values())

    def configure(
        self, config: Config, forecasts: Forecasts, offered: Sequence[ModelSpec] = (), relaunch: Sequence[str] = ()
    ) -> None:
        """Apply a configuration, and what remotes offer. Running requests go on; models in `relaunch` are replaced when
        idle."""
        self._config, self._forecasts, self._offered = config, forecasts, offered
        self._configure(relaunch)
        self._survey_due.set()

    def offer(self, offered: Sequence[ModelSpec]) -> None:
        """Remotes offer other models than before."""
        self._offered = offered
        self._reconfigure()

    def relaunch(self, names: Sequence[str]) -> None:
        """Replace these when they are idle."""
        self._configure([*names, *(one.spec.name for one in self._scheduler.snapshots() if one.outdated)])

    async def try_out(self, spec: ModelSpec | None) -> None:
        """Have this model beside the configured ones; None: have it no more."""
        self._trial = (spec, await self._model_info.forecast(spec, ask=True)) if spec is not None else None
        self._reconfigure()

    async def preload(self) -> None:
        """Load the models with `preload` or `pin` in the order of the configuration, one at a time."""
        for spec in list(self._config.models.values()):
            await self._power.mains()
            if not (spec.preload or spec.pin) or spec.elsewhere or spec.name not in self._config.models:
                continue
            try:
                await self._scheduler.load(spec.name, evict=False, reset=False)
            except AccelError as error:
                event(log, logging.WARNING, f"cannot preload {spec.name}: {error.message}", model=spec.name)

    async def survey(self) -> None:
        """Until cancelled: ask the models' programs what they would need, whenever models or devices have changed;
        those first that requests wait for, then those of which the forecast is provisional, and last those on a disk
        that has not answered.

        Programs in containers are not asked before a model was started there; of a container that is there, only what
        it publishes is asked.
        """
        while True:
            await self._survey_due.wait()
            self._survey_due.clear()
            due = list(self._config.models)
            while due:
                waited_for = {one.spec.name for one in self._scheduler.snapshots() if one.queue}
                unsure = {spec.name for spec, known in self._forecasts if known.provisional}
                silent = self._model_info.silent
                name = min(due, key=lambda one: (one in silent, one not in waited_for, one not in unsure))
                due.remove(name)
                if (spec := self._config.models.get(name)) is not None:
                    await self._ask(spec)
            if not self._model_info.silent.isdisjoint(self._config.models):
                asyncio.get_running_loop().call_later(self._silent_again, self._survey_due.set)

    async def _ask(self, spec: ModelSpec) -> None:
        """Requests wait for a forecast that is provisional: that ends here, also when the program does not answer."""
        try:
            async with asyncio.timeout(self._survey_limit):
                forecast: Forecast | None = await self._model_info.best_forecast(spec)
        except TimeoutError:
            forecast = next((known for one, known in self._forecasts if one is spec), None)
        if forecast is not None and self._config.models.get(spec.name) is spec:
            forecast = replace(forecast, provisional=False)
            self._forecasts = [(one, forecast if one is spec else known) for one, known in self._forecasts]
            self._scheduler.memory.forecast(spec.name, forecast)

    # --- subscriptions ----------------------------------------------------------------------------------------

    def on_model_loaded(self, event: ModelLoaded) -> None:
        if event.spec.contained or event.spec.engine == "lemonade":  # only now its program, or server, is known
            self._survey_due.set()

    def on_files_wanted(self, event: FilesWanted) -> None:
        self._survey_due.set()  # its files may have been deleted since the last look

    def on_devices_changed(self, event: DevicesChanged) -> None:
        self._survey_due.set()

    def on_job_changed(self, event: JobChanged) -> None:
        if event.job.kind == "download" and event.job.result == "done":  # a configured model's, maybe
            self._survey_due.set()

    def on_power_saving(self, event: PowerSavingChanged) -> None:
        self._reconfigure()

    def _reconfigure(self) -> None:
        """Apply what has changed; models that are to be replaced stay so."""
        self._configure([one.spec.name for one in self._scheduler.snapshots() if one.outdated])

    def _configure(self, relaunch: Sequence[str]) -> None:
        entries = [(self._power.adapted(spec), forecast) for spec, forecast in self._forecasts]
        entries += [(spec, Forecast((NOTHING,))) for spec in self._offered]
        if self._trial is not None:
            entries.append(self._trial)
        self._scheduler.configure(entries, self._config.scheduler, limits_of(self._config), relaunch)
