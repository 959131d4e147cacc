"""Patience with an engine that says "my queue is full, ask again": pauses that grow, and an end to them.

Such an engine is not the client's matter, and it has not failed: whoever asks again holds its lease meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from accelerd.base.errors import AccelError
from accelerd.gateway.relay import Relay

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # s
COMMENT_EVERY = 5.0  # s: to a streaming client that waits


class BusyRetry:
    """Of one request, from its arrival on."""

    def __init__(self, now: Callable[[], float], limit: float, comment_after: float | None) -> None:
        """`limit`: seconds in all (scheduler.queue_timeout); `comment_after`: None for clients that do not stream."""
        self._now = now
        self._limit = limit
        self._began = now()
        self._pause = FIRST_PAUSE
        self._comment_at = self._began + comment_after if comment_after is not None else None

    async def pause(self, relay: Relay) -> None:
        """Until the engine may be asked again. AccelError queue_timeout when that has no end."""
        assert relay.lease is not None
        relay.ok = None
        model, left = relay.lease.model, self._began + self._limit - self._now()
        if left <= 0:
            text = f"{model} had no room for a request in {self._limit:.0f} s (scheduler.queue_timeout)"
            raise AccelError("queue_timeout", text, retry_after=LONGEST_PAUSE)
        if self._comment_at is not None and self._now() >= self._comment_at:
            relay.comment(f"waiting for {model}, {self._now() - self._began:.0f} s", model)
            self._comment_at = self._now() + COMMENT_EVERY
        wait = min(self._pause, left)
        if self._comment_at is not None:
            wait = min(wait, max(0.0, self._comment_at - self._now()))
        await asyncio.sleep(wait)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        relay.lease.progress = self._now()  # it has answered: what it said is no silence
