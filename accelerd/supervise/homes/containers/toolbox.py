"""The homes "toolbox" and "distrobox": a model inside a container that the user also uses for other things.

Makes sure that the container runs, in a scope of its own; brings the program in, holds the program's own process, and
at the end leaves no exec session. Never stops the container, whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from accelerd.base.ports import Clock, Roots
from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerProgram
from accelerd.supervise.homes.containers import images, process_tree
from accelerd.supervise.homes.containers.commands import CliProcess, CommandResult, CommandRunner
from accelerd.supervise.homes.containers.handoff import (  # fmt: skip
    NOT_FOUND,
    NOT_HANDED,
    SCRIPT,
    ContainerHandoff,
    ProgramExit,
    as_shell,
    inner_environment,
)
from accelerd.supervise.homes.containers.main_process import (
    ContainerExit,
    ContainerMainProcess,
    OomWatch,
    ProcessGone,
    hold,
)
from accelerd.supervise.homes.containers.maintenance_locks import MaintenanceLocks
from accelerd.supervise.homes.containers.podman_docker import Container, ContainerEngine
from accelerd.supervise.homes.home import HomeError, InstanceRecord, LaunchRequest
from accelerd.supervise.process.output_reader import OutputReader
from accelerd.supervise.process.processes import InstanceTag, Process, ProcessTable, describe
from accelerd.supervise.process.spawn import NoProgram

log = logging.getLogger(__name__)

START_PATIENCE: Final = 60.0  # s from `toolbox run` to the program; toolbox itself waits 25 s for its container
END_PATIENCE: Final = 2.0  # s for the tools to exit after the program
SESSION_PATIENCE: Final = 12.0  # s until podman agrees that its session is over
# s for a question that nobody waits for any more: of one that is killed podman keeps its session for ever
ANSWER_GRACE: Final = 5.0
POLL: Final = 0.01  # s
SCAN: Final = 0.03  # s between two looks at /proc
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


class _ToolboxStart(Struct):
    """One instance, as this home holds it."""

    tag: InstanceTag
    container: str
    handoff: ContainerHandoff
    cli: CliProcess | None = None
    session: process_tree.ExecSession | None = None
    end: ProgramExit | None = None


class ToolboxHome:
    """See home.Home. Where `survives` is False, a guard inside ends the program with this process.

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
        self.survives = survives
        self._roots = roots
        self._clock = clock
        self._table = table
        self._tools = tools
        self._engines = list(engines or [ContainerEngine("podman", tools)])
        self._starting: dict[str, asyncio.Lock] = {}
        self.locks = MaintenanceLocks()  # closed while a container is replaced

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return spec.container or ""

    def enter(self, container: str, command: Sequence[str]) -> tuple[str, ...]:
        """The command line that runs `command` inside. HomeError when the program for it is missing."""
        return (self._tools.find("toolbox"), "run", "--container", container, *command)

    async def ask(self, spec: ModelSpec, *argv: str, within: float = 30.0) -> CommandResult:
        """Run a short command there, such as `llama-server --help`: what it said. HomeError."""
        async with self.locks.shared(spec.container or ""):
            container = (await self._up(spec.container or "")).name
            return await self._tools.call(*self.enter(container, argv), within=within, grace=ANSWER_GRACE)

    async def look(self, spec: ModelSpec, program: str, files: Sequence[str]) -> ContainerProgram:
        """The program and the model's files as they are inside. HomeError, NoProgram."""
        async with self.locks.shared(spec.container or ""):
            found = await self._up(spec.container or "")
            inner = ("sh", "-c", LOOK, "sh", program, *files)
            done = await self._tools.call(*self.enter(found.name, inner), within=30.0, grace=ANSWER_GRACE)
        words = done.out.rpartition("accelerd:\0")[2].split("\0")  # a login shell may have said something before
        if len(words) < len(files) + 2:
            if done.status in (0, NOT_FOUND) and not words[0]:
                raise NoProgram(f"cannot find {program} in {self.kind} {found.name}")
            raise HomeError(f"cannot look into {self.kind} {found.name}: {done.why()}")
        there = {file: name for file, name in zip(files, words[2:], strict=False) if name}
        settings = images.settings(found.image)
        return ContainerProgram(words[0], f"{found.id} {words[1]}", there, settings, f"image {found.image}")

    # --- the Protocol -------------------------------------------------------------------------------------------

    async def prepare(self, spec: ModelSpec, on_output: Callable[[bytes], None]) -> None:
        """The container runs."""
        async with self.locks.shared(spec.container or ""):
            await self._up(spec.container or "")

    async def start(
        self, launch: LaunchRequest, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> ContainerMainProcess:
        async with self.locks.shared(launch.spec.container or ""):
            return await self._start(launch, on_output, on_exit)

    async def _start(
        self, launch: LaunchRequest, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> ContainerMainProcess:
        container = (await self._up(launch.spec.container or "")).name
        start = _ToolboxStart(launch.tag, container, ContainerHandoff(self._roots, launch.tag))
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
            return await self._held(start, process, reader, on_exit)
        except BaseException as error:
            if reader is not None:
                reader.finish()
            await asyncio.shield(self._abandon(start))
            if isinstance(error, OSError):
                raise HomeError(
                    f"cannot hand {launch.spec.name} into {container}: {error.strerror or error}"
                ) from error
            raise

    async def adopt(
        self, record: InstanceRecord, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> ContainerMainProcess | None:
        start = _ToolboxStart(record.tag, record.place, ContainerHandoff(self._roots, record.tag))
        process = await self._still_there(start)
        if process is not None:
            try:
                reader = OutputReader(start.handoff.open_output(), on_output)
            except OSError as error:
                log.warning("what %s prints is lost: %s", record.model, error)
                reader = None
            try:
                return await self._held(start, process, reader, on_exit)
            except ProcessGone:
                if reader is not None:
                    reader.finish()
        start.session = await asyncio.to_thread(start.handoff.recall)
        await self._abandon(start)
        return None

    # --- beginning ----------------------------------------------------------------------------------------------

    async def _up(self, name: str) -> Container:
        """The container, running. HomeError."""
        async with self._starting.setdefault(name, asyncio.Lock()):
            engine, found = await self._find(name)
            if not found.running:
                log.info("starting %s %s", self.kind, name)
                await engine.start(name)
            return found

    async def _find(self, name: str) -> tuple[ContainerEngine, Container]:
        missing: HomeError | None = None
        for engine in self._engines:
            if not self._tools.has(engine.name):
                continue
            try:
                found = await engine.inspect(name)
            except HomeError as error:
                missing = error
                continue
            if found is not None:
                return engine, found
        if missing is not None:
            raise missing
        raise HomeError(f"there is no {self.kind} called {name}: see {self.kind} list, make it with {self.kind} create")

    async def _appears(self, start: _ToolboxStart, program: str) -> Process | None:
        """The program's own process; None: it has ended already, `start.end` says how. HomeError, NoProgram."""
        assert start.cli is not None
        deadline = self._clock.monotonic() + START_PATIENCE
        while True:
            if not start.handoff.taken():
                await asyncio.sleep(POLL)
            elif process := await self._main(start.tag):
                return process
            else:
                start.end = start.handoff.end()
                if start.end is not None:
                    if start.end.status == NOT_FOUND:
                        where = f"{self.kind} {start.container}"
                        raise NoProgram(f"cannot start {program}: no such program in {where}")
                    return None
                await asyncio.sleep(SCAN)
            handed = start.handoff.taken() and start.cli.status != NOT_HANDED
            if start.cli.exited.is_set() and not handed:
                if start.cli.status == NOT_HANDED:
                    raise HomeError(f"{self.kind} {start.container} does not see {self._roots.instances}: make it anew")
                raise HomeError(f"cannot enter {self.kind} {start.container}: {start.cli.done().why()}")
            if self._clock.monotonic() > deadline:
                said = start.cli.text().strip().splitlines()
                why = f"; it said: {said[-1]}" if said else ""
                raise HomeError(
                    f"{self.kind} {start.container} did not start {program} within {START_PATIENCE:.0f} s "
                    f"(does its login shell wait for input?){why}"
                )

    async def _main(self, tag: InstanceTag) -> Process | None:
        def scan() -> Process | None:
            return process_tree.top(self._roots.proc, self._table.members(tag, None))

        return await asyncio.to_thread(scan)

    async def _held(
        self, start: _ToolboxStart, process: Process | None, reader: OutputReader | None, on_exit: Callable[[], None]
    ) -> ContainerMainProcess:
        """Hold it. ProcessGone: it ended meanwhile (only when it was to be adopted)."""
        pidfd, oom = None, None
        if process is not None:
            start.session = await asyncio.to_thread(self._session, start, process.pid)
            oom = OomWatch.of(self._roots, process.pid)
            try:
                pidfd = hold(self._roots.proc, process)
            except ProcessGone:
                if start.cli is None:
                    raise
        if process is None:
            assert start.end is not None
        pid = process.pid if process is not None else start.end.pid if start.end else 0
        return ContainerMainProcess(
            pid, pidfd, on_exit=on_exit, finish=lambda: self._finish(start), close=lambda: _close(start),
            reader=reader, oom=oom,
        )  # fmt: skip

    def _session(self, start: _ToolboxStart, pid: int) -> process_tree.ExecSession | None:
        """The program's exec session, written down: without its conmon it could not be found again. Blocking."""
        session = process_tree.exec_session(self._roots.proc, pid)
        if session is None:
            return start.handoff.recall()
        start.handoff.remember(session)
        return session

    # --- the end ------------------------------------------------------------------------------------------------

    async def _finish(self, start: _ToolboxStart) -> ContainerExit:
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

    async def _close_session(self, start: _ToolboxStart) -> None:
        """podman forgets a session when `podman exec` sees its end; where that was killed, accelerd has to tell it."""
        if start.session is None:
            return
        deadline = self._clock.monotonic() + SESSION_PATIENCE
        try:
            engine, found = await self._find(start.container)
            while start.session.id in found.exec_ids and found.running:
                if self._clock.monotonic() > deadline:
                    raise HomeError(f"podman does not forget {start.session.id}")
                if not start.session.has_conmon(self._roots.proc):
                    await engine.write_exit(start.session.exit_file)
                if await engine.end_session(start.container, start.session.id):
                    break
                await asyncio.sleep(SCAN)
                engine, found = await self._find(start.container)
        except HomeError as error:
            log.warning("an exec session may be left in %s %s: %s", self.kind, start.container, error)

    async def _abandon(self, start: _ToolboxStart) -> None:
        """Nothing came of it: take back what is on its way, kill what has begun, wait for what carried it."""
        if not start.handoff.revoke():
            await self._still_there(start)
        # Wait for the tool to exit: if it is killed, podman keeps its session for ever.
        deadline = self._clock.monotonic() + SESSION_PATIENCE
        while True:
            left = await asyncio.to_thread(self._kill_begun, start)
            if not left and (start.cli is None or start.cli.exited.is_set()):
                break
            if self._clock.monotonic() > deadline:
                what = describe(left) if left else "the command that enters it"
                log.error("cannot end %s in %s %s", what, self.kind, start.container)
                break
            await asyncio.sleep(SCAN)
        if start.cli is not None:
            await start.cli.end()
        await self._close_session(start)
        await asyncio.to_thread(start.handoff.remove)

    def _kill_begun(self, start: _ToolboxStart) -> list[Process]:
        """SIGKILL to tagged processes, and to the shells inside that were to start them. Blocking."""
        left = {process.pid: process for process in self._table.members(start.tag, None)}
        for process in process_tree.carriers(self._roots.proc, str(start.handoff.env)):
            session = process_tree.exec_session(self._roots.proc, process.pid)
            if session is not None:
                start.session = session
                if process.name != "conmon":
                    left[process.pid] = process
        for process in left.values():
            self._table.signal(process, signal.SIGKILL)
        return list(left.values())

    async def _still_there(self, start: _ToolboxStart) -> Process | None:
        """The program's process, also when it is only about to begin. None: it never will be."""
        if start.handoff.revoke():
            return None
        deadline = self._clock.monotonic() + END_PATIENCE
        while (process := await self._main(start.tag)) is None:
            # The shell inside removes the file just before it becomes the program.
            if not start.handoff.being_read() or self._clock.monotonic() > deadline:
                return await self._main(start.tag)
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


def _close(start: _ToolboxStart) -> None:
    start.handoff.let_go()
    if start.cli is not None:
        start.cli.close()


def _word(text: str) -> str:
    """As part of a unit's name."""
    return re.sub(r"[^A-Za-z0-9_.]", "-", text)
