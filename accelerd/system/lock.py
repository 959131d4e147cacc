"""One accelerd per runtime directory, by an flock that the kernel releases when the process ends in any way.

The file `accelerd.lock` is never unlinked: a second instance could then lock another inode. The pid in it is only for
people. Sockets are touched only while the lock is held. Also the error of a daemon that cannot start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from accelerd.system.private_files import open_private_dir

EXIT_FAILURE: Final = 1  # another attempt may succeed: a busy port, another instance that is shutting down
EXIT_CONFIG: Final = (
    78  # EX_CONFIG of sysexits.h: another attempt cannot succeed; RestartPreventExitStatus= in the unit
)


class StartError(Exception):
    """accelerd cannot start: one message that says why and what to do, and the exit status for the service manager."""

    def __init__(self, message: str, *, status: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class InstanceLock:
    """Held from `acquire` until `release`, the end of the `with` block, or the death of the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd

    @classmethod
    def acquire(cls, path: Path) -> InstanceLock:
        """Lock `path` without waiting. StartError names the process that holds it; that is not disturbed."""
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

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._fd is None:
            return
        with contextlib.suppress(OSError):  # the pid is only for people
            os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> InstanceLock:
        return self

    def __exit__(self, *failure: object) -> None:
        self.release()


def _busy(path: Path, content: bytes) -> str:
    text = content.decode("ascii", "replace").strip()
    who = f"another accelerd (pid {text})" if text.isdigit() else "another accelerd"
    return (
        f"{who} already runs for this user (it holds {path}); "
        "stop it first: systemctl --user stop accelerd, or kill that process"
    )


def _text(error: OSError) -> str:
    return error.strerror or str(error)
