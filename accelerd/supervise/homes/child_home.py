"""The home "plain child of the daemon": a process that dies with it. For machines without a user's systemd, and for
models that shall not survive.

Limits of memory need a control group and are not to be had here; the niceness and the OOM score are. To be used on the
loop's main thread only: the kernel ties PDEATHSIG to the thread that forked.
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

from accelerd.base.cgroup import cgroup_of
from accelerd.base.errors import InternalError
from accelerd.config.model import ModelSpec
from accelerd.supervise.homes.home import Home, LaunchRequest, MainProcess, OnExit, OnOutput, OomKills, find_program
from accelerd.supervise.process.output import OutputReader
from accelerd.supervise.process.processes import InstanceTag

log = logging.getLogger(__name__)


class ChildHome(Home):
    """To be used on the main thread, which must be the event loop's."""

    kind = "child"

    def __init__(self, spawner: Spawner | None = None, *, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._spawner = spawner or Spawner()
        self._proc = proc
        self._kills = OomKills(cgroup_of(proc, sys, "self"))
        self._living = 0

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return tag.instance

    async def start(self, launch: LaunchRequest, on_output: OnOutput, on_exit: OnExit) -> MainProcess:
        program = await asyncio.to_thread(find_program, launch.argv[0], launch.env.get("PATH"))
        if not self._living:
            self._kills.forget()

        def exited() -> None:
            self._living -= 1
            if child.status == -signal.SIGKILL and not child.killed and self._kills.claim():
                child.result = "oom-kill"
            on_exit()

        child = self._spawner.spawn((program, *launch.argv[1:]), launch.env, launch.cwd, on_output, exited)
        self._living += 1
        self._weigh(child.pid, launch.spec)
        return child

    def _weigh(self, pid: int, spec: ModelSpec) -> None:
        """The OOM killer is to pick models before the daemon. What the system forbids is logged and left as it is."""
        score = self._proc / str(pid) / "oom_score_adj"
        settings: list[tuple[str, Callable[[], object]]] = [
            ("oom_score_adjust", lambda: score.write_text(str(spec.oom_score_adjust)))
        ]
        if (nice := spec.nice) is not None:
            settings.append(("nice", lambda: os.setpriority(os.PRIO_PROCESS, pid, nice)))
        for name, apply in settings:
            try:
                apply()
            except OSError as error:  # it has ended already, or asks for more than the daemon itself has
                log.info("%s: cannot set %s: %s", spec.name, name, error.strerror)


class ChildProcess(MainProcess):
    """A child that is not yet reaped, so its pid and its process group cannot be reused."""

    def __init__(self, process: subprocess.Popen[bytes], output: int, on_output: OnOutput, on_exit: OnExit) -> None:
        super().__init__(on_exit)
        self._process = process
        self.pid = self.session = process.pid
        self.killed = False  # by kill_group
        self._hold(os.pidfd_open(self.pid))
        self._output = OutputReader(output, on_output)

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
        if self._pidfd is not None:
            self._output.finish()
            if self.exited.is_set():
                self._waitid(self._pidfd, 0)
                self._process.returncode = self.status or 0  # else Popen warns that it lives
            self._drop_pidfd()

    def unexecuted(self, last_line: str) -> str | None:
        """What setpriv said when it could not execute the program."""
        if self.status not in (126, 127) or not last_line.startswith("setpriv: "):
            return None
        return last_line.removeprefix("setpriv: ")

    def _exit_seen(self) -> None:
        if self._pidfd is not None:
            self.status = self._waitid(self._pidfd, os.WNOWAIT)  # stays a zombie: see kill_group
        super()._exit_seen()

    def _waitid(self, pidfd: int, flags: int) -> int | None:
        try:
            info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | flags)
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
        on_output: OnOutput,
        on_exit: OnExit,
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
