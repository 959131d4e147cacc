"""The real daemon, which measures memory in a /proc of the test: python -m tests.gpu.daemon"""

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


async def serve(roots: Roots) -> None:
    config, problems = check(roots.config_file, roots.home)
    assert config is not None, problems
    measured = replace(roots, proc=Path(os.environ["TEST_PROC"]))
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        await Daemon(Parts(roots, config, memory_roots=measured), config, problems).run()


if __name__ == "__main__":
    logs.configure()
    asyncio.run(serve(Roots.from_env()))
