"""A daemon one of whose parts fails while it runs: the engine factory raises at the second use, which is a reload,
and the repair of toolboxes takes a while to be cancelled.

Run as `python -m tests.daemon.broken_daemon`; everything else of it is the real daemon.
"""

from __future__ import annotations

import asyncio

from accelerd.app import Parts
from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.config import check
from accelerd.config.model import LlamaServerSettings
from accelerd.daemon import Daemon
from accelerd.engines.llama_server import LlamaServer
from accelerd.system import logs
from accelerd.system.lock import InstanceLock


def raise_it(settings: LlamaServerSettings) -> LlamaServer:
    raise ZeroDivisionError("this part is broken on purpose")


async def repair() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.3)


async def serve(roots: Roots) -> None:
    config, problems = check(roots.config_file, roots.home)
    assert config is not None, problems
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        broken = Daemon(Parts(roots, config), config, problems)
        broken._parts.make_engines = raise_it  # type: ignore[assignment]
        broken._parts.upkeep.repair = repair  # type: ignore[method-assign]
        await broken.run()


if __name__ == "__main__":
    logs.configure()
    asyncio.run(serve(Roots.from_env()))
