"""The home "container": a container that is there already and knows what to run. Here it is only started and stopped.

Stops it through its engine, never behind its back: a container with a restart policy would come again. Its processes
carry no tag, so the engine decides: the instance has ended when the engine reports that the container does not run.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Final

from accelerd.base.proc import living
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, FixedServer
from accelerd.supervise.homes.containers.container_home import (
    ContainerExit,
    ContainerHome,
    ContainerMainProcess,
    ContainerStart,
    close,
    ending_of,
)
from accelerd.supervise.homes.containers.podman_docker import Container, ContainerEngine
from accelerd.supervise.homes.home import HomeError, InstanceRecord, LaunchRequest, OnExit, OnOutput
from accelerd.supervise.process.output import OutputReader
from accelerd.supervise.process.processes import InstanceTag, Process, hold

log = logging.getLogger(__name__)

POLL: Final = 0.05  # s
END_PATIENCE: Final = 5.0  # s until the engine has noticed the end


class ExistingHome(ContainerHome):
    """Looks for the container at podman first, then at docker."""

    kind = "container"

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return spec.container or ""

    async def program_place(self, spec: ModelSpec) -> FixedServer:
        """A server that listens, or will, at its published port. HomeError when there is none, or more than one."""
        engine, found = await self._find(spec.container or "")
        ports = {port for address, port in found.ports if address in ("0.0.0.0", "::", "127.0.0.1", "::1")}
        if len(ports) != 1:
            has = f"publishes {len(ports)} ports" if ports else "publishes no port on this machine"
            raise HomeError(f"container {found.name} {has}: make it with exactly one, -p 127.0.0.1:PORT:PORT")
        command = (engine.name, "start", found.name)
        return FixedServer(Endpoint(port=ports.pop()), command, f"container {spec.container}", found.ports)

    async def start(self, launch: LaunchRequest, on_output: OnOutput, on_exit: OnExit) -> ContainerMainProcess:
        engine, found = await self._find(launch.spec.container or "")
        was_running = found.running
        if not was_running:
            try:
                await engine.start(found.name)
            except HomeError as error:
                other = await self._has_port(engine, found)
                if other is None:
                    raise
                text = f"container {other.name} has its port already, and accelerd did not start that one"
                raise HomeError(f"{error.problem}; {text}: {engine.name} stop {other.name}") from error
        try:
            return await self._held(launch.tag, found.name, engine, launch.spec.stop_timeout, on_output, on_exit)
        except BaseException:
            if not was_running:
                await asyncio.shield(engine.stop(found.name, 0))
            raise

    async def _has_port(self, engine: ContainerEngine, wanted: Container) -> Container | None:
        """Another container that runs and publishes a port of this one."""
        ours = {port for _, port in wanted.ports}
        others = [one for one in await engine.containers() if one.running and one.id != wanted.id]
        return next((one for one in others if ours & {port for _, port in one.ports}), None)

    async def adopt(self, record: InstanceRecord, on_output: OnOutput, on_exit: OnExit) -> ContainerMainProcess | None:
        try:
            engine, found = await self._find(record.place)
        except HomeError:
            return None
        if not found.running:
            await asyncio.to_thread(self._new(record.tag, record.place).handoff.remove)
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

    async def _held(
        self, tag: InstanceTag, name: str, engine: ContainerEngine, grace: float, on_output: OnOutput, on_exit: OnExit
    ) -> ContainerMainProcess:
        start = self._new(tag, name)
        await asyncio.to_thread(start.handoff.remove)  # an earlier daemon's
        reader = OutputReader(start.handoff.prepare("", life=False), on_output)
        try:
            start.handoff.revoke()
            with start.handoff.writer() as output:
                self._follow(start, engine, output, "--tail=20")
            found = await engine.inspect(name)
            stat = await asyncio.to_thread(living, self._roots.proc, found.pid) if found and found.pid else None
            pidfd = hold(self._roots.proc, Process.of(stat)) if stat is not None else None
        except BaseException:
            reader.finish()
            if start.cli is not None:
                await start.cli.end()
            await asyncio.to_thread(start.handoff.remove)
            raise

        async def signal_by_engine(number: int) -> None:
            start.stopping = True
            await engine.stop(name, 0 if number == signal.SIGKILL else grace + 10)

        return ContainerMainProcess(
            stat.pid if stat is not None else 0, pidfd, on_exit=on_exit, finish=lambda: self._finish(start, engine),
            close=lambda: close(start, kill=True), reader=reader, signal_by_engine=signal_by_engine,
            only_by_engine=True, oom=self._oom_kills(stat.pid) if stat is not None else None,
        )  # fmt: skip

    async def _finish(self, start: ContainerStart, engine: ContainerEngine) -> ContainerExit:
        """The main process has ended: wait until the engine knows, and stop what a restart policy began again."""
        deadline = self._clock.monotonic() + END_PATIENCE
        found = await engine.inspect(start.container)
        while found is not None and found.running and self._clock.monotonic() < deadline:
            if start.stopping:
                await engine.stop(start.container, 0)
            await asyncio.sleep(POLL)
            found = await engine.inspect(start.container)
        if found is not None and found.running:
            await engine.stop(start.container, 0)  # it was started again by itself: two lives are not one
        if start.cli is not None:
            await start.cli.end(0.5)
        await asyncio.to_thread(start.handoff.remove)
        return ending_of(found)
