"""Makes the runtime directory again when somebody has removed it: the lock, the control socket, the records of
models.

A model whose socket is gone is started again once its requests have ended. Polls nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.system.folder_watch import gone
from accelerd.system.lock import InstanceLock, StartError
from accelerd.system.records import event

log = logging.getLogger(__name__)

SETTLE: Final = 0.5  # s from the first thing that goes until it is looked what has gone
PAUSE: Final = 1.0  # s between two times that it is made


class RuntimeDirectory:
    """`run` for as long as the daemon lives."""

    def __init__(
        self,
        roots: Roots,
        listen: Callable[[], Awaitable[None]],
        sockets: Callable[[], Mapping[str, str]],
        relaunch: Callable[[list[str]], None],
        write_records: Callable[[], Awaitable[None]],
    ) -> None:
        """`listen` on the control socket; `sockets` of loaded models, by name; `relaunch` them when they are idle."""
        self._roots, self._listen, self._sockets, self._relaunch = roots, listen, sockets, relaunch
        self._write_records = write_records
        self._locks: list[InstanceLock] = []  # held until the process ends
        self.problem: str | None = None  # for `status`: it could not be made again

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while self.problem is None:
                await gone(self._roots.control_socket, SETTLE)
                await self._make()
                await asyncio.sleep(PAUSE)
        except OSError as error:
            log.info("whether the runtime directory is removed is not noticed: %s", error)

    async def _make(self) -> None:
        where = self._roots.runtime
        try:
            if not (where / names.LOCK_FILE).exists():
                self._locks.append(InstanceLock.acquire(where / names.LOCK_FILE))
            await self._listen()
        except StartError as error:
            self.problem = f"the runtime directory {where} was removed and cannot be made again: {error.message}"
            event(log, logging.ERROR, self.problem)
            return
        await self._write_records()
        lost = self._lost()
        self._relaunch(lost)
        again = f"; started again when they are idle, since their sockets are gone: {', '.join(lost)}" if lost else ""
        event(log, logging.WARNING, f"somebody removed {where}, or the control socket: made again{again}")

    def _lost(self) -> list[str]:
        """Models whose sockets are gone."""
        return [model for model, path in self._sockets().items() if not Path(path).exists()]
