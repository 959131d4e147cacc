"""One coarse timer for all exchanges instead of one each: finds clients that read nothing and engines that say nothing.

Runs only while an exchange is in flight, so an idle daemon never wakes up for it.
"""

from __future__ import annotations

import asyncio

from accelerd.gateway.relay import Relay
from accelerd.ports import Clock

PERIOD = 5.0  # s: the longest a deadline is missed by
WHOLE_ANSWER_TIMEOUT = 3600.0  # s: an engine that sends nothing before its plain answer is complete


class Sweeper:
    """Watches relays. Timeouts in seconds; they may be changed at any time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, period: float = PERIOD) -> None:
        self._loop = loop
        self._now = clock.monotonic
        self._period = period
        self._watched: dict[Relay, bool] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.write_timeout = 60.0
        self.stall_timeout = 300.0

    def watch(self, relay: Relay, *, stream: bool) -> None:
        """`stream`: the engine is expected to send something every `stall_timeout` seconds."""
        self._watched[relay] = stream
        if self._timer is None:
            self._timer = self._loop.call_later(self._period, self._sweep)

    def forget(self, relay: Relay) -> None:
        self._watched.pop(relay, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        now = self._now()
        for relay, stream in list(self._watched.items()):
            if relay.paused_at is not None:
                if now - relay.paused_at > self.write_timeout:
                    relay.drop()
                continue  # the engine is silent because nobody reads
            limit = self.stall_timeout if stream else max(self.stall_timeout, WHOLE_ANSWER_TIMEOUT)
            if relay.lease is not None and now - relay.lease.progress > limit:
                relay.stall(limit)
        if self._watched:
            self._timer = self._loop.call_later(self._period, self._sweep)
