"""Directories that only this user may enter: made, opened and checked without following a planted link.

Lock, control socket and state file live in such directories; everything inside is then reached relative to the
returned descriptor, so nobody can swap the directory between the check and the use.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class NotPrivate(OSError):
    """A directory that exists but cannot be trusted: a link, a file, or somebody else's."""


def open_private_dir(path: Path) -> int:
    """A descriptor of `path`, which is then a real directory of ours with mode 0700; missing parents are made.

    A directory of ours with a wider mode is tightened. Raises NotPrivate, or OSError from the file system.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if path.is_symlink():
            raise NotPrivate(f"{path} is a symbolic link, a directory is needed: remove the link") from None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise NotPrivate(f"{path} is not a directory: move it away") from None
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise NotPrivate(f"{path} belongs to uid {found.st_uid}, not to uid {os.geteuid()}: remove it")
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd
