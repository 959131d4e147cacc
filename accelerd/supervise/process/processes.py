"""Whose process is whose: the processes of an instance found by session and by the tag in their environment.

Reads /proc (blocking: call it in a thread) and signals by pidfd only, so that a reused pid is never hit. Decides
nothing about when to kill.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from accelerd.base import names
from accelerd.base.proc import ProcStat, listeners, living, pids, read_file, read_stat, sockets

_TICKS = os.sysconf("SC_CLK_TCK")


class Process(Struct, frozen=True):
    """One live process. `started` (clock ticks since boot) tells it from a later one with the same pid."""

    pid: int
    started: int
    name: str

    @classmethod
    def of(cls, stat: ProcStat) -> Process:
        return cls(stat.pid, stat.started, stat.name)

    def __str__(self) -> str:
        return f"{self.name}[{self.pid}]"

    def age(self) -> float:
        """Seconds since it was started."""
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / _TICKS)


class InstanceTag(Struct, frozen=True):
    """How the processes of one start are known: the session of its first process, and two environment variables."""

    instance: str  # unique per start, over all lives of the daemon
    owner: str  # the daemon's runtime directory

    def environment(self) -> dict[str, str]:
        return {names.ENV_INSTANCE: self.instance, names.ENV_OWNER: self.owner}


class ProcessTable(Protocol):
    """The processes of this machine, as far as this user may look."""

    def members(self, tag: InstanceTag, session: int | None) -> list[Process]:
        """Live processes that carry `tag` or are in `session` (or its group). Zombies do not live. Blocking."""
        ...

    def owned(self, owner: str, spared: Collection[str] = ()) -> list[Process]:
        """Live processes, not this one, whose environment says that a daemon with this runtime directory started them,
        but for those of the instances (by InstanceTag.instance) in `spared`."""
        ...

    def signal(self, process: Process, number: int) -> bool:
        """Signal exactly this process; False when it has gone. PermissionError when it is not ours."""
        ...


class ProcTable:
    """The ProcessTable of a real /proc."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def members(self, tag: InstanceTag, session: int | None) -> list[Process]:
        wanted = _entry(names.ENV_INSTANCE, tag.instance)

        def is_member(stat: ProcStat, mine: bool) -> bool:
            # A session is ours whatever uid its processes took (a setuid program): dead must mean proven dead.
            return (session is not None and session in (stat.session, stat.group)) or (
                mine and wanted in self._environment(stat.pid)
            )

        return list(self._scan(is_member))

    def owned(self, owner: str, spared: Collection[str] = ()) -> list[Process]:
        wanted = _entry(names.ENV_OWNER, owner)
        unwanted = {_entry(names.ENV_INSTANCE, instance) for instance in spared}

        def is_owned(stat: ProcStat, mine: bool) -> bool:
            environment = self._environment(stat.pid) if mine else ()
            return wanted in environment and not unwanted.intersection(environment)

        return list(self._scan(is_owned))

    def signal(self, process: Process, number: int) -> bool:
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        try:
            # The pidfd holds whatever has the pid now; the start time says whether that is still the one found.
            stat = read_stat(self._proc, process.pid)
            if stat is None or stat.started != process.started:
                return False
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def _scan(self, wanted: Callable[[ProcStat, bool], bool]) -> Iterator[Process]:
        me, uid = os.getpid(), os.geteuid()
        for pid in pids(self._proc):
            if pid == me:
                continue
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                mine = os.stat(f"{self._proc}/{pid}").st_uid == uid
                stat = living(self._proc, pid)
                if stat is not None and wanted(stat, mine):
                    yield Process.of(stat)

    def _environment(self, pid: int) -> Sequence[bytes]:
        return read_file(self._proc, pid, "environ").split(b"\0")


def _entry(variable: str, value: str) -> bytes:
    return f"{variable}={value}".encode()


def describe(processes: Iterable[Process]) -> str:
    """ "llama-server[12], sh[13]" for a log line, at most eight of them."""
    found = list(processes)
    text = ", ".join(map(str, found[:8]))
    return f"{text} and {len(found) - 8} more" if len(found) > 8 else text


class ListenerOwner(Enum):
    """Who has the endpoint."""

    NOBODY = "nobody"
    OURS = "ours"
    FOREIGN = "foreign"


def tcp_owner(proc: Path, port: int, members: Iterable[int]) -> ListenerOwner:
    """Who would get a connection to 127.0.0.1:`port`. Of several listeners (SO_REUSEPORT) all must be `members`.

    Another program may sit on the port that was meant for an engine and answer 200 to everything: nothing, least of all
    the secret, is sent before the listening socket is known to be ours. Blocking.
    """
    inodes = {
        inode
        for address, number, inode in listeners(proc)
        if number == port and (address.is_unspecified or str(address) == "127.0.0.1")
    }
    if not inodes:
        return ListenerOwner.NOBODY
    ours: set[str] = set().union(*(sockets(proc, pid) for pid in members))
    return ListenerOwner.OURS if inodes <= ours else ListenerOwner.FOREIGN
