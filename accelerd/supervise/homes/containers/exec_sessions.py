"""podman's exec sessions: none of ours is left, whoever ends first.

podman removes its record of a `podman exec` when that command sees its program end. If the command is killed, the
program runs on and podman keeps the record. So a command that enters a container is not killed while it has a program
inside: that program is. Where somebody else killed it, podman is told. And it does not live in the daemon's unit, where
systemd would kill it with the daemon.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.base.ports import Clock
from accelerd.supervise.homes.containers import process_tree
from accelerd.supervise.homes.containers.commands import CliProcess, CommandResult, CommandRunner
from accelerd.supervise.homes.containers.handoff import NOT_FOUND
from accelerd.supervise.homes.containers.podman_docker import Container, ContainerEngine
from accelerd.supervise.homes.containers.process_tree import ExecSession
from accelerd.supervise.homes.home import HomeError
from accelerd.supervise.process.processes import InstanceTag, Process, ProcessTable, describe

log = logging.getLogger(__name__)

PATIENCE: Final = 12.0  # s until podman agrees that a session is over
SCAN: Final = 0.03  # s between two looks at /proc
# Arguments: the two values of an InstanceTag, then the program and its arguments.
TAGGED: Final = (
    f"export {names.ENV_INSTANCE}=$1 {names.ENV_OWNER}=$2; shift 2; "
    f'command -v -- "$1" >/dev/null 2>&1 || {{ echo "$1: no such program in this container" >&2; exit {NOT_FOUND}; }}; '
    'exec "$@"'
)


class ExecSessions:
    """`enter`: the command line that runs a command in a container of that name; `find`: the container."""

    def __init__(
        self,
        proc: Path,
        owner: str,
        clock: Clock,
        table: ProcessTable,
        tools: CommandRunner,
        enter: Callable[[str, Sequence[str]], tuple[str, ...]],
        find: Callable[[str], Awaitable[tuple[ContainerEngine, Container]]],
    ) -> None:
        self._proc = proc
        self._owner = owner
        self._clock = clock
        self._table = table
        self._tools = tools
        self._enter = enter
        self._find = find

    async def call(self, container: str, *argv: str, within: float) -> CommandResult:
        """Run a short command inside to its end. HomeError when it takes longer than `within` seconds: then it is
        killed."""
        tag = InstanceTag(f"ask-{secrets.token_hex(8)}", self._owner)
        entering = self._enter(container, ("sh", "-c", TAGGED, "sh", tag.instance, tag.owner, *argv))
        try:
            cli = self._tools.cli((*self._tools.outside(), *entering))
        except OSError as error:
            raise HomeError(f"cannot run {entering[0]}: {error.strerror or error}") from error
        try:
            return await cli.finished(f"{argv[0]} in {container}", within)
        finally:
            await asyncio.shield(self._end(container, tag, cli))

    async def _end(self, container: str, tag: InstanceTag, cli: CliProcess) -> None:
        session = await self.clear(container, tag, cli)
        if session is not None:
            await self.close(container, session)

    async def clear(self, container: str, tag: InstanceTag, cli: CliProcess | None) -> ExecSession | None:
        """Kill what has begun inside, wait until nothing more comes, end `cli`. The session that was seen meanwhile."""
        deadline = self._clock.monotonic() + PATIENCE
        session: ExecSession | None = None
        while True:
            left, seen = await asyncio.to_thread(self._kill, tag)
            session = seen or session
            if not left and (cli is None or cli.exited.is_set()):
                break
            if self._clock.monotonic() > deadline:
                what = describe(left) if left else "the command that enters it"
                log.error("cannot end %s in container %s", what, container)
                break
            await asyncio.sleep(SCAN)
        if cli is not None:
            await cli.end()
        return session

    def _kill(self, tag: InstanceTag) -> tuple[list[Process], ExecSession | None]:
        """SIGKILL to tagged processes, and to the shells inside that were to start them. Blocking."""
        left = {process.pid: process for process in self._table.members(tag, None)}
        carriers = {process.pid: process for process in process_tree.carriers(self._proc, tag.instance)}
        found: ExecSession | None = None
        for process in (left | carriers).values():
            session = process_tree.exec_session(self._proc, process.pid)
            if session is not None:
                found = session
                if process.name != "conmon":
                    left[process.pid] = process
        for process in left.values():
            self._table.signal(process, signal.SIGKILL)
        return list(left.values()), found

    async def close(self, container: str, session: ExecSession) -> None:
        """Have podman forget a session whose program has ended, if it has not."""
        deadline = self._clock.monotonic() + PATIENCE
        try:
            engine, found = await self._find(container)
            while session.id in found.exec_ids and found.running:
                if self._clock.monotonic() > deadline:
                    raise HomeError(f"podman does not forget {session.id}")
                if not session.has_conmon(self._proc):
                    await engine.write_exit(session.exit_file)
                if await engine.end_session(container, session.id):
                    break
                await asyncio.sleep(SCAN)
                engine, found = await self._find(container)
        except HomeError as error:
            log.warning("an exec session may be left in container %s: %s", container, error)
