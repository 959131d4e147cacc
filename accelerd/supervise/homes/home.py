"""Where a model's process lives: the one small interface behind which plain children, systemd units, toolboxes and
containers stand.

A Home starts what it is given and holds on to it; it never decides what to run, when to stop it or whether to try
again. An Instance (instance.py) lives the life, whatever the home.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, Tenancy
from accelerd.supervise.process.processes import InstanceTag, Process


class HomeError(Exception):
    """A home cannot start the process; the text says why and what to do. Nothing is left behind."""


@dataclass(frozen=True)
class LaunchRequest:
    """What is to run. `env` is the whole environment, tags included; it may hold secrets and must not reach argv."""

    spec: ModelSpec
    argv: tuple[str, ...]  # argv[0] absolute, except in containers, whose PATH is their own
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    tag: InstanceTag
    tenancy: Tenancy | None = None


class MainProcess(Protocol):
    """The engine's own process, held by pidfd, so that its pid cannot be reused."""

    @property
    def pid(self) -> int: ...  # on the host

    session: int | None  # processes of this session belong to it too; None: only the tag does
    exited: asyncio.Event
    # Known once it has exited, in some homes only once it is released:
    status: int | None  # the exit status, or minus the signal; None: not known
    result: str | None  # what the home knows beyond that: "oom-kill", "timeout", …

    @property
    def unit(self) -> str | None: ...  # the systemd unit whose output this is; its journal shows what the engine prints

    def signal(self, number: int) -> None:
        """Signal the process itself. Nothing happens when it has exited."""

    def kill_group(self) -> None:
        """SIGKILL to all of it that the home can reach. At once; what escapes is found by its tag."""

    async def release(self) -> None:
        """After the end: reap, take the rest of the output, leave nothing of the home's own behind (units, scopes).

        Returns only when the home has nothing of it any more, or can no longer tell. May be cancelled.
        """

    def let_go(self) -> None:
        """Close what this process holds of it and leave the rest as it is, alive or not. May follow `release`."""

    def unexecuted(self, last_line: str) -> str | None:
        """Once released: why the program could not be executed at all; None: it ran. `last_line` of output may tell."""


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


@runtime_checkable
class TenantProcess(Protocol):
    """A MainProcess that is a model inside a server; `pid` is the process that serves it, as far as known."""

    @property
    def pid(self) -> int: ...

    ended: tuple[Cause, str] | None  # why it has ended, unless it was asked to

    async def settled(self) -> TenantAddress:
        """As soon as it is loaded; waits forever when it cannot be: then `exited` is set."""
        ...

    def living(self) -> Sequence[int]:
        """The processes that are this tenant's, as of now. Blocking."""
        ...


@runtime_checkable
class ClosableHome(Protocol):
    """A Home that must be closed when the daemon ends."""

    async def close(self) -> None: ...


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


class Home(Protocol):
    """Starts processes in one kind of place. All methods are called on the loop's thread and never block it."""

    kind: str
    survives: bool  # does what lives here outlive the daemon?

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        """The home's own name for what is about to start, for the InstanceRecord."""
        ...

    async def prepare(self, spec: ModelSpec, on_output: Callable[[bytes], None]) -> None:
        """Make ready what a plan for the model asks about: the image is here, the toolbox runs. HomeError.

        What takes long tells its progress through `on_output`.
        """
        ...

    async def start(
        self, launch: LaunchRequest, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> MainProcess:
        """Start it. HomeError, NoProgram or OSError; then nothing is left."""
        ...

    async def adopt(
        self, record: InstanceRecord, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> MainProcess | None:
        """Hold on to what an earlier daemon started; None when it lives no more."""
        ...


@runtime_checkable
class UntaggedHome(Protocol):
    """A Home whose processes do not carry the tag: only the home can find them."""

    async def living(self, record: InstanceRecord) -> Sequence[Process]:
        """The live processes of an instance that an earlier daemon started; none when they cannot be found."""
        ...


@runtime_checkable
class SweepableHome(Protocol):
    """A Home that can leave something behind other than processes, such as containers."""

    async def tidy(self, owner: str, spared: Collection[str]) -> int:
        """Remove it, but for the instances (InstanceTag.instance) in `spared`. How many there were. HomeError."""
        ...
