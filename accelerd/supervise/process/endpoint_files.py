"""The files by which an engine is reached: its socket, and the key of one that reads it from a file.

Both lie in the private directory of the instances, under names that no start before used. All functions are blocking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from accelerd.base import names
from accelerd.engines.base import LaunchPlan


def prepare(plan: LaunchPlan) -> None:
    """Before the start: the directory (0700), no stale socket, and the key. OSError."""
    for path in filter(None, (plan.endpoint.unix, plan.key_file)):
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if plan.endpoint.unix:
        remove_socket(Path(plan.endpoint.unix))
    if plan.key_file:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(plan.key_file, flags, 0o600), "w") as file:
            file.write(f"{plan.secret}\n")


def remove(plan: LaunchPlan) -> None:
    """After the end."""
    if plan.endpoint.unix:
        remove_socket(Path(plan.endpoint.unix))
    remove_key(plan)


def remove_key(plan: LaunchPlan) -> None:
    """Once the program is ready: it has read it."""
    if plan.key_file:
        Path(plan.key_file).unlink(missing_ok=True)


def remove_socket(path: Path) -> None:
    """Remove a unix socket that nobody listens on any more; anything else of that name stays."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def remove_strays(folder: Path, spared: Collection[str] = ()) -> None:
    """Remove all sockets and keys in the directory of the instances but these paths."""
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if str(path) in spared:
                continue
            if path.suffix == names.KEY_SUFFIX:
                path.unlink(missing_ok=True)
            else:
                remove_socket(path)
