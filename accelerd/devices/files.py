"""Small files of /sys and /proc as drivers serve them: busy for a moment, empty, gone, or full of nonsense.

`Files` asks again a bounded number of times and says with `Unreadable` what is wrong; `text` and `number` are for those
who can do without. Must never block for longer than its retries, never keep a file open, and never open a device node.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

TRIES = 3
PAUSE = 0.005  # s between them
TRANSIENT = frozenset({errno.EBUSY, errno.EAGAIN, errno.EIO, errno.EINTR})
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP, errno.EISDIR})

ReadFile = Callable[[Path], bytes]


class Unreadable(Exception):
    """A value that cannot be had now. `absent`: this device has no such thing at all."""

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.absent = absent


def read_bytes(path: Path) -> bytes:
    return path.read_bytes()


class Files:
    """Reads attributes. `read` and `pause` are the seams for tests."""

    def __init__(self, read: ReadFile = read_bytes, pause: Callable[[float], None] = time.sleep) -> None:
        self._read = read
        self._pause = pause

    def bytes(self, path: Path) -> bytes:
        """The whole file. Unreadable."""
        for attempt in range(TRIES):
            try:
                return self._read(path)
            except OSError as error:
                if error.errno not in TRANSIENT or attempt == TRIES - 1:
                    reason = f"{path.name}: {os.strerror(error.errno) if error.errno else error}"
                    raise Unreadable(reason, absent=error.errno in ABSENT) from None
                self._pause(PAUSE)
        raise AssertionError("not reached")

    def text(self, path: Path) -> str:
        """The stripped text; an empty file is Unreadable."""
        text = clean(self.bytes(path))
        if not text:
            raise Unreadable(f"{path.name}: empty")
        return text

    def number(self, path: Path, low: int, high: int) -> int:
        """A whole number in [low, high]; anything else is Unreadable, not a value."""
        text = self.text(path)
        try:
            value = int(text)
        except ValueError:
            raise Unreadable(f"{path.name}: not a number: {text[:20]!r}") from None
        if not low <= value <= high:
            raise Unreadable(f"{path.name}: out of range: {value}")
        return value


def clean(data: bytes) -> str:
    """Text without the NULs that some attributes are padded with."""
    return data.replace(b"\0", b"").decode(errors="replace").strip()


FILES = Files()
MOST_BYTES = 1 << 50  # more memory than anything has


def text(path: Path) -> str | None:
    """An attribute, or None when it is not there, empty or cannot be read now."""
    try:
        return FILES.text(path)
    except Unreadable:
        return None


def size(path: Path) -> int | None:
    """A number of bytes, or None."""
    try:
        return FILES.number(path, 0, MOST_BYTES)
    except Unreadable:
        return None


def lines(path: Path) -> list[str]:
    """The lines of a file; none when it cannot be read."""
    return (text(path) or "").splitlines()


def names(directory: Path) -> list[str]:
    """What is in a directory, sorted; nothing when it cannot be listed."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
