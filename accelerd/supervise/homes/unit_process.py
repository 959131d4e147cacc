"""The main process of a transient unit, held by pidfd, and the unit's end.

Signals go by pidfd and kills by control group, so both work while the bus is away; only the exit status and the reason
are then not known.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from accelerd.base.cgroup import Cgroup
from accelerd.supervise.homes.user_manager import UnitState, UserManager
from accelerd.supervise.instance_files import InstanceFiles
from accelerd.supervise.process.output_reader import OutputReader
from accelerd.system.dbus.client import BusError

log = logging.getLogger(__name__)

LOUD_AFTER: Final = 5.0  # s from the exit of the main process until a unit that does not end is logged …
LOUD_EVERY: Final = 60.0  # … and how often after that


class UnitMainProcess:
    """A MainProcess (home.py). Owns `pidfd` (None: it has exited already) and the reader."""

    session: int | None = None  # not a child of the daemon: the number may be reused as soon as the process has ended

    def __init__(
        self,
        unit: str,
        pid: int,
        pidfd: int | None,
        *,
        manager: UserManager,
        cgroup: Cgroup | None,
        files: InstanceFiles,
        output: OutputReader,
        on_exit: Callable[[], None],
    ) -> None:
        self.unit: str | None = unit
        self.pid = pid
        self.exited = asyncio.Event()
        self.status: int | None = None
        self.result: str | None = None
        self._name = unit
        self._pidfd = pidfd
        self._manager = manager
        self._cgroup = cgroup
        self._files = files
        self._output = output
        self._on_exit = on_exit
        self._killing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        if pidfd is None:
            self._loop.call_soon(self._exit_seen)
        else:
            self._loop.add_reader(pidfd, self._exit_seen)

    def signal(self, number: int) -> None:
        """Signal the main process. Nothing happens when it has exited."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """SIGKILL to the whole control group: by the kernel, or by systemd where the kernel cannot."""
        self.signal(signal.SIGKILL)
        if self._cgroup is not None and self._cgroup.kill():
            return
        if self._killing is None or self._killing.done():
            self._killing = asyncio.create_task(self._kill_unit(), name=f"kill of {self._name}")

    async def release(self) -> None:
        """Wait until the unit is over, learn how it ended, leave nothing of it."""
        try:
            await self._until_over()
        finally:
            self._output.finish()
            self.let_go()
        await asyncio.to_thread(self._files.output.unlink, missing_ok=True)

    def let_go(self) -> None:
        """Close the descriptors. The unit's own reference goes with the connection to the bus."""
        self._output.close()
        if self._killing is not None:
            self._killing.cancel()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def unexecuted(self, last_line: str) -> str | None:
        """Known at the start: systemd reports it then."""
        return None

    def _exit_seen(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
        self.exited.set()
        self._on_exit()

    async def _kill_unit(self) -> None:
        try:
            await self._manager.kill(self._name, signal.SIGKILL)
        except BusError as error:
            log.warning("%s: %s", self._name, error)

    async def _until_over(self) -> None:
        began = self._loop.time()
        delay, loud_at = 0.002, began + LOUD_AFTER
        while True:
            try:
                if await self._look():
                    return
            except BusError as error:
                if self._cgroup is None or not self._cgroup.populated():
                    log.warning("cannot learn how %s ended: %s", self._name, error)
                    return
            self.kill_group()  # what the main process left: nobody but its control group knows it
            now = self._loop.time()
            if now > loud_at:
                loud_at = now + LOUD_EVERY
                log.error("%s does not end, %.0f s after its main process did", self._name, now - began)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 1.0)

    async def _look(self) -> bool:
        """Is the unit over? Then its end is noted and the unit let go. BusError."""
        properties = await self._manager.show(self._name)
        if properties is None:  # collected: the bus was away meanwhile, and with it the reference to the unit
            log.warning("cannot learn how %s ended: systemd has forgotten it", self._name)
            return True
        state = UnitState.parse(properties)
        if not state.over:
            return False
        self.status, self.result = state.status, state.trouble
        await self._manager.reset_failed(self._name)
        await self._manager.unref(self._name)
        return True
