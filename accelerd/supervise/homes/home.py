"""Where a model's process lives: the one small interface behind which plain children, systemd units, toolboxes and
containers stand.

A Home starts what it is given and holds on to it; it never decides what to run, when to stop it or whether to try
again. An Instance (instance.py) lives the life, whatever the home.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from accelerd.base import volumes
from accelerd.base.cgroup import Cgroup
from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerAccess, Endpoint, FixedServer, Tenancy
from accelerd.supervise.process.processes import InstanceTag, Process

OnOutput = Callable[[bytes], None]  # gets what it prints, stdout and stderr as one stream, on the loop's thread
OnExit = Callable[[], None]  # called once, when its exit is seen, on the loop's thread


class HomeError(AccelError):
    """A home cannot start the process; the text says why and what to do. Nothing is left behind."""

    def __init__(self, problem: str) -> None:
        super().__init__("model_failed", problem, cause=Cause.REFUSED.value)


class NoProgram(AccelError):
    """The program is missing or may not be executed; the text says which."""

    def __init__(self, problem: str) -> None:
        super().__init__("model_failed", problem, cause=Cause.NO_PROGRAM.value)


def short_hash(text: str) -> str:
    """Tells names from each other that would be the same where few characters are allowed, or short ones."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def find_program(name: str, path: str | None) -> str:
    """The absolute path of a program by the child's own PATH. NoProgram. Blocking (file system)."""
    found = volumes.which(name, path or os.defpath)
    if found:
        return os.path.abspath(found)
    if "/" in name and os.path.isdir(name):
        raise NoProgram(f"cannot start {name}: it is a directory")
    if "/" in name and os.path.exists(name):
        raise NoProgram(f"cannot start {name}: it is not executable (chmod +x)")
    raise NoProgram(f"cannot start {name}: no such program" + ("" if "/" in name else " in PATH"))


@dataclass(frozen=True)
class LaunchRequest:
    """What is to run. `env` is the whole environment, tags included; it may hold secrets and must not reach argv."""

    spec: ModelSpec
    argv: tuple[str, ...]  # argv[0] absolute, except in containers, whose PATH is their own
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    tag: InstanceTag
    tenancy: Tenancy | None = None
    files: tuple[str, ...] = ()  # that the program opens


class MainProcess(ABC):
    """The engine's own process, held by pidfd, so that its pid cannot be reused."""

    pid: int  # on the host
    session: int | None = None  # processes of this session belong to it too; None: only the tag does
    unit: str | None = None  # the systemd unit whose output this is; its journal shows what the engine prints
    # Known once it has exited, in some homes only once it is released:
    status: int | None = None  # the exit status, or minus the signal; None: not known
    result: str | None = None  # what the home knows beyond that: "oom-kill", "timeout", …

    def __init__(self, on_exit: OnExit) -> None:
        self.exited = asyncio.Event()
        self._on_exit = on_exit
        self._pidfd: int | None = None
        self._loop = asyncio.get_running_loop()

    def _hold(self, pidfd: int | None) -> None:
        """Take it over and watch it; None: the process has exited already."""
        self._pidfd = pidfd
        if pidfd is None:
            self._loop.call_soon(self._exit_seen)
        else:
            self._loop.add_reader(pidfd, self._exit_seen)

    def _exit_seen(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
        if not self.exited.is_set():
            self.exited.set()
            self._on_exit()

    def _drop_pidfd(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def signal(self, number: int) -> None:
        """Signal the process itself. Nothing happens when it has exited."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    @abstractmethod
    def kill_group(self) -> None:
        """SIGKILL to all of it that the home can reach. At once; what escapes is found by its tag."""

    @abstractmethod
    async def release(self) -> None:
        """After the end: reap, take the rest of the output, leave nothing of the home's own behind (units, scopes).

        Returns only when the home has nothing of it any more, or can no longer tell. May be cancelled.
        """

    @abstractmethod
    def let_go(self) -> None:
        """Close what this process holds of it and leave the rest as it is, alive or not. May follow `release`."""

    def unexecuted(self, last_line: str) -> str | None:
        """Once released: why the program could not be executed at all; None: it ran. `last_line` of output may tell."""
        return None


@dataclass(frozen=True)
class TenantAddress:
    """Where a tenant is to be reached, and how it is asked there: fields of a LaunchPlan."""

    endpoint: Endpoint
    secret: str = field(repr=False)
    health_path: str
    warm_path: str
    probe_path: str
    probe_body: bytes | None
    keyed: bool
    prove: bool = True


class TenantProcess(MainProcess):
    """A model inside a server; `pid` is the process that serves it, as far as known."""

    ended: tuple[Cause, str] | None = None  # why it has ended, unless it was asked to

    @abstractmethod
    async def settled(self) -> TenantAddress:
        """As soon as it is loaded; waits forever when it cannot be: then `exited` is set."""

    @abstractmethod
    def living(self) -> Sequence[int]:
        """The processes that are this tenant's, as of now. Blocking."""


@dataclass(frozen=True)
class InstanceRecord:
    """What must be known of a surviving instance to take it over: written before the spawn, read by the next daemon."""

    model: str
    home: str  # Home.kind
    fingerprint: str  # of the launch settings: another one means that it must be replaced
    tag: InstanceTag
    place: str  # the home's own name for it: the unit, the container
    unix: str | None
    port: int | None
    secret: str = field(repr=False)


class OomKills:
    """The count of OOM kills in a control group since now: each is the reason of one SIGKILL at most."""

    def __init__(self, cgroup: Cgroup | None) -> None:
        self._cgroup = cgroup
        self.forget()

    def forget(self) -> None:
        """What was killed until now was none of ours."""
        self._claimed = self._now()

    def claim(self) -> bool:
        """Was there a kill that nobody has claimed yet?"""
        if self._now() <= self._claimed:
            return False
        self._claimed += 1
        return True

    def _now(self) -> int:
        return (self._cgroup.oom_kills() if self._cgroup is not None else None) or 0


class Home(ABC):
    """Starts processes in one kind of place. All methods are called on the loop's thread and never block it."""

    kind: str
    survives = False  # does what lives here outlive the daemon?

    @abstractmethod
    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        """The home's own name for what is about to start, for the InstanceRecord."""

    async def program_place(self, spec: ModelSpec) -> ContainerAccess | FixedServer | None:
        """Where the model's program is; None: on this machine. HomeError."""
        return None

    async def prepare(self, spec: ModelSpec, on_output: OnOutput) -> None:  # noqa: B027 (most have nothing to do)
        """Make ready what a plan for the model asks about: the image is here, the toolbox runs. HomeError.

        What takes long tells its progress through `on_output`.
        """

    @abstractmethod
    async def start(self, launch: LaunchRequest, on_output: OnOutput, on_exit: OnExit) -> MainProcess:
        """Start it. HomeError, NoProgram or OSError; then nothing is left."""

    async def adopt(self, record: InstanceRecord, on_output: OnOutput, on_exit: OnExit) -> MainProcess | None:
        """Hold on to what an earlier daemon started; None when it lives no more. HomeError, OSError."""
        return None

    async def living(self, record: InstanceRecord) -> Sequence[Process] | None:
        """The live processes of what an earlier daemon started, where they do not carry the tag; None: they do."""
        return None

    async def tidy(self, owner: str, spared: Collection[str]) -> int:
        """Remove what it can leave behind other than processes, such as containers, but for the instances
        (InstanceTag.instance) in `spared`. How many there were. HomeError."""
        return 0

    async def close(self) -> None:  # noqa: B027 (most have nothing to do)
        """The daemon ends."""
