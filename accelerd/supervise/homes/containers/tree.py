"""Which process is whose child, by /proc: how the program itself is found among shells, inits and wrappers.

Blocking: call it in a thread. Signals nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerd.supervise.process.processes import Process


@dataclass(frozen=True)
class Link:
    """A live process with its parent."""

    process: Process
    parent: int


def look(proc: Path, pid: int) -> Link | None:
    """None: no such process, or a zombie."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] in "ZX" else Link(Process(pid, int(fields[19]), name), int(fields[1]))


def children(proc: Path, pid: int) -> list[Process]:
    """The live children of a process, the oldest first."""
    links = [link for entry in os.scandir(proc) if entry.name.isdigit() and (link := look(proc, int(entry.name)))]
    return sorted((link.process for link in links if link.parent == pid), key=lambda p: (p.started, p.pid))


def top(proc: Path, processes: Sequence[Process]) -> Process | None:
    """The one that the others come from: the oldest whose parent is none of them."""
    links = [link for process in processes if (link := look(proc, process.pid)) and link.process == process]
    pids = {link.process.pid for link in links}
    roots = [link.process for link in links if link.parent not in pids]
    return min(roots, key=lambda p: (p.started, p.pid), default=None)


@dataclass(frozen=True)
class ExecSession:
    """podman's record of one `podman exec`, and the conmon that is to end it."""

    id: str
    exit_file: str  # where conmon writes the exit status; of an id that only `podman unshare` may reach
    conmon: Process

    def has_conmon(self, proc: Path) -> bool:
        link = look(proc, self.conmon.pid)
        return link is not None and link.process == self.conmon


def carriers(proc: Path, text: str) -> list[Process]:
    """Live processes with `text` in their command line, and all that came from them; the oldest first."""
    links = {
        link.process.pid: link
        for entry in os.scandir(proc)
        if entry.name.isdigit() and (link := look(proc, int(entry.name)))
    }
    wanted = {pid for pid in links if _says(proc, pid, text.encode())}
    while more := {pid for pid, link in links.items() if link.parent in wanted} - wanted:
        wanted |= more
    return sorted((links[pid].process for pid in wanted), key=lambda p: (p.started, p.pid))


def _says(proc: Path, pid: int, text: bytes) -> bool:
    try:
        return text in (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False  # ended, or not ours to look into


def exec_session(proc: Path, pid: int) -> ExecSession | None:
    """The exec session that the process came in by, while its conmon lives."""
    for _ in range(8):
        link = look(proc, pid)
        if link is None:
            return None
        if link.process.name == "conmon":
            try:
                words = (proc / str(pid) / "cmdline").read_bytes().decode().split("\0")
                container, session, folder = (words[words.index(flag) + 1] for flag in ("-c", "-u", "--exit-dir"))
            except (OSError, ValueError, IndexError):
                return None
            return ExecSession(session, f"{folder}/{container}", link.process) if session != container else None
        pid = link.parent
    return None
