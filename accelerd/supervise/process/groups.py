"""The processes of all instances at once, in one walk over /proc.

For measuring only: what is to be ended is found by processes.py, which trusts nothing that was remembered. Blocking:
call it in a thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerd.base import names
from accelerd.supervise.process.processes import InstanceTag

_VARIABLE = names.ENV_MARK_INSTANCE.encode() + b"="


@dataclass(frozen=True)
class ProcessIdentity:
    """By what the processes of one start are known."""

    tag: InstanceTag
    session: int | None
    main: int | None  # its descendants belong to it: in a container that was there before nothing carries the mark


@dataclass(frozen=True)
class _Stat:
    parent: int
    group: int
    session: int
    image: tuple[bytes, ...]  # changes when another program is executed: start time, name, place of the environment


class ProcessGroups:
    """Finds the processes of every instance."""

    def __init__(self, proc: Path) -> None:
        self._proc = f"{proc}/"
        self._marks: dict[int, tuple[tuple[bytes, ...], str]] = {}  # pid → its image, its mark
        self._lock = threading.Lock()

    def look(self, origins: Mapping[int, ProcessIdentity]) -> dict[int, list[int]]:
        """Live pids by instance, in ascending order."""
        with self._lock:
            return self._look(origins) if origins else {}

    def _look(self, origins: Mapping[int, ProcessIdentity]) -> dict[int, list[int]]:
        stats = {pid: stat for pid in self._pids() if (stat := self._stat(pid)) is not None}
        self._marks = {pid: (stat.image, self._tag(pid, stat)) for pid, stat in stats.items()}
        by_mark = {origin.tag.instance: number for number, origin in origins.items()}
        by_session = {origin.session: number for number, origin in origins.items() if origin.session is not None}
        by_leader = {origin.main: number for number, origin in origins.items() if origin.main}
        found: dict[int, list[int]] = {number: [] for number in origins}
        for pid in sorted(stats):
            stat = stats[pid]
            number = by_mark.get(self._marks[pid][1])
            if number is None:
                number = by_session.get(stat.session, by_session.get(stat.group))
            if number is None:
                number = next((by_leader[one] for one in _line(pid, stats) if one in by_leader), None)
            if number is not None:
                found[number].append(pid)
        return found

    def _pids(self) -> list[int]:
        me = os.getpid()
        return [pid for name in os.listdir(self._proc) if name.isdigit() and (pid := int(name)) != me]

    def _tag(self, pid: int, stat: _Stat) -> str:
        """What it has been marked with; "" for most."""
        image, tag = self._marks.get(pid, ((), ""))
        if image == stat.image:
            return tag
        if stat.image[-1] == b"0":
            return ""  # a kernel thread, or not ours to look into
        for entry in self._read(pid, "environ").split(b"\0"):
            if entry.startswith(_VARIABLE):
                return entry.removeprefix(_VARIABLE).decode(errors="replace")
        return ""

    def _stat(self, pid: int) -> _Stat | None:
        """None for what does not live."""
        # The name may hold spaces and parentheses: the fields begin after the last one.
        name, _, rest = self._read(pid, "stat").rpartition(b")")
        fields = rest.split()
        if len(fields) < 49 or fields[0] in (b"Z", b"X"):
            return None
        image = (fields[19], name, fields[48], fields[47])
        return _Stat(int(fields[1]), int(fields[2]), int(fields[3]), image)

    def _read(self, pid: int, file: str) -> bytes:
        try:
            descriptor = os.open(f"{self._proc}{pid}/{file}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""  # it has ended, or is not ours to look into
        try:
            parts = []
            while part := os.read(descriptor, 1 << 16):
                parts.append(part)
            return b"".join(parts)
        except OSError:
            return b""
        finally:
            os.close(descriptor)


def _line(pid: int, stats: Mapping[int, _Stat]) -> Iterable[int]:
    """A process, its parent, and so on to the first."""
    seen: set[int] = set()
    while pid in stats and pid not in seen:
        seen.add(pid)
        yield pid
        pid = stats[pid].parent
