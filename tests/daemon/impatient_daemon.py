"""The real daemon, but that it waits half a second, not half a minute, for an engine that is asked for a sign of life
and for one that is to die of SIGKILL.

Run as `python -m tests.daemon.impatient_daemon`.
"""

from __future__ import annotations

import asyncio

from accelerd.app import Parts
from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.config import check
from accelerd.daemon import Daemon
from accelerd.supervise.waiting import SupervisorLimits
from accelerd.system import logs
from accelerd.system.lock import InstanceLock


async def serve(roots: Roots) -> None:
    config, problems = check(roots.config_file, roots.home)
    assert config is not None, problems
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        await Daemon(
            Parts(roots, config, patience=SupervisorLimits(probe_timeout=0.5), stuck_after=0.5), config, problems
        ).run()


if __name__ == "__main__":
    logs.configure()
    asyncio.run(serve(Roots.from_env()))
