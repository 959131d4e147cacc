"""Reading what an engine prints from a pipe or a FIFO, on the event loop, without ever waiting for it.

A flood stays in the pipe, which slows the engine down and not the daemon. Knows nothing of processes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

READ_BYTES: Final = 64 * 1024
BURST_BYTES: Final = 256 * 1024  # of output, in one BURST_WINDOW; a flood waits in the pipe
BURST_WINDOW: Final = 0.05  # s
REST_BYTES: Final = 2 << 20  # what is read at most after the end


class OutputReader:
    """Owns the non-blocking descriptor `fd`; `on_output` gets what arrives there, on the loop's thread."""

    def __init__(self, fd: int, on_output: Callable[[bytes], None]) -> None:
        self._fd: int | None = fd
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self._window = 0.0
        self._window_bytes = 0
        self._resume: asyncio.TimerHandle | None = None
        self._loop.add_reader(fd, self._seen)

    def finish(self) -> None:
        """Take what is left, at most REST_BYTES, and close."""
        self._drain(REST_BYTES)
        self.close()

    def close(self) -> None:
        """What is still in the pipe stays there. May be called twice."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _seen(self) -> None:
        now = self._loop.time()
        if now - self._window > BURST_WINDOW:
            self._window, self._window_bytes = now, 0
        self._window_bytes += self._drain(READ_BYTES)
        if self._window_bytes > BURST_BYTES and self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._resume = self._loop.call_later(BURST_WINDOW, self._read_again)

    def _read_again(self) -> None:
        self._resume = None
        if self._fd is not None:
            self._loop.add_reader(self._fd, self._seen)

    def _drain(self, limit: int) -> int:
        """Read what is there, up to `limit` bytes."""
        taken = 0
        while taken < limit and self._fd is not None:
            try:
                chunk = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                break
            if not chunk:
                self.close()
                break
            taken += len(chunk)
            self._on_output(chunk)
        return taken
