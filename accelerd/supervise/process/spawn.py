"""Starting one child process and holding on to it: pidfd, output pipe, exit status. What the home `child` works with.

Must be used on the loop's main thread only: the kernel ties PDEATHSIG to the thread that forked. Knows nothing of
plans, readiness or policy.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from accelerd.base.errors import InternalError
from accelerd.supervise.process.output_reader import OutputReader

log = logging.getLogger(__name__)


class NoProgram(Exception):
    """The program is missing or may not be executed; the text says which."""


def find_program(name: str, path: str | None) -> str:
    """The absolute path of a program by the child's own PATH. NoProgram. Blocking (file system)."""
    found = shutil.which(name, path=path or os.defpath)
    if found:
        return os.path.abspath(found)
    if "/" in name and os.path.isdir(name):
        raise NoProgram(f"cannot start {name}: it is a directory")
    if "/" in name and os.path.exists(name):
        raise NoProgram(f"cannot start {name}: it is not executable (chmod +x)")
    raise NoProgram(f"cannot start {name}: no such program" + ("" if "/" in name else " in PATH"))


class ChildProcess:
    """A MainProcess (home.py): a child that is not yet reaped, so its pid and its process group cannot be reused.

    `on_output` gets what it prints, stdout and stderr as one stream; `on_exit` is called once, when its exit is seen.
    Both on the loop's thread.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        output: int,
        on_output: Callable[[bytes], None],
        on_exit: Callable[[], None],
    ) -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self.pid = process.pid
        self.session: int | None = process.pid
        self.unit: str | None = None
        self.exited = asyncio.Event()
        self.status: int | None = None  # once exited: the exit status, or minus the signal
        self.result: str | None = None
        self.killed = False  # by kill_group
        self._pidfd = os.pidfd_open(self.pid)
        self._closed = False
        self._loop.add_reader(self._pidfd, self._exit_seen)
        self._output = OutputReader(output, on_output)

    def signal(self, number: int) -> None:
        """Signal the process itself. Nothing happens when it has exited."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """SIGKILL to the whole group. Safe while the process is not reaped: until then the group's number is taken."""
        self.killed = True
        with suppress(ProcessLookupError, PermissionError):  # empty, or one with another uid: the sweep reports it
            os.killpg(self.pid, signal.SIGKILL)

    async def release(self) -> None:
        """Take the rest of its output, reap it, close everything. Of no use afterwards."""
        self.let_go()

    def let_go(self) -> None:
        """The same; one that lives dies with the daemon."""
        if self._closed:
            return
        self._closed = True
        self._output.finish()
        self._loop.remove_reader(self._pidfd)
        if self.exited.is_set():
            self._waitid(0)
            self._process.returncode = self.status if self.status is not None else 0  # else Popen warns that it lives
        os.close(self._pidfd)

    def unexecuted(self, last_line: str) -> str | None:
        """What setpriv said when it could not execute the program."""
        if self.status not in (126, 127) or not last_line.startswith("setpriv: "):
            return None
        return last_line.removeprefix("setpriv: ")

    def _exit_seen(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.status = self._waitid(os.WNOWAIT)  # stays a zombie: see kill_group
        self.exited.set()
        self._on_exit()

    def _waitid(self, flags: int) -> int | None:
        try:
            info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | flags)
        except ChildProcessError:
            log.error("the exit status of process %d was reaped elsewhere in this program", self.pid)
            return None
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


class Spawner:
    """Starts children of this process that die with it (util-linux setpriv, where there is one)."""

    def __init__(self, setpriv: str | None = None) -> None:
        self._setpriv = setpriv or shutil.which("setpriv", path="/usr/bin:/bin:/usr/sbin:/sbin")
        if self._setpriv is None:
            log.warning(
                "setpriv (util-linux) is missing: engines outlive a killed daemon until it starts again and ends them"
            )

    def spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        on_output: Callable[[bytes], None],
        on_exit: Callable[[], None],
    ) -> ChildProcess:
        """Start argv[0] (absolute) in a session of its own. OSError when the system has no room for it.

        vfork and exec of setpriv cost about a millisecond of the loop; the program itself is loaded after that.
        """
        if threading.current_thread() is not threading.main_thread():
            raise InternalError("a process was to be started outside the main thread: it would die with the thread")
        guard = [self._setpriv, "--pdeathsig", "KILL", "--"] if self._setpriv else []
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(reading, fcntl.F_SETFL, os.O_NONBLOCK)  # this end only: the child's stays as programs expect it
            process = subprocess.Popen(
                [*guard, *argv],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
                close_fds=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            child = ChildProcess(process, reading, on_output, on_exit)
        except BaseException:
            process.kill()
            process.wait()
            os.close(reading)
            raise
        with suppress(OSError):  # a core dump holds prompts; the worst case is the system's default
            resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # buffers of an NPU count as locked memory: all that this user may lock
            most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
            resource.prlimit(child.pid, resource.RLIMIT_MEMLOCK, (most, most))
        return child


def spawn_trouble(error: OSError) -> str:
    """An OSError of `spawn` in words a person can act on."""
    advice = {
        errno.EAGAIN: "the limit of processes is reached (ulimit -u, TasksMax=)",
        errno.ENOMEM: "the system is out of memory",
        errno.EMFILE: "too many files are open (LimitNOFILE=)",
        errno.ENFILE: "too many files are open on this system",
        errno.E2BIG: "its arguments and environment are too long",
    }
    what = advice.get(error.errno or 0, error.strerror or str(error))
    return f"{what} ({errno.errorcode.get(error.errno or 0, 'error')})"
