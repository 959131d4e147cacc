"""Records of the instances that can outlive the daemon: what the next one must know to take them over, or to end them.

Each is one file, written before the process is started and removed when it is proven gone; so whatever happens in
between, a process without a record is nobody's and ended. Blocking file work: call it in a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from accelerd.config.model import ModelSpec
from accelerd.engines.base import LaunchPlan
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.home import Home, InstanceRecord
from accelerd.supervise.instance_files import InstanceFiles
from accelerd.supervise.process.processes import InstanceTag, Process
from accelerd.system.private_files import AtomicFile, Unreadable
from accelerd.system.records import event

log = logging.getLogger(__name__)

VERSION: Final = 1


class Phase(StrEnum):
    """How far an instance has come."""

    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"  # not to be taken over any more


@dataclass(frozen=True)
class Record:
    """One file. The plan is without its environment and its secret (that is in `kept`)."""

    kept: InstanceRecord
    plan: LaunchPlan
    phase: Phase = Phase.STARTING
    survives: bool = True  # False: the next daemon only ends it, and what its home has of it
    version: int = VERSION


@dataclass(frozen=True)
class Adoptable:
    """An instance of an earlier daemon that lives."""

    record: Record
    processes: tuple[Process, ...]

    @property
    def kept(self) -> InstanceRecord:
        return self.record.kept

    @property
    def plan(self) -> LaunchPlan:
        return replace(self.record.plan, secret=self.kept.secret)

    @property
    def was_ready(self) -> bool:
        return self.record.phase is Phase.READY

    def fits(self, spec: ModelSpec) -> bool:
        """Would this model be started in the same way now, and may it have survived?"""
        return self.kept.model == spec.name and spec.survive and self.kept.fingerprint == fingerprint(spec)


def fingerprint(spec: ModelSpec) -> str:
    """Names one way of running one model. The record has secrets anyway, so the environment counts too."""
    return hashlib.sha256(msgspec.json.encode(spec.launch_key(), order="sorted")).hexdigest()


def record_of(spec: ModelSpec, plan: LaunchPlan, home: Home, mark: InstanceTag) -> Record | None:
    """What is to be kept of an instance that is about to start; None: of a plain child, which leaves nothing."""
    if home.kind == ChildHome.kind:
        return None
    kept = InstanceRecord(
        model=spec.name,
        home=home.kind,
        fingerprint=fingerprint(spec),
        mark=mark,
        place=home.place(spec, mark),
        unix=plan.endpoint.unix,
        port=plan.endpoint.port,
        secret=plan.secret,
    )
    return Record(kept, replace(plan, env={}, secret=""), survives=home.survives and spec.survive)


class _Versioned(msgspec.Struct):
    version: int


class RecordStore:
    """The records of one runtime directory."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._owner = owner

    def write(self, record: Record) -> None:
        """Durable before it returns. OSError."""
        AtomicFile(self._path(record.kept.mark)).write(msgspec.json.format(msgspec.json.encode(record), indent=1))

    def remove(self, mark: InstanceTag) -> None:
        """The record, and what else lies there of an instance that is gone. OSError."""
        files = InstanceFiles(self._folder, mark)
        for path in (files.environment, files.output, files.record):
            path.unlink(missing_ok=True)

    def read_all(self) -> list[Record]:
        """All that can be read; what cannot is set aside for a person to look at, and logged."""
        found = []
        with suppress(FileNotFoundError):
            for path in sorted(self._folder.glob("*.json")):
                record = self._read(path)
                if record is not None:
                    found.append(record)
        return found

    def _read(self, path: Path) -> Record | None:
        file = AtomicFile(path)
        try:
            data = file.read()
            if data is None:
                return None
            version = msgspec.json.decode(data, type=_Versioned).version
            if version != VERSION:
                raise Unreadable(f"another version of accelerd wrote it (format {version}, known is {VERSION})")
            record = msgspec.json.decode(data, type=Record)
            if record.kept.mark != InstanceTag(path.stem, self._owner):
                raise Unreadable("it is not about the instance that its name says")
        except (Unreadable, msgspec.DecodeError, OSError) as error:
            self._set_aside(path, file, error)
            return None
        return record

    def _set_aside(self, path: Path, file: AtomicFile, error: Exception) -> None:
        text = f"cannot use the record of an instance, its processes are ended: {path}: {error}"
        try:
            text += f"; kept as {file.set_aside()}"
        except OSError as trouble:
            text += f"; cannot rename it: {trouble.strerror}"
        event(log, logging.WARNING, text)

    def _path(self, mark: InstanceTag) -> Path:
        return InstanceFiles(self._folder, mark).record


class InstanceRecordFile:
    """The record of one instance, off the loop's thread. A disk that is full costs the survival and nothing else."""

    def __init__(
        self, store: RecordStore, mark: InstanceTag, record: Record | None, log: Callable[[int, str], None]
    ) -> None:
        self._store = store
        self._mark = mark
        self._record = record
        self._log = log

    @property
    def survives(self) -> bool:
        """Will the next daemon want it?"""
        return self._record is not None and self._record.survives

    async def begin(self, record: Record | None) -> None:
        """Before the start, so that the next daemon knows of whatever comes of it. None: there shall be none."""
        self._record = record if record is not None and await self._write(record) else None

    async def note(self, phase: Phase) -> None:
        """It has come this far."""
        if self._record is not None:
            self._record = replace(self._record, phase=phase)
            await self._write(self._record)

    async def remove(self) -> None:
        """After the end."""
        if self._record is not None:
            self._record = None
            try:
                await asyncio.to_thread(self._store.remove, self._mark)
            except OSError as error:
                self._log(logging.WARNING, f"cannot remove its record: {error.strerror or error}")

    async def _write(self, record: Record) -> bool:
        try:
            await asyncio.to_thread(self._store.write, record)
        except OSError as error:
            text = f"cannot write its record, it may end when accelerd restarts: {error.strerror or error}"
            self._log(logging.WARNING, text)
            return False
        return True
