"""Resident memory of processes, from /proc. Blocking reads: call it in a thread. Knows no instances."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(proc: Path, pids: Iterable[int]) -> int:
    """Bytes resident (RSS), shared pages counted for each process. Cheap. Processes that are gone count 0."""
    return sum(_rss(proc, pid) or 0 for pid in pids)


def proportional(proc: Path, pids: Iterable[int]) -> int | None:
    """Bytes by proportional share (PSS), the RSS where the kernel does not tell; None: no process was there."""
    sizes = [size for pid in pids if (size := _pss(proc, pid) or _rss(proc, pid)) is not None]
    return sum(sizes) if sizes else None


def _rss(proc: Path, pid: int) -> int | None:
    try:
        return int((proc / str(pid) / "statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None  # the process has ended


def _pss(proc: Path, pid: int) -> int | None:
    try:
        rollup = (proc / str(pid) / "smaps_rollup").read_bytes()
    except OSError:
        return None  # ended, or a kernel that does not allow it
    for line in rollup.splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return None
