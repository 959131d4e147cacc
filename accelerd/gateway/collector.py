"""Collects a whole response of an engine that is looked at before the client gets it. Sends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from accelerd.base.errors import AccelError
from accelerd.gateway.relay import MAX_COLLECTED
from accelerd.gateway.response_framing import FramingError, Head
from accelerd.scheduler.record import Lease


class Collector:
    """Collects a whole response that is processed before the client gets it."""

    __slots__ = (
        "_busy",
        "_finished",
        "_lease",
        "_now",
        "_size",
        "failure",
        "parts",
        "response",
        "unread",
    )

    def __init__(self, lease: Lease, now: Callable[[], float], busy: frozenset[int] = frozenset()) -> None:
        self._busy = busy
        self._lease = lease
        self._now = now
        self._size = 0
        self.parts: list[bytes] = []
        self.response: Head | None = None
        self.failure: str | None = None
        self.unread = False
        self._finished: asyncio.Future[AccelError | None]

    def begin(self, finished: asyncio.Future[AccelError | None]) -> None:
        """Start an attempt. Another may follow if no part of a response arrives."""
        self._finished, self.failure, self.response = finished, None, None
        self.unread = False
        self.parts.clear()

    @property
    def engine_busy(self) -> bool:
        """Has the engine answered with one of the busy statuses?"""
        return self.response is not None and self.response.status in self._busy

    def head(self, head: Head, more: bool) -> bool:
        self.response = head
        return True

    def data(self, data: bytes) -> None:
        self._lease.progress = self._now()
        self._size += len(data)
        if self._size > MAX_COLLECTED:
            raise FramingError(f"a response of more than {MAX_COLLECTED >> 20} MiB")
        self.parts.append(data)

    def done(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    def lost(self, reason: str, *, clean: bool, answered: bool, unread: bool = False) -> None:
        self.failure, self.unread = reason, unread
        self.done()
