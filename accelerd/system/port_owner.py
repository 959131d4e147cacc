"""Which process listens on a TCP port: read from /proc for an error message, never to decide anything.

Looks for the listening socket in /proc/net/tcp and tcp6, and for its owner in /proc/PID/fd; processes of other users
cannot be seen. Runs once, at a start that fails.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LISTEN_STATE: Final = "0A"


@dataclass(frozen=True)
class PortOwner:
    """A process that listens on the port."""

    pid: int
    name: str


def find_port_owner(host: str, port: int, proc: Path = Path("/proc")) -> PortOwner | None:
    """The process because of which host:port cannot be bound; None if it cannot be seen."""
    inodes = {f"socket:[{inode}]" for inode in _listening(host, port, proc)}
    if not inodes:
        return None
    for entry in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        if _holds(entry, inodes):
            with contextlib.suppress(OSError):  # it has just exited
                return PortOwner(int(entry.name), (entry / "comm").read_text("utf-8", "replace").strip())
    return None


def _listening(host: str, port: int, proc: Path) -> Iterator[str]:
    """Inodes of the sockets that listen on host:port, or on the wildcard address."""
    wanted = ipaddress.ip_address(host)
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text("ascii", "replace").splitlines()[1:]
        except OSError:
            continue  # no tcp6 in a kernel without IPv6
        for line in lines:
            columns = line.split()
            if len(columns) < 10 or columns[3] != LISTEN_STATE:
                continue
            address_hex, _, port_hex = columns[1].partition(":")
            if int(port_hex, 16) != port:
                continue
            address = _address(address_hex)
            if address == wanted or address.is_unspecified:
                yield columns[9]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the kernel prints it: 32-bit words in the machine's byte order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        raw = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _holds(process: Path, links: set[str]) -> bool:
    with contextlib.suppress(OSError):  # another user's process, or one that has just ended
        for fd in os.listdir(process / "fd"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "fd" / fd) in links:
                    return True
    return False
