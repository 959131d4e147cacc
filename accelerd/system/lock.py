"""One accelerd per runtime directory: an flock that the kernel drops in whatever way the holder dies.

Owns `accelerd.lock` and nothing else. The file is never unlinked (a second instance could then lock a different inode);
the pid in it is for people, the lock itself is the truth. Sockets are touched only while the lock is held.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType

from accelerd.system.private import open_private_dir
from accelerd.system.startup import StartError


class InstanceLock:
    """Held from `acquire` until `release`, the end of the `with` block, or the death of the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd

    @classmethod
    def acquire(cls, path: Path) -> InstanceLock:
        """Lock `path` at once or raise StartError naming the holder; nothing of a running instance is disturbed."""
        try:
            directory = open_private_dir(path.parent)
        except OSError as error:
            raise StartError(f"cannot use the runtime directory {path.parent}: {_text(error)}") from error
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(path.name, flags, 0o600, dir_fd=directory)
        except OSError as error:
            raise StartError(f"cannot open the lock file {path}: {_text(error)}; remove it") from error
        finally:
            os.close(directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StartError(f"cannot use the lock file {path}: it is not a regular file; remove it")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StartError(_busy(path, os.pread(fd, 32, 0))) from None
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(fd)
            raise StartError(f"cannot lock {path}: {_text(error)}") from error
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)

    @property
    def held(self) -> bool:
        return self._fd is not None

    def release(self) -> None:
        """Let the next instance in; a second call does nothing."""
        if self._fd is None:
            return
        with contextlib.suppress(OSError):  # the pid is only a hint for people: a full or dead file system may keep it
            os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> InstanceLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _busy(path: Path, content: bytes) -> str:
    text = content.decode("ascii", "replace").strip()
    who = f"another accelerd (pid {text})" if text.isdigit() else "another accelerd"
    return (
        f"{who} runs for this user (it holds {path}); "
        "stop it first: systemctl --user stop accelerd, or end that process"
    )


def _text(error: OSError) -> str:
    return error.strerror or str(error)
