"""Finds exchanges that stand still: clients that do not read, engines that do not send. One timer for all of them."""

from __future__ import annotations

import asyncio

from accelerd.base.ports import Clock
from accelerd.gateway.relay import Relay

SWEEP_PERIOD = 5.0  # s: the longest delay of a deadline
WHOLE_ANSWER_TIMEOUT = 3600.0  # s: for engines, which send nothing until a plain response is complete


class Sweeper:
    """One coarse timer for all exchanges: finds clients that do not read and engines that do not send.

    Runs only while an exchange is in progress or written data is unread, so that an idle daemon sleeps. Timeouts are in
    seconds and may be changed at any time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop = loop
        self._now = clock.monotonic
        self._watched: dict[Relay, bool] = {}
        self._unread: dict[asyncio.Transport, float] = {}  # client → since when it has read nothing
        self._timer: asyncio.TimerHandle | None = None
        self.write_timeout = 60.0
        self.stall_timeout = 300.0

    def watch(self, relay: Relay, *, stream: bool) -> None:
        """`stream`: the engine should send something every `stall_timeout` seconds."""
        self._watched[relay] = stream
        if self._timer is None:
            self._arm()

    def forget(self, relay: Relay) -> None:
        self._watched.pop(relay, None)

    def paused(self, client: asyncio.Transport) -> None:
        """The client does not read: after `write_timeout` it is aborted, which cancels its request."""
        self._unread[client] = self._now()
        if self._timer is None:
            self._arm()

    def resumed(self, client: asyncio.Transport) -> None:
        """It reads again, or has disconnected."""
        self._unread.pop(client, None)

    def close(self) -> None:
        """After the last exchange."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        period = min(SWEEP_PERIOD, self.write_timeout / 4, self.stall_timeout / 4)
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
                continue  # the engine sends nothing because the client does not read
            limit = self.stall_timeout if stream else max(self.stall_timeout, WHOLE_ANSWER_TIMEOUT)
            if relay.lease is not None and now - relay.lease.progress > limit:
                relay.stall(limit)
        if self._watched or self._unread:
            self._arm()
