"""The door: takes a request, finds out who and which model, gets a lease, relays. Knows no processes.

Health and model lists are answered from memory. Every answer of accelerd's own is OpenAI-shaped.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import web
from aiohttp.http import HttpVersion11

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.ports import Clock
from accelerd.config.model import ModelSpec, Route, ServerSettings
from accelerd.engines.base import Engine
from accelerd.gateway.access import Access
from accelerd.gateway.assemble import ask_for_stream, assemble
from accelerd.gateway.bodies import read_body
from accelerd.gateway.busy_retry import COMMENT_EVERY, BusyRetry
from accelerd.gateway.catalog import Catalog
from accelerd.gateway.connection import ClientConnection
from accelerd.gateway.endpoints import ASSEMBLED, FORMS, OTHER_NAMES, TASKS
from accelerd.gateway.fast import FastPath
from accelerd.gateway.form import FORM, Form, boundary_of, content_type, read_form
from accelerd.gateway.masked import hidden_error
from accelerd.gateway.peek import MAX_NAME, Peek, peek, renamed
from accelerd.gateway.relay import EVENT_STREAM, Collector, Relay, Sent
from accelerd.gateway.request_router import RequestRouter, UpstreamTarget
from accelerd.gateway.responses import cors_headers, error_response, json_response
from accelerd.gateway.sweeper import Sweeper
from accelerd.gateway.upstream import JSON, Upstreams
from accelerd.scheduler.events import ModelTransition
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Lease
from accelerd.scheduler.service import Scheduler
from accelerd.scheduler.ticket import Ticket

ENDING = frozenset(State) - {State.STARTING, State.READY, State.DRAINING}  # no request is sent to the instance any more
HEADER_LIST = re.compile(r"[A-Za-z0-9_, -]{1,1000}")

Control = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse | None]]


@dataclass(slots=True)
class InferenceRequest:
    """A request as it goes to its engine."""

    way: UpstreamTarget
    path: str  # the client's
    request_load: Peek | Form
    said: bytes  # the body as it came
    kind: str  # its Content-Type

    @property
    def stream(self) -> bool:
        return bool(self.request_load.stream)

    def body(self) -> bytes:
        """In the engine's words."""
        name = self.way.wire_name
        if name is None:
            return self.said
        return (
            self.request_load.renamed(self.said, name)
            if isinstance(self.request_load, Form)
            else renamed(self.said, name)
        )


