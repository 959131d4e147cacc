"""What the homes in containers share: the main process, which is not a child of ours and is held by pidfd; how a
container is found at its engine; and what is held of one start.

The exit of the tool that started a process says nothing about it. What else there is to do at its end (sessions,
containers, files) is given by its home as one coroutine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from msgspec import Struct

from accelerd.base.cgroup import cgroup_of
from accelerd.base.ports import Clock, Roots
from accelerd.supervise.homes.containers.commands import CliProcess, CommandRunner
from accelerd.supervise.homes.containers.handoff import ContainerHandoff, ProgramExit, exit_status
from accelerd.supervise.homes.containers.podman_docker import Container, ContainerEngine
from accelerd.supervise.homes.containers.process_tree import ExecSession
from accelerd.supervise.homes.home import Home, HomeError, MainProcess, OnExit, OnOutput, OomKills
from accelerd.supervise.process.output import OutputReader
from accelerd.supervise.process.processes import InstanceTag

log = logging.getLogger(__name__)

# The handoff's script, podman's init (catatonit), docker's init (tini).
UNEXECUTED: Final = re.compile(
    r"sh: (?:line )?(?:\d+: )?(?:exec: )?(.*(?:not found|ermission denied|not executable|xec format error).*)"
    r"|ERROR \(catatonit[^)]*\): failed to (exec .*)|\[FATAL tini \(\d+\)\] (exec .*)"
)

INIT_PATIENCE: Final = 2.0  # s from the program's end to that of its init


class ContainerExit(Struct, frozen=True):
    """What a home knows of an end: the exit status or minus the signal, and what the kernel did."""

    status: int | None
    result: str | None = None


class ContainerMainProcess(MainProcess):
    """The program's own process on the host. Its session's number may be used again: only the tag tells what is its."""

    def __init__(
        self,
        pid: int,
        pidfd: int | None,
        *,
        on_exit: OnExit,
        finish: Callable[[], Awaitable[ContainerExit]],
        close: Callable[[], None],
        reader: OutputReader | None = None,
        signal_by_engine: Callable[[int], Awaitable[None]] | None = None,
        only_by_engine: bool = False,
        oom: OomKills | None = None,
        init: int | None = None,
    ) -> None:
        """`pidfd` None: it has ended already. `finish` cleans up after the end, once; `close` lets go of what the home
        holds open for it.

        `signal_by_engine` signals, through the container's engine, what this user may not signal directly. `init` is a
        pidfd of the container's init, which tells the engine how the program ended: it is not over before.
        """
        super().__init__(on_exit)
        self.pid = pid
        self._finish = finish
        self._close = close
        self._reader = reader
        self._signal_by_engine = signal_by_engine
        self._only_by_engine = only_by_engine
        self._oom = oom
        self._init = init
        self._late: asyncio.TimerHandle | None = None
        self._finished = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._hold(pidfd)

    def _exit_seen(self) -> None:
        if self._init is None:
            super()._exit_seen()
            return
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
        self._loop.add_reader(self._init, self._over)
        self._late = self._loop.call_later(INIT_PATIENCE, self._over)

    def _over(self) -> None:
        self._forget_init()
        super()._exit_seen()

    def _forget_init(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if self._init is not None:
            self._loop.remove_reader(self._init)
            os.close(self._init)
            self._init = None

    def signal(self, number: int) -> None:
        if self._pidfd is None or self.exited.is_set():
            return
        try:
            if not self._only_by_engine:
                super().signal(number)
                return
        except PermissionError:
            log.debug("process %d is signalled through its container", self.pid)
        self._ask(number)

    def kill_group(self) -> None:
        if self._pidfd is None or self.exited.is_set():
            return
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if not self._tasks:  # it is called again and again until nothing is left: one at a time
            self._ask(signal.SIGKILL)

    def _ask(self, number: int) -> None:
        if self._signal_by_engine is not None:
            asked = self._delegate(self._signal_by_engine, number)
            task = asyncio.create_task(asked, name=f"signal {number} to {self.pid}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _delegate(self, signal_by_engine: Callable[[int], Awaitable[None]], number: int) -> None:
        try:
            await signal_by_engine(number)
        except Exception as error:
            log.warning("cannot signal process %d through its container: %s", self.pid, error)

    async def release(self) -> None:
        if self._finished:
            return
        for task in self._tasks.copy():
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        ending = await self._finish()
        self.status, self.result = ending.status, ending.result
        if self.result is None and self.status == -signal.SIGKILL and self._oom is not None and self._oom.claim():
            self.result = "oom-kill"
        if self._reader is not None:
            self._reader.finish()
        self.let_go()

    def let_go(self) -> None:
        if self._finished:
            return
        self._finished = True
        for task in self._tasks.copy():
            task.cancel()
        self._drop_pidfd()
        self._forget_init()
        if self._reader is not None:
            self._reader.close()
        self._close()

    def unexecuted(self, last_line: str) -> str | None:
        """The shell or the init that was to become the program says so in its own name."""
        said = UNEXECUTED.match(last_line)
        return next(filter(None, said.groups())) if said and self.status not in (0, None) else None


class ContainerStart(Struct):
    """One instance, as its home holds it."""

    tag: InstanceTag
    container: str
    handoff: ContainerHandoff
    cli: CliProcess | None = None  # `toolbox run`, or `podman logs --follow`
    session: ExecSession | None = None
    end: ProgramExit | None = None
    stopping: bool = False


class ContainerHome(Home):
    """What the homes in containers share."""

    def __init__(
        self, roots: Roots, clock: Clock, tools: CommandRunner, engines: Sequence[ContainerEngine], *, survives: bool
    ) -> None:
        """`engines`: where containers are looked for, in this order."""
        self.survives = survives
        self._roots = roots
        self._clock = clock
        self._tools = tools
        self._engines = engines

    def _new(self, tag: InstanceTag, container: str) -> ContainerStart:
        return ContainerStart(tag, container, ContainerHandoff(self._roots, tag))

    async def _find(self, name: str) -> tuple[ContainerEngine, Container]:
        """The container, at the first engine that has it. HomeError."""
        trouble = self._no_such(name)
        for engine in self._engines:
            if self._tools.has(engine.name):
                try:
                    found = await engine.inspect(name)
                except HomeError as error:
                    trouble = error.message
                    continue
                if found is not None:
                    return engine, found
        raise HomeError(trouble)

    def _oom_kills(self, process: int) -> OomKills:
        return OomKills(cgroup_of(self._roots.proc, self._roots.sys, process))

    def _no_such(self, name: str) -> str:
        return f"there is no container {name}: see podman ps -a and docker ps -a"

    def _follow(self, start: ContainerStart, engine: ContainerEngine, output: int, *options: str) -> None:
        """Have what the container prints written to `output`."""
        argv = (self._tools.find(engine.name), "logs", "--follow", *options, start.container)
        start.cli = self._tools.cli(argv, start.tag.instance, output)

    def _reader(self, start: ContainerStart, model: str, on_output: OnOutput) -> OutputReader | None:
        """Of what an earlier daemon started."""
        try:
            return OutputReader(start.handoff.open_output(self._roots.proc), on_output)
        except OSError as error:
            log.warning("what %s prints is lost: %s", model, error)
            return None


def ending_of(found: Container | None) -> ContainerExit:
    """What the engine says of the end; nothing while it runs, or when it is gone."""
    if found is None or found.running:
        return ContainerExit(None)
    return ContainerExit(exit_status(found.exit_code), "oom-kill" if found.oom_killed else None)


def close(start: ContainerStart, *, kill: bool) -> None:
    """Let go of what is held open. With `kill` nobody reads any more what the tool fetches; else it may go on."""
    start.handoff.let_go()
    if start.cli is not None:
        if kill:
            start.cli.kill()
        start.cli.close()
