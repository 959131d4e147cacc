"""Who calls: heard of until they leave the bus, kept from calling too often and from having too many calls under way.

Lives in the GLib thread. Says of each caller once that it has come, and once that it has gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from accelerd.base.errors import AccelError
from accelerd.system.dbus.owners import ask_owner, subscribe

EACH: Final = 64  # calls under way for one client
ALL: Final = 1024
LARGEST: Final = 1 << 20  # bytes of arguments
BURST: Final = 400  # calls that one client may do as fast as it can …
INTERVAL: Final = 0.005  # … and seconds for each one after


class Callers:
    """See the module's text."""

    def __init__(
        self, come: Callable[[str], None], gone: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._come = come
        self._gone = gone
        self._clock = clock
        self._due: dict[str, float] = {}  # when all calls of a client so far were allowed to begin, one an interval
        self._bus: Any = None
        self._watches: dict[str, Any] = {}
        self._calls: dict[str, int] = {}

    def attach(self, bus: Any) -> None:
        """pydbus's."""
        self._bus = bus

    def detach(self) -> None:
        """The connection has gone: for us they have all left."""
        for sender in list(self._watches):
            self._left(sender)
        self._bus = None

    def see(self, sender: str) -> None:
        """This one has called something."""
        if sender not in self._watches:
            self._come(sender)
            self._watches[sender] = subscribe(self._bus, sender, lambda owner: self._owned(sender, owner))
            ask_owner(self._bus, sender, lambda owner: self._owned(sender, owner))  # it may have gone before

    def pace(self, sender: str) -> int:
        """How many ms this call, of any kind, has to wait: who calls without end is slowed and not refused."""
        now = self._clock()
        due = max(self._due.get(sender, 0.0), now - BURST * INTERVAL) + INTERVAL
        self._due[sender] = due
        return max(0, round((due - now) * 1000))

    def begin(self, sender: str, size: int) -> None:
        """A call with so many bytes of arguments is under way. AccelError when it is one too many, or too large."""
        if size > LARGEST:
            raise AccelError("body_too_large", f"the arguments have more than {LARGEST} bytes; send less")
        if self._calls.get(sender, 0) >= EACH:
            raise AccelError("too_many_calls", f"you have {EACH} calls under way; wait for their answers")
        if sum(self._calls.values()) >= ALL:
            raise AccelError("too_many_calls", f"{ALL} calls are under way; try again")
        self._calls[sender] = self._calls.get(sender, 0) + 1

    def end(self, sender: str) -> None:
        """One call fewer."""
        left = self._calls.pop(sender, 1) - 1
        if left > 0:
            self._calls[sender] = left

    def _owned(self, sender: str, owner: str) -> None:
        if not owner:
            self._left(sender)

    def _left(self, sender: str) -> None:
        self._due.pop(sender, None)
        watch = self._watches.pop(sender, None)
        if watch is not None:
            watch.unsubscribe()
            self._gone(sender)