class Gateway:
    """The HTTP surface of one daemon. `public` serves the TCP port, `local` the unix socket."""

    def __init__(
        self,
        clock: Clock,
        scheduler: Scheduler,
        engines: Mapping[str, Engine],
        events: EventStream,
        *,
        fast: bool = True,
    ) -> None:
        """`engines` is live. `fast`: with the fast path; nothing outside depends on it but time."""
        self._now = clock.monotonic
        self._scheduler = scheduler
        self.board = RequestRouter(scheduler, engines)
        self._catalog = Catalog(scheduler, self.board, created=int(time.time()))
        self._loop = asyncio.get_running_loop()
        self._access: Access
        self._settings: ServerSettings
        self.upstreams = Upstreams()
        self.sweeper = Sweeper(self._loop, clock)
        desk = (scheduler, self.upstreams, self.sweeper, self, self.board.plain)
        self.fast = FastPath(self._now, *desk) if fast else None
        self.control: Control | None = None
        events.subscribe(ModelTransition, self.on_transition)

    def configure(
        self,
        settings: ServerSettings,
        keys: tuple[bytes, ...],
        models: Iterable[ModelSpec] = (),
        routes: Iterable[Route] = (),
    ) -> None:
        """Take over a configuration for requests from now on."""
        self._settings = settings
        self._access = Access(settings, keys)
        self.board.configure(models, routes)
        if self.fast is not None:
            self.fast.configure(settings)
        self.sweeper.write_timeout = settings.write_timeout
        self.sweeper.stall_timeout = settings.stall_timeout

    def on_transition(self, event: ModelTransition) -> None:
        if event.instance is not None and event.transition.after in ENDING:
            self.upstreams.retire(event.instance)

    def close(self) -> None:
        """After the last request."""
        self.sweeper.close()

    # --- routing ----------------------------------------------------------------------------------------------

    async def public(self, request: web.BaseRequest) -> web.StreamResponse:
        """A request from the TCP port."""
        headers = request.headers
        error = _connection(request).begins() or self._access.check(headers)
        origin = headers.get("Origin")
        if origin is not None:
            if error is not None and error.code != "unauthorized":
                origin = None  # a page that may not come here may not read why
            elif request.method == "OPTIONS":
                return _preflight(request, origin)  # browsers send no key with it
        response = _refuse(request, error) if error is not None else await self._answer(request, origin, None)
        if origin is not None and not response.prepared:
            response.headers.update(cors_headers(origin))
        return response

    async def local(self, request: web.BaseRequest) -> web.StreamResponse:
        """A request from the unix socket, whose directory only this user can enter."""
        error = _connection(request).begins()
        return _refuse(request, error) if error is not None else await self._answer(request, None, self.control)

    async def _answer(
        self, request: web.BaseRequest, origin: str | None, control: Control | None
    ) -> web.StreamResponse:
        try:
            path = _path(request)
            if not path.startswith("/"):
                raise AccelError("bad_request", "the request target must be a path")
            if path in TASKS:
                if request.method != "POST":
                    raise AccelError("method_not_allowed", f"{path} takes POST", allow="POST")
                return await self._infer(request, path, origin)
            if control is not None:
                response = await control(request, path)
                if response is not None:
                    return response
            return self._from_memory(request, path)
        except AccelError as error:
            return _refuse(request, error)

    def _from_memory(self, request: web.BaseRequest, path: str) -> web.Response:
        if path in ("/health", "/v1/health"):
            answer: object = {"status": "ok"}
        elif path in ("/v1/models", "/models"):
            answer = self._catalog.all()
        elif path.startswith("/v1/models/"):
            name = unquote(path[len("/v1/models/") :], errors="replace")
            answer = self._catalog.one(name[: MAX_NAME + 1])
        else:
            raise AccelError("not_found", f"there is nothing at {path[:200]!r}")
        if request.method not in ("GET", "HEAD"):
            raise AccelError("method_not_allowed", f"{path} takes GET", allow="GET, HEAD")
        return json_response(answer)

    # --- inference --------------------------------------------------------------------------------------------

    async def _infer(self, request: web.BaseRequest, path: str, origin: str | None) -> web.StreamResponse:
        ask = await self._ask(request, path)
        connection, transport = _connection(request), request.transport
        if transport is None:
            return Sent(keep_alive=False)  # the client has gone
        relay = Relay(
            transport,
            self._now,
            keep_alive=request.keep_alive,
            http10=request.version < HttpVersion11,
            origin=origin,
            path=path,
        )
        connection.relay = relay
        try:
            relay.lease = lease = self._scheduler.acquire(ask.way.model)
            if lease is None:
                relay.lease = lease = await self._wait(ask, relay)
                ask.way = self.board.worded(lease.record.spec, path, ask.request_load)  # as it is once loaded
            relay.busy = ask.way.busy
            connection.accepted()
            error = await self._exchange(lease, relay, ask)
        except AccelError as refused:
            error = relay.fail(refused)
        except Exception:
            if relay.committed:
                relay.abort()  # a bug: let it not look like the end of the response
            raise
        finally:
            self.finish(relay)
        return _refuse(request, error) if error is not None else relay.sent()

    def finish(self, relay: Relay) -> None:
        """The exchange is over, on whichever path: end the lease and what goes with it."""
        self.sweeper.forget(relay)
        if relay.lease is not None:
            self._scheduler.release(relay.lease, relay.ok)

    async def _ask(self, request: web.BaseRequest, path: str) -> InferenceRequest:
        """Read the request and find its model. AccelError."""
        if path in FORMS:
            body = await read_body(request, self._settings, FORM)
            boundary = boundary_of(request.headers["Content-Type"])
            form = read_form(body, boundary)
            return InferenceRequest(self.board.way(path, form), path, form, body, content_type(boundary))
        body = await read_body(request, self._settings, JSON)
        peeked = peek(path, body)
        return InferenceRequest(self.board.way(path, peeked), path, peeked, body, JSON)

    async def _wait(self, ask: InferenceRequest, relay: Relay) -> Lease:
        """A place in the queue; a streaming client hears that it is alive."""
        ticket: Ticket = self._scheduler.enqueue(ask.way.model)
        try:
            if ask.stream:
                began = self._now()
                patience = self._settings.keepalive_after
                while not await ticket.ready(patience):
                    snapshot = self._scheduler.snapshot(ask.way.model)
                    what = "loading" if snapshot.state is State.STARTING else "waiting for"
                    relay.comment(f"{what} {snapshot.spec.name}, {self._now() - began:.0f} s", snapshot.spec.name)
                    patience = COMMENT_EVERY
            return await ticket.lease()
        finally:
            ticket.leave()

    def assembles(self, spec: ModelSpec, path: str, stream: bool | None) -> bool:
        """Is the answer to be asked as a stream and put together here? See assemble.py."""
        return not stream and spec.slots > 1 and path in ASSEMBLED and self.board.streams_notice(spec)

    async def _exchange(self, lease: Lease, relay: Relay, ask: InferenceRequest) -> AccelError | None:
        assembled = self.assembles(lease.record.spec, ask.path, ask.stream)
        if assembled or (ask.way.masked and not ask.stream):
            return await self._whole(lease, relay, ask, assembled=assembled)
        relay.only_stream = ask.way.masked
        self.sweeper.watch(relay, stream=ask.stream)
        return await self._send(lease, relay, ask, ask.body(), relay)

    async def _whole(self, lease: Lease, relay: Relay, ask: InferenceRequest, *, assembled: bool) -> AccelError | None:
        """An answer that is here as a whole before the client gets it: put together of a stream, or looked at."""
        collector = Collector(lease, self._now, ask.way.busy)
        self.sweeper.watch(relay, stream=assembled)
        await self._send(lease, collector, ask, ask_for_stream(ask.body()) if assembled else ask.body(), relay)
        self.sweeper.forget(relay)  # what is left is ours to do
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
        if status == 200 and ask.way.masked and (error := hidden_error(content)) is not None:
            return relay.failure(error)
        relay.ok = status < 500
        relay.reply(status, kind, content)
        return None

    async def _send(
        self, lease: Lease, sink: Relay | Collector, ask: InferenceRequest, body: bytes, relay: Relay
    ) -> AccelError | None:
        """One answer of the engine. Asked again while it says that it is busy, so that no client is told so."""
        patience: BusyRetry | None = None
        while True:
            outcome = await self._attempt(lease, sink, ask, body, relay)
            if not sink.turned_away:
                return outcome
            if patience is None:
                limit = self._scheduler.settings.queue_timeout
                patience = BusyRetry(self._now, limit, self._settings.keepalive_after if ask.stream else None)
            await patience.pause(relay)
            sink.ask_again()

    async def _attempt(
        self, lease: Lease, sink: Relay | Collector, ask: InferenceRequest, body: bytes, relay: Relay
    ) -> AccelError | None:
        """One exchange with the engine, on a pooled connection. Sent again once if an idle one had died meanwhile."""
        pool = self.upstreams.pool(lease.instance, lease.endpoint)
        to, secret = ask.way.path, lease.secret
        request = pool.request(to, secret, body) if ask.kind is JSON else pool.request_of(ask.kind, to, secret, body)
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
            sink.begin(finished)
            relay.serve(connection, sink)
            connection.send(sink, request)
            try:
                outcome = await finished
            except asyncio.CancelledError:
                relay.abandon(self._settings.stall_timeout)
                raise
            finally:
                relay.serve(None, None)
            if fresh or not relay.may_repeat(sink.unanswered):
                return outcome
            connection = None


def _path(request: web.BaseRequest) -> str:
    path = request.raw_path.partition("?")[0]
    return OTHER_NAMES.get(path, path)


def _connection(request: web.BaseRequest) -> ClientConnection:
    connection = request.protocol
    assert isinstance(connection, ClientConnection)
    return connection


def _refuse(request: web.BaseRequest, error: AccelError) -> web.Response:
    """The error as the response. A connection on which a body is still coming is not used again."""
    response = error_response(error, _path(request))
    if not request.content.is_eof() or request.content.exception() is not None:
        response.force_close()
    return response


def _preflight(request: web.BaseRequest, origin: str) -> web.Response:
    """May the page send what it wants to send? An allowed one may send any header: SDKs have many of their own."""
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": wanted if HEADER_LIST.fullmatch(wanted) else "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin, Access-Control-Request-Headers",
    }
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)
