"""Waiting for the first of several things, with nothing left running behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


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
