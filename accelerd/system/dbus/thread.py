"""The one GLib thread: a main context that all D-Bus connections live in. Callbacks in it must not block.

It starts with the first use. PyGObject is imported in the thread, so that the import does not hold up the event loop.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final

from accelerd.base import names
from accelerd.system.records import event

log = logging.getLogger(__name__)

JOIN_TIMEOUT: Final = 1.0  # s; a thread that hangs is left behind
_import_lock = threading.Lock()


def import_gi() -> None:
    """Import PyGObject's GLib, GObject and Gio, then pydbus. ImportError or ValueError where one is missing.

    Under a lock: PyGObject creates modules, and with them types, twice when two threads import them at the same time.
    """
    with _import_lock:
        for name in ("gi.repository.GLib", "gi.repository.GObject", "gi.repository.Gio", "pydbus.bus"):
            importlib.import_module(name)


class GLibThread:
    """`later` may be used once the future of `start` has a result."""

    def __init__(self, name: str = "D-Bus") -> None:
        self._name = name
        self._work: deque[Callable[[], None]] = deque()
        self._scheduled = threading.Event()  # the source that does the work is attached
        self._started: Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._context: Any = None
        self._main: Any = None

    def start(self) -> Future[None]:
        """Start unless it runs. The future is set when it runs, or to the ImportError or ValueError of PyGObject."""
        if self._started is None:
            self._started = Future()
            self._started.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
            self._thread = threading.Thread(target=self._run, args=(self._started,), name=self._name, daemon=True)
            self._thread.start()
        return self._started

    def do(self, work: Callable[[], None]) -> None:
        """Have `work` done in the thread, in the order of the calls, once it runs. Nothing happens after `stop`."""
        self._work.append(work)
        if self._context is not None and not self._scheduled.is_set():
            self._scheduled.set()
            self.later(self._do_work)

    def later(self, work: Callable[[], None], milliseconds: int = 0) -> Any:
        """Have `work` done in the thread once, after a time. `destroy()` of the result cancels it."""
        from gi.repository import GLib

        source = GLib.timeout_source_new(milliseconds)

        def once(*_: Any) -> bool:
            guarded(work)
            return False

        source.set_callback(once)
        source.attach(self._context)
        return source

    def stop(self) -> None:
        """End the thread after the work that it has been given."""
        if self._thread is None or self._started is None:
            return
        with suppress(ImportError, ValueError, TimeoutError):
            self._started.result(JOIN_TIMEOUT)  # it may be importing PyGObject
            self.do(self._main.quit)
        self._thread.join(JOIN_TIMEOUT)
        self._thread = self._started = None

    # --- in the thread ----------------------------------------------------------------------------------------

    def _do_work(self) -> None:
        self._scheduled.clear()
        while self._work:
            guarded(self._work.popleft())

    def _run(self, started: Future[None]) -> None:
        try:
            import_gi()
        except (ImportError, ValueError) as error:
            started.set_exception(error)
            return
        from gi.repository import GLib

        self._context = context = GLib.MainContext.new()
        self._main = GLib.MainLoop.new(context, False)
        context.push_thread_default()
        self.do(lambda: started.set_result(None))
        self._main.run()
        while context.iteration(False):  # callbacks that are still due keep connections alive
            continue
        context.pop_thread_default()
        self._context = self._main = None


def tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Have the event loop call `function`, in the order of the calls; nothing happens when it has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


async def finished(begin: Callable[[Callable[[], None]], None], within: float) -> None:
    """Call `begin(done)` and wait until `done()` is called, in any thread, or the time is over."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    begin(partial(tell, loop, over.set))
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            await over.wait()


def guarded(work: Callable[[], None]) -> None:
    """Run `work`; log an exception, which would end the thread or be swallowed by GLib."""
    try:
        work()
    except Exception:
        event(log, logging.ERROR, "unexpected error in the D-Bus thread", message_id=names.MSG_BUG, exc_info=True)
