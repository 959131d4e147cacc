"""One coarse timer for all exchanges instead of one each: finds clients that read nothing and engines that say nothing.

Runs only while an exchange is in flight or something written waits for its reader: an idle daemon sleeps.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from accelerd.base.ports import Clock
from accelerd.gateway.relay import Relay

PERIOD = 5.0  # s: the longest a deadline is missed by
WHOLE_ANSWER_TIMEOUT = 3600.0  # s: an engine that sends nothing before its plain answer is complete


class Client(Protocol):
    def abort(self) -> None:
        """Close its connection at once, which ends its handler and with it the engine's work."""


class Sweeper:
    """Watches relays and clients. Timeouts in seconds; they may be changed at any time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop = loop
        self._now = clock.monotonic
        self._watched: dict[Relay, bool] = {}
        self._unread: dict[Client, float] = {}  # clients that have read nothing since then
        self._timer: asyncio.TimerHandle | None = None
        self.write_timeout = 60.0
        self.stall_timeout = 300.0

    def watch(self, relay: Relay, *, stream: bool) -> None:
        """`stream`: the engine is expected to send something every `stall_timeout` seconds."""
        self._watched[relay] = stream
        if self._timer is None:
            self._arm()

    def forget(self, relay: Relay) -> None:
        self._watched.pop(relay, None)

    def paused(self, client: Client) -> None:
        """What was written for the client waits: it has `write_timeout` to read on, its exchange over or not."""
        self._unread[client] = self._now()
        if self._timer is None:
            self._arm()

    def resumed(self, client: Client) -> None:
        """It reads again, or has gone."""
        self._unread.pop(client, None)

    def close(self) -> None:
        """After the last exchange."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        period = min(PERIOD, self.write_timeout / 4, self.stall_timeout / 4)
        self._timer = self._loop.call_later(period, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self._now()
        for client, since in list(self._unread.items()):
            if now - since > self.write_timeout:
                del self._unread[client]
                client.abort()
        for relay, stream in list(self._watched.items()):
            if relay.paused:
                continue  # the engine is silent because nobody reads
            limit = self.stall_timeout if stream else max(self.stall_timeout, WHOLE_ANSWER_TIMEOUT)
            if relay.lease is not None and now - relay.lease.progress > limit:
                relay.stall(limit)
        if self._watched or self._unread:
            self._arm()
