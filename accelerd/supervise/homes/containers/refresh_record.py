"""What a refresh of a toolbox has begun, on disk before it is done: a daemon that dies in the middle leaves this.

Containers are identified by their ids, which never move to another container as names do. Also keeps which old ones had
to stay because a person was inside.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final, Literal

import msgspec

from accelerd.base import names
from accelerd.supervise.homes.home import HomeError
from accelerd.system.private_files import AtomicFile, Unreadable
from accelerd.system.records import event

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
                self._content = msgspec.json.decode(data, type=_RefreshFile)
        except (Unreadable, msgspec.MsgspecError, UnicodeDecodeError) as error:
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
