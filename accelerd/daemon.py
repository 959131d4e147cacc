"""The daemon's own life: begin, reload, end, in the right order. Works with the parts that app.py makes.

Decides nothing about models; holds the configuration in force and applies a new one as a whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from accelerd import __version__
from accelerd.app import MakeHomes, Parts
from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.events import DaemonState, DaemonStateChanged, DegradationChanged
from accelerd.base.ports import Roots
from accelerd.config import Config, ConfigErrors, Problem, check, diff
from accelerd.config.load import vanished
from accelerd.config.model import ConfigApplied
from accelerd.config.problems import first_error
from accelerd.config.rules import lost_programs
from accelerd.control.api import ControlApi
from accelerd.control.configured_models import Forecasts
from accelerd.control.downloads import fetch
from accelerd.control.parts import ConfigStatus, DaemonStatus, DesktopStatus
from accelerd.gateway.access import read_keys
from accelerd.policy.last_good import LastGood
from accelerd.policy.takeover import take_over
from accelerd.system.lock import EXIT_CONFIG, InstanceLock, StartError
from accelerd.system.records import NOTICE, event
from accelerd.system.worker_thread import DaemonThreadExecutor

if TYPE_CHECKING:
    from accelerd.control.http import HttpControl

log = logging.getLogger(__name__)

GC_AFTER = 1.0  # s from the start until the first collection
LISTEN_AGAIN = 2.0  # s between two attempts to listen on an address that is in use
STOP_MARGIN = 5.0  # s beyond the longest stop_timeout until SIGKILL for all
END_MARGIN = 15.0  # s for all the rest of an end


async def serve(roots: Roots, homes: MakeHomes | None = None) -> None:
    """One daemon from its first to its last moment. StartError when it cannot begin."""
    config, problems = check(roots.config_file, roots.home, os.environ)
    if config is None:
        config = LastGood(roots).load()
    if config is None:
        lines = "\n  ".join(str(problem) for problem in problems)
        raise StartError(f"the configuration is not valid:\n  {lines}", status=EXIT_CONFIG)
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        daemon = Daemon(Parts(roots, config, homes), config, problems)
        try:
            await daemon.run()
        except AccelError as error:  # a key file that can no longer be read
            raise StartError(error.message, status=EXIT_CONFIG) from None


class Daemon:
    """One accelerd."""

    def __init__(self, parts: Parts, config: Config, problems: list[Problem]) -> None:
        self._parts = parts
        self._config, self._problems = config, [*problems]
        self._last_good = LastGood(parts.roots)
        self._began = parts.clock.monotonic()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()  # told to stop a second time
        self._reloads: asyncio.Queue[asyncio.Future[dict[str, list[str]]] | None] = asyncio.Queue()
        self._state = DaemonState.STARTING
        self._generation = 0
        self._degraded: str | None = None  # what this machine lacks
        parts.daemon = self
        self._api = ControlApi(parts)
        parts.downloads.fetch = partial(fetch, parts)
        parts.gateway.make_control = self._http_control
        parts.bus_service.attach(self._api)

    def _http_control(self) -> HttpControl:
        from accelerd.control.http import HttpControl  # with aiohttp's server, which is large

        return HttpControl(self._api)

    async def run(self) -> None:
        """Serve until told to stop, then end what runs, or leave it to the daemon that follows."""
        asyncio.get_running_loop().set_default_executor(DaemonThreadExecutor())
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
        await parts.listeners.listen(self._config.server.listen, starting=True)
        await asyncio.gather(self._look_for_systemd(), parts.devices.start())
        self._apply(self._config, keys, await parts.models.forecasts(self._config))
        # Before anything else may be admitted: what is there already takes memory.
        parts.memory.start()
        _, found = await asyncio.gather(parts.memory.look(), parts.supervisor.survivors())
        adopted = take_over(found, self._config.models, parts.scheduler)
        parts.yielding.begin()
        await parts.supervisor.sweep_leftovers()
        await parts.upkeep.begin()
        await parts.listeners.open()
        for name in parts.passed.stored:
            parts.notifier.remove_stored(name)
        # What needs D-Bus begins after the listeners: no request waits for it.
        parts.events.publish(ConfigApplied(self._config))
        parts.bus_service.begin()
        await parts.bus_service.open()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.call_later(GC_AFTER, collect_garbage)
        self._tell_problems()
        for problem in parts.listeners.problems:
            log.error("%s; accelerd tries again", problem)
        text = f"accelerd {__version__} serves {', '.join(parts.listeners.addresses) or 'its control socket only'}"
        if adopted:
            text += f"; taken over from an earlier one: {len(adopted)} of {len(found)} models"
        event(log, NOTICE, text, message_id=names.MSG_STARTED)
        if not self._stop.is_set():
            self._enter(DaemonState.RUNNING)
        parts.notifier.ready(self.status())
        parts.watchdog.register("scheduler", parts.scheduler.is_alive)
        parts.watchdog.start()

    async def _look_for_systemd(self) -> None:
        why_not = await self._parts.homes.look()
        if why_not:
            self._degraded = f"no systemd user manager answers ({why_not}): models are children and end with accelerd"

    def _enter(self, state: DaemonState) -> None:
        if state is not self._state:
            self._state = state
            self._parts.events.publish(DaemonStateChanged(state))

    def _on_stop(self) -> None:
        self._enter(DaemonState.DRAINING)
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
            preload = tasks.create_task(self._parts.models.preload(), name="preload")
            reload = tasks.create_task(self._reload_when_asked(), name="reload")
            repair = tasks.create_task(self._parts.upkeep.repair(), name="repair of toolboxes")
            clock_boost = tasks.create_task(self._parts.clock_boost.run(), name="clock boost")
            survey = tasks.create_task(self._parts.models.survey(), name="survey")
            runtime = tasks.create_task(self._parts.runtime_directory.run(), name="runtime directory")
            listen_again = tasks.create_task(self._listen_again(), name="listen again")
            hung_disks = tasks.create_task(self._parts.hung_disks.run(), name="hung disks")
            if not self._mention_errors():
                tasks.create_task(asyncio.to_thread(self._last_good.keep, self._config), name="last good configuration")
            await self._stop.wait()
            for task in (preload, reload, repair, clock_boost, survey, runtime, listen_again, hung_disks):
                task.cancel()
        while not self._reloads.empty():
            _refuse(self._reloads.get_nowait(), _shutting_down())

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
        config, problems = await asyncio.to_thread(self._on_disk)
        if config is None:
            self._problems = problems
            self._mention_errors()
            raise ConfigErrors(problems)
        try:
            keys = await asyncio.to_thread(read_keys_of, config)
            await self._listen(config)
        except AccelError as error:  # there is no mistake in the files, yet what they say cannot be
            self._problems = [Problem(self._parts.roots.config_file.name, None, "server", error.message), *problems]
            self._mention_errors()
            raise
        changes = diff(self._config, config)
        self._parts.engines.update(self._parts.make_engines(config))
        forecasts = await self._parts.models.forecasts(config)
        self._parts.events.publish(ConfigApplied(config))  # first: how models are adapted may depend on it
        self._apply(config, keys, forecasts, changes.relaunch)
        await self._parts.listeners.open()  # now that the keys are known that an address may need
        self._config, self._problems = config, problems
        found = changes.as_dict()
        what = "; ".join(f"{kind}: {', '.join(who)}" for kind, who in found.items() if who)
        event(log, NOTICE, f"configuration read: {what or 'nothing in it'}", message_id=names.MSG_CONFIG_LOADED)
        self._tell_problems()
        await asyncio.to_thread(self._last_good.keep, config)
        return found

    async def _listen_again(self) -> None:
        """Until it listens on every address of the configuration: one was in use at first, or not there yet."""
        listeners = self._parts.listeners
        while listeners.problems:
            await asyncio.sleep(LISTEN_AGAIN)
            if await listeners.try_again():
                self._mention_errors()
                self._parts.notifier.status(self.status())

    async def _listen(self, config: Config) -> None:
        """AccelError: an address cannot be had."""
        try:
            await self._parts.listeners.listen(config.server.listen)
        except StartError as error:
            raise AccelError("config_invalid", error.message) from None

    def _tell_problems(self) -> None:
        for problem in self._problems:
            log.log(logging.WARNING if problem.severity == "warning" else logging.ERROR, "%s", problem)
        if self._mention_errors():
            text = "the configuration has mistakes: the last one without any is in use; see: accelctl config check"
            event(log, logging.ERROR, text, message_id=names.MSG_CONFIG_REJECTED)

    def _mention_errors(self) -> bool:
        """In the line that `systemctl status` shows, and to whoever follows what is degraded. Are there any?"""
        error = first_error(self._problems)
        clauses = [f"the configuration on disk is not in use: {error}"] if error else []
        self._parts.status_line.first = "; ".join((*clauses, *self._parts.listeners.problems))
        self._parts.events.publish(DegradationChanged())
        return bool(error)

    def _apply(
        self, config: Config, keys: tuple[bytes, ...], forecasts: Forecasts, relaunch: Sequence[str] = ()
    ) -> None:
        parts = self._parts
        parts.gateway.configure(config.server, keys)
        parts.listeners.configure(config.server)
        self._generation += 1
        parts.offered.configure(config, forecasts, relaunch)

    # --- end --------------------------------------------------------------------------------------------------

    async def _end(self, *, crashed: bool) -> None:
        """Accept nothing new, let requests end, stop the models, the youngest first. A second signal hurries it all.

        When a later daemon follows, the models that can live without one stay.
        """
        parts = self._parts
        event(log, NOTICE, "accelerd is stopping", message_id=names.MSG_STOPPING)
        self._enter(DaemonState.DRAINING)
        parts.notifier.stopping("stopping: waiting for requests in flight")
        patience = STOP_MARGIN + max((spec.stop_timeout for spec in self._config.models.values()), default=0.0)
        parts.notifier.extend(self._config.server.drain_timeout + 2 * patience + END_MARGIN)
        await parts.upkeep.close()
        parts.listeners.stop_accepting()
        parts.supervisor.end_readers()  # or they would be waited for like requests
        parts.tuning_runs.stop()
        keep = await parts.successor.expected(crashed=crashed)
        if not keep:
            if refused := parts.scheduler.shutdown():
                text = f"requests that wait for a model are refused (only a restart hands them on): {refused}"
                event(log, NOTICE, text, message_id=names.MSG_STOPPING)
        elif count := await parts.listeners.hand_over(parts.successor.keep, _shutting_down()):
            log.info("requests that wait for the next accelerd: %d", count)
        hurry = asyncio.create_task(self._hurry.wait())
        await self._unless_hurried(parts.listeners.drain(self._config.server.drain_timeout), hurry, None)
        parts.scheduler.shutdown(keep=keep)
        await self._unless_hurried(parts.listeners.cut(_shutting_down()), hurry, None)
        await parts.downloads.close()
        await parts.clock_boost.keeper.close()
        parts.yielding.close()
        parts.power.close()
        parts.remote_idle.close()
        await parts.sleep.guard.close()
        await parts.notifications.close()
        # A restart may have become a stop while requests ended.
        keep = keep and not self._hurry.is_set() and await parts.successor.expected(crashed=crashed)
        parts.notifier.status("stopping: the models go on" if keep else "stopping: ending the models")
        if not keep and not await self._unless_hurried(parts.scheduler.stop_all(), hurry, patience):
            parts.supervisor.kill_all()
        await parts.supervisor.close(patience if keep else STOP_MARGIN, keep=keep)
        hurry.cancel()
        await asyncio.gather(hurry, return_exceptions=True)
        await parts.bus_service.close()
        await parts.listeners.close()
        await parts.memory.close()
        await parts.devices.close()
        parts.gateway.close()
        await parts.remotes.close()
        parts.scheduler.close()
        await parts.state.close()
        await parts.hung_disks.close()
        if not crashed:
            await parts.successor.forgive()
        parts.watchdog.stop()
        await parts.buses.close()

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
        return self._parts.status_line.text()

    def overview(self) -> DaemonStatus:
        """The part of `status` that is not about models."""
        parts = self._parts
        return DaemonStatus(
            version=__version__,
            pid=os.getpid(),
            uptime=parts.clock.monotonic() - self._began,
            state=self.state,
            status=self.status(),
            listen=parts.listeners.addresses,
            listeners=parts.listeners.report(),
            config=ConfigStatus(list(self._config.files), list(self._problems), not first_error(self._problems)),
            yielded=parts.yielding.report(),
            performance=parts.clock_boost.keeper.report(),
            desktop=DesktopStatus(parts.sleep.guard.report(), parts.power.reason or None, parts.notifications.report()),
            degraded="; ".join(self.degraded()) or None,
        )

    @property
    def state(self) -> str:
        """For the bus: "starting", "running", "draining"."""
        return self._state

    @property
    def endpoints(self) -> list[str]:
        """URLs of the OpenAI-compatible endpoint."""
        return [f"http://{where}/v1" for where in self._parts.listeners.addresses]

    @property
    def generation(self) -> int:
        """How many configurations were in force."""
        return self._generation

    def degraded(self) -> list[str]:
        """What this machine, or a part of it, lacks: a clause each."""
        return [reason for reason in (self._degraded, *self._parts.degraded()) if reason]

    async def problems(self) -> Sequence[Problem]:
        """Of the configuration as it is on disk now."""
        return (await asyncio.to_thread(self._on_disk))[1]

    def _on_disk(self) -> tuple[Config | None, list[Problem]]:
        """What the files say now. That one is gone says nothing: a disk, or whoever writes it anew, may be slow.

        A program that is not there would replace models that run by ones that cannot.
        """
        roots = self._parts.roots
        config, problems = check(roots.config_file, roots.home, os.environ)
        if config is not None and (gone := vanished(self._config, config, roots.config_file)):
            return None, [gone, *problems]
        if config is not None and (lost := list(lost_programs(self._config, config))):
            known = {(problem.file, problem.line, problem.key) for problem in lost}
            return None, [*lost, *(one for one in problems if (one.file, one.line, one.key) not in known)]
        return config, problems


def collect_garbage() -> None:
    """Once, when the start is over: what exists then stays, and later collections need not look at it."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _shutting_down() -> AccelError:
    return AccelError("shutting_down", "accelerd is shutting down", retry_after=5)


def _refuse(asked: asyncio.Future[dict[str, list[str]]] | None, error: AccelError) -> None:
    """Answer somebody who asked for a reload and has no answer yet."""
    if asked is not None and not asked.done():
        asked.set_exception(error)


def read_keys_of(config: Config) -> tuple[bytes, ...]:
    """The API keys' digests. AccelError config_invalid."""
    return () if config.server.key_file is None else read_keys(config.server.key_file)
