"""Forwards inference requests to engines: waits for a lease, sends the request, retries a busy engine, ends the lease.

The response goes from engine to client through a Relay as it comes, except where a whole answer must be looked at
first: assembled from a stream (assemble.py), or from an engine that may report an error with status 200.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from accelerd.base.errors import AccelError
from accelerd.config.model import ServerSettings
from accelerd.gateway.assemble import ask_for_stream, assemble
from accelerd.gateway.endpoints import ASSEMBLED
from accelerd.gateway.form import Form
from accelerd.gateway.peek import Peek, renamed
from accelerd.gateway.relay import EVENT_STREAM, Collector, Relay, hidden_error
from accelerd.gateway.request_router import RequestRouter, UpstreamTarget
from accelerd.gateway.responses import JSON_TYPE
from accelerd.gateway.sweeper import Sweeper
from accelerd.gateway.upstream import Upstreams
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Lease
from accelerd.scheduler.service import Scheduler

COMMENT_EVERY = 5.0  # s: to a streaming client that waits
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # s: before a busy engine is asked again


@dataclass(slots=True)
class InferenceRequest:
    """A request as it goes to its engine."""

    target: UpstreamTarget
    path: str  # the client's
    info: Peek | Form
    original_body: bytes
    content_type: str

    @property
    def stream(self) -> bool:
        return bool(self.info.stream)

    def body(self) -> bytes:
        """With the model's name as the engine knows it."""
        name = self.target.wire_name
        if name is None:
            return self.original_body
        if isinstance(self.info, Form):
            return self.info.renamed(self.original_body, name)
        return renamed(self.original_body, name)


class Forwarder:
    """Forwards requests, any number at a time. `settings` may be replaced at any time."""

    settings: ServerSettings

    def __init__(
        self,
        now: Callable[[], float],
        scheduler: Scheduler,
        router: RequestRouter,
        upstreams: Upstreams,
        sweeper: Sweeper,
    ) -> None:
        self._now = now
        self._scheduler = scheduler
        self._router = router
        self._upstreams = upstreams
        self._sweeper = sweeper
        self._loop = asyncio.get_running_loop()

    async def forward(self, request: InferenceRequest, relay: Relay) -> AccelError | None:
        """Have the request answered through `relay`. An error when nothing of an answer was sent."""
        try:
            relay.lease = lease = self._scheduler.acquire(request.target.model)
            if lease is None:
                relay.lease = lease = await self._wait(request, relay)
                # A loaded model may be asked differently than what was known of it before.
                request.target = self._router.target_of(lease.record.spec, request.path, request.info)
            relay.busy_statuses = request.target.busy_statuses
            return await self._exchange(lease, relay, request)
        except AccelError as error:
            return relay.fail(error)
        except Exception:
            if relay.committed:
                relay.abort()  # a bug: let it not look like the end of the response
            raise
        finally:
            self._sweeper.forget(relay)
            if relay.lease is not None:
                self._scheduler.release(relay.lease, relay.ok)

    async def _wait(self, request: InferenceRequest, relay: Relay) -> Lease:
        """A place in the queue. A streaming client gets comments, so that it knows that we are alive."""
        ticket = self._scheduler.enqueue(request.target.model)
        try:
            if request.stream:
                began = self._now()
                pause = self.settings.keepalive_after
                while not await ticket.ready(pause):
                    snapshot = self._scheduler.snapshot(request.target.model)
                    what = "loading" if snapshot.state is State.STARTING else "waiting for"
                    relay.comment(f"{what} {snapshot.spec.name}, {self._now() - began:.0f} s", snapshot.spec.name)
                    pause = COMMENT_EVERY
            return await ticket.lease()
        finally:
            ticket.leave()

    async def _exchange(self, lease: Lease, relay: Relay, request: InferenceRequest) -> AccelError | None:
        spec = lease.record.spec
        checked = request.target.hides_errors
        if not request.stream:
            assembled = spec.slots > 1 and request.path in ASSEMBLED and self._router.streams_notice_disconnect(spec)
            if assembled or checked:
                return await self._whole(lease, relay, request, assembled=assembled)
        relay.only_stream = checked
        self._sweeper.watch(relay, stream=request.stream)
        return await self._send(lease, relay, request, request.body(), relay)

    async def _whole(
        self, lease: Lease, relay: Relay, request: InferenceRequest, *, assembled: bool
    ) -> AccelError | None:
        """Collect the answer before the client gets it. `assembled`: from a stream, see assemble.py for why."""
        collector = Collector(lease, self._now, request.target.busy_statuses)
        self._sweeper.watch(relay, stream=assembled)
        body = ask_for_stream(request.body()) if assembled else request.body()
        await self._send(lease, collector, request, body, relay)
        self._sweeper.forget(relay)  # what is left is ours to do
        head, failure = collector.response, collector.failure
        relay.ok = False
        if head is None or failure is not None:
            return relay.failure(failure or "no response")
        status, kind, content = head.status, head.content_type, b"".join(collector.parts)
        if assembled and status == 200:
            if kind.startswith(EVENT_STREAM):
                status, content = assemble(content)
                kind = b"application/json; charset=utf-8"
            elif not kind.startswith(b"application/json"):
                raise AccelError("upstream_failed", "the engine answered with neither a stream nor JSON")
        if status == 200 and request.target.hides_errors and (error := hidden_error(content)) is not None:
            return relay.failure(error)
        relay.ok = status < 500
        relay.reply(status, kind, content)
        return None

    async def _send(
        self, lease: Lease, receiver: Relay | Collector, request: InferenceRequest, body: bytes, relay: Relay
    ) -> AccelError | None:
        """One answer of the engine. A busy engine is asked again until scheduler.queue_timeout."""
        retry: BusyRetry | None = None
        while True:
            error = await self._attempt(lease, receiver, request, body, relay)
            if not receiver.engine_busy:
                return error
            if retry is None:
                limit = self._scheduler.settings.queue_timeout
                retry = BusyRetry(self._now, limit, self.settings.keepalive_after if request.stream else None)
            await retry.pause(relay)
            receiver.ask_again()

    async def _attempt(
        self, lease: Lease, receiver: Relay | Collector, request: InferenceRequest, body: bytes, relay: Relay
    ) -> AccelError | None:
        """One exchange with the engine, on a pooled connection. Sent again once if an idle one had died meanwhile."""
        pool = self._upstreams.get(lease.instance)
        if pool is None:
            spec = lease.record.spec
            ahead = spec.slots if self._router.closes_after_streams(spec) else 0
            pool = self._upstreams.create(lease.instance, lease.endpoint, ahead)
        path, secret, kind = request.target.path, lease.secret, request.content_type
        data = pool.request(path, secret, body) if kind is JSON_TYPE else pool.request_of(kind, path, secret, body)
        connection = pool.reuse() if not relay.committed else None  # what cannot be sent again takes no risk
        while True:
            fresh = connection is None
            if connection is None:
                try:
                    connection = await pool.connect()
                except (OSError, TimeoutError) as error:
                    relay.ok = False
                    raise AccelError("upstream_failed", f"cannot connect to the engine: {error}") from None
            finished: asyncio.Future[AccelError | None] = self._loop.create_future()
            receiver.begin(finished)
            relay.attach(connection, receiver)
            connection.send(receiver, data)
            try:
                outcome = await finished
            except asyncio.CancelledError:
                relay.abandon(self.settings.stall_timeout)
                raise
            finally:
                relay.detach()
            if fresh or not relay.may_repeat(receiver.unanswered):
                return outcome
            connection = None


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
