"""How long the supervise room waits, for what, and the wait for the first of several things.

Times in seconds, sizes in bytes. Decides nothing; what follows when time is up is the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from msgspec import Struct


class SupervisorLimits(Struct, frozen=True):
    """Passed in by constructor; the defaults are what the daemon runs with."""

    port_retries: int = 3  # further plans when an endpoint was taken
    load_cap: float = 10.0  # times start_timeout: loading takes no longer, whatever progress is seen
    growth: int = 1 << 20  # of resident memory that counts as progress
    probe_timeout: float = 30.0  # a busy engine answers late
    dying: float = 10.0  # until a process whose socket is closed has ended; the kernel frees its memory meanwhile
    journal_rate: int = 50  # lines of output a second and model
    # killing what does not go
    slow_after: float = 1.0  # of killing, until the listener is notified
    loud_after: float = 5.0  # of killing, until it is logged …
    loud_every: float = 60.0  # … and how often after that
    close_patience: float = 2.0  # after the last SIGKILL of a closing daemon
    # instances and processes of an earlier daemon
    adopt_patience: float = 15.0  # until one that was ready answers to the next daemon
    leftover_grace: float = 5.0  # from SIGTERM to SIGKILL
    leftover_patience: float = 5.0  # from SIGKILL until they are left alone


async def race(*contestants: Coroutine[Any, Any, Any], within: float | None = None) -> tuple[int, Any] | None:
    """Index and result of the first that finishes, None after `within` seconds. The others are cancelled and awaited.

    Of several that finished together the earliest argument counts. An exception of the winner is raised.
    """
    tasks = [asyncio.ensure_future(contestant) for contestant in contestants]
    try:
        await asyncio.wait(tasks, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        winner = next((index for index, task in enumerate(tasks) if task.done()), None)
        return None if winner is None else (winner, tasks[winner].result())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
