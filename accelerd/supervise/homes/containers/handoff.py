"""How an instance is handed into a container: its environment by a file that is read once, its output by a FIFO.

Owns the files `instances/<tag>.{env,out,life,end,exec}` and the script that the shell inside runs. It stays as the
program's parent and writes down how it ended, so that neither `toolbox run`, `podman exec` nor conmon have to live for
that. Knows no container.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.base.files import read_small
from accelerd.base.ports import Roots
from accelerd.config.model import ModelSpec
from accelerd.supervise.homes.containers.process_tree import ExecSession
from accelerd.supervise.homes.home import HomeError
from accelerd.supervise.instance_records import ENDINGS, InstanceFiles
from accelerd.supervise.process.processes import InstanceTag

NOT_FOUND: Final = 96  # the program is not there; toolbox turns 127 into 0
NOT_HANDED: Final = 97  # the files cannot be seen inside, or were taken back
# Variables of the host or of a shell: inside, the container's own values apply unless the configuration sets them.
OF_THE_HOST: Final = frozenset(
    {"PATH", "SHELL", "PWD", "OLDPWD", "SHLVL", "_", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "HOSTNAME", "IFS",
     "INVOCATION_ID", "NOTIFY_SOCKET", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID", "MAINPID", "SYSTEMD_EXEC_PID"}
)  # fmt: skip
READ_ONLY: Final = frozenset({"UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO"})  # an error in bash
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

# POSIX sh: what runs inside is dash, bash or busybox. Arguments: the four files, working directory, nice, how soon the
# kernel picks it when memory is short, then the program and its arguments.
SCRIPT: Final = r"""
umask 077
env=$1 out=$2 life=$3 end=$4 cwd=$5 nice=$6 oom=$7; shift 7
mv -- "$env" "$env.taken" || exit 97
# Opened for reading too: so it never gets SIGPIPE, even while no process reads the other end.
exec 1<>"$out" 2>&1 </dev/null || exit 97
cd -- "$cwd" 2>/dev/null || cd || cd /
ulimit -c 0
[ "$nice" = 0 ] || renice -n "$nice" -p $$ >/dev/null 2>&1
(
  # Removed first: with this environment runs the program and nothing else, or that would be taken for it.
  exec 3<"$env.taken" && rm -f -- "$env.taken"
  set -- "$end" "$@"
  . /proc/self/fd/3
  exec 3<&-
  if ! command -v "$2" >/dev/null 2>&1; then
    echo "$2: no such program in this container"
    echo "0 96" >"$1"  # said here, since a program may end with any status
    exit 96
  fi
  shift
  { echo "$oom" >/proc/self/oom_score_adj; } 2>/dev/null
  exec "$@"
) &
child=$!
if [ "$life" != - ]; then
  # Ends when no process holds the other end any more: the daemon has ended.
  ( trap - TERM; read -r _ <"$life"; kill -TERM $child; sleep 3; kill -KILL $child ) >/dev/null 2>&1 &
  guard=$!
fi
trap 'kill -TERM $child 2>/dev/null' TERM INT HUP
wait $child; status=$?
while [ $status -gt 128 ] && kill -0 $child 2>/dev/null; do wait $child; status=$?; done
[ "$life" = - ] || kill -KILL $guard 2>/dev/null
[ -e "$end" ] || { echo "$child $status" >"$end.new" && mv -f -- "$end.new" "$end"; }
exit $status
"""


class ProgramExit(Struct, frozen=True):
    """How the program ended, as its parent saw it."""

    pid: int  # 0: there is no such program
    status: int  # the exit status, or minus the signal


def exit_status(code: int) -> int:
    """The exit status of a shell or a container: of a signal it is 128 and its number, which becomes negative."""
    return 128 - code if 128 < code <= 192 else code


class ContainerHandoff(InstanceFiles):
    """The files of one start. All methods are blocking, in the sense of a local file system in memory.

    What returns a descriptor is called on the loop: from a thread nobody would close it when the caller is cancelled.
    """

    def __init__(self, roots: Roots, tag: InstanceTag) -> None:
        super().__init__(roots.instances, tag)
        self._life = self.path(".life")
        self._end = self.path(".end")
        self._exec = self.path(".exec")
        self._proc = roots.proc
        self._held: int | None = None

    def arguments(self, spec: ModelSpec, cwd: Path) -> list[str]:
        """What follows `sh -c SCRIPT sh`, before the program."""
        life = self._life if self._held is not None else "-"
        words = (self.environment, self.output, life, self._end, cwd, spec.nice or 0, spec.oom_score_adjust)
        return [str(word) for word in words]

    def prepare(self, text: str, *, life: bool) -> int:
        """Make them; the FIFO's reading end, non-blocking. With `life` the program ends with this process. OSError."""
        self.make_output()
        if life:
            os.mkfifo(self._life, 0o600)
            self._held = os.open(self._life, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.write_environment(text)
        return self.open_output(self._proc)

    @contextmanager
    def writer(self) -> Iterator[int]:
        """The FIFO opened for both: a program that has it as output never gets SIGPIPE. OSError."""
        fd = os.open(self.output, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def taken(self) -> bool:
        """Has the shell inside begun?"""
        return not self.environment.exists()

    def revoke(self) -> bool:
        """Take the environment back: True: nothing will start any more. False: the shell inside has it already."""
        try:
            self.environment.unlink()
        except FileNotFoundError:
            return False
        return True

    def being_read(self) -> bool:
        return self.path(".env.taken").exists()

    def end(self) -> ProgramExit | None:
        """How the program ended; None: it runs, or its parent was killed."""
        try:
            pid, status = map(int, read_small(self._end).split())
        except (OSError, ValueError):
            return None
        return ProgramExit(pid, exit_status(status))

    def remember(self, session: ExecSession) -> None:
        """Keep what podman calls the way in. OSError."""
        fd = os.open(self._exec, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(session))

    def recall(self) -> ExecSession | None:
        """None: it was never known."""
        try:
            return from_json(read_small(self._exec), ExecSession)
        except (OSError, msgspec.DecodeError):
            return None

    def let_go(self) -> None:
        """Close what is held open: with `life` the program ends now. May be called twice."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def remove(self) -> None:
        """Close and remove all but the record, which is another's."""
        self.let_go()
        for ending in ENDINGS:
            if not ending.startswith(".json"):
                self.path(ending).unlink(missing_ok=True)


def inner_environment(spec: ModelSpec, env: Mapping[str, str]) -> dict[str, str]:
    """The part of an order's environment that means something inside a container."""
    own = {name for name, _ in spec.env}
    return {
        name: value
        for name, value in env.items()
        if _NAME.match(name) and name not in READ_ONLY and (name in own or name not in OF_THE_HOST)
    }


def as_shell(env: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())


def as_env_file(env: Mapping[str, str]) -> str:
    """As --env-file of podman and docker reads it: values as they are. HomeError: they know no way to write some."""
    for name, value in env.items():
        if "\n" in value or "\r" in value:
            raise HomeError(f"cannot hand {name} to a container: its value has more than one line")
    return "".join(f"{name}={value}\n" for name, value in env.items())
