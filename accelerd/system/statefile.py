"""One small file that is always the old content or the new, never half: the blocking file work behind StateStore.

Everything happens relative to a checked private directory and never follows a link. Raises OSError; called in a worker
thread after start-up.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final, Protocol

from accelerd.system.private import open_private_dir

READ_LIMIT: Final = 4 << 20  # bytes; a larger file is not ours
CORRUPT_KEPT: Final = 9


class Unreadable(Exception):
    """The file is there and is not something that we wrote."""


class FileStore(Protocol):
    """The seam between the state and the disk."""

    def read(self) -> bytes | None: ...
    def write(self, data: bytes) -> None: ...
    def set_aside(self) -> str: ...


class AtomicFile:
    """A file of mode 0600 in a directory of mode 0700 that is made again whenever it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """The content, None if there is no file; Unreadable for a link, a FIFO, another's file or a huge one."""
        directory = open_private_dir(self.path.parent)
        try:
            # O_NONBLOCK: opening a FIFO that somebody put there must not wait for its writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                fd = os.open(self.path.name, flags, dir_fd=directory)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise Unreadable(error.strerror or str(error)) from error
        finally:
            os.close(directory)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise Unreadable("it is not a regular file")
            if found.st_uid != os.geteuid():
                raise Unreadable(f"it belongs to uid {found.st_uid}")
            if found.st_size > READ_LIMIT:
                raise Unreadable(f"it is larger than {READ_LIMIT >> 20} MiB")
            with os.fdopen(fd, "rb", closefd=False) as file:
                return file.read(READ_LIMIT)
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        finally:
            os.close(fd)

    def write(self, data: bytes) -> None:
        """Replace the content durably: temporary file, fsync, rename, fsync of the directory."""
        directory = open_private_dir(self.path.parent)
        temporary = f".{self.path.name}.new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)  # left by a crash; one writer only, under the instance lock
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o600, dir_fd=directory)
            try:
                try:
                    view = memoryview(data)
                    while view:
                        view = view[os.write(fd, view) :]
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename(temporary, self.path.name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
                raise
            os.fsync(directory)
        finally:
            os.close(directory)

    def set_aside(self) -> str:
        """Rename the file to .corrupt-N for a person to look at; the new name."""
        directory = open_private_dir(self.path.parent)
        try:
            for number in range(1, CORRUPT_KEPT + 1):
                name = f"{self.path.name}.corrupt-{number}"
                if not _exists(name, directory):
                    break
            os.rename(self.path.name, name, src_dir_fd=directory, dst_dir_fd=directory)  # the ninth is replaced
            return name
        finally:
            os.close(directory)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
