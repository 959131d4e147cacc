"""aiohttp's connection protocol with what it lacks: deadlines for the first request, back-pressure for raw relays,
a bound on connections, and errors in our own shape.

RequestHandler is semi-internal to aiohttp: its minor version is pinned and tests/gateway/test_aiohttp_contract.py holds
what is used of it here. A fused data path, if it is ever wanted, has its place in `data_received`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from accelerd.config.model import ServerSettings
from accelerd.errors import AccelError
from accelerd.gateway.relay import Relay
from accelerd.gateway.responses import error_response
from accelerd.gateway.sweeper import Sweeper

log = logging.getLogger(__name__)

KEEPALIVE = 75.0  # s: between two requests of one client
LINGER = 2.0  # s: a refused body is read and dropped, or the refusal would be lost with the connection's reset


class ClientConnection(RequestHandler):
    """One client. `relay` is the exchange that writes to it, for back-pressure."""

    __slots__ = ("_wire", "relay")

    def __init__(self, server: Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self.relay: Relay | None = None
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
        if self._manager is not None:
            self._manager.sweeper.resumed(self)
        super().connection_lost(exc)

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
        return not self._request_in_progress and not self._messages

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
            log.info("malformed request from %s: %s", self.peername, message, extra={"peer": str(self.peername)})
            response = error_response(AccelError("bad_request", f"malformed HTTP: {message or 'cannot parse'}"))
            response.set_status(status)
        response.force_close()
        return response


class Server(web.Server):
    """aiohttp's low-level server, making our connections."""

    def __init__(self, handler: Any, settings: ServerSettings, sweeper: Sweeper) -> None:
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

    def __call__(self) -> ClientConnection:
        return ClientConnection(self, loop=self._loop, **self._kwargs)
