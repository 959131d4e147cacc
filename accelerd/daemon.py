"""The daemon's own life: begin, reload, end, in the right order. Is given everything it works with by app.py.

Decides nothing about models; holds the configuration in force and applies a new one as a whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerd import __version__
from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.ports import Clock, Roots
from accelerd.bus.desk import BusService
from accelerd.config import Config, ConfigErrors, ModelSpec, Problem, check, diff
from accelerd.config.model import MemorySettings
from accelerd.control.model_info import ModelInfo
from accelerd.control.remembered import StateStore
from accelerd.control.tuning_runs import TuningRuns
from accelerd.devices.watch import DeviceWatch
from accelerd.engines.base import Engine
from accelerd.gateway.access import read_keys
from accelerd.gateway.gateway import Gateway
from accelerd.gateway.listeners import Listeners
from accelerd.memory.model import Forecast
from accelerd.memory.watch import MemoryWatch
from accelerd.policy.clock_boost import ClockBoost
from accelerd.policy.event_log import status_line
from accelerd.policy.sleep_and_power import Desktop
from accelerd.policy.takeover import Successor, take_over
from accelerd.policy.yielding import Yielding
from accelerd.scheduler.placement import Limits
from accelerd.scheduler.service import Scheduler
from accelerd.supervise.homes.containers.upkeep import ToolboxUpkeep
from accelerd.supervise.homes.homes import HomeChoice
from accelerd.supervise.supervisor import ProcessSupervisor
from accelerd.system.activation import describe
from accelerd.system.notify import Notifier, Watchdog
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

MakeEngines = Callable[[Config], dict[str, Engine]]
Forecasts = list[tuple[ModelSpec, Forecast]]

STOP_MARGIN = 5.0  # s beyond the longest stop_timeout until SIGKILL for all


def limits_of(config: Config) -> Limits:
    """What all models share beside the pools of the machine."""
    return Limits(config.scheduler.memory, "scheduler.memory", config.scheduler.max_loaded)


@dataclass(frozen=True)
class Parts:
    """What a daemon is made of."""

    roots: Roots
    clock: Clock
    notifier: Notifier
    watchdog: Watchdog
    state: StateStore
    engines: dict[str, Engine]
    scheduler: Scheduler
    supervisor: ProcessSupervisor
    homes: HomeChoice
    successor: Successor
    close: Callable[[], None]  # what else holds on to something, at the very end
    insight: ModelInfo
    upkeep: ToolboxUpkeep
    devices: DeviceWatch
    performance: ClockBoost
    memory: MemoryWatch
    configure_memory: Callable[[MemorySettings], None]
    yielding: Yielding
    desktop: Desktop
    gateway: Gateway
    listeners: Listeners
    desk: BusService
    trials: TuningRuns
    tcp: Sequence[socket.socket]
    unix: Sequence[socket.socket]

    def degraded(self) -> tuple[str | None, ...]:
        """What parts of it cannot do on this machine."""
        return self.insight.degraded, self.devices.degraded, self.memory.degraded, self.desk.degraded


class Daemon:
    """One accelerd."""

    def __init__(self, parts: Parts, config: Config, problems: list[Problem], make_engines: MakeEngines) -> None:
        """`make_engines` makes them anew when the configuration is another."""
        self._parts = parts
        self._make_engines = make_engines
        self._config, self._problems = config, problems
        self._began = parts.clock.monotonic()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()  # told to stop a second time
        self._reloads: asyncio.Queue[asyncio.Future[dict[str, list[str]]] | None] = asyncio.Queue()
        self._listening: list[str] = []
        self._running = self._ending = False
        self._generation = 0
        self._degraded: str | None = None  # what this machine lacks
        self._known: Forecasts = []  # every model, with what it will need
        self._trial: tuple[ModelSpec, Forecast] | None = None  # what is tried out beside the configured models
        self._survey = asyncio.Event()  # models or devices have changed
        self._survey.set()
        parts.devices.listen(lambda diff: self._survey.set())

    async def run(self) -> None:
        """Serve until told to stop, then end what runs, or leave it to the daemon that follows."""
        await self._begin()
        crashed = True
        try:
            await self._live()
            crashed = False
        finally:
            await self._end(crashed=crashed)

    # --- begin ------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        parts = self._parts
        loop = asyncio.get_running_loop()
        keys = read_keys_of(self._config)
        await asyncio.gather(self._look_for_systemd(), parts.devices.start())
        parts.memory.start()
        self._apply(self._config, keys, await self._forecasts(self._config))
        # Before anything else may be admitted: what is there already takes memory.
        await parts.memory.look()
        found = await parts.supervisor.survivors()
        adopted = take_over(found, self._config.models, parts.scheduler)
        parts.yielding.begin()
        await parts.supervisor.sweep_leftovers()
        await parts.upkeep.begin()
        await parts.listeners.open(parts.tcp, parts.unix)
        self._listening = [describe(sock) for sock in parts.tcp]
        parts.desk.begin()
        await parts.desk.open()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        gc.collect()
        gc.freeze()  # what exists now stays: later collections need not look at it
        for problem in self._problems:
            log.warning("%s", problem)
        text = f"accelerd {__version__} serves {', '.join(self._listening)}"
        if adopted:
            text += f"; taken over from an earlier one: {len(adopted)} of {len(found)} models"
        event(log, NOTICE, text, message_id=names.MSG_STARTED)
        self._running = True
        parts.desk.changed()
        parts.notifier.ready(self.status())
        parts.watchdog.register("scheduler", parts.scheduler.is_alive)
        parts.watchdog.start()

    async def _look_for_systemd(self) -> None:
        why_not = await self._parts.homes.look()
        if why_not:
            self._degraded = f"no systemd user manager answers ({why_not}): models are children and end with accelerd"

    def _on_stop(self) -> None:
        self._parts.desk.changed()
        if self._stop.is_set():
            log.warning("told to stop again: killing the models at once")
            self._hurry.set()
        self._stop.set()

    def _on_hangup(self) -> None:
        if self._reloads.empty():  # one that waits will read the newest files too
            self._reloads.put_nowait(None)

    # --- live -------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Until told to stop. A background task that fails takes the daemon with it: systemd starts a whole one."""
        async with asyncio.TaskGroup() as tasks:
            preload = tasks.create_task(self._preload(), name="preload")
            reload = tasks.create_task(self._reload_when_asked(), name="reload")
            repair = tasks.create_task(self._parts.upkeep.repair(), name="repair of toolboxes")
            performance = tasks.create_task(self._parts.performance.run(), name="performance")
            self._parts.watchdog.register("reload", lambda: not reload.done())
            survey = tasks.create_task(self._survey_models(), name="survey")
            await self._stop.wait()
            for task in (preload, reload, repair, performance, survey):
                task.cancel()
        while not self._reloads.empty():
            _refuse(self._reloads.get_nowait(), _shutting_down())

    async def _preload(self) -> None:
        """Load what shall be there from the start, one after the other, in the order of the configuration."""
        for spec in list(self._config.models.values()):
            await self._parts.desktop.may_preload()
            if not (spec.preload or spec.pin) or spec.name not in self._config.models:
                continue
            try:
                await self._parts.scheduler.load(spec.name, evict=False, reset=False)
            except AccelError as error:
                event(log, logging.WARNING, f"cannot preload {spec.name}: {error.message}", model=spec.name)

    async def reload(self) -> dict[str, list[str]]:
        """Read the configuration again: names of what changed, by kind. AccelError config_invalid changes nothing."""
        if self._stop.is_set():
            raise _shutting_down()
        done: asyncio.Future[dict[str, list[str]]] = asyncio.get_running_loop().create_future()
        self._reloads.put_nowait(done)
        return await done

    async def _reload_when_asked(self) -> None:
        while True:
            asked = await self._reloads.get()
            self._parts.notifier.reloading()
            failure = _shutting_down()
            try:
                changed = await self._reload()
                if asked is not None and not asked.done():
                    asked.set_result(changed)
            except AccelError as error:
                event(log, logging.ERROR, error.message, message_id=names.MSG_CONFIG_REJECTED)
                failure = error
            except Exception:
                failure = AccelError("internal", "accelerd failed while it read the configuration; see its journal")
                raise
            finally:
                _refuse(asked, failure)
                self._parts.notifier.ready(self.status())

    async def _reload(self) -> dict[str, list[str]]:
        roots = self._parts.roots
        config, problems = await asyncio.to_thread(check, roots.config_file, roots.home)
        if config is None:
            self._problems = problems
            raise ConfigErrors(problems)
        keys = await asyncio.to_thread(read_keys_of, config)
        changes = diff(self._config, config)
        if "server.listen" in changes.settings:
            log.warning("server.listen changed: it takes effect when accelerd is restarted")
        self._parts.engines.update(self._make_engines(config))
        self._apply(config, keys, await self._forecasts(config), changes.relaunch)
        self._config, self._problems = config, problems
        self._survey.set()
        found = changes.as_dict()
        what = "; ".join(f"{kind}: {', '.join(who)}" for kind, who in found.items() if who)
        event(log, NOTICE, f"configuration read: {what or 'nothing in it'}", message_id=names.MSG_CONFIG_LOADED)
        for problem in problems:
            log.warning("%s", problem)
        return found

    def _apply(
        self, config: Config, keys: tuple[bytes, ...], forecasts: Forecasts, relaunch: Sequence[str] = ()
    ) -> None:
        parts = self._parts
        parts.gateway.configure(config.server, keys, config.models.values(), config.routes.values())
        parts.listeners.configure(config.server)
        parts.performance.configure(config.performance)
        parts.configure_memory(config.memory)
        parts.desktop.configure(config.desktop, give_up="sleep" in config.memory.yield_on)
        self._known = forecasts
        self._generation += 1
        parts.scheduler.configure(self._entries(), config.scheduler, limits_of(config), relaunch)
        parts.desk.changed()

    async def _forecasts(self, config: Config) -> Forecasts:
        return await self._parts.insight.forecasts(config.models.values())

    def _entries(self) -> Forecasts:
        """Every model, with what it will need."""
        known = self._parts.desktop.fitted(self._known)
        return known if self._trial is None else [*known, self._trial]

    async def try_out(self, spec: ModelSpec | None) -> None:
        """Have this model beside the configured ones; None: have it no more."""
        self._trial = (spec, await self._parts.insight.forecast(spec, ask=True)) if spec is not None else None
        self.configure_models()

    def configure_models(self) -> None:
        """Have the models as they are to be now; what is to be replaced stays so. Running requests notice nothing."""
        scheduler, config = self._parts.scheduler, self._config
        outdated = [one.spec.name for one in scheduler.snapshots() if one.outdated]
        scheduler.configure(self._entries(), config.scheduler, limits_of(config), outdated)
        self._parts.desk.changed()

    async def _survey_models(self) -> None:
        """Ask the models' programs what they would need, whenever models or devices have changed.

        Containers are left alone: what a program in one says of itself is known once a model was started with it.
        """
        while True:
            await self._survey.wait()
            self._survey.clear()
            for spec in list(self._config.models.values()):
                forecast = await self._parts.insight.forecast(spec, ask=not spec.contained)
                if self._config.models.get(spec.name) is spec:
                    self._known = [(spec, forecast) if one is spec else (one, known) for one, known in self._known]
                    self._parts.scheduler.forecast(spec.name, forecast)

    def loaded(self, spec: ModelSpec) -> None:
        """A load has come to its end."""
        if spec.contained or spec.engine == "lemonade":  # only now its program, or its server, has told what it is
            self._survey.set()

    # --- end --------------------------------------------------------------------------------------------------

    async def _end(self, *, crashed: bool) -> None:
        """Accept nothing new, let requests end, stop the models, the youngest first. A second signal hurries it all.

        When a later daemon follows, the models that can live without one stay.
        """
        parts = self._parts
        event(log, NOTICE, "accelerd is stopping", message_id=names.MSG_STOPPING)
        self._ending = True
        parts.desk.changed()
        parts.notifier.stopping("stopping: waiting for requests in flight")
        await parts.upkeep.close()
        parts.listeners.stop_accepting()
        parts.supervisor.end_readers()  # or they would be waited for like requests
        parts.trials.stop()
        keep = await parts.successor.expected(crashed=crashed)
        parts.scheduler.shutdown(keep=keep)
        hurry = asyncio.create_task(self._hurry.wait())
        await self._unless_hurried(parts.listeners.drain(self._config.server.drain_timeout), hurry, None)
        await parts.performance.close()
        parts.yielding.close()
        await parts.desktop.close()
        # A restart may have become a stop while requests ended.
        keep = keep and not self._hurry.is_set() and await parts.successor.expected(crashed=crashed)
        parts.notifier.status("stopping: the models go on" if keep else "stopping: ending the models")
        patience = STOP_MARGIN + max((spec.stop_timeout for spec in self._config.models.values()), default=0.0)
        if not keep and not await self._unless_hurried(parts.scheduler.stop_all(), hurry, patience):
            parts.supervisor.kill_all()
        await parts.supervisor.close(patience if keep else STOP_MARGIN, keep=keep)
        hurry.cancel()
        await asyncio.gather(hurry, return_exceptions=True)
        await parts.desk.close()
        await parts.listeners.close()
        await parts.memory.close()
        await parts.devices.close()
        parts.gateway.close()
        parts.scheduler.close()
        await parts.state.close()
        parts.watchdog.stop()
        parts.close()

    async def _unless_hurried(self, work: Any, hurry: asyncio.Task[Any], patience: float | None) -> bool:
        """Do `work` for at most `patience` seconds or until told to stop again. Was it done to its end?"""
        task = asyncio.ensure_future(work)
        await asyncio.wait((task, hurry), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        done: bool = task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return done

    # --- what others may know ---------------------------------------------------------------------------------

    def status(self) -> str:
        """One line for people."""
        return status_line(self._parts.scheduler.snapshots(), self._parts.scheduler.memory_held())

    def overview(self) -> dict[str, Any]:
        """The part of `status` that is not about models, see docs/control.md."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime": self._parts.clock.monotonic() - self._began,
            "state": "draining" if self._stop.is_set() else "running",
            "status": self.status(),
            "listen": self._listening,
            "config": {"files": list(self._config.files), "problems": [p.as_dict() for p in self._problems]},
            "yielded": self._parts.yielding.report(),
            "performance": self._parts.performance.report(),
            "desktop": self._parts.desktop.report(),
            "degraded": "; ".join(self.degraded()) or None,
        }

    @property
    def state(self) -> str:
        """For the bus: "starting", "running", "draining"."""
        if self._ending or self._stop.is_set():
            return "draining"
        return "running" if self._running else "starting"

    @property
    def endpoints(self) -> list[str]:
        """URLs of the OpenAI-compatible endpoint."""
        return [f"http://{where}/v1" for where in self._listening]

    @property
    def generation(self) -> int:
        """How many configurations were in force."""
        return self._generation

    def degraded(self) -> list[str]:
        """What this machine, or a part of it, lacks: a clause each."""
        return [reason for reason in (self._degraded, *self._parts.degraded()) if reason]

    async def problems(self) -> Sequence[Problem]:
        """Of the configuration as it is on disk now."""
        roots = self._parts.roots
        _, problems = await asyncio.to_thread(check, roots.config_file, roots.home)
        return problems


def _shutting_down() -> AccelError:
    return AccelError("shutting_down", "accelerd is shutting down", retry_after=5)


def _refuse(asked: asyncio.Future[dict[str, list[str]]] | None, error: AccelError) -> None:
    """Answer somebody who asked for a reload and has no answer yet."""
    if asked is not None and not asked.done():
        asked.set_exception(error)


def read_keys_of(config: Config) -> tuple[bytes, ...]:
    """The API keys' digests. AccelError config_invalid."""
    return read_keys(Path(config.server.key_file)) if config.server.key_file else ()
