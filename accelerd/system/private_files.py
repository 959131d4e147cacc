"""Private files: a directory that only this user may enter, and in it one small file that is never half written.

The lock, the control socket and the state files live in such directories. Everything in one is reached relative to its
descriptor and no link is followed, so nobody can replace the directory between the check and the use. Raises OSError;
called in a worker thread after start-up.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from accelerd.base.files import replace_file

READ_LIMIT: Final = 4 << 20  # bytes; a larger file is not ours
CORRUPT_KEPT: Final = 9


class NotPrivate(OSError):
    """A directory that cannot be trusted: a link, a file, or another user's."""


def open_private_dir(path: Path) -> int:
    """Create or open the directory `path` and return its descriptor; missing parents are created.

    It is a real directory, owned by this user, with mode 0700; a wider mode is changed. NotPrivate, OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if path.is_symlink():
            raise NotPrivate(f"{path} is a symbolic link, a directory is needed: remove the link") from None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise NotPrivate(f"{path} is not a directory: move it away") from None
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise NotPrivate(f"{path} belongs to uid {found.st_uid}, not to uid {os.geteuid()}: remove it")
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Unreadable(Exception):
    """The file exists but was not written by accelerd."""


class AtomicFile:
    """A file of mode 0600 in a private directory, which is created whenever it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """The content; None without a file. Unreadable for a link, a FIFO, another user's file or a very large one."""
        directory = open_private_dir(self.path.parent)
        try:
            # O_NONBLOCK: do not wait for the writer of a FIFO
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
            with open(fd, "rb", closefd=False) as file:
                return file.read(READ_LIMIT)
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        finally:
            os.close(fd)

    def write(self, data: bytes) -> None:
        """Replace the content durably."""
        directory = open_private_dir(self.path.parent)
        try:
            replace_file(directory, self.path.name, data)
        finally:
            os.close(directory)

    def set_aside(self) -> str:
        """Rename the file to .corrupt-N, so that a person can examine it. Returned: the new name."""
        directory = open_private_dir(self.path.parent)
        try:
            taken = os.listdir(directory)
            for number in range(1, CORRUPT_KEPT + 1):
                name = f"{self.path.name}.corrupt-{number}"
                if name not in taken:
                    break
            os.rename(self.path.name, name, src_dir_fd=directory, dst_dir_fd=directory)  # replaces the ninth
            return name
        finally:
            os.close(directory)
