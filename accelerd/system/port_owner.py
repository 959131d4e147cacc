"""Which process listens on a TCP port: read from /proc for an error message, never to decide anything.

Looks for the listening socket in /proc/net/tcp and tcp6, and for its owner in /proc/PID/fd; processes of other users
cannot be seen. Runs once, at a start that fails.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from msgspec import Struct

from accelerd.base.proc import listeners, pids, read_file, sockets


class PortOwner(Struct, frozen=True):
    """A process that listens on the port."""

    pid: int
    name: str


def find_port_owner(host: str, port: int, proc: Path = Path("/proc")) -> PortOwner | None:
    """The process because of which host:port cannot be bound; None if it cannot be seen."""
    wanted = ipaddress.ip_address(host)
    try:
        listening = list(listeners(proc))
    except OSError:
        return None
    inodes = {inode for at, number, inode in listening if number == port and (at == wanted or at.is_unspecified)}
    for pid in sorted(pids(proc)) if inodes else ():
        if inodes & sockets(proc, pid) and (name := read_file(proc, pid, "comm")):
            return PortOwner(pid, name.decode(errors="replace").strip())
    return None
