"""The homes "toolbox" and "distrobox": a model inside a container that the user also uses for other things.

Makes sure that the container runs, in a scope of its own; brings the program in, holds the program's own process, and
at the end leaves no exec session. Never stops the container, whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import Final

from accelerd.base.ports import Clock, Roots
from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerProgram
from accelerd.supervise.homes.containers import images, process_tree
from accelerd.supervise.homes.containers.commands import CommandResult, CommandRunner, last_line
from accelerd.supervise.homes.containers.container_home import (
    ContainerExit,
    ContainerHome,
    ContainerMainProcess,
    ContainerStart,
    close,
)
from accelerd.supervise.homes.containers.exec_sessions import SCAN, ExecSessions
from accelerd.supervise.homes.containers.handoff import NOT_FOUND, NOT_HANDED, SCRIPT, as_shell, inner_environment
from accelerd.supervise.homes.containers.podman_docker import Container, ContainerEngine, MaintenanceLocks
from accelerd.supervise.homes.home import HomeError, InstanceRecord, LaunchRequest, NoProgram, OnExit, OnOutput
from accelerd.supervise.process.output import OutputReader
from accelerd.supervise.process.processes import InstanceTag, Process, ProcessTable, hold

log = logging.getLogger(__name__)

START_PATIENCE: Final = 60.0  # s from `toolbox run` to the program; toolbox itself waits 25 s for its container
END_PATIENCE: Final = 2.0  # s for the tools to exit after the program
POLL: Final = 0.01  # s
# Arguments: the program, then files. toolbox shows few folders of the host in their own place, and all in /run/host.
LOOK: Final = r"""
printf 'accelerd:\0'
program=$(command -v -- "$1") || exit 96
printf '%s\0%s\0' "$program" "$(stat -Lc '%n %s %Y %i' -- "$program")"
shift
for file; do
  if [ -r "$file" ]; then printf '%s\0' "$file"
  elif [ -r "/run/host$file" ]; then printf '%s\0' "/run/host$file"
  else printf '\0'; fi
