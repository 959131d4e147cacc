"""Ports for servers of tests, on loopback."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from typing import Final

# Below what the kernel takes for connections, so that none of these has the port when the server comes.
LEAST: Final = 10_000
EACH: Final = 2_000  # of each worker of pytest-xdist: no two choose the same


def _own() -> range:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    return range(LEAST + worker * EACH, LEAST + (worker + 1) * EACH)


_next = itertools.count(os.getpid())  # two runs at once begin elsewhere


def free_port() -> int:
    """A TCP port that is free on all addresses, and was not given to another test lately."""
    ports = _own()
    for _ in ports:
        port = ports[next(_next) % EACH]
        if not (_taken("0.0.0.0", socket.AF_INET, port) or _taken("::", socket.AF_INET6, port)):
            return port
    raise AssertionError(f"no port from {ports[0]} to {ports[-1]} is free")


def _taken(address: str, family: socket.AddressFamily, port: int) -> bool:
    try:
        socket.create_server((address, port), family=family).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE  # else this machine has no such addresses
    return False
