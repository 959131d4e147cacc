"""Any method and path of a model's engine: /upstream/MODEL/PATH, as llama-swap has it.

The model is loaded as for any other request, and a lease is held while its engine answers. Headers go both ways without
those that concern one connection; the client's keys and cookies go nowhere. Nothing is corrected, renamed or repeated.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, Route
from accelerd.gateway.connection import ClientConnection, refusal
from accelerd.gateway.relay import Relay
from accelerd.gateway.request_body import check_name
from accelerd.gateway.request_log import CLIENT_GONE, log_answer, log_refusal
from accelerd.gateway.request_parser import HttpRequest
from accelerd.gateway.request_router import RequestRouter
from accelerd.gateway.response_framing import Head
from accelerd.gateway.responses import STREAMS, Response, answered_by, cors_headers, date_and_id, reason
from accelerd.gateway.sweeper import Sweeper
from accelerd.gateway.upstream import ConnectionPool, ResponseReceiver, UpstreamConnection
from accelerd.scheduler.service import Scheduler

PREFIX: Final = "/upstream/"
METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
WORD: Final = re.compile(rb"[^\s,]+")
UNCLEAN: Final = frozenset(b"\r\n\0")
MOST_PARTS: Final = 8  # of a model's name, between slashes
OF_ONE_CONNECTION: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
# What a client says to accelerd and not to the engine.
OURS: Final = OF_ONE_CONNECTION | {
    b"host", b"content-length", b"expect", b"origin", b"cookie", b"authorization", b"proxy-authorization",
    b"x-api-key", b"api-key",
}  # fmt: skip
# What accelerd says itself.
REPLACED: Final = OF_ONE_CONNECTION | {
    b"content-length", b"date", b"server", b"x-request-id", b"set-cookie",
    b"access-control-allow-origin", b"access-control-allow-credentials",
    b"access-control-allow-methods", b"access-control-allow-headers",
}  # fmt: skip


class EngineRelay(Relay):
    """Relays one response with the engine's own head."""

    def __init__(self, transport: asyncio.Transport, now: Callable[[], float], request: HttpRequest, base: str) -> None:
        """`base`: the path here that is the root of the engine's paths."""
        super().__init__(
            transport,
            now,
            keep_alive=request.keep_alive,
            http10=request.http10,
            origin=request.origin,
            path=request.path,
            request_id=request.id,
        )
        self.head_only = request.method == b"HEAD"
        self.raw = b""  # the head as it came, and perhaps what follows it
        self._base = base.encode("latin-1")

    def head(self, head: Head, more: bool) -> bool:
        assert self.lease is not None
        self.ok = True if head.status < 500 else None  # a client can ask for anything
        self.first_byte = self._now()
        self.committed = self.passed = True
        self.status, self.stream = head.status, head.content_type.startswith(STREAMS)
        self._raw = head.chunked and not self._http10
        framing = []
        if self._raw:
            framing.append(b"Transfer-Encoding: chunked")
        elif head.length is None:
            self._keep_alive = False
        elif head.status not in (204, 304):
            framing.append(b"Content-Length: %d" % head.length)
        if not self._keep_alive:
            framing.append(b"Connection: close")
        said = answered_by(self.lease.model, "", 1) | (cors_headers(self._origin) if self._origin is not None else {})
        lines = [
            b"HTTP/1.1 %d %b" % (head.status, reason(head.status).encode()),
            *self._headers(),
            *(f"{name}: {value}".encode("latin-1") for name, value in said.items()),
            date_and_id(self._id, self._path).encode(),
            *framing,
        ]
        self._write(b"\r\n".join(lines) + b"\r\n\r\n")
        return self._http10

    def _headers(self) -> list[bytes]:
        """The engine's, as far as they are for the client."""
        heads = (one for one in self.raw.split(b"\r\n\r\n") if one[9:10] != b"1")  # no interim ones
        lines = [line.partition(b":") for line in next(heads).split(b"\r\n")[1:]]
        found = [(name, value.strip()) for name, _, value in lines if not UNCLEAN.intersection(value)]
        named = {
            one.strip().lower() for name, value in found if name.lower() == b"connection" for one in value.split(b",")
        }
        kept = []
        for name, value in found:
            key = name.lower()
            if key in REPLACED or key in named:
                continue
            if key == b"location" and value.startswith(b"/") and not value.startswith(b"//"):
                value = self._base + value
            kept.append(name + b": " + value)
        return kept


class EngineConnection(UpstreamConnection):
    """Hands over the head as it came, and knows that the answer to HEAD has no body."""

    def _take_head(self, data: bytes, receiver: ResponseReceiver) -> bytes | None:
        assert isinstance(receiver, EngineRelay)
        receiver.raw = self._buffer + data
        rest = super()._take_head(data, receiver)
        if rest is not None and receiver.head_only:
            self._left, self._chunked = 0, None
        return rest


class EnginePool(ConnectionPool):
    """Makes the connection for one request."""

    def _make(self) -> UpstreamConnection:
        return EngineConnection(self)


