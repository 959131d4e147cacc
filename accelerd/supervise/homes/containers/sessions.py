"""Who is inside a container: its own processes, the models, and people with a shell open.

Reads /proc, signals nothing. Needs containers whose processes the host sees, as those of toolbox are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from accelerd.base import names
from accelerd.supervise.homes.containers import tree
from accelerd.supervise.homes.containers.engine import Container


@dataclass(frozen=True)
class UserSession:
    """The first process of somebody's session in there."""

    pid: int
    name: str
    terminal: str  # "pts/3"; empty: none

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}{', ' if self.terminal else ''}{self.terminal})"


class ContainerSessions:
    """`owner`: the mark of this daemon's models. All methods are blocking."""

    def __init__(self, proc: Path, owner: str) -> None:
        self._proc = proc
        self._tag = f"{names.ENV_MARK_OWNER}={owner}".encode()

    def pids(self, container: Container) -> set[int]:
        """Every live process in there."""
        return set(self._inside(container.id, self._all()))

    def user_sessions(self, container: Container) -> list[UserSession]:
        """Whoever is in there beside the container's own processes and our models."""
        links = self._all()
        inside = self._inside(container.id, links)
        mine = _tree({container.pid}, links) if container.pid else set()
        strangers = {pid: inside[pid] for pid in inside if pid not in mine}
        tops = [pid for pid, link in strangers.items() if link.parent not in strangers]
        return [
            UserSession(pid, strangers[pid].process.name, self._terminal(pid))
            for pid in sorted(tops)
            if not any(self._is_ours(member) for member in _tree({pid}, links))
        ]

    def _all(self) -> dict[int, tree.Link]:
        found = (tree.look(self._proc, int(e.name)) for e in os.scandir(self._proc) if e.name.isdigit())
        return {link.process.pid: link for link in found if link is not None}

    def _inside(self, container: str, links: dict[int, tree.Link]) -> dict[int, tree.Link]:
        """By the control group, and by the conmon that brought them in: without systemd there is one group for all."""
        conmons = {pid for pid, link in links.items() if link.process.name == "conmon"}
        its = {pid for pid in conmons if container.encode() in self._read(pid, "cmdline")}
        found = _tree(its, links) | {
            pid for pid in links if f"libpod-{container}".encode() in self._read(pid, "cgroup")
        }
        return {pid: links[pid] for pid in found if pid not in conmons}

    def _is_ours(self, pid: int) -> bool:
        return self._tag in self._read(pid, "environ").split(b"\0")

    def _read(self, pid: int, file: str) -> bytes:
        try:
            return (self._proc / str(pid) / file).read_bytes()
        except OSError:
            return b""  # ended, or not ours to look into

    def _terminal(self, pid: int) -> str:
        stat = self._read(pid, "stat").rpartition(b")")[2].split()
        number = int(stat[4]) if len(stat) > 4 else 0
        major, minor = os.major(number), os.minor(number)
        return f"pts/{(major - 136) * 256 + minor}" if 136 <= major <= 143 else ""


def _tree(roots: Iterable[int], links: dict[int, tree.Link]) -> set[int]:
    """Those and all that came from them."""
    found = set(roots) & set(links)
    while more := {pid for pid, link in links.items() if link.parent in found} - found:
        found |= more
    return found
