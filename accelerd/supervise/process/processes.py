"""Whose process is whose: the processes of an instance found by session and by the mark in their environment.

Reads /proc (blocking: call it in a thread) and signals by pidfd only, so that a reused pid is never hit. Decides
nothing about when to kill.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from accelerd.base import names

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One live process. `started` (clock ticks since boot) tells it from a later one with the same pid."""

    pid: int
    started: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}[{self.pid}]"

    def age(self) -> float:
        """Seconds since it was started."""
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / _TICKS)


@dataclass(frozen=True)
class InstanceTag:
    """How the processes of one start are known: the session of its first process, and two environment variables."""

    instance: str  # unique per start, over all lives of the daemon
    owner: str  # the daemon's runtime directory

    def environment(self) -> dict[str, str]:
        return {names.ENV_MARK_INSTANCE: self.instance, names.ENV_MARK_OWNER: self.owner}


class ProcessTable(Protocol):
    """The processes of this machine, as far as this user may look."""

    def members(self, tag: InstanceTag, session: int | None) -> list[Process]:
        """Live processes that carry `tag` or are in `session` (or its group). Zombies do not live. Blocking."""
        ...

    def owned(self, owner: str, spared: Collection[str] = ()) -> list[Process]:
        """Live processes, not this one, whose environment says that a daemon with this runtime directory began them,
        but for those of the instances (Mark.instance) in `spared`."""
        ...

    def signal(self, process: Process, number: int) -> bool:
        """Signal exactly this process; False when it has gone. PermissionError when it is not ours."""
        ...


class ProcTable:
    """The ProcessTable of a real /proc."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def members(self, tag: InstanceTag, session: int | None) -> list[Process]:
        wanted = _entry(names.ENV_MARK_INSTANCE, tag.instance)

        def is_member(pid: int, stat: _Stat, mine: bool) -> bool:
            # A session is ours whatever uid its processes took (a setuid program): dead must mean proven dead.
            return (session is not None and session in (stat.session, stat.group)) or (
                mine and wanted in self._environment(pid)
            )

        return list(self._scan(is_member))

    def owned(self, owner: str, spared: Collection[str] = ()) -> list[Process]:
        wanted = _entry(names.ENV_MARK_OWNER, owner)
        unwanted = {_entry(names.ENV_MARK_INSTANCE, instance) for instance in spared}

        def is_owned(pid: int, stat: _Stat, mine: bool) -> bool:
            environment = self._environment(pid) if mine else ()
            return wanted in environment and not unwanted.intersection(environment)

        return list(self._scan(is_owned))

    def signal(self, process: Process, number: int) -> bool:
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        try:
            # The pidfd holds whatever has the pid now; the start time says whether that is still the one found.
            stat = self._stat(process.pid)
            if stat is None or stat.started != process.started:
                return False
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def _scan(self, wanted: Callable[[int, _Stat, bool], bool]) -> Iterator[Process]:
        me, uid = os.getpid(), os.geteuid()
        for entry in os.scandir(self._proc):
            if not entry.name.isdigit() or (pid := int(entry.name)) == me:
                continue
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
                mine = entry.stat().st_uid == uid
                stat = self._stat(pid)
                if stat is not None and stat.state not in "ZX" and wanted(pid, stat, mine):
                    yield Process(pid, stat.started, stat.name)

    def _stat(self, pid: int) -> _Stat | None:
        try:
            text = (self._proc / str(pid) / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name may hold spaces and parentheses: the fields begin after the last one.
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        return _Stat(name, fields[0], int(fields[2]), int(fields[3]), int(fields[19]))

    def _environment(self, pid: int) -> Sequence[bytes]:
        try:
            return (self._proc / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            return ()  # ended, or not ours to look into


@dataclass(frozen=True)
class _Stat:
    name: str
    state: str
    group: int
    session: int
    started: int


def _entry(variable: str, value: str) -> bytes:
    return f"{variable}={value}".encode()


def describe(processes: Iterable[Process]) -> str:
    """ "llama-server[12], sh[13]" for a log line, at most eight of them."""
    found = list(processes)
    text = ", ".join(map(str, found[:8]))
    return f"{text} and {len(found) - 8} more" if len(found) > 8 else text
