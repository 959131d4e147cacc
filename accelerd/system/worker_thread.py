"""Threads for blocking calls, such as reads and writes in sysfs, which may hang in a driver or on a disk.

Daemon threads, which Python's executors do not have: a call that hangs must not delay the exit of the program.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MOST: Final = 32  # threads of an executor
GRACE: Final = 0.5  # s that its end waits for what runs


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


class DaemonThreadExecutor(ThreadPoolExecutor):
    """The event loop's executor, whose end waits for what runs for a moment only.

    Of the base class, which the loop insists on, only the type is used. A thread starts when all others have a call.
    """

    def __init__(self) -> None:
        super().__init__(MOST)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = 0  # calls that have not ended
        self._serving: list[threading.Thread] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                self._ended()
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                self._ended()
                future.set_exception(error)
            else:
                self._ended()
                future.set_result(result)

        with self._lock:
            self._open += 1
            self._jobs.put(job)
            if len(self._serving) < min(self._open, MOST):
                thread = threading.Thread(target=self._serve, name=f"blocking {len(self._serving)}", daemon=True)
                self._serving.append(thread)
                thread.start()
        return future

    def _ended(self) -> None:
        """A call has: whoever hears of that finds this thread free."""
        with self._lock:
            self._open -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        until = time.monotonic() + GRACE
        for _ in self._serving:
            self._jobs.put(None)
        for thread in self._serving if wait else ():
            thread.join(max(until - time.monotonic(), 0))

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job