class EnginePaths:
    """Passes requests on to engines, any number at a time."""

    def __init__(self, now: Callable[[], float], scheduler: Scheduler, router: RequestRouter, sweeper: Sweeper) -> None:
        self._now = now
        self._scheduler = scheduler
        self._router = router
        self._sweeper = sweeper

    async def respond(self, request: HttpRequest, connection: ClientConnection) -> Response | None:
        """To one below PREFIX. None: the response was sent."""
        try:
            spec, base, path = self._meant(request)
        except AccelError as error:
            log_refusal(request, connection, error)
            return refusal(request, error)
        _, mark, query = request.target.partition(b"?")
        if not path:  # what a page asks for is relative to it
            return Response(307, b"", {"Location": f"{base}/{(mark + query).decode('latin-1')}"})
        relay = connection.relay = EngineRelay(connection.transport, self._now, request, base)
        outcome: str | None = "internal"
        try:
            failure = await self._answer(spec, relay, request, path.encode("latin-1") + mark + query)
            if failure is not None:
                relay.error, relay.status = failure.code, failure.status
            outcome = relay.error
        except asyncio.CancelledError:
            outcome = CLIENT_GONE
            raise
        finally:
            if not relay.handed_over:
                log_answer(request, connection, relay, spec.name, self._now(), outcome)
        return None if failure is None else refusal(request, failure)

    def _meant(self, request: HttpRequest) -> tuple[ModelSpec, str, str]:
        """The model, the path up to its name, and the engine's path, "" if there is none. AccelError."""
        if request.method not in METHODS:
            allow = b", ".join(sorted(METHODS)).decode()
            raise AccelError("method_not_allowed", f"{request.method.decode()} is not passed on", allow=allow)
        if b"sec-websocket-key" in request.headers:
            raise AccelError("not_supported", "WebSockets are not passed on to engines", hint="use HTTP")
        parts = request.path.removeprefix(PREFIX).split("/")
        names = [unquote("/".join(parts[:count])) for count in range(1, min(len(parts), MOST_PARTS) + 1)]
        known = [number for number, name in enumerate(names) if self._router.directory.is_name(name)]
        number = known[-1] if known else 0  # the longest; else the first may match an alias
        check_name(names[number])
        found = self._router.directory.find(names[number])
        if isinstance(found, Route):
            text = f"{found.name} is a route, and has no engine of its own"
            raise AccelError("bad_request", text, hint=f"name one of {', '.join(found.models)}", param="model")
        if found.elsewhere or found.engine == "lemonade":
            text = f"{found.name} is one of several models of a server, whose own paths are not open here"
            raise AccelError("not_supported_by_model", text, param="model")
        return found, PREFIX + "/".join(parts[: number + 1]), "/".join(("", *parts[number + 1 :]))

    async def _answer(
        self, spec: ModelSpec, relay: EngineRelay, request: HttpRequest, target: bytes
    ) -> AccelError | None:
        """The error if no response was sent."""
        try:
            ticket = self._scheduler.enqueue(spec.name, relay.began)
            try:
                relay.lease = lease = await ticket.lease()
            finally:
                ticket.leave()
        except AccelError as error:
            return error
        lease.cut, relay.leased = relay.cut, lease.progress
        self._sweeper.watch(relay, stream=False)
        pool = EnginePool(lease.endpoint)
        try:
            return await self._exchange(pool, relay, encoded(request, target, lease.secret))
        finally:
            self._sweeper.forget(relay)
            pool.close()
            if relay.unread:
                self._scheduler.doubt(lease)
            self._scheduler.release(lease, relay.ok)

    async def _exchange(self, pool: EnginePool, relay: EngineRelay, data: bytes) -> AccelError | None:
        try:
            connection = await pool.connect()
        except (OSError, TimeoutError) as error:
            relay.ok, relay.unread = False, True
            return AccelError("upstream_failed", f"cannot connect to the engine: {error}")
        finished: asyncio.Future[AccelError | None] = asyncio.get_running_loop().create_future()
        relay.begin(finished)
        relay.attach(connection, relay)
        try:
            if relay.cut_with is not None:
                connection.close()
                return relay.failure("")
            connection.send(relay, data)
            return await finished
        except asyncio.CancelledError:
            relay.abandon(self._sweeper.stall_timeout)
            raise
        finally:
            relay.detach()


def encoded(request: HttpRequest, target: bytes, secret: str) -> bytes:
    """The request as the engine gets it."""
    named = {one.lower() for one in WORD.findall(request.headers.get(b"connection", b""))}
    lines = [b"%b %b HTTP/1.1" % (request.method, target), b"Host: localhost", b"Connection: close"]
    lines += [b"%b: %b" % one for one in request.headers.items() if one[0] not in OURS and one[0] not in named]
    if secret:
        lines.append(f"Authorization: Bearer {secret}".encode())
    body = b"".join(request.parts)
    if body or request.method not in (b"GET", b"HEAD"):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
