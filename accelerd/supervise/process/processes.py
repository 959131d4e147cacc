"""Whose process is whose: the processes of an instance found by session and by the tag in their environment.

Reads /proc (blocking: call it in a thread) and signals by pidfd only, so that a reused pid is never hit. Decides
nothing about when to kill. ProcessGroups is for measuring only: what is to be ended ProcessTable finds, which trusts
nothing that was remembered.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

from msgspec import Struct

from accelerd.base import names
from accelerd.base.proc import ProcStat, is_hidden, listeners, living, pids, read_file, sockets

_TICKS = os.sysconf("SC_CLK_TCK")
_KTHREADD = 2  # the parent of kernel threads, which have no environment at all
_LOOKS, _PAUSE = 100, 0.001  # s; a program's file may lie on a disk that hangs


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


class ProcessTable:
    """The processes of this machine, as far as this user may look. Blocking."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def members(self, tag: InstanceTag, session: int | None) -> list[Process]:
        """Live processes that carry `tag` or are in `session` (or its group). Zombies do not live."""
        wanted = _entry(names.ENV_INSTANCE, tag.instance)

        def is_member(stat: ProcStat, mine: bool) -> bool:
            # A session is ours whatever uid its processes took (a setuid program): dead must mean proven dead.
            return (session is not None and session in (stat.session, stat.group)) or (
                mine and wanted in self._environment(stat)
            )

        return list(self._scan(is_member))

    def owned(self, owner: str, spared: Collection[str] = ()) -> list[Process]:
        """Live processes, not this one, whose environment says that a daemon with this runtime directory started them,
        but for those of the instances (by InstanceTag.instance) in `spared`."""
        wanted = _entry(names.ENV_OWNER, owner)
        unwanted = {_entry(names.ENV_INSTANCE, instance) for instance in spared}

        def is_owned(stat: ProcStat, mine: bool) -> bool:
            environment = self._environment(stat) if mine else ()
            return wanted in environment and not unwanted.intersection(environment)

        return list(self._scan(is_owned))

    def signal(self, process: Process, number: int) -> bool:
        """Signal exactly this process; False when it has gone. PermissionError when it is not ours."""
        pidfd = hold(self._proc, process)
        if pidfd is None:
            return False
        try:
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

    def _environment(self, stat: ProcStat) -> Sequence[bytes]:
        """While a process executes a program, it has none for a moment, and is not to be overlooked then."""
        for _ in range(_LOOKS):
            known = stat.environment != (0, 0) or _KTHREADD in (stat.pid, stat.parent)
            if known or is_hidden(self._proc, stat.pid):
                break
            time.sleep(_PAUSE)
            again = living(self._proc, stat.pid)
            if again is None:
                return ()
            stat = again
        return read_file(self._proc, stat.pid, "environ").split(b"\0")


def _entry(variable: str, value: str) -> bytes:
    return f"{variable}={value}".encode()


def hold(proc: Path, process: Process) -> int | None:
    """A pidfd of exactly this process; None: it has ended."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    same = False
    try:
        # The pidfd holds whatever has the pid now; the start time says whether that is still the one found.
        stat = living(proc, process.pid)
        same = stat is not None and stat.started == process.started
    finally:
        if not same:
            os.close(pidfd)
    return pidfd if same else None


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


_VARIABLE = names.ENV_INSTANCE.encode() + b"="
_Image = tuple[int, str, tuple[int, int]]


class ProcessIdentity(Struct, frozen=True):
    """By what the processes of one start are known."""

    tag: InstanceTag
    session: int | None
    main: int | None  # its descendants belong to it: in a container that was there before no process carries the tag


class ProcessGroups:
    """Finds the processes of every instance in one walk over /proc."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._tags: dict[int, tuple[_Image, str]] = {}  # by pid: the program's image, and the tag that was found in it
        self._lock = threading.Lock()

    def look(self, origins: Mapping[int, ProcessIdentity]) -> dict[int, list[int]]:
        """Live pids by instance, in ascending order."""
        with self._lock:
            return self._look(origins) if origins else {}

    def _look(self, origins: Mapping[int, ProcessIdentity]) -> dict[int, list[int]]:
        me = os.getpid()
        stats = {pid: stat for pid in pids(self._proc) if pid != me and (stat := _look(self._proc, pid)) is not None}
        self._tags = {pid: (_image(stat), self._tag(pid, stat)) for pid, stat in stats.items()}
        by_tag = {origin.tag.instance: number for number, origin in origins.items()}
        by_session = {origin.session: number for number, origin in origins.items() if origin.session is not None}
        by_main = {origin.main: number for number, origin in origins.items() if origin.main}
        found: dict[int, list[int]] = {number: [] for number in origins}
        for pid in sorted(stats):
            stat = stats[pid]
            number = by_tag.get(self._tags[pid][1])
            if number is None:
                number = by_session.get(stat.session, by_session.get(stat.group))
            if number is None:
                number = next((by_main[one] for one in _line(pid, stats) if one in by_main), None)
            if number is not None:
                found[number].append(pid)
        return found

    def _tag(self, pid: int, stat: ProcStat) -> str:
        """What it has been tagged with; "" for most."""
        image, tag = self._tags.get(pid, (None, ""))
        if image == _image(stat):
            return tag
        if stat.environment[0] == 0:
            return ""  # a kernel thread, or not ours to look into
        for entry in read_file(self._proc, pid, "environ").split(b"\0"):
            if entry.startswith(_VARIABLE):
                return entry.removeprefix(_VARIABLE).decode(errors="replace")
        return ""


def _image(stat: ProcStat) -> _Image:
    """Changes when another program is executed."""
    return stat.started, stat.name, stat.environment


def _look(proc: Path, pid: int) -> ProcStat | None:
    """Where it cannot be known it is not counted this time."""
    with suppress(OSError):
        return living(proc, pid)
    return None


def _line(pid: int, stats: Mapping[int, ProcStat]) -> Iterable[int]:
    """A process, its parent, and so on to the first."""
    seen: set[int] = set()
    while pid in stats and pid not in seen:
        seen.add(pid)
        yield pid
        pid = stats[pid].parent
