"""An accelerd whose plain children count as out of memory when they are killed: python -m tests.daemon.oom_main

The limits that make a kernel do it need control groups that not every machine of a test hands out.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from accelerd.app import make_homes, serve
from accelerd.ports import Roots
from accelerd.supervise.child_home import ChildHome
from accelerd.supervise.home import Home, Leader, Order
from accelerd.system import logs


class CrampedHome(ChildHome):
    """A ChildHome in which every SIGKILL is the kernel's."""

    async def start(self, order: Order, on_output: Callable[[bytes], None], on_exit: Callable[[], None]) -> Leader:
        leaders: list[Leader] = []

        def exited() -> None:
            if leaders[0].status == -signal.SIGKILL:
                leaders[0].result = "oom-kill"
            on_exit()

        leaders.append(await super().start(order, on_output, exited))
        return leaders[0]


def homes(roots: Roots, manager: Any) -> dict[str, Home]:
    return make_homes(roots, manager) | {"child": CrampedHome(proc=roots.proc, sys=roots.sys)}


if __name__ == "__main__":
    logs.configure(None)
    asyncio.run(serve(Roots.from_env(), homes))
