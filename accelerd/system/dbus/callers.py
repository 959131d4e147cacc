"""The clients that call exported objects: known until they leave the bus, limited in rate and in calls under way.

Lives in the GLib thread. Reports each caller once when it comes and once when it has gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from accelerd.base.errors import AccelError
from accelerd.system.dbus.owners import ask_owner, follow_owner

CALLS_PER_CLIENT: Final = 64  # under way at the same time
CALLS_IN_ALL: Final = 1024
LARGEST_ARGUMENTS: Final = 1 << 20  # bytes
BURST: Final = 400  # calls that one client may make without a pause …
INTERVAL: Final = 0.005  # … and seconds between those that follow


class Callers:
    def __init__(
        self, come: Callable[[str], None], gone: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._come = come
        self._gone = gone
        self._clock = clock
        self._due: dict[str, float] = {}  # caller → when its calls so far would have ended, one for each interval
        self._bus: Any = None
        self._watches: dict[str, Any] = {}
        self._calls: dict[str, int] = {}

    def attach(self, bus: Any) -> None:
        self._bus = bus

    def detach(self) -> None:
        """The connection has ended: all of them count as gone."""
        for sender in list(self._watches):
            self._left(sender)
        self._bus = None

    def see(self, sender: str) -> None:
        """`sender` has called something."""
        if sender not in self._watches:
            self._come(sender)
            self._watches[sender] = follow_owner(self._bus, sender, lambda owner: self._owned(sender, owner))
            ask_owner(self._bus, sender, lambda owner: self._owned(sender, owner))  # it may have gone already

    def pace(self, sender: str) -> int:
        """How many ms a call has to wait: a client that calls all the time is slowed down, not refused."""
        now = self._clock()
        due = max(self._due.get(sender, 0.0), now - BURST * INTERVAL) + INTERVAL
        self._due[sender] = due
        return max(0, round((due - now) * 1000))

    def begin(self, sender: str, size: int) -> None:
        """Count a call, with `size` bytes of arguments, as under way. AccelError when that is too much."""
        if size > LARGEST_ARGUMENTS:
            raise AccelError("body_too_large", f"the arguments are larger than {LARGEST_ARGUMENTS} bytes")
        if self._calls.get(sender, 0) >= CALLS_PER_CLIENT:
            raise AccelError("too_many_calls", f"{CALLS_PER_CLIENT} of your calls are under way; wait for an answer")
        if sum(self._calls.values()) >= CALLS_IN_ALL:
            raise AccelError("too_many_calls", f"{CALLS_IN_ALL} calls are under way; try again later")
        self._calls[sender] = self._calls.get(sender, 0) + 1

    def end(self, sender: str) -> None:
        """One of its calls has been answered."""
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
