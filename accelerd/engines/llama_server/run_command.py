"""Runs a short command to its end and keeps what it said: bounded in time and output, and nothing of it is left.

Knows nothing of what is asked; starts only what it is given, in a process group of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Mapping
from typing import Final

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.engines.base import ProgramOutput

log = logging.getLogger(__name__)

MAX_OUTPUT: Final = 1 << 20  # bytes kept of each stream; this year's help has 59 kB
NO_DUMP: Final = 1  # of RLIMIT_CORE: with 0 a program that collects dumps is still started


async def run(argv: tuple[str, ...], env: Mapping[str, str], within: float) -> ProgramOutput:
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
        raise AccelError("model_failed", f"cannot run {path}: {e.strerror or e}", cause=Cause.NO_PROGRAM.value) from e
    assert process.stdout
    assert process.stderr
    finished = False
    try:
        _no_dump(process.pid)
        async with asyncio.timeout(within):
            out, err, status = await asyncio.gather(_bounded(process.stdout), _bounded(process.stderr), process.wait())
        finished = True
    except TimeoutError:
        flag = next((word for word in argv[1:] if word.startswith("-")), "it")
        raise AccelError(
            "model_failed",
            f"cannot use {path}: {flag} did not finish within {within:g} s",
            cause=Cause.NO_PROGRAM.value,
        ) from None
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
