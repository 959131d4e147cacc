"""One thread for calls that block: D-Bus calls wait here and never on the event loop.

A daemon thread and no executor: one that hangs in a call must not hold up the end of the program.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class WorkerThread:
    """Runs callables one after the other. The thread begins with the first call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, function: Callable[[], T], within: float) -> T:
        """Its result or exception. TimeoutError after `within` seconds: then it may still run, or never begin."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def deliver(setter: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                setter(value)

        def work() -> None:
            if future.done():
                return  # nobody waits any more
            with suppress(RuntimeError):  # the loop has ended meanwhile
                try:
                    value = function()
                except BaseException as error:
                    loop.call_soon_threadsafe(deliver, future.set_exception, error)
                else:
                    loop.call_soon_threadsafe(deliver, future.set_result, value)

        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._queue.put(work)
        async with asyncio.timeout(within):
            return await future

    def close(self, patience: float = 1.0) -> None:
        """End the thread when it has done what is queued; one that hangs is left behind after `patience` seconds."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(patience)
            self._thread = None

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
