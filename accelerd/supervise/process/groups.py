"""The processes of all instances at once, in one walk over /proc.

For measuring only: what is to be ended is found by processes.py, which trusts nothing that was remembered. Blocking:
call it in a thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from accelerd.base import names
from accelerd.base.proc import ProcStat, living, pids, read_file
from accelerd.supervise.process.processes import InstanceTag

_VARIABLE = names.ENV_INSTANCE.encode() + b"="
_Image = tuple[int, str, tuple[int, int]]


class ProcessIdentity(Struct, frozen=True):
    """By what the processes of one start are known."""

    tag: InstanceTag
    session: int | None
    main: int | None  # its descendants belong to it: in a container that was there before no process carries the tag


class ProcessGroups:
    """Finds the processes of every instance."""

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
