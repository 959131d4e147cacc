"""Where a model's program is, for the engines: the homes inside containers as engines.base.ContainerAccess.

Asks homes and turns their errors into those of engines; starts no model, decides nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerAccess, ContainerProgram, Endpoint, FixedServer, ProgramOutput
from accelerd.supervise.homes.containers.commands import CommandResult
from accelerd.supervise.homes.home import Home, HomeError
from accelerd.supervise.process.spawn import NoProgram

T = TypeVar("T")


@runtime_checkable
class ContainerHome(Protocol):
    """A home whose programs are its own. HomeError, NoProgram."""

    async def look(self, spec: ModelSpec, program: str, files: Sequence[str]) -> ContainerProgram: ...
    async def ask(self, spec: ModelSpec, *argv: str) -> CommandResult: ...


@runtime_checkable
class FixedHome(Protocol):
    """A home that starts what is there. HomeError."""

    async def endpoint(self, spec: ModelSpec) -> Endpoint: ...
    async def command(self, spec: ModelSpec) -> tuple[str, ...]: ...


class ContainerPlace(ContainerAccess):
    """See engines.base.ContainerAccess."""

    def __init__(self, home: ContainerHome) -> None:
        self._home = home

    async def look(self, spec: ModelSpec, program: str, files: Sequence[str]) -> ContainerProgram:
        return await _translated(self._home.look(spec, program, files))

    async def ask(self, spec: ModelSpec, *argv: str) -> ProgramOutput:
        done = await _translated(self._home.ask(spec, *argv))
        return ProgramOutput(done.status, done.out, done.err)


class HomePlaces:
    """Callable: see engines.base.Places."""

    def __init__(self, homes: Mapping[str, Home]) -> None:
        """`homes` by kind."""
        self._homes = homes

    async def __call__(self, spec: ModelSpec) -> ContainerAccess | FixedServer | None:
        home = self._homes.get(spec.home)
        if isinstance(home, ContainerHome):
            return ContainerPlace(home)
        if isinstance(home, FixedHome):
            endpoint = await _translated(home.endpoint(spec))
            return FixedServer(endpoint, await _translated(home.command(spec)), f"container {spec.container}")
        return None


async def _translated(work: Awaitable[T]) -> T:
    try:
        return await work
    except NoProgram as error:
        raise AccelError("model_failed", str(error), cause=Cause.NO_PROGRAM.value) from error
    except HomeError as error:
        raise AccelError("model_failed", str(error), cause=Cause.REFUSED.value) from error
