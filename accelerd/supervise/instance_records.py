"""The files of one start in the runtime directory: environment, output FIFO, and the record of an instance that can
outlive the daemon: what the next one must know to take it over, or to end it.

A record is written before the process is started and removed when it is proven gone; so whatever happens in between, a
process without a record is nobody's and is ended. Modes are 0600 in a directory of mode 0700: environment and record
hold secrets. Blocking file work: call it in a thread.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, structs

from accelerd.base.decoding import from_json
from accelerd.config.model import ModelSpec
from accelerd.engines.base import LaunchPlan
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.home import Home, InstanceRecord
from accelerd.supervise.process.processes import InstanceTag, Process
from accelerd.system.private_files import AtomicFile, Unreadable, open_private_dir
from accelerd.system.records import event

log = logging.getLogger(__name__)

VERSION: Final = 2


class Phase(StrEnum):
    """How far an instance has come."""

    STARTING = "starting"
    READY = "ready"
    ASLEEP = "asleep"  # its weights are in main memory
    ENDING = "ending"  # not to be taken over any more


class StoredInstance(Struct, frozen=True):
    """One file. The plan is without its environment and its secret (that is in `record`)."""

    record: InstanceRecord
    plan: LaunchPlan
    phase: Phase = Phase.STARTING
    survives: bool = True  # False: the next daemon only ends it, and what its home has of it
    version: int = VERSION


class Adoptable(Struct, frozen=True):
    """An instance of an earlier daemon that lives."""

    stored: StoredInstance
    processes: tuple[Process, ...]
    printed: bytes = b""  # what it printed before

    @property
    def record(self) -> InstanceRecord:
        return self.stored.record

    @property
    def plan(self) -> LaunchPlan:
        return replace(self.stored.plan, secret=self.record.secret)

    @property
    def was_ready(self) -> bool:
        return self.stored.phase in (Phase.READY, Phase.ASLEEP)

    @property
    def asleep(self) -> bool:
        return self.stored.phase is Phase.ASLEEP

    def fits(self, spec: ModelSpec) -> bool:
        """Would this model be started in the same way now, and may it have survived?"""
        return self.record.model == spec.name and spec.survive and self.record.fingerprint == fingerprint(spec)


def fingerprint(spec: ModelSpec) -> str:
    """Names one way of running one model. The record has secrets anyway, so the environment counts too."""
    return hashlib.sha256(msgspec.json.encode(spec.launch_key(), order="sorted")).hexdigest()


def record_of(spec: ModelSpec, plan: LaunchPlan, home: Home, tag: InstanceTag) -> StoredInstance | None:
    """The record of an instance that is about to start; None: a child of the daemon needs none."""
    if home.kind == ChildHome.kind:
        return None
    record = InstanceRecord(
        model=spec.name,
        home=home.kind,
        fingerprint=fingerprint(spec),
        tag=tag,
        place=home.place(spec, tag),
        unix=plan.endpoint.unix,
        port=plan.endpoint.port,
        secret=plan.secret,
    )
    return StoredInstance(record, replace(plan, env={}, secret=""), survives=home.survives and spec.survive)


class _Versioned(msgspec.Struct):
    version: int


class RecordStore:
    """The records of one runtime directory."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._owner = owner

    def write(self, stored: StoredInstance) -> None:
        """Durable before it returns. OSError."""
        AtomicFile(self._path(stored.record.tag)).write(msgspec.json.format(msgspec.json.encode(stored), indent=1))

    def remove(self, tag: InstanceTag) -> None:
        """The record, and what else lies there of an instance that is gone. OSError."""
        files = InstanceFiles(self._folder, tag)
        for path in (files.environment, files.output, files.printed, files.record):
            path.unlink(missing_ok=True)

    def take_back(self, tag: InstanceTag) -> None:
        """The environment of an instance that has begun: a daemon may be killed before it does that. OSError."""
        InstanceFiles(self._folder, tag).environment.unlink(missing_ok=True)

    def hand_on(self, tag: InstanceTag, printed: bytes) -> None:
        """Keep what an instance has printed for the next daemon. OSError."""
        AtomicFile(InstanceFiles(self._folder, tag).printed).write(printed)

    def handed_on(self, tag: InstanceTag) -> bytes:
        """What the last daemon has kept, once."""
        path = InstanceFiles(self._folder, tag).printed
        try:
            printed = AtomicFile(path).read() or b""
            path.unlink(missing_ok=True)
        except (OSError, Unreadable):
            return b""  # only old lines of `accelctl logs` depend on it
        return printed

    def read_all(self) -> list[StoredInstance]:
        """All that can be read; what cannot is set aside for a person to look at, and logged."""
        found = []
        if os.path.lexists(self._folder) and (self._folder.is_symlink() or not self._folder.is_dir()):
            self._set_aside(self._folder, AtomicFile(self._folder), NotADirectoryError("it is not a directory"))
        with suppress(FileNotFoundError):
            for path in sorted(self._folder.glob("*.json")):
                stored = self._read(path)
                if stored is not None:
                    found.append(stored)
        return found

    def _read(self, path: Path) -> StoredInstance | None:
        file = AtomicFile(path)
        try:
            data = file.read()
            if data is None:
                return None
            version = from_json(data, _Versioned).version
            if version != VERSION:
                raise Unreadable(f"another version of accelerd wrote it (format {version}, known is {VERSION})")
            stored = from_json(data, StoredInstance)
            if stored.record.tag != InstanceTag(path.stem, self._owner):
                raise Unreadable("it describes another instance than its name says")
        except (Unreadable, msgspec.DecodeError, OSError) as error:
            self._set_aside(path, file, error)
            return None
        return stored

    def _set_aside(self, path: Path, file: AtomicFile, error: Exception) -> None:
        text = f"cannot use the record of an instance, its processes are ended: {path}: {error}"
        try:
            text += f"; kept as {file.set_aside()}"
        except OSError as trouble:
            text += f"; cannot rename it: {trouble.strerror}"
        event(log, logging.WARNING, text)

    def _path(self, tag: InstanceTag) -> Path:
        return InstanceFiles(self._folder, tag).record


