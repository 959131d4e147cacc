"""What runs inside a container: its own processes, models, and sessions of users.

Reads /proc, signals nothing. Works only where the container's processes are visible in the host's /proc, as toolbox's
are.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from accelerd.base import names
from accelerd.base.proc import ProcStat, all_living, read_file
from accelerd.supervise.homes.containers.podman_docker import Container
from accelerd.supervise.homes.containers.process_tree import descendants


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
        """Every live process in there."""
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