done
"""


class ToolboxHome(ContainerHome):
    """Where `survives` is False, a guard inside ends the program with this process.

    Instances survive in either way that the daemon can end: the program sits in the container's control group, its
    output goes to a FIFO of its own, and the command line tools, which may die with the daemon, run in a scope where
    there is a user manager.
    """

    kind = "toolbox"

    def __init__(
        self,
        roots: Roots,
        clock: Clock,
        table: ProcessTable,
        tools: CommandRunner,
        *,
        survives: bool,
        engines: Sequence[ContainerEngine] | None = None,
    ) -> None:
        super().__init__(roots, clock, tools, engines or [ContainerEngine("podman", tools)], survives=survives)
        self._table = table
        self._sessions = ExecSessions(
            roots.proc, str(roots.runtime), clock, table, tools, enter=self.enter, find=self._find
        )
        self._starting: dict[str, asyncio.Lock] = {}
        self.locks = MaintenanceLocks()  # closed while a container is replaced

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return spec.container or ""

    def enter(self, container: str, command: Sequence[str]) -> tuple[str, ...]:
        """The command line that runs `command` inside. HomeError when the program for it is missing."""
        return (self._tools.find("toolbox"), "run", "--container", container, *command)

    async def program_place(self, spec: ModelSpec) -> ToolboxHome:
        return self

    async def ask(self, spec: ModelSpec, *argv: str, within: float = 30.0) -> CommandResult:
        """Run a short command there, such as `llama-server --help`: what it said. HomeError."""
        async with self.locks.shared(spec.container or ""):
            container = (await self._up(spec.container or "")).name
            return await self.inside(container, *argv, within=within)

    async def inside(self, container: str, *argv: str, within: float) -> CommandResult:
        """Run a short command in a container that runs: what it said. HomeError."""
        return await self._sessions.call(container, *argv, within=within)

    async def look(self, spec: ModelSpec, program: str, files: Sequence[str]) -> ContainerProgram:
        """The program and the model's files as they are inside. HomeError, NoProgram."""
        async with self.locks.shared(spec.container or ""):
            found = await self._up(spec.container or "")
            done = await self.inside(found.name, "sh", "-c", LOOK, "sh", program, *files, within=30.0)
        words = done.out.rpartition("accelerd:\0")[2].split("\0")  # a login shell may have said something before
        if len(words) < len(files) + 2:
            if done.status in (0, NOT_FOUND) and not words[0]:
                raise NoProgram(f"cannot find {program} in {self.kind} {found.name}")
            raise HomeError(f"cannot look into {self.kind} {found.name}: {done.why()}")
        there = {file: name for file, name in zip(files, words[2:], strict=False) if name}
        settings = images.settings(found.image)
        return ContainerProgram(words[0], f"{found.id} {words[1]}", there, settings, f"image {found.image}")

    # --- the Protocol -------------------------------------------------------------------------------------------

    async def prepare(self, spec: ModelSpec, on_output: OnOutput) -> None:
        """The container runs."""
        async with self.locks.shared(spec.container or ""):
            await self._up(spec.container or "")

    async def start(self, launch: LaunchRequest, on_output: OnOutput, on_exit: OnExit) -> ContainerMainProcess:
        async with self.locks.shared(launch.spec.container or ""):
            return await self._start(launch, on_output, on_exit)

    async def _start(self, launch: LaunchRequest, on_output: OnOutput, on_exit: OnExit) -> ContainerMainProcess:
        container = (await self._up(launch.spec.container or "")).name
        start = self._new(launch.tag, container)
        reader: OutputReader | None = None
        survive = self.survives and launch.spec.survive
        text = as_shell(inner_environment(launch.spec, launch.env))
        try:
            reader = OutputReader(start.handoff.prepare(text, life=not survive), on_output)
            inner = ("sh", "-c", SCRIPT, "sh", *start.handoff.arguments(launch.spec, launch.cwd), *launch.argv)
            unit = f"accelerd-{_word(launch.spec.name)}-{_word(launch.tag.instance)}.scope"
            argv = (*self._tools.outside(unit), *self.enter(container, inner))
            start.cli = self._tools.cli(argv, launch.tag.instance)
            process = await self._appears(start, launch.argv[0])
            pidfd = hold(self._roots.proc, process) if process is not None else None
            return await self._held(start, process, pidfd, reader, on_exit)
        except BaseException as error:
            if reader is not None:
                reader.finish()
            await asyncio.shield(self._abandon(start))
            if isinstance(error, OSError):
                text = f"cannot hand {launch.spec.name} into {container}: {error.strerror or error}"
                raise HomeError(text) from error
            raise

    async def adopt(self, record: InstanceRecord, on_output: OnOutput, on_exit: OnExit) -> ContainerMainProcess | None:
        start = self._new(record.tag, record.place)
        process = await self._still_there(start)
        pidfd = hold(self._roots.proc, process) if process is not None else None
        if pidfd is not None:
            return await self._held(start, process, pidfd, self._reader(start, record.model, on_output), on_exit)
        start.session = await asyncio.to_thread(start.handoff.recall)
        await self._abandon(start)
        return None

    # --- beginning ----------------------------------------------------------------------------------------------

    async def _up(self, name: str) -> Container:
        async with self._starting.setdefault(name, asyncio.Lock()):
            engine, found = await self._find(name)
            if not found.running:
                log.info("starting %s %s", self.kind, name)
                await engine.start(name)
            return found

    def _no_such(self, name: str) -> str:
        return f"there is no {self.kind} called {name}: see {self.kind} list, make it with {self.kind} create"

    async def _appears(self, start: ContainerStart, program: str) -> Process | None:
        """The program's own process; None: it has ended already, `start.end` says how. HomeError, NoProgram."""
        assert start.cli is not None
        deadline = self._clock.monotonic() + START_PATIENCE
        while True:
            if not start.handoff.taken():
                await asyncio.sleep(POLL)
            elif process := await self._find_program(start.tag):
                return process
            else:
                start.end = start.handoff.end()
                if start.end is not None:
                    if not start.end.pid:
                        where = f"{self.kind} {start.container}"
                        raise NoProgram(f"cannot start {program}: no such program in {where}")
                    return None
                await asyncio.sleep(SCAN)
            handed = start.handoff.taken() and start.cli.status != NOT_HANDED
            if start.cli.exited.is_set() and not handed:
                if start.cli.status == NOT_HANDED:
                    raise HomeError(f"{self.kind} {start.container} does not see {self._roots.instances}: make it anew")
                raise HomeError(f"cannot enter {self.kind} {start.container}: {start.cli.result().why()}")
            if self._clock.monotonic() > deadline:
                told = start.cli.result()
                said = "; ".join(filter(None, map(last_line, (told.out, told.err))))
                why = f"; it said: {said}" if said else ""
                raise HomeError(
                    f"{self.kind} {start.container} did not start {program} within {START_PATIENCE:.0f} s "
                    f"(does its login shell wait for input?){why}"
                )

    async def _find_program(self, tag: InstanceTag) -> Process | None:
        """The program's own process: of those that carry the tag the one that the others come from."""
        members = await asyncio.to_thread(self._table.members, tag, None)
        return await asyncio.to_thread(process_tree.top, self._roots.proc, members)

    async def _held(
        self,
        start: ContainerStart,
        process: Process | None,
        pidfd: int | None,
        reader: OutputReader | None,
        on_exit: OnExit,
    ) -> ContainerMainProcess:
        """`process` None: it has ended already, `start.end` says how."""
        oom = None
        if process is not None:
            start.session = await asyncio.to_thread(self._session, start, process.pid)
            oom = self._oom_kills(process.pid)
        pid = process.pid if process is not None else start.end.pid if start.end else 0
        return ContainerMainProcess(
            pid, pidfd, on_exit=on_exit, finish=lambda: self._finish(start), close=lambda: close(start, kill=False),
            reader=reader, oom=oom,
        )  # fmt: skip

    def _session(self, start: ContainerStart, pid: int) -> process_tree.ExecSession | None:
        """The program's exec session, written down: without its conmon it could not be found again. Blocking."""
        session = process_tree.exec_session(self._roots.proc, pid)
        if session is None:
            return start.handoff.recall()
        start.handoff.remember(session)
        return session

    # --- the end ------------------------------------------------------------------------------------------------

    async def _finish(self, start: ContainerStart) -> ContainerExit:
        """The program has ended: wait for what carried it, and see to it that nothing of it stays."""
        deadline = self._clock.monotonic() + END_PATIENCE
        while (end := start.handoff.end()) is None and self._clock.monotonic() < deadline:
            if start.session is not None and start.cli is not None and start.cli.exited.is_set():
                deadline = min(deadline, self._clock.monotonic() + 0.2)  # its parent wrote nothing: it was killed
                start.cli.close()
                start.cli = None
            await asyncio.sleep(POLL)
        if start.cli is not None:
            await start.cli.end(max(deadline - self._clock.monotonic(), 0.5))
        await self._close_session(start)
        await asyncio.to_thread(start.handoff.remove)
        return ContainerExit(end.status if end is not None else None)

    async def _abandon(self, start: ContainerStart) -> None:
        """Nothing came of it: take back what is on its way, kill what has begun, wait for what carried it."""
        if not start.handoff.revoke():
            await self._still_there(start)
        start.session = await self._sessions.clear(start.container, start.tag, start.cli) or start.session
        await self._close_session(start)
        await asyncio.to_thread(start.handoff.remove)

    async def _close_session(self, start: ContainerStart) -> None:
        if start.session is not None:
            await self._sessions.close(start.container, start.session)

    async def _still_there(self, start: ContainerStart) -> Process | None:
        """The program's process, also when it is only about to begin. None: it never will be."""
        if start.handoff.revoke():
            return None
        deadline = self._clock.monotonic() + END_PATIENCE
        while (process := await self._find_program(start.tag)) is None:
            # The shell inside removes the file just before it becomes the program.
            if not start.handoff.being_read() or self._clock.monotonic() > deadline:
                return await self._find_program(start.tag)
            await asyncio.sleep(SCAN)
        return process


class DistroboxHome(ToolboxHome):
    """The same with `distrobox enter`, whose containers may be podman's or docker's."""

    kind = "distrobox"

    def __init__(
        self, roots: Roots, clock: Clock, table: ProcessTable, tools: CommandRunner, *, survives: bool
    ) -> None:
        wanted = tools.env.get("DBX_CONTAINER_MANAGER")
        names = [wanted] if wanted in ("podman", "docker") else ["podman", "docker"]
        engines = [ContainerEngine(name, tools) for name in names]
        super().__init__(roots, clock, table, tools, survives=survives, engines=engines)

    def enter(self, container: str, command: Sequence[str]) -> tuple[str, ...]:
        return (self._tools.find("distrobox"), "enter", "--no-tty", "--name", container, "--", *command)


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "-", text)
