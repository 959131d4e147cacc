"""What a contender costs the machine: CPU time, memory and wake-ups of its processes, from /proc.

The engine below a contender is not part of it. Reads only; never signals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Memory:
    """Bytes of all processes of a contender together. PSS counts shared pages once."""

    rss: int
    pss: int


def tree(pid: int, engine: Path) -> tuple[list[int], list[int]]:
    """The processes below `pid`, itself included: (the contender's own, those that run `engine`)."""
    own: list[int] = [pid]
    engines: list[int] = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            (engines if child.exe() == str(engine) else own).append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return own, engines


def _tasks(pid: int) -> list[Path]:
    """The threads of a process, none when it is gone."""
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of all living threads; the scheduler counts it in nanoseconds."""
    total = 0
    for pid in pids:
        for task in _tasks(pid):
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):  # the thread ended since the listing
                continue
    return total / 1e9


def wakeups(pids: list[int]) -> int:
    """How often a thread went to sleep by itself so far: each time something has to wake it."""
    total = 0
    for pid in pids:
        for task in _tasks(pid):
            try:
                status = (task / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            total += int(next(line for line in status.splitlines() if line.startswith("voluntary_ctxt")).split()[1])
    return total


def memory(pids: list[int]) -> Memory:
    rss = pss = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "Rss":
                rss += int(rest.split()[0]) * 1024
            elif name == "Pss":
                pss += int(rest.split()[0]) * 1024
    return Memory(rss, pss)
