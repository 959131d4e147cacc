"""The real daemon, but that main memory is what a test says: python -m tests.daemon.pressure_daemon

TEST_PROC names a directory with the /proc/meminfo and /proc/pressure of that machine. Its devices are none.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from accelerd.app import Parts
from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.config import check
from accelerd.daemon import Daemon
from accelerd.devices.udev import UdevDevice
from accelerd.system import logs
from accelerd.system.lock import InstanceLock


class NoDevices:
    """What udev says on a machine that has none."""

    def entries(self, subsystem: str) -> Iterable[UdevDevice]:
        return ()


async def serve(roots: Roots, proc: Path) -> None:
    config, problems = check(roots.config_file, roots.home)
    assert config is not None, problems
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        measured = replace(roots, proc=proc)
        await Daemon(Parts(roots, config, source=NoDevices(), memory_roots=measured), config, problems).run()


if __name__ == "__main__":
    logs.configure()
    asyncio.run(serve(Roots.from_env(), Path(os.environ["TEST_PROC"])))
