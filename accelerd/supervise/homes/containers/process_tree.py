"""Which process is whose child, by /proc: how the program itself is found among shells, inits and wrappers.

Blocking: call it in a thread. Signals nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from accelerd.base.proc import ProcStat, all_living, living, read_file
from accelerd.supervise.process.processes import Process


def children(proc: Path, pid: int) -> list[Process]:
    """The live children of a process, the oldest first."""
    found = [Process.of(stat) for stat in all_living(proc).values() if stat.parent == pid]
    return sorted(found, key=lambda p: (p.started, p.pid))


def top(proc: Path, processes: Sequence[Process]) -> Process | None:
    """The one that the others come from: the oldest whose parent is none of them."""
    stats = [stat for one in processes if (stat := living(proc, one.pid)) and stat.started == one.started]
    there = {stat.pid for stat in stats}
    roots = [Process.of(stat) for stat in stats if stat.parent not in there]
    return min(roots, key=lambda p: (p.started, p.pid), default=None)


def descendants(roots: Iterable[int], stats: Mapping[int, ProcStat]) -> set[int]:
    """Those of `stats` that are in `roots`, and all that came from them."""
    found = set(roots) & set(stats)
    while more := {pid for pid, stat in stats.items() if stat.parent in found} - found:
        found |= more
    return found


class ExecSession(Struct, frozen=True):
    """podman's record of one `podman exec`, and the conmon that is to end it."""

    id: str
    exit_file: str  # where conmon writes the exit status; of an id that only `podman unshare` may reach
    conmon: Process

    def has_conmon(self, proc: Path) -> bool:
        stat = living(proc, self.conmon.pid)
        return stat is not None and stat.started == self.conmon.started


def carriers(proc: Path, text: str) -> list[Process]:
    """Live processes with `text` in their command line, and all that came from them; the oldest first."""
    stats = all_living(proc)
    roots = [pid for pid in stats if text.encode() in read_file(proc, pid, "cmdline")]
    found = [Process.of(stats[pid]) for pid in descendants(roots, stats)]
    return sorted(found, key=lambda p: (p.started, p.pid))


def exec_session(proc: Path, pid: int) -> ExecSession | None:
    """The exec session that the process came in by, while its conmon lives."""
    for _ in range(8):
        stat = living(proc, pid)
        if stat is None:
            return None
        if stat.name == "conmon":
            try:
                words = read_file(proc, pid, "cmdline").decode().split("\0")
                container, session, folder = (words[words.index(flag) + 1] for flag in ("-c", "-u", "--exit-dir"))
            except (ValueError, IndexError):
                return None
            return ExecSession(session, f"{folder}/{container}", Process.of(stat)) if session != container else None
        pid = stat.parent
    return None
