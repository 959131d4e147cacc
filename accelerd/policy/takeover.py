"""Takeover between daemons: adopts models of an earlier daemon and leaves models running for a later one.

Adopts before anything else is admitted; finds out whether a later daemon will adopt the models that run now;
`accelerd --reap` ends what no daemon will adopt. Starts nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.config.model import ModelSpec
from accelerd.gateway.handover import Parcel
from accelerd.scheduler.service import Scheduler
from accelerd.supervise.homes.user_manager import UserManager
from accelerd.supervise.instance_records import Adoptable
from accelerd.system.activation import QUEUED
from accelerd.system.dbus.client import BusError
from accelerd.system.lock import InstanceLock, StartError
from accelerd.system.records import NOTICE, event
from accelerd.system.sd_notify import Notifier

log = logging.getLogger(__name__)

PATIENCE: Final = 1.0  # s for systemd's answer; a manager that is going down gives none


def take_over(found: list[Adoptable], models: Mapping[str, ModelSpec], scheduler: Scheduler) -> list[Adoptable]:
    """Adopt what is still configured: pinned models first, then those that were ready. Returned: what was adopted."""

    def importance(one: Adoptable) -> tuple[bool, bool]:
        spec = models.get(one.record.model)
        return (spec is not None and (spec.pin or spec.preload), one.was_ready)

    adopted = []
    for one in sorted(found, key=importance, reverse=True):
        spec = models.get(one.record.model)
        if spec is None:
            text = f"{one.record.model} is no longer configured: ending what an earlier accelerd left of it"
            event(log, NOTICE, text, message_id=names.MSG_LEFTOVER, model=one.record.model)
        elif scheduler.adopt(
            spec.name,
            one,
            fits=one.fits(spec),
            cache=one.plan.prompt_cache,
            context=one.plan.context,
            asleep=one.asleep,
        ):
            adopted.append(one)
    return adopted


class Successor:
    """Will there be a later daemon that wants the models? The job on its unit says so."""

    def __init__(self, manager: UserManager | None, notifier: Notifier, patience: float = PATIENCE) -> None:
        """`manager`: None where there is no systemd; then what this daemon started ends with it."""
        self._manager = manager
        self._notifier = notifier
        self._patience = patience

    async def expected(self, *, crashed: bool) -> bool:
        """Is this daemon being restarted (or, if `crashed`, about to be)? False where nobody knows."""
        if self._manager is None:
            return False
        try:
            async with asyncio.timeout(self._patience):
                unit = await self._manager.unit_of(os.getpid())
                if unit is None or not unit.endswith(".service"):
                    return False  # started by hand
                job = await self._manager.job_type(unit)
        except (BusError, TimeoutError) as error:
            log.info("cannot ask systemd whether accelerd is restarted (%s): models are ended", error or "no answer")
            return False
        # Nobody asked for the end: Restart= brings the next daemon, or the reaper comes when it does not.
        return job == "restart" or (crashed and job in (None, "start"))

    async def forgive(self) -> None:
        """This was an ordinary end: it does not count towards the start limit of the unit, which is for crashes."""
        if self._manager is None:
            return
        try:
            async with asyncio.timeout(self._patience):
                unit = await self._manager.unit_of(os.getpid())
                if unit is not None and unit.endswith(".service"):
                    await self._manager.reset_failed(unit)
        except (BusError, TimeoutError) as error:
            log.debug("the start limit goes on counting: %s", error or "no answer")

    async def keep(self, parcels: Sequence[Parcel]) -> bool:
        """Have systemd keep these connections for the later daemon. False: it has not taken all of them."""
        if self._manager is None:
            return False
        names_of = [f"{QUEUED}{number}" for number in range(len(parcels))]
        try:
            async with asyncio.timeout(self._patience):
                unit = await self._manager.unit_of(os.getpid())
                if unit is None:
                    return False
                wanted = await self._manager.stored(unit) + 2 * len(parcels)
                for name, parcel in zip(names_of, parcels, strict=True):
                    file = parcel.memory_file()
                    try:
                        self._notifier.store(name, parcel.client, file, until_closed=True)
                    finally:
                        os.close(file)
                while await self._manager.stored(unit) < wanted:  # noqa: ASYNC110  (systemd does not say when)
                    await asyncio.sleep(0.02)
        except (BusError, TimeoutError) as error:
            text = "systemd does not keep the requests that wait (%s): they are refused"
            log.warning(text, error or "has it FileDescriptorStoreMax=?")
            for name in names_of:
                self._notifier.remove_stored(name)
            return False
        return True


async def reap(lock_file: Path, sweep: Callable[[], Awaitable[int]]) -> int:
    """Have everything ended that accelerd left in its runtime directory. How many processes there were.

    Does nothing while an accelerd runs there: then it is not ours to judge.
    """
    try:
        lock = InstanceLock.acquire(lock_file)
    except StartError as error:
        log.info("nothing is reaped: %s", error.message)
        return 0
    with lock:
        count = await sweep()
    if count:
        event(log, NOTICE, f"accelerd has ended for good: ended {count} processes of it", message_id=names.MSG_REAPED)
    return count
