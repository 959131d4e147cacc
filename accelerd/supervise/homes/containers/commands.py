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

from msgspec import Struct

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
TEXT_LIMIT: Final = 64 << 10  # bytes kept of what a tool prints
PATIENCE: Final = 60.0  # s for an ordinary call


class CommandResult(Struct, frozen=True):
    """How a call ended."""

    argv: tuple[str, ...]
    status: int
    out: str
    err: str

    def why(self) -> str:
        """The last line that it printed."""
        said = [line for line in (self.err or self.out).splitlines() if line.strip()]
        return said[-1].removeprefix("Error: ").strip() if said else f"it ended with status {self.status}"


class CliProcess:
    """A command line tool that starts an instance in a container. Its exit says nothing about the instance; its output
    is kept for errors."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, output: int | None = None) -> None:
        """`output`: where its stdout and stderr go instead of into `text`. OSError."""
        self._said = os.memfd_create("output")
        try:
            to = self._said if output is None else output
            self._process = subprocess.Popen(
                argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=to, stderr=to, start_new_session=True
            )
        except BaseException:
            os.close(self._said)
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

    def text(self) -> str:
        """What it printed, of a flood the beginning."""
        return os.pread(self._said, TEXT_LIMIT, 0).decode(errors="replace")

    def done(self) -> CommandResult:
        """Once exited."""
        return CommandResult(tuple(map(str, self._process.args)), self.status or 0, "", self.text())  # type: ignore[arg-type]

    async def end(self, grace: float = 0.0) -> None:
        """Wait `grace` seconds for its end, then kill it and its children; reap it. May be called twice."""
        try:
            await asyncio.wait_for(self.exited.wait(), grace)
        except TimeoutError:
            self.kill()
            await self.exited.wait()
        finally:
            if self.exited.is_set():
                self.close()

    def kill(self) -> None:
        """SIGKILL to it and its children, at once."""
        if not self.exited.is_set():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Forget it: it may go on. May be called twice."""
        if self._said >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            os.close(self._said)
            self._said = -1
            if self._process.returncode is None:
                self._process.returncode = 0  # else Popen warns that it lives


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

    def cli(self, argv: Sequence[str], instance: str, output: int | None = None) -> CliProcess:
        """Start a tool that starts `instance` in a container. HomeError, OSError."""
        env = {**self.env, ENV_CLI_PROCESS: instance}
        return CliProcess(argv, env, self.cwd, output)

    async def call(
        self,
        *argv: str,
        within: float = PATIENCE,
        grace: float = 0.0,
        output: int | None = None,
        instance: str = "",
    ) -> CommandResult:
        """Run it to its end. HomeError when it is missing or takes longer than `within` seconds: then it is killed.

        `grace`: seconds that it still has when nobody waits for it any more.
        """
        path = argv[0] if argv[0].startswith("/") else self.find(argv[0])
        env = {**self.env, ENV_CLI_PROCESS: instance} if instance else self.env
        errors = os.memfd_create("stderr")
        try:
            out = os.memfd_create("stdout")
            try:
                done = await self._run((path, *argv[1:]), env, output or out, output or errors, within, grace)
                text = [os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace") for fd in (out, errors)]
            finally:
                os.close(out)
        except OSError as error:
            raise HomeError(f"cannot run {argv[0]}: {error.strerror or error}") from error
        finally:
            os.close(errors)
        return CommandResult(argv, done, *text)

    async def _run(
        self, argv: Sequence[str], env: Mapping[str, str], out: int, err: int, within: float, grace: float
    ) -> int:
        # A session of its own: a Ctrl-C in the terminal is for accelerd, and a hanging tool dies with its children.
        process = subprocess.Popen(  # noqa: ASYNC220 (vfork: about a millisecond)
            argv, env=dict(env), cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        pidfd = os.pidfd_open(process.pid)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(within):
                await ended.wait()
        except TimeoutError:
            what = " ".join((Path(argv[0]).name, *argv[1:2]))
            raise HomeError(f"{what} does not answer for {within:g} s: try it by hand") from None
        except asyncio.CancelledError:
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), grace)
            raise
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            if not ended.is_set():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()  # ended, or killed a moment ago
        return status
