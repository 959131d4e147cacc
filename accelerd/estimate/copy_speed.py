"""How fast this machine's main memory is read: copied once by all cores, and remembered by the processor's name.

Blocks for some tenths of a second the first time: call it in a thread. Holds 64 MiB a core meanwhile, and measures
nothing where that is not to spare.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

FILE: Final = "main-memory.json"
BLOCK: Final = 32 << 20  # bytes a core, copied to as many: no cache holds them all
MOST_CORES: Final = 8  # more do not make memory faster
SECONDS: Final = 0.2
ROUNDS: Final = 3  # the best counts: whatever else runs only slows it down


def copy_speed(cores: int, timer: Callable[[], float] = time.perf_counter) -> float:
    """Bytes read and written a second while so many cores copy."""
    size = 2 * BLOCK
    with ThreadPoolExecutor(cores) as pool, contextlib.ExitStack() as stack:
        areas = [stack.enter_context(mmap.mmap(-1, size)) for _ in range(cores)]
        for area in areas:
            area.write(b"\x01" * size)  # the first touch gives it its pages
        return max(sum(pool.map(lambda area: copied(area, timer), areas)) for _ in range(ROUNDS))


def copied(area: mmap.mmap, timer: Callable[[], float]) -> float:
    """Bytes a second of one core that copies one half of the area to the other for a while."""
    half = ctypes.c_char * BLOCK
    source, target = half.from_buffer(area), half.from_buffer(area, BLOCK)
    began, moved = timer(), 0
    while not moved or timer() - began < SECONDS / ROUNDS:
        ctypes.memmove(target, source, BLOCK)  # the other cores go on meanwhile: it holds no lock
        moved += 2 * BLOCK
    return moved / max(timer() - began, 1e-9)


class CopySpeed:
    """The figure, measured when it is first asked for."""

    def __init__(
        self,
        cache: Path,
        processor: str,
        available: Callable[[], int | None],
        measure: Callable[[int], float] = copy_speed,
        cores: int | None = None,
    ) -> None:
        """`cache`: the program's own directory; `available`: free bytes of main memory, None: not known."""
        self._file = cache / FILE
        self._cores = min(cores or os.cpu_count() or 1, MOST_CORES)
        self._key = f"{processor}, {self._cores} cores"
        self._available = available
        self._measure = measure
        self._known: float | None = None

    def __call__(self) -> float | None:
        """Bytes a second; None where there is no memory to measure with."""
        if self._known is None:
            self._known = self._remembered()
        if self._known is None:
            free = self._available()
            if free is not None and free < 4 * self._cores * BLOCK:
                return None
            self._known = self._measure(self._cores)
            self._remember(self._known)
        return self._known

    def _remembered(self) -> float | None:
        try:
            found = json.loads(self._file.read_bytes())
            value = found.get(self._key)
        except (OSError, ValueError, AttributeError):  # none yet, or somebody else's: it is measured anew
            return None
        return float(value) if isinstance(value, int | float) and value > 0 else None

    def _remember(self, value: float) -> None:
        with contextlib.suppress(OSError):  # it is only a cache: next time it is measured again
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._file.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps({self._key: round(value)}))
            fresh.replace(self._file)
