"""Reads small files of /sys and /proc, which may be busy for a moment, empty, gone or invalid.

`AttributeFiles` retries a few times and raises UnreadableValue with the reason; `text`, `size` and `lines` return
nothing instead. Must never block for longer than its retries, never keep a file open, and never open a device node.
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


class UnreadableValue(Exception):
    """A value that cannot be read now. `absent`: the device does not have it at all."""

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.absent = absent


class AttributeFiles:
    """Reads attributes. Tests replace `read` and `pause`."""

    def __init__(
        self, read: Callable[[Path], bytes] = Path.read_bytes, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._read = read
        self._pause = pause

    def bytes(self, path: Path) -> bytes:
        """The whole file. UnreadableValue."""
        for attempt in range(TRIES):
            try:
                return self._read(path)
            except OSError as error:
                if error.errno not in TRANSIENT or attempt == TRIES - 1:
                    reason = f"{path.name}: {os.strerror(error.errno) if error.errno else error}"
                    raise UnreadableValue(reason, absent=error.errno in ABSENT) from None
                self._pause(PAUSE)
        raise AssertionError("not reached")

    def text(self, path: Path) -> str:
        """The stripped text; an empty file raises UnreadableValue."""
        text = clean(self.bytes(path))
        if not text:
            raise UnreadableValue(f"{path.name}: empty")
        return text

    def number(self, path: Path, low: int, high: int) -> int:
        """A whole number in [low, high]; anything else raises UnreadableValue."""
        text = self.text(path)
        try:
            value = int(text)
        except ValueError:
            raise UnreadableValue(f"{path.name}: not a number: {text[:20]!r}") from None
        if not low <= value <= high:
            raise UnreadableValue(f"{path.name}: out of range: {value}")
        return value


def clean(data: bytes) -> str:
    """Text without the NULs that pad some attributes."""
    return data.replace(b"\0", b"").decode(errors="replace").strip()


FILES = AttributeFiles()
MOST_BYTES = 1 << 50  # more memory than any device has


def text(path: Path) -> str | None:
    """An attribute; None if it is missing, empty or unreadable."""
    try:
        return FILES.text(path)
    except UnreadableValue:
        return None


def size(path: Path) -> int | None:
    """A number of bytes, or None."""
    try:
        return FILES.number(path, 0, MOST_BYTES)
    except UnreadableValue:
        return None


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it is unreadable."""
    return (text(path) or "").splitlines()


def names(directory: Path) -> list[str]:
    """The sorted entries of a directory; none if it cannot be listed."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
