"""Has systemd wait for no process that looks at a disk that does not answer (base/volumes.py).

Such a process cannot be killed, and systemd ends a unit only when its control group is empty. So one that hangs gets a
scope of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from accelerd.base import volumes
from accelerd.supervise.homes.user_manager import PREFIX, UserManager
from accelerd.system.dbus.client import BusError

log = logging.getLogger(__name__)

PATIENCE: Final = 1.0  # s for systemd at the end; a manager that is going down gives no answer


class HungDisks:
    """`run` for as long as the daemon lives, then `close`."""

    def __init__(self, manager: UserManager | None) -> None:
        """`manager`: None where there is no systemd; then nobody waits."""
        self._manager = manager
        self._taken_out: set[int] = set()

    async def run(self) -> None:
        """Until cancelled."""
        hung: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        with volumes.telling(lambda pid: loop.call_soon_threadsafe(hung.put_nowait, pid)):
            await self._take_out(volumes.looking())
            while True:
                await self._take_out([await hung.get()])

    async def close(self) -> None:
        """Those too that have just begun to look."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._take_out(volumes.looking())
        except TimeoutError:
            log.info("systemd does not answer: it may wait for a process that looks at a disk that does not answer")

    async def _take_out(self, pids: Iterable[int]) -> None:
        for pid in pids:
            if self._manager is None or pid in self._taken_out:
                continue
            try:
                text = "accelerd looks at a disk that does not answer"
                await self._manager.take_out(f"{PREFIX}look-{pid}.scope", pid, text)
            except BusError as error:  # it may have ended
                log.info("systemd may wait for process %d, which looks at a disk: %s", pid, error.message)
            else:
                self._taken_out.add(pid)
