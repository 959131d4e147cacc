"""Fetches one file over HTTP into a partial file: goes on where an earlier attempt stopped, checks the sum, moves it.

huggingface-hub itself neither goes on (since 1.9 it deletes what is not complete) nor checks the sum. Blocks. Tells
every piece that arrives.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.base.files import at_once
from accelerd.base.sizes import human_size
from accelerd.estimate.gguf import MAGIC, Budget, GgufError, TruncatedError
from accelerd.estimate.model_kind import identify
from accelerd.estimate.remote import Web, host
from accelerd.estimate.tensors import read_part

PIECE: Final = 1 << 18
SPAN: Final = 16 << 30  # bytes of one request: content networks refuse larger answers (50 GB)
LEAST: Final = 1 << 16  # bytes that a request brings if it is not to count as failed
SPARE: Final = 64 << 20  # bytes that stay free on the disk
LONGEST_PAUSE: Final = 30.0  # s
SHA256: Final = re.compile(r"[0-9a-f]{64}")
GIT: Final = re.compile(r"[0-9a-f]{40}")
GIVEN_UP: Final = frozenset(
    {"model_gated", "hub_not_found", "disk_full", "bad_request"}
)  # trying again changes nothing
GOES_ON: Final = "what has arrived is kept: start the download again, and it goes on"
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

Tell = Callable[[int], None]  # bytes of the file that are here


class _Sum(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class RemoteFile(Struct, frozen=True):
    """A file on a server."""

    url: str
    name: str
    size: int  # bytes; 0: not known
    sum: str = ""  # SHA-256, or git's sum of a small file of a hub
    resumable: bool = True  # the partial file is of this version of the file


class Fetcher:
    """Fetches files, one after another."""

    def __init__(self, web: Web, attempts: int, pause: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self._web = web
        self._attempts = attempts
        self._pause = pause
        self._sleep = sleep

    def fetch(self, file: RemoteFile, partial: Path, target: Path, tell: Tell) -> None:
        """`target` is there, complete and checked; `partial` holds what has arrived so far. AccelError."""
        try:
            with open(partial, "ab", opener=at_once) as opened:
                if not file.resumable or (file.size and opened.tell() > file.size):
                    _empty(opened)
                if not self._good(file, opened, tell):
                    _empty(opened)
                    if not self._good(file, opened, tell):
                        _empty(opened)
                        raise AccelError(
                            "download_failed",
                            f"{file.name} arrives damaged from {host(file.url)}: its checksum is wrong",
                            hint="try again later; the server or a proxy changes the file",
                        )
                if not file.sum:
                    _refuse_junk(file, opened)
                os.fsync(opened.fileno())
            partial.replace(target)
        except OSError as error:
            raise disk_error(error, partial.parent) from error

    def _good(self, file: RemoteFile, opened: BinaryIO, tell: Tell) -> bool:
        """Everything has arrived; has it the right sum?"""
        arriving = _Arriving(file, opened)
        tell(opened.tell())
        failures = 0
        while not arriving.complete:
            before = opened.tell()
            error: AccelError | None = None
            try:
                self._some(file, arriving, tell)
            except AccelError as found:
                error = found
            if arriving.complete:
                break
            failures = failures + 1 if opened.tell() < before + LEAST else 0
            if error is not None and error.code in GIVEN_UP:
                raise error
            if failures >= self._attempts:
                problem = error.problem if error is not None else f"{host(file.url)} sends nothing more of {file.name}"
                raise AccelError(error.code if error is not None else "download_failed", problem, hint=GOES_ON)
            if failures:
                self._sleep(min(LONGEST_PAUSE, self._pause * 2 ** (failures - 1)))
        opened.flush()
        return arriving.sum is None or arriving.sum.hexdigest() == file.sum

    def _some(self, file: RemoteFile, arriving: _Arriving, tell: Tell) -> None:
        """As much as one request brings."""
        opened = arriving.file
        have = opened.tell()
        headers = {"Accept-Encoding": "identity"}
        if have or file.size > SPAN:
            headers["Range"] = f"bytes={have}-{have + SPAN - 1 if file.size else ''}"
        with self._web.open(file.url, headers) as response:
            if have and (response.status != 206 or not _begins(response.headers.get("Content-Range"), have)):
                arriving.restart()  # it sends all of it again
            if not file.size and response.length is not None:
                require_space(Path(opened.name).parent, response.length)
                arriving.size = opened.tell() + response.length
            while piece := self._web.body(response, file.url, PIECE):
                arriving.add(piece)
                tell(opened.tell())
        if not arriving.size:
            arriving.size = opened.tell()  # the server did not say how much it would be
        if opened.tell() > arriving.size:
            arriving.restart()
            text = f"{host(file.url)} sends more of {file.name} than it announced"
            raise AccelError("download_failed", text, hint="try again later")


class _Arriving:
    """A partial file and the sum of what is in it, with what an earlier process left."""

    def __init__(self, remote: RemoteFile, file: BinaryIO) -> None:
        self._remote = remote
        self.file = file
        self.size = remote.size
        self.sum = self._new()
        if self.sum is not None:
            with open(file.name, "rb") as earlier:
                while piece := earlier.read(PIECE * 16):
                    self.sum.update(piece)

    @property
    def complete(self) -> bool:
        return 0 < self.size == self.file.tell()

    def add(self, piece: bytes) -> None:
        self.file.write(piece)
        if self.sum is not None:
            self.sum.update(piece)

    def restart(self) -> None:
        _empty(self.file)
        self.sum = self._new()

    def _new(self) -> _Sum | None:
        if SHA256.fullmatch(self._remote.sum):
            return hashlib.sha256()
        if GIT.fullmatch(self._remote.sum) and self._remote.size:
            return hashlib.sha1(b"blob %d\0" % self._remote.size, usedforsecurity=False)
        return None


def _empty(file: BinaryIO) -> None:
    file.truncate(0)
    file.seek(0)


def _refuse_junk(file: RemoteFile, opened: BinaryIO) -> None:
    """Discard what is no whole GGUF file, where no sum says that it is what the server has. AccelError."""
    why = ""
    with open(opened.name, "rb") as arrived:
        if arrived.read(len(MAGIC)) != MAGIC:
            why = identify(Path(opened.name)).reason
        else:
            arrived.seek(0)
            try:
                read_part(arrived, opened.tell(), Budget())
            except TruncatedError as error:
                why = str(error)
            except GgufError:
                pass  # perhaps of a newer kind: what it is, is said where it is used
    if why:
        _empty(opened)
        text = f"what {host(file.url)} sends as {file.name} is not the model: {why}"
        raise AccelError("download_failed", text, hint="nothing of it was kept: check the address")


def _begins(said: str | None, at: int) -> bool:
    return said is not None and said.strip().startswith(f"bytes {at}-")


def require_space(folder: Path, size: int) -> None:
    """Refuse to begin what cannot end. AccelError."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if size + SPARE > free:
        raise AccelError(
            "disk_full",
            f"the download needs {human_size(size)} and {human_size(SPARE)} to spare, and {folder} has "
            f"{human_size(free)} free",
            hint="free some space, or set HF_HOME to a folder on another disk",
        )


def disk_error(error: OSError, folder: Path) -> AccelError:
    """What an error of the disk means to a person."""
    if error.errno in FULL:
        text = f"there is no space left in {folder}"
        return AccelError("disk_full", text, hint=f"free some space, or set HF_HOME to another disk; {GOES_ON}")
    if error.errno == errno.EFBIG:
        text = f"the file system of {folder}, or a limit, takes no file of that size"
        return AccelError("disk_full", text, hint="set HF_HOME to a folder on a disk that takes large files (not FAT)")
    text = f"cannot write to {error.filename or folder}: {error.strerror or error}"
    return AccelError("download_failed", text, hint="check its permissions, or set HF_HOME to another folder")


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Only one process fetches a file; huggingface-hub takes the same lock. `waiting` is called twice a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", opener=at_once) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(0.5)
        yield
