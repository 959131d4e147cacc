"""The door: takes a request, finds out who and which model, gets a lease, relays. Knows no processes.

Health and model lists are answered from memory. Every answer of accelerd's own is OpenAI-shaped.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import cast
from urllib.parse import unquote

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion11

from accelerd import names
from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.engines.base import Dialect
from accelerd.errors import AccelError
from accelerd.gateway.access import Access
from accelerd.gateway.assemble import ask_for_stream, assemble
from accelerd.gateway.connection import ClientConnection
from accelerd.gateway.fast import FastPath
from accelerd.gateway.peek import DECODERS, MAX_NAME, Peek, peek
from accelerd.gateway.relay import EVENT_STREAM, Collector, Relay, Sent
from accelerd.gateway.responses import cors_headers, error_response, json_response
from accelerd.gateway.sweeper import Sweeper
from accelerd.gateway.upstream import Upstreams
from accelerd.ports import Clock
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Lease, Snapshot
from accelerd.scheduler.service import Scheduler, Ticket

COMMENT_EVERY = 5.0  # s: to a streaming client that waits
BODY_RATE = 4096  # bytes/s: a body that comes slower for longer than server.body_timeout is given up
HEADER_LIST = re.compile(r"[A-Za-z0-9_, -]{1,1000}")
ASSEMBLED = ("/v1/chat/completions", "/v1/completions")

Control = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse | None]]


class Gateway:
    """The HTTP surface of one daemon. `public` serves the TCP port, `local` the unix socket."""

    def __init__(
        self, clock: Clock, scheduler: Scheduler, dialects: Mapping[str, Dialect], *, fast: bool = True
    ) -> None:
        """`fast`: with the fast path. Nothing that can be seen from outside depends on it but time."""
        self._now = clock.monotonic
        self._scheduler = scheduler
        self._dialects = dialects
        self._created = int(time.time())  # OpenAI's model objects carry a date
        self._loop = asyncio.get_running_loop()
        self._access: Access
        self._settings: ServerSettings
        self.upstreams = Upstreams()
        self.sweeper = Sweeper(self._loop, clock)
        self.fast = FastPath(self._now, scheduler, self.upstreams, self.sweeper, self) if fast else None
        self.control: Control | None = None

    def configure(self, settings: ServerSettings, keys: tuple[bytes, ...]) -> None:
        """Take over the settings for requests from now on."""
        self._settings = settings
        self._access = Access(settings, keys)
        if self.fast is not None:
            self.fast.configure(settings)
        self.sweeper.write_timeout = settings.write_timeout
        self.sweeper.stall_timeout = settings.stall_timeout

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
            path = request.raw_path.partition("?")[0]
            if not path.startswith("/"):
                raise AccelError("bad_request", "the request target must be a path")
            if path in DECODERS:
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
            known = [s for s in self._scheduler.snapshots() if not s.spec.name.endswith(names.TRIAL_SUFFIX)]
            answer = {"object": "list", "data": [self._model(s) for s in known]}
        elif path.startswith("/v1/models/"):
            name = unquote(path[len("/v1/models/") :], errors="replace")
            answer = self._model(self._scheduler.snapshot(name[: MAX_NAME + 1]))
        else:
            raise AccelError("not_found", f"there is nothing at {path[:200]!r}")
        if request.method not in ("GET", "HEAD"):
            raise AccelError("method_not_allowed", f"{path} takes GET", allow="GET, HEAD")
        return json_response(answer)

    def _model(self, snapshot: Snapshot) -> dict[str, object]:
        spec = snapshot.spec
        return {
            "id": spec.name,
            "object": "model",
            "created": self._created,
            "owned_by": "accelerd",
            "aliases": list(spec.aliases),
            "description": spec.description,
            "context_length": spec.context,
            "status": {"value": "loaded" if snapshot.state is State.READY else str(snapshot.state)},
        }

    # --- inference --------------------------------------------------------------------------------------------

    async def _infer(self, request: web.BaseRequest, path: str, origin: str | None) -> web.StreamResponse:
        body = await self._body(request)
        peeked = peek(path, body)
        connection, transport = _connection(request), request.transport
        if transport is None:
            return Sent(keep_alive=False)  # the client has gone
        relay = Relay(
            cast(asyncio.Transport, transport),  # uvloop's transports are no subclasses of asyncio's
            self._now,
            keep_alive=request.keep_alive,
            http10=request.version < HttpVersion11,
            origin=origin,
        )
        connection.relay = relay
        try:
            relay.lease = lease = self._scheduler.acquire(peeked.model) or await self._wait(peeked, relay)
            connection.accepted()
            error = await self._exchange(lease, relay, path, body, peeked)
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

    async def _body(self, request: web.BaseRequest) -> bytes:
        headers, limit = request.headers, self._settings.max_body
        if request.content_type != "application/json":
            raise AccelError("unsupported_media_type", "Content-Type must be application/json")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise AccelError("unsupported_media_type", "compressed bodies are not taken")
        if int(headers.get("Content-Length", "0")) > limit:
            raise _too_large(limit)
        content = request.content
        try:
            if not content.is_eof():
                if headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
                    request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return await self._slow_body(content, limit)
            body = content.read_nowait(-1)
        except web.RequestPayloadError:
            content.feed_eof()  # aiohttp need not look for the rest of it
            raise AccelError("bad_request", "malformed HTTP: bad chunks in the body") from None
        if len(body) > limit:
            raise _too_large(limit)
        return body

    async def _slow_body(self, content: StreamReader, limit: int) -> bytes:
        """A body that did not come in one piece with its head."""
        parts, size = [], 0
        patience, began = self._settings.body_timeout, self._loop.time()
        try:
            async with asyncio.timeout(patience) as deadline:
                while not content.at_eof():
                    part = await content.readany()
                    size += len(part)
                    if size > limit:
                        raise _too_large(limit)
                    parts.append(part)
                    deadline.reschedule(min(self._loop.time(), began + size / BODY_RATE) + patience)
        except TimeoutError:
            raise AccelError("request_timeout", "the body did not come in time (server.body_timeout)") from None
        return b"".join(parts)

    async def _wait(self, peeked: Peek, relay: Relay) -> Lease:
        """A place in the queue; a streaming client hears that it is alive."""
        ticket: Ticket = self._scheduler.enqueue(peeked.model)
        try:
            if peeked.stream:
                began = self._now()
                patience = self._settings.keepalive_after
                while not await ticket.ready(patience):
                    snapshot = self._scheduler.snapshot(peeked.model)
                    what = "loading" if snapshot.state is State.STARTING else "waiting for"
                    relay.comment(f"{what} {snapshot.spec.name}, {self._now() - began:.0f} s", snapshot.spec.name)
                    patience = COMMENT_EVERY
            return await ticket.lease()
        finally:
            ticket.leave()

    def assembles(self, spec: ModelSpec, path: str, peeked: Peek) -> bool:
        """Is the answer to be asked as a stream and put together here? See assemble.py."""
        return (
            not peeked.stream
            and spec.slots > 1
            and path in ASSEMBLED
            and self._dialects[spec.engine].streams_notice_disconnect
        )

    async def _exchange(self, lease: Lease, relay: Relay, path: str, body: bytes, peeked: Peek) -> AccelError | None:
        if self.assembles(lease.record.spec, path, peeked):
            return await self._assembled(lease, relay, path, body)
        self.sweeper.watch(relay, stream=bool(peeked.stream))
        return await self._send(lease, relay, path, body, relay)

    async def _assembled(self, lease: Lease, relay: Relay, path: str, body: bytes) -> AccelError | None:
        collector = Collector(lease, self._now)
        self.sweeper.watch(relay, stream=True)
        await self._send(lease, collector, path, ask_for_stream(body), relay)
        self.sweeper.forget(relay)  # what is left is ours to do
        head, failure = collector.response, collector.failure
        relay.ok = False
        if head is None or failure is not None:
            return relay.failure(failure or "no response")
        content, kind = b"".join(collector.parts), head.content_type
        status = head.status
        if status == 200 and kind.startswith(EVENT_STREAM):
            status, content = assemble(content)
            kind = b"application/json; charset=utf-8"
        elif status == 200 and not kind.startswith(b"application/json"):
            raise AccelError("upstream_failed", "the engine answered with neither a stream nor JSON")
        relay.ok = status < 500
        relay.reply(status, kind, content)
        return None

    async def _send(
        self, lease: Lease, sink: Relay | Collector, path: str, body: bytes, relay: Relay
    ) -> AccelError | None:
        """One exchange with the engine, on a pooled connection. Sent again once if an idle one had died meanwhile."""
        pool = self.upstreams.pool(lease.instance, lease.endpoint)
        request = pool.request(path, lease.secret, body)
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


def _connection(request: web.BaseRequest) -> ClientConnection:
    connection = request.protocol
    assert isinstance(connection, ClientConnection)
    return connection


def _too_large(limit: int) -> AccelError:
    return AccelError("body_too_large", f"the body is larger than {limit} bytes (server.max_body)")


def _refuse(request: web.BaseRequest, error: AccelError) -> web.Response:
    """The error as the response. A connection on which a body is still coming is not used again."""
    response = error_response(error)
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
