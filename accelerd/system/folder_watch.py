"""Tells when a file is gone from its directory, or the directory with it: inotify, without a thread or a timer.

For files on volumes that always answer, such as those of the runtime directory. OSError where the kernel has no watch
left.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

# linux/inotify.h: IN_MOVED_FROM, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF, IN_ONLYDIR
GOES: Final = 0x40 | 0x200 | 0x400 | 0x800 | 0x1000000


async def gone(file: Path, settle: float) -> None:
    """Wait until it is not there, and `settle` seconds more, in which more may go. OSError."""
    descriptor = _watch(file.parent)
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    try:
        if descriptor is not None:
            loop.add_reader(descriptor, heard.set)
        while descriptor is not None and _is_there(file):
            await heard.wait()
            heard.clear()
            with suppress(BlockingIOError):
                os.read(descriptor, 1 << 16)
        await asyncio.sleep(settle)
    finally:
        if descriptor is not None:
            loop.remove_reader(descriptor)
            os.close(descriptor)


def _is_there(file: Path) -> bool:
    return file.exists()


def _watch(folder: Path) -> int | None:
    """A descriptor that can be read once something has gone; None: the directory is not there."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(folder), GOES) >= 0:
        return descriptor
    number = ctypes.get_errno()
    if descriptor >= 0:
        os.close(descriptor)
    if not folder.is_dir():
        return None
    raise OSError(number, os.strerror(number), str(folder))
