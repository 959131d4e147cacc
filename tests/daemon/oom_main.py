"""An accelerd for which SIGKILL to a model is an OOM kill: python -m tests.daemon.oom_main

The limits that make a kernel do it need control groups that not every machine of a test hands out. $TEST_SYS is its
/sys, where a test counts the kernel's kills in a container; what it logs goes to the journal socket $TEST_JOURNAL too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerd.app import make_homes
from accelerd.base.ports import Roots
from accelerd.daemon import serve
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.home import Home, LaunchRequest, MainProcess
from accelerd.supervise.homes.systemd_home import SystemdHome
from accelerd.system import logs
from accelerd.system.journal import JournalClient, JournalHandler


class CrampedHome(ChildHome):
    """A ChildHome in which every SIGKILL is the kernel's."""

    async def start(
        self, order: LaunchRequest, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> MainProcess:
        leaders: list[MainProcess] = []

        def exited() -> None:
            if leaders[0].status == -signal.SIGKILL:
                leaders[0].result = "oom-kill"
            on_exit()

        leaders.append(await super().start(order, on_output, exited))
        return leaders[0]


class CrampedManager:
    """A UserManager that reports every SIGKILL as an OOM kill."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    async def show(self, unit: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._manager.show(unit)
        killed = found is not None and (found["Result"], found["ExecMainStatus"]) == ("signal", signal.SIGKILL)
        return {**(found or {}), "Result": "oom-kill"} if killed else found


def homes(roots: Roots, manager: Any) -> dict[str, Home]:
    found = make_homes(roots, manager) | {"child": CrampedHome(proc=roots.proc, sys=roots.sys)}
    if manager is not None:
        found["systemd"] = SystemdHome(CrampedManager(manager), roots)  # type: ignore[arg-type]
    return found


if __name__ == "__main__":
    logs.configure(None)
    if "TEST_JOURNAL" in os.environ:
        logging.getLogger().addHandler(JournalHandler(JournalClient(Path(os.environ["TEST_JOURNAL"]))))
    asyncio.run(serve(replace(Roots.from_env(), sys=Path(os.environ.get("TEST_SYS", "/sys"))), homes))
