"""What every step of a refresh needs: the tools, the models, names; its record on disk; and how an unfinished one is
put back.

Each step is on disk before it is done: a daemon that dies in the middle leaves the record, and putting back works on
what is really there, by the ids of containers, which never move to another container as names do.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec
from msgspec import Struct

from accelerd.base import names
from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.base.ports import Clock
from accelerd.supervise.homes.containers.commands import CommandRunner
from accelerd.supervise.homes.containers.images import Builds
from accelerd.supervise.homes.containers.podman_docker import Container, ContainerEngine, MaintenanceLocks
from accelerd.supervise.homes.containers.process_tree import ContainerSessions, UserSession
from accelerd.supervise.homes.home import HomeError
from accelerd.system.private_files import AtomicFile, Unreadable
from accelerd.system.records import event

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")  # podman's own rule
GRACE: Final = 5.0  # s for a toolbox's own processes
# That a person unloads or removes a model meanwhile says nothing about the new toolbox.
NO_FAULT: Final = ("model_not_found", "model_unloaded")
TOOLBOX_CODES: Final = ("toolbox_not_found", "toolbox_busy", "toolbox_pinned", "toolbox_failed")


class ModelInToolbox(Struct, frozen=True):
    """A model that is configured to run in a toolbox."""

    name: str
    state: str
    loaded: bool  # ready, or on the way there
    pid: int | None


class ModelControl(Protocol):
    """The scheduler, as far as toolboxes need it. AccelError."""

    def used(self) -> Mapping[str, list[ModelInToolbox]]:
        """All models whose home is a toolbox, by its name."""
        ...

    async def unload(self, model: str) -> None:
        """Let its running requests end and stop it."""
        ...

    async def load(self, model: str) -> None:
        """Have it ready."""
        ...


class RefreshContext(Struct, frozen=True):
    """What a refresh works with."""

    tools: CommandRunner
    engine: ContainerEngine
    builds: Builds
    sessions: ContainerSessions
    locks: MaintenanceLocks
    models: ModelControl
    record: RefreshRecord
    clock: Clock
    patience: float = 3.0  # s for short commands in the toolbox to end, such as llama-server --version

    async def find(self, name: str) -> Container:
        """The toolbox of that name. AccelError toolbox_not_found, HomeError."""
        found = await self.engine.inspect(name) if NAME.match(name) else None
        if found is None or found.name != name or not found.toolbox:
            there = [container.name for container in await self.engine.containers() if container.toolbox]
            close = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {close[0]}?" if close else "see: accelctl toolbox list"
            raise AccelError("toolbox_not_found", f"there is no toolbox called {name[:80]!r}; {hint}")
        return found

    async def user_sessions(self, container: Container) -> list[UserSession]:
        """Who is inside and stays."""
        deadline = self.clock.monotonic() + self.patience
        while True:
            found = await asyncio.to_thread(self.sessions.user_sessions, container)
            if not found or self.clock.monotonic() > deadline:
                return found
            await asyncio.sleep(0.1)

    def on(self, toolbox: str) -> list[ModelInToolbox]:
        return list(self.models.used().get(toolbox, ()))

    async def running_in(self, toolbox: str, container: Container) -> list[ModelInToolbox]:
        """The models of a toolbox whose processes are in this very container."""
        pids = await asyncio.to_thread(self.sessions.pids, container)
        return [model for model in self.on(toolbox) if model.pid in pids]

    async def remove(self, container: Container) -> str:
        """Remove it; while a person is inside it is removed later, and the note says so."""
        user_sessions = await self.user_sessions(container) if container.running else []
        if user_sessions:
            await self.record.leave((*self.record.left, LeftoverContainer(container.id, container.name)))
            return f"{container.name} stays because {described(user_sessions)} is inside; the next refresh removes it"
        if container.running:
            await self.engine.stop(container.id, GRACE)
        await self.engine.remove(container.id)
        return ""


Say = Callable[..., None]  # (step, *, model="", line="", done=None, total=None)


def beside(name: str) -> str:
    return f"{name}-new"


def before(name: str) -> str:
    return f"{name}-old"


def described(user_sessions: list[UserSession]) -> str:
    return ", ".join(map(str, user_sessions))


def failed(name: str, error: AccelError, what: str) -> AccelError:
    """The error that the client gets. Errors about toolboxes stay as they are."""
    if error.code in TOOLBOX_CODES:
        return error
    fields = {"tail": error.fields["tail"]} if "tail" in error.fields else {}
    return AccelError("toolbox_failed", f"cannot refresh {name}: {error.message}; {what}", **fields)


async def load(context: RefreshContext, model: str) -> None:
    try:
        await context.models.load(model)
    except AccelError as error:
        if error.code not in NO_FAULT:
            raise


async def sweep(context: RefreshContext) -> None:
    """Remove what earlier refreshes had to leave, where nobody is inside any more. HomeError."""
    left = []
    for one in context.record.left:
        there = await context.engine.inspect(one.id)
        if there is None:
            continue
        user_sessions = await context.user_sessions(there) if there.running else []
        if user_sessions:
            left.append(one)
        else:
            await context.engine.remove(there.id)
    await context.record.leave(tuple(left))


async def put_back(context: RefreshContext, begun: PendingRefresh, say: Say, *, again: bool = True) -> list[str]:
    """The old toolbox under its name and each model in it; the new one gone. Returns notes for the user. Without
    `again` no model is loaded. HomeError: the record stays, and this can be called again."""
    name, notes = begun.name, []
    old = await context.engine.inspect(begun.old)
    if old is None:
        notes.append(f"the old toolbox {name} was removed by another program")
    elif begun.stage == "proved":
        notes += filter(None, [await context.remove(old)])
    else:
        if old.name != name:
            await _take_back_name(context, name, old)
        new = await context.engine.inspect(beside(name))
        if new is not None and new.name == beside(name) and new.id != old.id:
            for model in await context.running_in(name, new):
                say("drain", model=model.name)
                await context.models.unload(model.name)
                if model.loaded and model.name not in begun.loaded:
                    begun = msgspec.structs.replace(begun, loaded=(*begun.loaded, model.name))
            notes += filter(None, [await context.remove(new)])
    for model_name in begun.loaded if again and begun.boot == context.record.boot() else ():
        if any(model.name == model_name and not model.loaded for model in context.on(name)):
            say("load", model=model_name)
            try:
                await load(context, model_name)
            except AccelError as error:
                notes.append(f"{model_name} is not loaded again: {error.message}")
    await context.record.end()
    return notes


async def _take_back_name(context: RefreshContext, name: str, old: Container) -> None:
    """Only names change hands here: the models follow once the lock is released."""
    async with context.locks.exclusive(name):
        there = await context.engine.inspect(name)
        if there is not None and there.name == name and there.id != old.id:
            trial = await context.engine.inspect(beside(name))
            if trial is not None and trial.name == beside(name):
                await context.engine.remove(trial.id)
            await context.engine.rename(there.id, beside(name))
        await context.engine.rename(old.id, name)


log = logging.getLogger(__name__)

VERSION: Final = 1
Stage = Literal["trial", "swap", "proved"]


class PendingRefresh(msgspec.Struct, frozen=True):
    """One refresh. `trial`: the old toolbox is untouched; `swap`: names and models change; `proved`: only the old one
    is still to go."""

    name: str
    old: str  # container id
    stage: Stage = "trial"
    loaded: tuple[str, ...] = ()  # models that shall be loaded again
    boot: str = ""  # of which start of the machine


class LeftoverContainer(msgspec.Struct, frozen=True):
    """A container that is to be removed once nobody is inside."""

    id: str
    name: str


class _RefreshFile(msgspec.Struct):
    version: int = VERSION
    begun: PendingRefresh | None = None
    left: tuple[LeftoverContainer, ...] = ()


class RefreshRecord:
    """One file. `read` first."""

    def __init__(self, path: Path, proc: Path, file: AtomicFile | None = None) -> None:
        self.path = path
        self._boot_id = proc / "sys/kernel/random/boot_id"
        self._file = AtomicFile(path) if file is None else file
        self._content = _RefreshFile()

    @property
    def begun(self) -> PendingRefresh | None:
        return self._content.begun

    @property
    def left(self) -> tuple[LeftoverContainer, ...]:
        return self._content.left

    async def read(self) -> None:
        """Never raises: a file that cannot be read is set aside, with a warning."""
        await asyncio.to_thread(self._read)

    async def begin(self, begun: PendingRefresh) -> None:
        """Write it down. HomeError: then nothing may be done."""
        await self._write(msgspec.structs.replace(self._content, begun=begun))

    async def end(self) -> None:
        """HomeError: it stays, and the next refresh finds it done."""
        await self._write(msgspec.structs.replace(self._content, begun=None))

    async def leave(self, left: tuple[LeftoverContainer, ...]) -> None:
        """Write down what is to go later. HomeError."""
        if left != self.left:
            await self._write(msgspec.structs.replace(self._content, left=left))

    def boot(self) -> str:
        """Which start of the machine this is; empty where the kernel does not say."""
        try:
            return self._boot_id.read_text().strip()
        except OSError:
            return ""

    def _read(self) -> None:
        try:
            data = self._file.read()
            if data is not None:
                self._content = from_json(data, _RefreshFile)
        except (Unreadable, msgspec.DecodeError) as error:
            try:
                kept = f"it is kept as {self._file.set_aside()}"
            except OSError as trouble:
                kept = trouble.strerror or str(trouble)
            text = f"cannot use {self.path}: {error}; a refresh that was interrupted is not repaired ({kept})"
            event(log, logging.WARNING, text, message_id=names.MSG_STATE_FILE)
        except OSError as error:
            text = f"cannot read {self.path}: {error.strerror or error}"
            event(log, logging.WARNING, text, message_id=names.MSG_STATE_FILE)

    async def _write(self, content: _RefreshFile) -> None:
        try:
            await asyncio.to_thread(self._file.write, msgspec.json.encode(content) + b"\n")
        except OSError as error:
            raise HomeError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._content = content
