"""Where an engine that accelerd starts shall listen, and its key: ports, sockets and keys that nobody had before.

Whoever listens there must still be proved to be ours.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.engines.base import Endpoint

MAX_SOCKET_PATH: Final = 103  # bytes; sun_path has 108 with its NUL, some systems 104


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def unix_endpoint(model: str, runtime: Path) -> Endpoint | None:
    """A name never used before: a left-over file would stop the server. None: the directory's name is too long."""
    folder = os.fspath(runtime / names.INSTANCE_DIR)
    unique = f"-{secrets.token_hex(4)}.sock"
    room = MAX_SOCKET_PATH - len(os.fsencode(folder)) - 1 - len(unique)
    if room < 1:
        return None
    with contextlib.suppress(OSError):  # the start, which makes it, too, says why it cannot be made
        os.makedirs(folder, mode=0o700, exist_ok=True)
    readable = re.sub(r"[^A-Za-z0-9.-]", "-", model)[: min(room, 32)]
    return Endpoint(unix=f"{folder}/{readable}{unique}")


def key_path(runtime: Path) -> str:
    """A file for the key of one start."""
    return os.fspath(runtime / names.INSTANCE_DIR / f"{secrets.token_hex(8)}{names.KEY_SUFFIX}")


def new_token() -> str:
    """256 random bits; letters and digits only, since llama-server reads a list separated by commas."""
    return secrets.token_hex(32)
