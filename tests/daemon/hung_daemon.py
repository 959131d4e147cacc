"""The real daemon on a machine with a disk that hangs, where no FUSE file system can be mounted.

The folder $TEST_HUNG is a mount point by what the kernel seems to say, and whoever looks at something below it waits
for ever: the daemon itself in the calls that Python makes, and the processes that look for it. Unlike on a real disk
they can be killed. Run as `python -m tests.daemon.hung_daemon`.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from accelerd.base import volumes

CALLS = ("stat", "lstat", "open", "access", "readlink", "listdir", "scandir", "statvfs")
HANGS = """
import os, signal, sys
if any(os.path.realpath(path).startswith({folder!r}) for path in sys.argv[1:]):
    signal.pause()
"""


def hang(folder: str) -> None:
    """From now on this folder is a disk that hangs."""
    mounts = Path(volumes.MOUNTS).read_text() + f"99 1 0:99 / {folder} rw - fuse /dev/fuse rw\n"
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write(mounts)
    volumes.MOUNTS = file.name  # type: ignore[misc]
    volumes.LOOK = HANGS.format(folder=folder) + volumes.LOOK  # type: ignore[misc]
    for module, name in (*((os, name) for name in CALLS), (builtins, "open"), (io, "open")):
        setattr(module, name, hanging(getattr(module, name), folder))


def hanging(call: Any, folder: str) -> Any:
    def called(path: Any = ".", *arguments: Any, **named: Any) -> Any:
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(folder):
            threading.Event().wait()
        return call(path, *arguments, **named)

    return called


if __name__ == "__main__":
    from accelerd.__main__ import main

    hang(os.environ["TEST_HUNG"])
    sys.exit(main())
