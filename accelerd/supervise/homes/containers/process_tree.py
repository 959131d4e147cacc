"""Which process is whose child, by /proc: how the program itself is found among shells, inits and wrappers, and who is
inside a container: its own processes, models, and sessions of users.

Blocking: call it in a thread. Signals nothing. Sessions are found only where the container's processes are visible in
the host's /proc, as toolbox's are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from accelerd.base import names
from accelerd.base.proc import ProcStat, all_living, living, read_file
from accelerd.supervise.homes.containers.podman_docker import Container
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


class UserSession(Struct, frozen=True):
    """The first process of a user's session in a container."""

    pid: int
    name: str
    terminal: str  # "pts/3"; empty: none

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}{', ' if self.terminal else ''}{self.terminal})"


class ContainerSessions:
    """`owner`: the tag of this daemon's models. All methods are blocking."""

    def __init__(self, proc: Path, owner: str) -> None:
        self._proc = proc
        self._tag = f"{names.ENV_OWNER}={owner}".encode()

    def pids(self, container: Container) -> set[int]:
        return set(self._inside(container.id, all_living(self._proc)))

    def user_sessions(self, container: Container) -> list[UserSession]:
        """What is in there beside the container's own processes and our models."""
        stats = all_living(self._proc)
        inside = self._inside(container.id, stats)
        own = descendants({container.pid}, stats) if container.pid else set()
        strangers = {pid: stat for pid, stat in inside.items() if pid not in own}
        return [
            UserSession(pid, stat.name, _terminal(stat.terminal))
            for pid, stat in sorted(strangers.items())
            if stat.parent not in strangers and not any(self._is_ours(member) for member in descendants({pid}, stats))
        ]

    def _inside(self, container: str, stats: dict[int, ProcStat]) -> dict[int, ProcStat]:
        """By the control group, and by the conmon that brought them in: without systemd there is one group for all."""
        conmons = {pid for pid, stat in stats.items() if stat.name == "conmon"}
        its = {pid for pid in conmons if container.encode() in read_file(self._proc, pid, "cmdline")}
        found = descendants(its, stats) | {
            pid for pid in stats if f"libpod-{container}".encode() in read_file(self._proc, pid, "cgroup")
        }
        return {pid: stats[pid] for pid in found if pid not in conmons}

    def _is_ours(self, pid: int) -> bool:
        return self._tag in read_file(self._proc, pid, "environ").split(b"\0")


def _terminal(device: int) -> str:
    major, minor = os.major(device), os.minor(device)
    return f"pts/{(major - 136) * 256 + minor}" if 136 <= major <= 143 else ""
