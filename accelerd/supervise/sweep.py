"""Ending processes for certain: what is left of one instance, and what an earlier daemon left behind.

Kills by process group and by pidfd until nothing is found; says loudly what cannot be killed. Never believes a signal
to be an end.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from accelerd import names
from accelerd.ports import Clock
from accelerd.supervise.limits import Limits
from accelerd.supervise.processes import Mark, Process, ProcessTable, describe
from accelerd.supervise.spawn import Child
from accelerd.system.records import event

log = logging.getLogger(__name__)


async def sweep(
    child: Child,
    mark: Mark,
    model: str,
    table: ProcessTable,
    clock: Clock,
    limits: Limits,
    slow: Callable[[], None],
) -> list[Process]:
    """SIGKILL all that is left of an instance; returns, when nothing is, the processes found beside its own.

    `slow` is called once when that takes longer than limits.slow_after. The child must not be reaped before.
    """
    began = clock.monotonic()
    found: dict[int, Process] = {}
    empty, delay, told, loud_at = 0, 0.005, False, began + limits.loud_after
    while True:
        left = await asyncio.to_thread(_kill_members, table, mark, child.pid)
        child.kill_group()  # and what they forked meanwhile
        if left or not child.exited.is_set():
            found |= {process.pid: process for process in left if process.pid != child.pid}
            empty = 0
        else:
            # A scan can miss what is forked behind its back: where something was found, look twice.
            empty += 1
            if empty >= (2 if found else 1):
                return list(found.values())
        now = clock.monotonic()
        if now - began > limits.slow_after and not told:
            told = True
            slow()
        if now > loud_at:
            loud_at = now + limits.loud_every
            who = describe(left) or f"process {child.pid}"
            text = (
                f"cannot end {model}: still there {now - began:.0f} s after SIGKILL: {who}; its memory stays counted "
                "(a process that hangs in a driver ends only with the driver or a reboot)"
            )
            event(log, logging.ERROR, text, model=model, child_pid=child.pid)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 1.0)


def _kill_members(table: ProcessTable, mark: Mark, session: int) -> list[Process]:
    """SIGKILL to every member found; all of them are returned, killed or not. Blocking."""
    members = table.members(mark, session)
    for process in members:
        with suppress(PermissionError):  # it took another uid: it stays in the list and the log names it
            table.signal(process, signal.SIGKILL)
    return members


async def sweep_leftovers(table: ProcessTable, owner: str, clock: Clock, limits: Limits) -> int:
    """End the processes that an earlier daemon with this runtime directory left. How many there were."""
    left = await asyncio.to_thread(table.owned, owner)
    count = len(left)
    for process in left:
        _log_leftover(process, "SIGTERM: it belongs to an earlier run of this daemon")
    await _signal_until_gone(table, owner, left, signal.SIGTERM, clock.monotonic() + limits.leftover_grace, clock)
    left = await asyncio.to_thread(table.owned, owner)
    for process in left:
        _log_leftover(process, "SIGKILL: it did not end when told")
    await _signal_until_gone(table, owner, left, signal.SIGKILL, clock.monotonic() + limits.leftover_patience, clock)
    for process in await asyncio.to_thread(table.owned, owner):
        _log_leftover(process, "left alone: it does not end; its memory is not counted")
    return count


async def _signal_until_gone(
    table: ProcessTable, owner: str, told: Sequence[Process], number: int, deadline: float, clock: Clock
) -> None:
    """Signal each process once (also those that appear meanwhile); wait until none is left or the deadline passes."""
    left, signalled = list(told), set[Process]()
    delay = 0.01
    while left and clock.monotonic() < deadline:
        for process in set(left) - signalled:
            signalled.add(process)
            table.signal(process, number)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 0.25)
        left = await asyncio.to_thread(table.owned, owner)


def _log_leftover(process: Process, decision: str) -> None:
    text = f"leftover process {process}: {decision}"
    event(log, logging.WARNING, text, message_id=names.MSG_LEFTOVER, child_pid=process.pid)


def prepare_socket(path: Path) -> None:
    """Make the directory of an engine's socket (0700) and remove a stale socket. OSError. Blocking."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_socket(path)


def remove_socket(path: Path) -> None:
    """Remove a unix socket that nobody listens on any more; anything else of that name stays. Blocking."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def remove_sockets(folder: Path) -> None:
    """Remove all sockets in the directory of the instances, when no instance is there. Blocking."""
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            remove_socket(path)
