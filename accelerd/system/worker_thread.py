"""One thread for blocking calls, such as reads and writes in sysfs, which may hang in a driver.

A daemon thread instead of an executor: a call that hangs must not delay the exit of the program.
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
    """Runs callables one after the other. The thread starts with the first call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, function: Callable[[], T], within: float | None) -> T:
        """Its result or exception. TimeoutError after `within` seconds: it may then still run, or never start."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def deliver(setter: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                setter(value)

        def work() -> None:
            if future.done():
                return  # cancelled or timed out
            with suppress(RuntimeError):  # the loop has ended
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

    def close(self, join_timeout: float = 1.0) -> None:
        """End the thread after the queued calls; one that hangs is abandoned after `join_timeout` seconds."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(join_timeout)
            self._thread = None

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
