"""A process that is not a child of ours, held by pidfd: the main process of an instance in a container.

Finds it, watches it, signals it. What else there is to do at the end (sessions, containers, files) is given by its
home as one coroutine. The exit of the tool that started it says nothing about it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from accelerd.base.cgroup import Cgroup, cgroup_of
from accelerd.base.ports import Roots
from accelerd.base.proc import living
from accelerd.supervise.process.output_reader import OutputReader
from accelerd.supervise.process.processes import Process

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


class OomWatch(Struct, frozen=True):
    """The kernel's count of OOM kills in the control group of a process, and its value at the start."""

    group: Cgroup
    before: int

    @classmethod
    def of(cls, roots: Roots, pid: int) -> OomWatch | None:
        group = cgroup_of(roots.proc, roots.sys, pid)
        before = group.oom_kills() if group is not None else None
        return None if group is None or before is None else cls(group, before)

    def happened(self) -> bool:
        return (self.group.oom_kills() or 0) > self.before


# Signals what this user may not signal directly, through the container's engine.
SignalByEngine = Callable[[int], Awaitable[None]]


class ProcessGone(Exception):
    """The process ended before it could be held."""


def hold(proc: Path, process: Process) -> int:
    """A pidfd of exactly this process. ProcessGone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        raise ProcessGone from None
    # The pidfd holds whatever has the pid now; the start time says whether that is still the one found.
    stat = living(proc, process.pid)
    if stat is None or stat.started != process.started:
        os.close(pidfd)
        raise ProcessGone
    return pidfd


class ContainerMainProcess:
    """See home.MainProcess. `pidfd` None: it has ended already."""

    session: int | None = None  # its session number may be reused: only the tag tells which processes belong to it
    unit: str | None = None

    def __init__(
        self,
        pid: int,
        pidfd: int | None,
        *,
        on_exit: Callable[[], None],
        finish: Callable[[], Awaitable[ContainerExit]],
        close: Callable[[], None],
        reader: OutputReader | None = None,
        signal_by_engine: SignalByEngine | None = None,
        only_by_engine: bool = False,
        oom: OomWatch | None = None,
        init: int | None = None,
    ) -> None:
        """`finish` cleans up after the end, once; `close` lets go of what the home holds open for it.

        `init` is a pidfd of the container's init, which tells the engine how the program ended: it is not over before.
        """
        self.pid = pid
        self.exited = asyncio.Event()
        self.status: int | None = None
        self.result: str | None = None
        self._pidfd = pidfd
        self._on_exit = on_exit
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
        self._loop = asyncio.get_running_loop()
        if pidfd is None:
            self._loop.call_soon(self._seen)
        else:
            self._loop.add_reader(pidfd, self._seen)

    def _seen(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
        if self._init is not None:
            self._loop.add_reader(self._init, self._over)
            self._late = self._loop.call_later(INIT_PATIENCE, self._over)
        else:
            self._over()

    def _over(self) -> None:
        self._forget_init()
        if not self.exited.is_set():
            self.exited.set()
            self._on_exit()

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
        if self._only_by_engine:
            self._ask(number)
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError:
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
            task = asyncio.create_task(
                self._delegate(self._signal_by_engine, number), name=f"signal {number} to {self.pid}"
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _delegate(self, signal_by_engine: SignalByEngine, number: int) -> None:
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
        if self.result is None and self.status == -signal.SIGKILL and self._oom is not None and self._oom.happened():
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
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._forget_init()
        if self._reader is not None:
            self._reader.close()
        self._close()

    def unexecuted(self, last_line: str) -> str | None:
        """The shell or the init that was to become the program says so in its own name."""
        said = UNEXECUTED.match(last_line)
        return next(filter(None, said.groups())) if said and self.status not in (0, None) else None
