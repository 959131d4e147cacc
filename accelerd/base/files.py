"""Small files: read whatever lies there in their place, and never half written, not even after a power failure."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

SMALL: Final = 1 << 20  # bytes


def at_once(name: str, flags: int) -> int:
    """An opener for open(): of a FIFO it waits for nobody."""
    return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)


def read_small(path: str | os.PathLike[str], most: int = SMALL) -> bytes:
    """What is in a regular file of at most `most` bytes. OSError."""
    with open(path, "rb", opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most} bytes", os.fspath(path))
    return data


def replace_file(directory: int, name: str, data: bytes) -> None:
    """Replace a file in the directory with this descriptor; its mode becomes 0600. OSError.

    There must be one writer at a time: a temporary file of another one is taken for what a crash has left.
    """
    temporary = f".{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)
