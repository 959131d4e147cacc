"""What a request does while it waits: what its client is told, and the pauses before a busy engine is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from accelerd.base.errors import AccelError
from accelerd.base.sizes import human_size
from accelerd.gateway.relay import Relay
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import DownloadProgress, Snapshot

COMMENT_EVERY = 5.0  # s: to a streaming client that waits
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # s: before a busy engine is asked again


def waiting_for(snapshot: Snapshot, waited: float) -> str:
    """What a request waits for, in a comment to its client."""
    name, download = snapshot.spec.name, snapshot.download
    if download is not None:
        return f"downloading {name}{progress_in_words(download)}"
    doing = {State.STARTING: "loading", State.WAKING: "waking up"}.get(snapshot.state, "waiting for")
    return f"{doing} {name}, {waited:.0f} s"


def progress_in_words(download: DownloadProgress) -> str:
    """ " 12 % (1.2 of 9.8 GiB, 80 MiB/s, 2 min left)", as far as it is known."""
    if not download.bytes:
        return ""
    if not download.total:
        return f" ({human_size(download.bytes)}, {human_size(download.rate)}/s)"
    parts = [f"{human_size(download.bytes)} of {human_size(download.total)}", f"{human_size(download.rate)}/s"]
    if (left := download.remaining) is not None:
        parts.append(f"{left:.0f} s left" if left < 90 else f"{left / 60:.0f} min left")
    return f" {download.bytes * 100 // download.total} % ({', '.join(parts)})"


class BusyRetry:
    """The pauses of one request to an engine that answers "my queue is full": they grow, and have an end.

    Such an engine has not failed, and its state is not the client's matter: the request holds its lease meanwhile.
    """

    def __init__(self, now: Callable[[], float], limit: float, comment_after: float | None) -> None:
        """`limit`: seconds in all (scheduler.queue_timeout); `comment_after`: None for clients that do not stream."""
        self._now = now
        self._limit = limit
        self._began = now()
        self._pause = FIRST_PAUSE
        self._comment_at = self._began + comment_after if comment_after is not None else None

    async def pause(self, relay: Relay) -> None:
        """Until the engine may be asked again. AccelError queue_timeout when the limit is reached."""
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
        relay.lease.progress = self._now()  # it has answered: a busy engine is not a silent one
