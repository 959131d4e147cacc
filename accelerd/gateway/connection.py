"""aiohttp's connection protocol with what it lacks: deadlines for the first request, back-pressure for raw relays,
a bound on connections, and errors in our own shape.

RequestHandler is semi-internal to aiohttp: its minor version is pinned and tests/gateway/test_aiohttp_contract.py holds
what is used of it here. Requests that the fast path takes go around it, while its handler waits for the next one.
A client that closes its half of the connection counts as gone: it gets no response (aio-libs/aiohttp#3659).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from accelerd.base.errors import AccelError
from accelerd.config.model import ServerSettings
from accelerd.gateway.fast import Exchange, FastPath, Heads
from accelerd.gateway.relay import Relay
from accelerd.gateway.responses import error_response
from accelerd.gateway.sweeper import Sweeper

log = logging.getLogger(__name__)

KEEPALIVE = 75.0  # s: between two requests of one client
MAX_BEHIND = 256 << 10  # bytes kept of what a client sends before it has its answer
LINGER = 2.0  # s: a refused body is read and dropped, or the refusal would be lost with the connection's reset


class ClientConnection(RequestHandler):
    """One client. `relay` is the last to write to it, for back-pressure; `exchange` what the fast path has in hand."""

    __slots__ = ("_begun", "_behind", "_failure", "_fast", "_heads", "_wire", "exchange", "relay")

    _manager: Server | None

    def __init__(self, server: Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self.relay: Relay | None = None
        self.exchange: Exchange | None = None
        self._begun = 0  # requests that a handler has begun with
        self._fast = server.fast
        self._heads = Heads()
        self._behind = b""  # what came while the fast path had a request in hand
        self._failure: AccelError | None = None  # why the fast path could not answer the request that comes next
        self._wire: asyncio.Transport  # aiohttp forgets `transport` when it begins to close, which may take for ever

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wire = cast(asyncio.Transport, transport)
        server = self._manager
        assert isinstance(server, Server)
        # aiohttp only knows how long a connection may idle; the first whole request head has less time than that.
        self._next_keepalive_close_time = deadline = self._loop.time() + server.settings.header_timeout
        if self._keepalive_handle is not None:
            self._keepalive_handle.cancel()
        self._keepalive_handle = self._loop.call_at(deadline, self._process_keepalive)
        if len(server.connections) > server.settings.max_connections:
            error = AccelError("too_many_connections", "too many connections (server.max_connections)", retry_after=1)
            response = error_response(error)
            body = response.body
            assert isinstance(body, bytes)
            head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
            self._wire.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._give_up()
        if self._manager is not None:
            self._manager.sweeper.resumed(self)
        super().connection_lost(exc)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 (the name is aiohttp's)
        """Cut the fast exchange at once; a handler of aiohttp's has `timeout` seconds."""
        self._give_up()
        await super().shutdown(timeout)

    def abort(self) -> None:
        """Close at once, whatever was not sent yet."""
        self._wire.abort()

    @property
    def fresh(self) -> bool:
        """Has it not sent a whole request yet?"""
        return self._request_count == 0

    @property
    def idle(self) -> bool:
        """Does it wait for nothing?"""
        # aiohttp's handler waits on this future. A request that it took and has not begun with is in no book of its.
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._messages and self.exchange is None

    # --- the fast path ----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.exchange is not None:
            self._keep(data)
            return
        fast = self._fast
        if fast is not None and data:  # without data: aiohttp looks again at what it has
            idle = self._between_requests()
            found = self._heads.recognise(data, fast.epoch) if idle and not self._paused else None
            if found is None:
                self._heads.follow(data, fast.epoch, idle=idle)
            elif fast.begin(self, self._wire, *found, data):
                return
        super().data_received(data)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._cut_body()

    def _cut_body(self) -> None:
        """What came is no HTTP: a body that is still awaited will never be whole. aiohttp would let it be awaited."""
        request = self._current_request
        content = self._messages[-2][1] if len(self._messages) > 1 else request.content if request else None
        if content is not None and not content.is_eof():
            content.set_exception(web.RequestPayloadError("cut"))

    def _between_requests(self) -> bool:
        """Will what comes now be the next thing that the handler does?"""
        waiter = self._waiter
        if waiter is not None:
            return not waiter.done()
        if self._begun < self._request_count:
            return False
        # Its last answer may be with the client already, and the next request here, before the handler has heard of it.
        return self.relay.complete if self.relay is not None else not self._request_count

    def _keep(self, data: bytes) -> None:
        before = len(self._behind)
        self._behind += data
        if before <= MAX_BEHIND < len(self._behind):
            self._wire.pause_reading()

    def exchange_over(self, again: bytes = b"", failure: AccelError | None = None) -> None:
        """For the exchange: see fast.Client."""
        self.exchange = None
        behind, self._behind = self._behind, b""
        if self._wire.is_closing():
            return
        self._next_keepalive_close_time = self._loop.time() + KEEPALIVE
        if len(behind) > MAX_BEHIND:
            self._wire.resume_reading()
        if again:
            self._failure = failure
            super().data_received(again)
        if behind:
            self.data_received(behind)

    def accepted(self) -> None:
        """The request in hand was let in and got its lease: one with the same head may take the fast path."""
        self._heads.accepted()

    def begins(self) -> AccelError | None:
        """A handler begins with the next request; returns what to say to it if the fast path tried it in vain."""
        self._begun += 1
        self.relay = None
        failure, self._failure = self._failure, None
        return failure

    def _give_up(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None and self._fast is not None:
            exchange.give_up(self._fast.settings.stall_timeout)

    # --- aiohttp's hooks --------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._manager is not None:
            self._manager.sweeper.paused(self)
        if self.relay is not None:
            self.relay.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._manager is not None:
            self._manager.sweeper.resumed(self)
        if self.relay is not None:
            self.relay.resume()

    def _process_keepalive(self) -> None:
        if self.exchange is not None:
            self._keepalive_handle = self._loop.call_later(KEEPALIVE, self._process_keepalive)
            return
        super()._process_keepalive()
        if self.transport is None and self._wire.get_write_buffer_size():
            self._wire.abort()  # has not read its last answer in all this time

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Malformed HTTP and bugs of handlers, OpenAI-shaped. A stranger never causes more than a line in the log."""
        if status == 500:
            log.error("a request handler failed", exc_info=exc)
            response = error_response(AccelError("internal", "accelerd failed to handle this; see its journal"))
        else:
            what = (message or "cannot parse").partition("\n")[0].rstrip(": ")[:200]  # the rest is what the client sent
            log.info("malformed request from %s: %s", self.peername, what, extra={"peer": str(self.peername)})
            response = error_response(AccelError("bad_request", f"malformed HTTP: {what}"))
            response.set_status(status)
        response.force_close()
        return response


class Server(web.Server):
    """aiohttp's low-level server, making our connections."""

    def __init__(self, handler: Any, settings: ServerSettings, sweeper: Sweeper, fast: FastPath | None = None) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,  # a client that goes ends its handler: leases are released, engines told
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE,
            lingering_time=LINGER,
        )
        self.settings = settings
        self.sweeper = sweeper
        self.fast = fast

    def __call__(self) -> ClientConnection:
        return ClientConnection(self, loop=self._loop, **self._kwargs)
