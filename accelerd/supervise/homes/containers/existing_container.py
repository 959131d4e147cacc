"""The home "container": a container that is there already and knows what to run. Here it is only started and stopped.

Stops it through its engine, never behind its back: a container with a restart policy would come again. Its processes
carry no tag, so the engine decides: the instance has ended when the engine reports that the container does not run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from accelerd.base.ports import Clock, Roots
from accelerd.base.proc import living
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint
from accelerd.supervise.homes.containers.commands import CliProcess, CommandResult, CommandRunner
from accelerd.supervise.homes.containers.handoff import ContainerHandoff
from accelerd.supervise.homes.containers.main_process import (
    ContainerExit,
    ContainerMainProcess,
    OomWatch,
    ProcessGone,
    hold,
)
from accelerd.supervise.homes.containers.podman_docker import Container, ContainerEngine
from accelerd.supervise.homes.home import HomeError, InstanceRecord, LaunchRequest
from accelerd.supervise.process.output_reader import OutputReader
from accelerd.supervise.process.processes import InstanceTag, Process

log = logging.getLogger(__name__)

POLL: Final = 0.05  # s
END_PATIENCE: Final = 5.0  # s until the engine has noticed the end


class _ExistingStart(Struct):
    name: str
    engine: ContainerEngine
    handoff: ContainerHandoff
    grace: float
    stopping: bool = False
    logs: CliProcess | None = None


class ExistingHome:
    """See home.Home. Looks for the container at podman first, then at docker."""

    kind = "container"

    def __init__(
        self,
        roots: Roots,
        clock: Clock,
        tools: CommandRunner,
        *,
        survives: bool,
        engines: Sequence[ContainerEngine] | None = None,
    ) -> None:
        self.survives = survives
        self._roots = roots
        self._clock = clock
        self._tools = tools
        self._engines = list(engines or [ContainerEngine(name, tools) for name in ("podman", "docker")])

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return spec.container or ""

    async def endpoint(self, spec: ModelSpec) -> Endpoint:
        """Where it listens, or will: its published port. HomeError when there is none, or more than one."""
        _, found = await self._find(spec.container or "")
        ports = {port for address, port in found.ports if address in ("0.0.0.0", "::", "127.0.0.1", "::1")}
        if len(ports) != 1:
            has = f"publishes {len(ports)} ports" if ports else "publishes no port on this machine"
            raise HomeError(f"container {found.name} {has}: make it with exactly one, -p 127.0.0.1:PORT:PORT")
        return Endpoint(port=ports.pop())

    async def prepare(self, spec: ModelSpec, on_output: Callable[[bytes], None]) -> None:
        """Nothing to do: the container knows what it runs."""

    async def command(self, spec: ModelSpec) -> tuple[str, ...]:
        """What starts it, for people. HomeError."""
        engine, found = await self._find(spec.container or "")
        return (engine.name, "start", found.name)

    async def ask(self, spec: ModelSpec, *argv: str, within: float = 30.0) -> CommandResult:
        """Run a short command in it, while it runs. HomeError."""
        engine, found = await self._find(spec.container or "")
        return await engine.call("exec", found.name, *argv, within=within, check=False)

    async def start(
        self, launch: LaunchRequest, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> ContainerMainProcess:
        engine, found = await self._find(launch.spec.container or "")
        was_running = found.running
        if not was_running:
            await engine.start(found.name)
        try:
            return await self._held(launch.tag, found.name, engine, launch.spec.stop_timeout, on_output, on_exit)
        except BaseException:
            if not was_running:
                await asyncio.shield(engine.stop(found.name, 0))
            raise

    async def adopt(
        self, record: InstanceRecord, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> ContainerMainProcess | None:
        try:
            engine, found = await self._find(record.place)
        except HomeError:
            return None
        if not found.running:
            await asyncio.to_thread(ContainerHandoff(self._roots, record.tag).remove)
            return None
        return await self._held(record.tag, found.name, engine, 10.0, on_output, on_exit)

    async def living(self, record: InstanceRecord) -> list[Process]:
        """Its main process, which carries no tag: the container existed before."""
        try:
            _, found = await self._find(record.place)
        except HomeError as error:
            log.warning("%s: %s", record.model, error)
            return []
        stat = await asyncio.to_thread(living, self._roots.proc, found.pid) if found.running and found.pid else None
        return [Process.of(stat)] if stat is not None else []

    async def _find(self, name: str) -> tuple[ContainerEngine, Container]:
        trouble = f"there is no container {name}: see podman ps -a and docker ps -a"
        for engine in self._engines:
            if self._tools.has(engine.name):
                try:
                    found = await engine.inspect(name)
                except HomeError as error:
                    trouble = str(error)
                    continue
                if found is not None:
                    return engine, found
        raise HomeError(trouble)

    async def _held(
        self, tag: InstanceTag, name: str, engine: ContainerEngine, grace: float,
        on_output: Callable[[bytes], None], on_exit: Callable[[], None],
    ) -> ContainerMainProcess:  # fmt: skip
        start = _ExistingStart(name, engine, ContainerHandoff(self._roots, tag), grace)
        await asyncio.to_thread(start.handoff.remove)  # an earlier daemon's
        reader = OutputReader(start.handoff.prepare("", life=False), on_output)
        try:
            start.handoff.revoke()
            output = start.handoff.writer()
            try:
                follow = (self._tools.find(engine.name), "logs", "--follow", "--tail=20", name)
                start.logs = self._tools.cli(follow, tag.instance, output)
            finally:
                os.close(output)
            found = await engine.inspect(name)
            stat = await asyncio.to_thread(living, self._roots.proc, found.pid) if found and found.pid else None
            pidfd = None
            if stat is not None:
                try:
                    pidfd = hold(self._roots.proc, Process.of(stat))
                except ProcessGone:
                    log.debug("container %s ended at once", name)
        except BaseException:
            reader.finish()
            if start.logs is not None:
                await start.logs.end()
            await asyncio.to_thread(start.handoff.remove)
            raise

        async def signal_by_engine(number: int) -> None:
            start.stopping = True
            await engine.stop(name, 0 if number == signal.SIGKILL else start.grace + 10)

        return ContainerMainProcess(
            stat.pid if stat is not None else 0, pidfd, on_exit=on_exit, finish=lambda: self._finish(start),
            close=lambda: _close(start), reader=reader, signal_by_engine=signal_by_engine, only_by_engine=True,
            oom=OomWatch.of(self._roots, stat.pid) if stat is not None else None,
        )  # fmt: skip

    async def _finish(self, start: _ExistingStart) -> ContainerExit:
        """The main process has ended: wait until the engine knows, and stop what a restart policy began again."""
        deadline = self._clock.monotonic() + END_PATIENCE
        found = await start.engine.inspect(start.name)
        while found is not None and found.running and self._clock.monotonic() < deadline:
            if start.stopping:
                await start.engine.stop(start.name, 0)
            await asyncio.sleep(POLL)
            found = await start.engine.inspect(start.name)
        ending = ContainerExit(None)
        if found is not None and not found.running:
            code = found.exit_code
            ending = ContainerExit(128 - code if 128 < code <= 192 else code, "oom-kill" if found.oom_killed else None)
        elif found is not None:
            await start.engine.stop(start.name, 0)  # it was started again by itself: two lives are not one
        if start.logs is not None:
            await start.logs.end(0.5)
        await asyncio.to_thread(start.handoff.remove)
        return ending


def _close(start: _ExistingStart) -> None:
    start.handoff.let_go()
    if start.logs is not None:
        start.logs.kill()
        start.logs.close()