class InstanceRecordFile:
    """The record of one instance, off the loop's thread. A disk that is full costs the survival and nothing else."""

    def __init__(
        self, store: RecordStore, tag: InstanceTag, stored: StoredInstance | None, log: Callable[[int, str], None]
    ) -> None:
        self._store = store
        self._tag = tag
        self._stored = stored
        self._log = log
        self._writing = asyncio.Lock()

    @property
    def survives(self) -> bool:
        return self._stored is not None and self._stored.survives

    async def begin(self, stored: StoredInstance | None) -> None:
        """Before the start, so that the next daemon knows of whatever comes of it. None: there shall be none."""
        self._stored = stored if stored is not None and await self._write(stored) else None

    async def note(self, phase: Phase) -> None:
        """It has come this far."""
        if self._stored is not None:
            self._stored = structs.replace(self._stored, phase=phase)
            await self._write(self._stored)

    async def write_again(self) -> None:
        """Somebody has removed it."""
        if self._stored is not None:
            await self._write(self._stored)

    async def remove(self) -> None:
        """After the end."""
        if self._stored is not None:
            self._stored = None
            try:
                async with self._writing:
                    await asyncio.to_thread(self._store.remove, self._tag)
            except OSError as error:
                self._log(logging.WARNING, f"cannot remove its record: {error.strerror or error}")

    async def _write(self, stored: StoredInstance) -> bool:
        try:
            async with self._writing:
                await asyncio.to_thread(self._store.write, stored)
        except OSError as error:
            text = f"cannot write its record, it may end when accelerd restarts: {error.strerror or error}"
            self._log(logging.WARNING, text)
            return False
        return True


PIPE_BYTES: Final = 1 << 20  # what an engine may print while no daemon reads, before it waits


# .new: what was being written; .taken, .life, .end, .exec: of those in containers (handoff.py)
ENDINGS: Final = (".env", ".env.taken", ".out", ".log", ".json", ".json.new", ".life", ".end", ".end.new", ".exec")


def instance_of(name: str) -> str | None:
    """Whose file this is (InstanceTag.instance), by its name; None: no file of an instance."""
    instance, dot, ending = name.removeprefix(".").partition(".")
    return instance if dot + ending in ENDINGS else None


class InstanceFiles:
    """Where they are."""

    def __init__(self, folder: Path, tag: InstanceTag) -> None:
        self._folder = folder
        self._tag = tag
        self.environment = self.path(".env")
        self.output = self.path(".out")
        self.printed = self.path(".log")  # what the last daemon has read of the output
        self.record = self.path(".json")

    def path(self, ending: str) -> Path:
        return self._folder / f"{self._tag.instance}{ending}"

    def write_environment(self, text: str) -> None:
        """Variables in the syntax of whoever reads them. OSError."""
        self._make_folder()
        fd = os.open(self.environment, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(text.encode())

    def make_output(self) -> None:
        """The FIFO that the engine prints into. OSError."""
        self._make_folder()
        os.mkfifo(self.output, 0o600)

    def open_output(self, proc: Path, holder: int | None = None) -> int:
        """A non-blocking descriptor to read the FIFO from. `holder`: a process that has it as its standard input, for
        when its name is gone. OSError."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self.output, flags | os.O_NOFOLLOW)
        except FileNotFoundError:
            if holder is None:
                raise
            fd = os.open(proc / str(holder) / "fd/0", flags)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(f"{self.output} is not a FIFO")
        with suppress(OSError):  # the user's pipes are many or the system's limit is lower: then it is smaller
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return fd

    def _make_folder(self) -> None:
        os.close(open_private_dir(self._folder))


def environment_text(env: Mapping[str, str]) -> str:
    """systemd's EnvironmentFile= syntax for these variables. ValueError, with the variable's name and no value."""
    lines = []
    for name, value in env.items():
        plain = name.replace("_", "a")
        if not (plain.isascii() and plain.isalnum()) or name[0].isdigit():
            raise ValueError(f"cannot pass the environment variable {name!r}: letters, digits and _ only")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"cannot pass the environment variable {name}: its value is not UTF-8") from None
        if "\0" in value:
            raise ValueError(f"cannot pass the environment variable {name}: its value has a zero byte")
        quoted = "".join(f"\\{character}" if character in '"\\`$' else character for character in value)
        lines.append(f'{name}="{quoted}"\n')
    return "".join(lines)
