"""Ending processes for certain: what is left of one instance, and what an earlier daemon left behind.

Kills by process group and by pidfd until nothing is found; says loudly what cannot be killed. Never believes a signal
to be an end.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from accelerd.base import names
from accelerd.base.ports import Clock
from accelerd.supervise.homes.home import Home, HomeError, InstanceRecord, MainProcess
from accelerd.supervise.instance_records import instance_of
from accelerd.supervise.process.processes import InstanceTag, Process, ProcessTable, describe
from accelerd.supervise.waiting import SupervisorLimits, race
from accelerd.system.records import event

log = logging.getLogger(__name__)


async def sweep(
    main: MainProcess | None,
    tag: InstanceTag,
    model: str,
    table: ProcessTable,
    clock: Clock,
    limits: SupervisorLimits,
    slow: Callable[[], None],
) -> list[Process]:
    """SIGKILL all that is left of an instance; returns, when nothing is, the processes found beside its own.

    `slow` is called once when that takes longer than limits.slow_after. The main process must not be released before.
    """
    began = clock.monotonic()
    found: dict[int, Process] = {}
    empty, delay, reported, loud_at = 0, 0.005, False, began + limits.loud_after
    while True:
        left = await asyncio.to_thread(_kill_members, table, tag, main.session if main is not None else None)
        if main is not None:
            main.kill_group()  # and what they forked meanwhile
        if left or not (main is None or main.exited.is_set()):
            found |= {process.pid: process for process in left if main is None or process.pid != main.pid}
            empty = 0
        else:
            # A scan can miss what is forked behind its back: where something was found, look twice.
            empty += 1
            if empty >= (2 if found else 1):
                return list(found.values())
        now = clock.monotonic()
        if now - began > limits.slow_after and not reported:
            reported = True
            slow()
        if now > loud_at:
            loud_at = now + limits.loud_every
            pid = main.pid if main is not None else None
            who = describe(left) or f"process {pid}"
            text = (
                f"cannot end {model}: still there {now - began:.0f} s after SIGKILL: {who}; its memory stays counted "
                "(a process that hangs in a driver ends only with the driver or a reboot)"
            )
            event(log, logging.ERROR, text, model=model, child_pid=pid)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 1.0)


def _kill_members(table: ProcessTable, tag: InstanceTag, session: int | None) -> list[Process]:
    """SIGKILL to every member found; all of them are returned, killed or not. Blocking."""
    members = table.members(tag, session)
    for process in members:
        with suppress(PermissionError):  # it took another uid: it stays in the list and the log names it
            table.signal(process, signal.SIGKILL)
    return members


async def end_recorded(homes: Mapping[str, Home], record: InstanceRecord, limits: SupervisorLimits) -> None:
    """End an instance of an earlier daemon that nobody wants any more, and what its home has of it.

    What the home does not know (any more) is left to sweep_leftovers.
    """
    home = homes.get(record.home)
    try:
        main = await home.adopt(record, lambda _: None, lambda: None) if home is not None else None
    except (HomeError, OSError) as error:
        event(log, logging.WARNING, str(error), model=record.model)
        return
    if main is None:
        return
    try:
        text = f"{record.model}: process {main.pid} of an earlier accelerd is not wanted any more: ending it"
        event(log, logging.WARNING, text, message_id=names.MSG_LEFTOVER, model=record.model, child_pid=main.pid)
        main.signal(signal.SIGTERM)
        await race(main.exited.wait(), within=limits.leftover_grace)
        main.kill_group()
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.leftover_patience):
                await main.exited.wait()
                await main.release()
    finally:
        main.let_go()


async def sweep_leftovers(
    table: ProcessTable, owner: str, clock: Clock, limits: SupervisorLimits, spared: Collection[str] = ()
) -> int:
    """End the processes that an earlier daemon with this runtime directory left. How many there were.

    Those of the instances (by InstanceTag.instance) in `spared` live on.
    """
    left = await asyncio.to_thread(table.owned, owner, spared)
    count = len(left)
    if not count:
        return 0
    for process in left:
        _log_leftover(process, "SIGTERM: it belongs to an earlier run of this daemon")
    look = partial(table.owned, owner, spared)
    await _signal_until_gone(table, look, left, signal.SIGTERM, clock.monotonic() + limits.leftover_grace, clock)
    left = await asyncio.to_thread(look)
    for process in left:
        _log_leftover(process, "SIGKILL: it did not end after SIGTERM")
    await _signal_until_gone(table, look, left, signal.SIGKILL, clock.monotonic() + limits.leftover_patience, clock)
    for process in await asyncio.to_thread(look):
        _log_leftover(process, "left alone: it does not end; its memory is not counted")
    return count


async def _signal_until_gone(
    table: ProcessTable,
    look: Callable[[], list[Process]],
    processes: Sequence[Process],
    number: int,
    deadline: float,
    clock: Clock,
) -> None:
    """Signal each process once (also those that appear meanwhile); wait until none is left or the deadline passes."""
    left, signalled = list(processes), set[Process]()
    delay = 0.01
    while left and clock.monotonic() < deadline:
        for process in set(left) - signalled:
            signalled.add(process)
            table.signal(process, number)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 0.25)
        left = await asyncio.to_thread(look)


def _log_leftover(process: Process, decision: str) -> None:
    text = f"leftover process {process}: {decision}"
    event(log, logging.WARNING, text, message_id=names.MSG_LEFTOVER, child_pid=process.pid)


def remove_files(folder: Path, spared: Collection[str] = ()) -> None:
    """Remove the other files of instances, but for those (by InstanceTag.instance) in `spared`. Blocking."""
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            instance = instance_of(path.name)
            if instance is not None and instance not in spared:
                path.unlink(missing_ok=True)
