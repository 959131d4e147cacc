"""Who listens where an engine should: is the server that answers really a process of our instance?

A foreign server may sit on the port that was meant for an engine and answer 200 to everything; nothing is sent to it,
least of all the secret, before the listening socket is known to be ours. Reads /proc (blocking: call it in a thread).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from accelerd.base.proc import listeners, sockets


class ListenerOwner(Enum):
    """Who has the endpoint."""

    NOBODY = "nobody"
    OURS = "ours"
    FOREIGN = "foreign"


def tcp_owner(proc: Path, port: int, pids: Iterable[int]) -> ListenerOwner:
    """Who would get a connection to 127.0.0.1:`port`. Of several listeners (SO_REUSEPORT) all must be ours."""
    inodes = {
        inode
        for address, number, inode in listeners(proc)
        if number == port and (address.is_unspecified or str(address) == "127.0.0.1")
    }
    if not inodes:
        return ListenerOwner.NOBODY
    ours: set[str] = set().union(*(sockets(proc, pid) for pid in pids))
    return ListenerOwner.OURS if inodes <= ours else ListenerOwner.FOREIGN
