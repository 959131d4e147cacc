"""Who listens where an engine should: is the server that answers really a process of our instance?

A foreign server may sit on the port that was meant for an engine and answer 200 to everything; nothing is sent to it,
least of all the secret, before the listening socket is known to be ours. Reads /proc (blocking: call it in a thread).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"


class ListenerOwner(Enum):
    """Who has the endpoint."""

    NOBODY = "nobody"
    OURS = "ours"
    FOREIGN = "foreign"


def tcp_owner(proc: Path, port: int, pids: Iterable[int]) -> ListenerOwner:
    """Who would get a connection to 127.0.0.1:`port`. Of several listeners (SO_REUSEPORT) all must be ours."""
    inodes = _listening(proc / "net" / "tcp", port) | _listening(proc / "net" / "tcp6", port)
    if not inodes:
        return ListenerOwner.NOBODY
    ours: set[str] = set()
    for pid in pids:
        ours |= _sockets(proc, pid)
    return ListenerOwner.OURS if inodes <= ours else ListenerOwner.FOREIGN


def _listening(table: Path, port: int) -> set[str]:
    """Inodes of the listening sockets that cover 127.0.0.1 at `port`."""
    try:
        rows = table.read_text().splitlines()[1:]
    except FileNotFoundError:
        return set()  # a kernel without IPv6
    found = set()
    for row in rows:
        fields = row.split()
        address, _, number = fields[1].partition(":")
        if fields[3] == _LISTEN and int(number, 16) == port and _covers_loopback(address):
            found.add(fields[9])
    return found


def _covers_loopback(text: str) -> bool:
    """Does a listener on this address (as /proc/net/tcp spells it: words in host order) get 127.0.0.1's connections?"""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    address = ip_address(b"".join(struct.pack("=I", word) for word in words))
    if isinstance(address, IPv6Address):
        if address.is_unspecified:
            return True
        if address.ipv4_mapped is None:
            return False
        address = address.ipv4_mapped
    return address.is_unspecified or str(address) == "127.0.0.1"


def _sockets(proc: Path, pid: int) -> set[str]:
    """Inodes of the sockets that a process holds; empty when it has ended or may not be looked into."""
    folder = proc / str(pid) / "fd"
    try:
        descriptors = os.listdir(folder)
    except OSError:
        return set()
    found = set()
    for descriptor in descriptors:
        with suppress(OSError):  # closed while we looked
            target = os.readlink(folder / descriptor)
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found
