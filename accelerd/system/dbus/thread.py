"""The one GLib thread: it owns the bus and nothing else. Others hand it work, which it does in order.

Never waits for the event loop. PyGObject is needed here, a machine without it does not come this far.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gi.repository import GLib

from accelerd.base import names
from accelerd.system.records import event

log = logging.getLogger(__name__)

JOIN: Final = 1.0  # s; a thread that hangs is left behind


class GLibThread:
    """See the module's text."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: deque[Callable[[], None]] = deque()
        self._awake = threading.Event()  # its source is attached
        self._context = GLib.MainContext.new()
        self._main = GLib.MainLoop.new(self._context, False)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin, on the running loop; what was handed over before is done first."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> None:
        """From the loop's thread: have it done, after all that was handed over before."""
        self._work.append(work)
        if not self._awake.is_set():
            self._awake.set()
            self.later(self._drain)

    def join(self) -> None:
        """Wait for the end of a thread that was told to `quit`."""
        if self._thread is not None:
            self._thread.join(JOIN)
            self._thread = None

    # --- in the thread ----------------------------------------------------------------------------------------

    def tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call it, in order."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(function, *arguments)

    def later(self, work: Callable[[], None], milliseconds: int = 0) -> Any:
        """Do it once, after a time. `destroy()` of what this returns keeps it from being done."""
        source = GLib.timeout_source_new(milliseconds)

        def once(*_: Any) -> bool:
            guarded(work)
            return False

        source.set_callback(once)
        source.attach(self._context)
        return source

    def quit(self) -> None:
        """End the thread once this returns."""
        self._main.quit()

    def _drain(self) -> None:
        self._awake.clear()
        while self._work:
            guarded(self._work.popleft())

    def _run(self) -> None:
        context = self._context
        context.push_thread_default()
        self._main.run()
        while context.iteration(False):  # what is left to be freed keeps the connection
            continue
        context.pop_thread_default()


def guarded(work: Callable[[], None]) -> None:
    """A bug here must not end the thread, nor be printed by GLib."""
    try:
        work()
    except Exception:
        event(log, logging.ERROR, "a bug in the bus", message_id=names.MSG_BUG, exc_info=True)
