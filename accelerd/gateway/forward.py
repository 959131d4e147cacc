"""Forwards inference requests to engines: waits for a lease, sends the request, retries a busy engine, ends the lease.

The response goes from engine to client through a Relay as it comes, except where a whole answer must be looked at
first: assembled from a stream (stream_assembly.py), or from an engine that may report an error with status 200.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from accelerd.base.errors import AccelError
from accelerd.config.model import ServerSettings
from accelerd.engines.remote.remotes import Remotes
from accelerd.gateway.amendments import AMENDED, amendment
from accelerd.gateway.collector import Collector
from accelerd.gateway.dialects.translation import (
    EVENT_STREAM,
    TranslatedResponse,
    answering_as,
)
from accelerd.gateway.engine_errors import hidden_error
from accelerd.gateway.going_on import GoingOn, all_failed
from accelerd.gateway.health_checks import HealthChecks
from accelerd.gateway.inference_request import InferenceRequest
from accelerd.gateway.one_by_one import JoinedStreams, bodies_of, joined, listed
from accelerd.gateway.relay import Relay, never
from accelerd.gateway.remote_upstream import RemotePool
from accelerd.gateway.request_body import OllamasBody, SeveralBody
from accelerd.gateway.request_router import RequestRouter
from accelerd.gateway.responses import ASSEMBLED, LISTED, RESPONSES
from accelerd.gateway.stream_assembly import ask_for_stream, assemble
from accelerd.gateway.sweeper import Sweeper
from accelerd.gateway.upstream import ConnectionT, Pool, Upstreams
from accelerd.gateway.waiting import COMMENT_EVERY, BusyRetry, waiting_for
from accelerd.gateway.whole_responses import repeated_of
from accelerd.scheduler.record import Lease
from accelerd.scheduler.service import Scheduler, Ticket

log = logging.getLogger(__name__)

MOST_RETURNS: Final = 3  # into the queue, for one request


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
        remotes: Remotes,
    ) -> None:
        self._now = now
        self._scheduler = scheduler
        self._router = router
        self._upstreams = upstreams
        self._sweeper = sweeper
        self._remotes = remotes
        self.checks = HealthChecks(router.health, remotes)
        self._going_on = GoingOn(router, self.checks)
        self._loop = asyncio.get_running_loop()

    def start(self, request: InferenceRequest, relay: Relay) -> None:
        """Begin without waiting: if the model is ready and has an idle connection, the engine gets the request now.

        `forward` must follow, whatever happens in between.
        """
        request.translate()  # what cannot be translated is refused before anything is loaded
        relay.lease = lease = self._scheduler.acquire(request.target.model)
        if lease is None:
            request.ticket = self._queue(request, relay)  # now, so that the next one is routed past a long queue
            return
        self._begin(lease, relay, request)
        if not request.stream and (request.target.hides_errors or self._may_assemble(lease, request)):
            return
        if request.answers_apart(lease.record.spec) > 1:
            return
        pool = self._pool(lease)
        connection = pool.reuse()
        if connection is None:
            return
        try:
            body = request.body()
            self._prepare(relay, request)
            relay.in_flight = self._transmit(pool, connection, relay, request, body, relay)
        except Exception:
            connection.close()
            self._sweeper.forget(relay)
            self._scheduler.release(lease, None)
            raise

    async def load(self, model: str, keep: float | None, arrived: float) -> None:
        """Have the model ready, or with `keep` 0 give it up once nobody needs it. AccelError."""
        if keep == 0:
            lease = self._scheduler.acquire(model)
            if lease is None:  # it is not loaded, or others use it
                return
        else:
            ticket = self._scheduler.enqueue(model, arrived)
            try:
                lease = await ticket.lease()
            finally:
                ticket.leave()
        lease.keep = keep
        self._scheduler.release(lease, None)

    async def forward(self, request: InferenceRequest, relay: Relay) -> AccelError | None:
        """Go on after `start`: have the request answered through `relay`. An error if no response was sent.

        Until a byte of a response is sent, what fails is tried again where it can succeed.
        """
        while True:
            try:
                error = await self._try(request, relay)
            except AccelError as found:
                error = found
            except asyncio.CancelledError:
                self._router.health.left(request.target.model)
                raise
            if error is None or relay.passed:
                self._going_on.ended(request.target, request.facts, request.attempts, error or relay.verdict)
                return None if error is None else relay.fail(error)
            stays = self._returns(request, relay) or self._waits_out(request, error)
            if not (stays or await self._elsewhere(request, error)):
                return relay.fail(all_failed(request.facts, request.attempts) or error)
            relay.start_over()

    @staticmethod
    def _returns(request: InferenceRequest, relay: Relay) -> bool:
        """Did its engine die before it read the request? Then it has the place in the queue again that it had."""
        if not relay.unread or relay.cut_with is not None or request.returns >= MOST_RETURNS:
            return False
        request.returns, request.patient = request.returns + 1, False
        log.info("%s: its engine was gone before it had read a request: the request waits again", request.target.model)
        return True

    def _waits_out(self, request: InferenceRequest, error: AccelError) -> bool:
        """Is the model in a back-off while no other one can answer? Then the request asks to wait until it ends."""
        if request.patient or not self._going_on.waits_out(request.target, request.facts, request.attempts, error):
            return False
        request.patient = True
        return True

    async def _elsewhere(self, request: InferenceRequest, error: AccelError) -> bool:
        """Is there another model that may answer, or one to ask again? Then that is the target."""
        self._going_on.ended(request.target, request.facts, request.attempts, error)
        target = self._going_on.another(request.target, request.facts, request.attempts, error)
        if target is None:
            target = await self._going_on.again(request.facts, request.attempts)
        if target is None:
            return False
        request.target, request.returns, request.patient = target, 0, False
        return True

    def _replaceable(self, request: InferenceRequest, error: AccelError) -> bool:
        """May another model answer, if the engine fails with such an answer?"""
        return self._going_on.may_another(request.target, request.facts, request.attempts, error)

    async def _try(self, request: InferenceRequest, relay: Relay) -> AccelError | None:
        """Have one model answer. The error if it did not; nothing of a response was sent then, except comments."""
        try:
            lease = relay.lease
            if lease is None:
                relay.lease = lease = await self._wait(request, relay)
                self._begin(lease, relay, request)
                # A loaded model may be asked differently than what was known of it before.
                facts, routes = request.facts, request.target.routes
                request.target = self._router.target_of(
                    lease.record.spec, facts.path, facts.info, facts.media, routes, request.target.variants
                )
            if relay.in_flight is not None:
                return await self._send(lease, relay, request, request.body(), relay)
            streamed = ask_for_stream(request.body()) if self._may_assemble(lease, request) else None
            body, spec = streamed or request.body(), lease.record.spec
            count = request.answers_apart(spec)
            bodies = [body] if count == 1 else bodies_of(body, count, spec.sampling.seed)
            if not request.stream and (streamed is not None or request.target.hides_errors or count > 1):
                return await self._collect(lease, relay, request, bodies, assembled=streamed is not None)
            self._prepare(relay, request)
            if count > 1:
                return await self._join(lease, relay, request, bodies, JoinedStreams(count))
            return await self._send(lease, relay, request, body, relay)
        except AccelError:
            raise
        except Exception:
            if relay.committed:
                relay.abort()  # a bug: the response must not look complete
            raise
        finally:
            self._sweeper.forget(relay)
            # The connection keeps the relay, and must not keep the request with its body.
            relay.replaceable, relay.repeated, relay.amend = never, None, None
            if relay.lease is not None:
                if relay.unread:
                    self._scheduler.doubt(relay.lease)
                self._scheduler.release(relay.lease, relay.ok)

    async def _wait(self, request: InferenceRequest, relay: Relay) -> Lease:
        """A place in the queue. A streaming client gets comments, so that it knows that we are alive."""
        ticket, request.ticket = request.ticket or self._queue(request, relay), None
        try:
            if request.stream:
                began = self._now()
                pause = self.settings.keepalive_after
                while not await ticket.ready(pause):
                    snapshot = self._scheduler.snapshot(request.target.model)
                    # The head names who answers, and of a route another may.
                    model = "" if self._router.plan(request.facts) is not None else snapshot.spec.name
                    relay.comment(waiting_for(snapshot, self._now() - began), model)
                    pause = COMMENT_EVERY
            return await ticket.lease()
        finally:
            ticket.leave()

    def _queue(self, request: InferenceRequest, relay: Relay) -> Ticket:
        moves_on = not request.patient and self._router.several(request.facts)
        return self._scheduler.enqueue(request.target.model, relay.began, moves_on=moves_on)

    def _begin(self, lease: Lease, relay: Relay, request: InferenceRequest) -> None:
        """It is the request's turn."""
        relay.replaceable = partial(self._replaceable, request)
        relay.others = self._router.several(request.facts)
        relay.route, relay.attempt = next(iter(request.target.routes), ""), request.attempts.number
        self._router.health.begin(request.target.model)
        lease.cut, relay.leased = relay.cut, lease.progress
        if isinstance(request.info, OllamasBody):
            lease.keep = request.info.keep()
        spec = lease.record.spec
        relay.dialect, relay.traits = self._router.dialect(spec), partial(self._router.traits, spec)
        if request.path == RESPONSES:
            relay.repeated = repeated_of(request.original_body, spec.sampling, relay.dialect)
        elif request.path in AMENDED:
            relay.amend = amendment(request.info, request.original_body)

    def _may_assemble(self, lease: Lease, request: InferenceRequest) -> bool:
        """Is a plain response asked for as a stream and assembled, if that can be? See stream_assembly.py."""
        spec = lease.record.spec
        able = spec.slots > 1 and not request.stream and request.engines_path in ASSEMBLED
        return able and self._router.dialect(spec).streams_notice_disconnect

    def _prepare(self, relay: Relay, request: InferenceRequest) -> None:
        self._describe(relay, request)
        relay.only_stream = request.target.hides_errors or (relay.translated is not None and request.stream)
        relay.several = isinstance(request.info, SeveralBody) and request.info.has_several()
        self._sweeper.watch(relay, stream=request.stream)

    def _describe(self, relay: Relay, request: InferenceRequest) -> None:
        """What the relay must know of the target."""
        target, translated = request.target, request.translate()
        relay.busy_statuses, relay.misnamed, relay.translated = target.busy_statuses, request.misnamed, None
        relay.called_there = target.wire_name or relay.called
        if target.translation is not None and translated is not None:
            name = request.info.model or target.model
            answering = answering_as(name, self._now, relay.began, relay.leased, translated.with_usage)
            relay.translated = TranslatedResponse(target.translation, answering)

    async def _collect(
        self, lease: Lease, relay: Relay, request: InferenceRequest, bodies: Iterable[bytes], *, assembled: bool
    ) -> AccelError | None:
        """Collect the responses to `bodies`, then send them as one. `assembled`: they are asked for as streams."""
        self._describe(relay, request)
        answers: list[bytes] = []
        for body in bodies:
            collector = Collector(lease, self._now, request.target.busy_statuses)
            self._sweeper.watch(relay, stream=assembled)
            await self._send(lease, collector, request, body, relay)
            self._sweeper.forget(relay)  # what is left is ours to do
            relay.unread = collector.unread
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
            if status == 200 and request.target.hides_errors and (hidden := hidden_error(content)) is not None:
                return relay.failure(hidden)
            if status != 200:
                if (error := relay.rejected(head, content)) is None:
                    relay.reply(status, kind, content)
                return error
            answers.append(content)
        relay.reply(200, kind, joined(answers) if request.path not in LISTED else listed(answers))
        return None

    async def _join(
        self, lease: Lease, relay: Relay, request: InferenceRequest, bodies: Iterable[bytes], streams: JoinedStreams
    ) -> AccelError | None:
        """Send the streams that answer `bodies` one after the other, as one."""
        relay.joined = streams
        for number, body in enumerate(bodies):
            if number:
                streams.next()
            error = await self._send(lease, relay, request, body, relay, fresh=number > 0)
            if error is not None or relay.ended or not streams.more:
                return error
        return None

    async def _send(
        self,
        lease: Lease,
        receiver: Relay | Collector,
        request: InferenceRequest,
        body: bytes,
        relay: Relay,
        *,
        fresh: bool = False,
    ) -> AccelError | None:
        """One answer of the engine. A busy engine is asked again until scheduler.queue_timeout.

        `fresh`: over a new connection.
        """
        retry: BusyRetry | None = None
        while True:
            error = await self._attempt(lease, receiver, request, body, relay, fresh=fresh)
            if not receiver.engine_busy:
                return error
            if retry is None:
                limit = self._scheduler.settings.queue_timeout
                retry = BusyRetry(self._now, limit, self.settings.keepalive_after if request.stream else None)
            await retry.pause(relay)

    async def _attempt(
        self,
        lease: Lease,
        receiver: Relay | Collector,
        request: InferenceRequest,
        body: bytes,
        relay: Relay,
        *,
        fresh: bool,
    ) -> AccelError | None:
        """One exchange with the engine. Repeated once if a reused connection was stale: the engine has not read it."""
        finished, relay.in_flight = relay.in_flight, None
        while True:
            if relay.cut_with is not None:
                raise relay.failure("")
            if finished is None:
                pool = self._pool(lease)
                connection = None if fresh else pool.reuse()
                fresh = connection is None
                try:
                    connection = connection or await pool.connect()
                except (OSError, TimeoutError) as error:
                    relay.ok, relay.unread = False, True
                    raise AccelError("upstream_failed", f"cannot connect to the engine: {error}") from None
                finished = self._transmit(pool, connection, receiver, request, body, relay)
            try:
                outcome = await finished
            except asyncio.CancelledError:
                relay.abandon(self.settings.stall_timeout)
                raise
            finally:
                relay.detach()
            if fresh or not receiver.unread or relay.cut_with is not None:
                return outcome
            finished, fresh = None, True

    def _transmit(
        self,
        pool: Pool[ConnectionT],
        connection: ConnectionT,
        receiver: Relay | Collector,
        request: InferenceRequest,
        body: bytes,
        relay: Relay,
    ) -> asyncio.Future[AccelError | None]:
        """Send the request. The future gets the outcome, see Relay."""
        assert relay.lease is not None
        finished: asyncio.Future[AccelError | None] = self._loop.create_future()
        receiver.begin(finished)
        relay.attach(connection, receiver)
        pool.exchange(connection, receiver, request.content_type, request.target.path, relay.lease.secret, body)
        return finished

    def _pool(self, lease: Lease) -> Pool[Any]:
        pool = self._upstreams.get(lease.instance)
        if pool is None:
            spec = lease.record.spec
            if spec.elsewhere:
                pool = RemotePool(self._remotes, spec.remote or "")
                self._upstreams.add(lease.instance, pool)
                return pool
            limit_ahead = spec.slots if self._router.dialect(spec).closes_after_streams else 0
            pool = self._upstreams.create(lease.instance, lease.endpoint, limit_ahead)
        return pool
