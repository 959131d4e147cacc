"""The real daemon, but that its device and its memory are those of a test: python -m tests.daemon.card_daemon

TEST_SYSFS and TEST_PROC name where they are, see card.py.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from accelerd.app import Parts
from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.config import check
from accelerd.daemon import Daemon
from accelerd.system import logs
from accelerd.system.lock import InstanceLock
from tests.daemon.level_daemon import Udev


async def serve(roots: Roots, proc: Path) -> None:
    config, problems = check(roots.config_file, roots.home)
    assert config is not None, problems
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        measured = replace(roots, proc=proc)
        parts = Parts(roots, config, source=Udev(roots.sys), memory_roots=measured)
        await Daemon(parts, config, problems).run()


if __name__ == "__main__":
    logs.configure()
    asyncio.run(serve(replace(Roots.from_env(), sys=Path(os.environ["TEST_SYSFS"])), Path(os.environ["TEST_PROC"])))
