"""Calling podman, docker, toolbox, distrobox and systemd-run: one place that knows their environment and patience.

Knows no models. No call is made through a shell, none inherits what could be secret (distrobox copies its environment
to a command line), and none can hang the caller.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from accelerd.engines.base import ProgramOutput
from accelerd.supervise.homes.home import HomeError

log = logging.getLogger(__name__)

ENV_CLI_PROCESS: Final = "ACCELERD_COURIER"  # set for the tools that start an instance in a container: which one
# Not INVOCATION_ID and NOTIFY_SOCKET: with them podman takes the daemon's service for the container's home.
PASSED: Final = (
    "HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME",
    "XDG_DATA_HOME", "XDG_CACHE_HOME", "DBUS_SESSION_BUS_ADDRESS", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF",
    "CONTAINER_HOST", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DBX_CONTAINER_MANAGER", "HTTP_PROXY",
    "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
TEXT_LIMIT: Final = 16 << 20  # bytes read of what a tool prints
PATIENCE: Final = 60.0  # s for an ordinary call


class CommandResult(ProgramOutput, frozen=True):
    """How a call ended."""

    def why(self) -> str:
        """The last line that it printed."""
        return last_line(self.err or self.out) or f"it ended with status {self.status}"


def last_line(text: str) -> str:
    """Of what podman or docker print, the line that says why they failed; empty when they say nothing."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ").strip() if lines else ""


class CliProcess:
    """A command line tool, and what it prints. It has a session of its own: a Ctrl-C in the terminal is for accelerd,
    and a tool that hangs dies with its children."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, output: int | None = None) -> None:
        """`output`: where its stdout and stderr go instead. OSError."""
        self._out, self._err = os.memfd_create("stdout"), os.memfd_create("stderr")
        out, err = (self._out, self._err) if output is None else (output, output)
        try:
            self._process = subprocess.Popen(
                argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except BaseException:
            self._close_output()
            raise
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop = asyncio.get_running_loop()
        self.exited = asyncio.Event()
        self.status: int | None = None
        self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.status = self._process.wait()
        self.exited.set()

    def result(self) -> CommandResult:
        """What came of it so far; not after `end` or `close`."""
        out, err = (os.pread(fd, TEXT_LIMIT, 0).decode(errors="replace") for fd in (self._out, self._err))
        return CommandResult(self.status or 0, out, err)

    async def finished(self, what: str, within: float) -> CommandResult:
        """What came of it when it has ended. HomeError, about `what`, if that takes longer than `within` seconds."""
        try:
            async with asyncio.timeout(within):
                await self.exited.wait()
        except TimeoutError:
            raise HomeError(f"{what} does not answer for {within:g} s: try it by hand") from None
        return self.result()

    async def end(self, grace: float = 0.0) -> None:
        """Wait `grace` seconds for its end, then kill it and its children; reap it. May be called twice."""
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.exited.wait(), grace)
        finally:
            self.kill()
            try:
                await self.exited.wait()
            finally:
                self.close()

    def kill(self) -> None:
        if not self.exited.is_set():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Forget it: it may go on. May be called twice."""
        if self._out >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._close_output()
            if self._process.returncode is None:
                self._process.returncode = 0  # else Popen warns that it lives

    def _close_output(self) -> None:
        os.close(self._out)
        os.close(self._err)
        self._out = -1


class CommandRunner:
    """The programs as this user calls them."""

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        which: Callable[..., str | None] = shutil.which,
        runtime: Path | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        inherited = {k: v for k, v in environ.items() if k in PASSED or k.startswith("LC_")}
        self.env: dict[str, str] = {**inherited, "TERM": "dumb"}
        self._which = which
        home = Path(self.env.get("HOME") or "/")
        self.cwd = home if home.is_dir() else Path("/")  # toolbox wants one that exists inside as well
        self._runtime = runtime or Path(self.env.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")

    def find(self, name: str) -> str:
        """The program's path. HomeError when it is not installed."""
        found = self._which(name, path=self.env.get("PATH"))
        if not found:
            raise HomeError(f"cannot find {name}: install it, or choose another home for the model")
        return found

    def has(self, name: str) -> bool:
        return self._which(name, path=self.env.get("PATH")) is not None

    def outside(self, unit: str | None = None) -> tuple[str, ...]:
        """What to put before a command that must not live in the daemon's own unit; empty without a user manager."""
        if not self.has("systemd-run") or not (self._runtime / "systemd/private").exists():
            return ()
        # Its own description is the whole command line.
        named = (f"--unit={unit}", "--slice=accelerd.slice", "--description=the way into a container") if unit else ()
        return (self.find("systemd-run"), "--user", "--scope", "--quiet", "--collect", *named, "--")

    def cli(self, argv: Sequence[str], instance: str = "", output: int | None = None) -> CliProcess:
        """Start a tool, one that starts `instance` in a container. HomeError, OSError."""
        return CliProcess(argv, {**self.env, ENV_CLI_PROCESS: instance} if instance else self.env, self.cwd, output)

    async def call(
        self, *argv: str, within: float = PATIENCE, output: int | None = None, instance: str = ""
    ) -> CommandResult:
        """Run it to its end. HomeError when it is missing, or takes longer than `within` seconds and is killed."""
        path = argv[0] if argv[0].startswith("/") else self.find(argv[0])
        try:
            process = self.cli((path, *argv[1:]), instance, output)
        except OSError as error:
            raise HomeError(f"cannot run {argv[0]}: {error.strerror or error}") from error
        try:
            return await process.finished(" ".join((Path(path).name, *argv[1:2])), within)
        finally:
            await process.end()
