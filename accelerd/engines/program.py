"""An engine's program: where it is, what tells it from any other, and how a short command of it is run.

A command is bounded in time and output, and nothing of it is left. Knows nothing of what is asked; starts only what it
is given, in a process group of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from msgspec import Struct

from accelerd.base import volumes
from accelerd.base.exits import Cause
from accelerd.engines.base import ProgramOutput, fail

log = logging.getLogger(__name__)

MAX_OUTPUT: Final = 1 << 20  # bytes kept of each stream; this year's help has 59 kB
NO_DUMP: Final = 1  # of RLIMIT_CORE: with 0 a program that collects dumps is still started


class Program(Struct, frozen=True):
    """A program on this machine or in a container."""

    path: str  # as it is called there
    identity: tuple[str | int, ...]  # it behaves the same as long as this does not change
    run: Callable[..., Awaitable[ProgramOutput]]  # words → what it said. AccelError('model_failed')
    lasting: bool = False  # the identity holds beyond this daemon's life
    drivers: tuple[str, ...] = ()  # what its environment tells the drivers


def find(wanted: str, environ: Mapping[str, str], hint: str, extra_dirs: Sequence[Path] = ()) -> str:
    """A program's path. A name is looked up on PATH, then in `extra_dirs`; a path may begin with ~. Blocking.

    AccelError('model_failed').
    """
    if "/" not in wanted:
        found = volumes.which(wanted, os.pathsep.join([environ.get("PATH", os.defpath), *map(str, extra_dirs)]))
        if found is None:
            places = "PATH" + "".join(f" and not in {d}" for d in extra_dirs)
            fail(Cause.NO_PROGRAM, f"cannot find the program {wanted}: it is not on {places}", hint)
        return os.path.abspath(found)
    home = environ.get("HOME")  # the environment's, not this process's
    path = home + wanted[1:] if home and wanted.startswith("~/") else os.path.expanduser(wanted)
    if not os.path.isabs(path):
        fail(Cause.NO_PROGRAM, f"cannot use {wanted}: write a name on PATH or an absolute path")
    try:
        volumes.check([path])
    except volumes.NoAnswer as error:
        fail(Cause.LOAD_TIMEOUT, f"cannot run {path}: {error.strerror}")
    if not os.path.exists(path):
        fail(Cause.NO_PROGRAM, f"cannot find the program {path}", hint)
    if not os.path.isfile(path):
        fail(Cause.NO_PROGRAM, f"cannot run {path}: it is not a file")
    if not os.access(path, os.X_OK):
        fail(Cause.NO_PROGRAM, f"cannot run {path}: it is not executable (chmod +x helps if it is a program)")
    return path


def local(path: str, env: Mapping[str, str], within: float, drivers: frozenset[str] = frozenset()) -> Program:
    """A program of this machine. `drivers`: the variables that drivers look at. AccelError. Blocking."""
    try:
        real = os.path.realpath(path)
        with open(real, "rb") as f:
            stat = os.fstat(f.fileno())
            script = f.read(2) == b"#!"
    except OSError as e:
        fail(Cause.NO_PROGRAM, f"cannot read {path}: {e.strerror}")
    identity = (real, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    told = tuple(f"{name}={value}" for name, value in sorted(env.items()) if name in drivers)
    # What a wrapper script starts may change while the script stays: each daemon asks it again.
    return Program(path, identity, partial(run, env, within, path), not script, told)


async def run(env: Mapping[str, str], within: float, *argv: str) -> ProgramOutput:
    """What it said; a status below 0 is a signal. AccelError('model_failed') when it does not start, or end in time.

    On a timeout or when cancelled the process group is killed.
    """
    path = argv[0]
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
    except OSError as e:
        fail(Cause.NO_PROGRAM, f"cannot run {path}: {e.strerror or e}")
    assert process.stdout
    assert process.stderr
    finished = False
    try:
        _no_dump(process.pid)
        async with asyncio.timeout(within):
            out, err, status = await asyncio.gather(_bounded(process.stdout), _bounded(process.stderr), process.wait())
        finished = True
    except TimeoutError:
        fail(Cause.NO_PROGRAM, f"cannot use {path}: {argv[1]} did not finish within {within:g} s")
    finally:
        if not finished:
            await _kill(process)
    return ProgramOutput(status, out, err)


def _no_dump(pid: int) -> None:
    """What aborts on a file it does not like is no crash that the desktop should tell of."""
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (NO_DUMP, NO_DUMP))
    except OSError as e:
        log.debug("process %d may leave a core dump: %s", pid, e)


async def _bounded(stream: asyncio.StreamReader) -> str:
    """All of a stream is read, so that its writer can end; the first MAX_OUTPUT bytes are kept."""
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: MAX_OUTPUT - len(kept)]
    return kept.decode("utf-8", "replace")


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the whole group and reap the leader; a wrapper's child that still holds the pipes goes too."""
    assert process.stdout
    assert process.stderr
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        log.debug("process group %d was gone already", process.pid)
    await process.wait()
    try:
        async with asyncio.timeout(1):  # a child that left the group may hold the pipes for ever
            await asyncio.gather(_bounded(process.stdout), _bounded(process.stderr))
    except TimeoutError:
        log.warning("a process started by %d left its group and still holds its output", process.pid)
