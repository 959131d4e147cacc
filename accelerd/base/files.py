"""A file that is never half written, not even after a power failure."""

from __future__ import annotations

import contextlib
import os


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
