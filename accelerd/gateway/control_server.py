"""Passes control requests of the unix socket to aiohttp's low-level server, a whole request at a time.

The client's connection stays with connection.py, which parses, limits and times it; aiohttp builds the request object
and writes the response. aiohttp is loaded with the first control request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from accelerd.base.errors import AccelError
from accelerd.gateway import responses
from accelerd.gateway.connection import ClientConnection
from accelerd.gateway.request_parser import HttpRequest
from accelerd.gateway.responses import JSON_TYPE, Response, error_response

log = logging.getLogger(__name__)

Control = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse | None]]

NEVER = 10 * 365 * 86400.0  # s: connection.py closes what idles
FRAMING = frozenset((b"content-length", b"transfer-encoding", b"expect", b"upgrade"))


class ControlServer:
    """Answers control requests with `control`, which gets aiohttp's request and the path."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._server = web.Server(
            self._handle,
            handler_cancellation=True,  # a client that goes ends what it asked for
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=NEVER,
        )
        self._connections: dict[asyncio.Protocol, tuple[ClientConnection, HttpRequest]] = {}

    def answer(
        self, request: HttpRequest, connection: ClientConnection, protocol: asyncio.Protocol | None
    ) -> asyncio.Protocol:
        """Answer a whole request. `protocol`: what this returned for the connection's last one."""
        if protocol is None:
            protocol = self._server()
            protocol.connection_made(connection.transport)
        self._connections[protocol] = (connection, request)
        protocol.data_received(encode(request))
        return protocol

    def forget(self, protocol: asyncio.Protocol) -> None:
        """Its connection is lost."""
        self._connections.pop(protocol, None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.protocol is not None
        connection, asked = self._connections[request.protocol]
        try:
            response = await self._control(request, asked.path)
            if response is None:
                raise AccelError("not_found", f"there is nothing at {asked.path[:200]!r}")
        except AccelError as error:
            response = web_response(error_response(error, asked.path))
        except Exception:
            log.exception("a control request failed")
            response = web_response(error_response(AccelError("internal", "internal error; see the journal")))
            response.force_close()
        await response.prepare(request)
        await response.write_eof()
        connection.answered(keep_alive=bool(response.keep_alive))
        return response


def web_response(response: Response) -> web.Response:
    return web.Response(
        status=response.status, body=response.body, content_type=JSON_TYPE, headers=dict(response.headers)
    )


def encode(request: HttpRequest) -> bytes:
    """The request as it came, its body in one piece."""
    for name in FRAMING & request.headers.keys():
        del request.headers[name]
    return b"%bcontent-length: %d\r\n\r\n%b" % (request.encode_head(), request.size, b"".join(request.parts))


def json_response(data: Any, status: int = 200) -> web.Response:
    """For accelerd.control: JSON as accelerd writes it everywhere."""
    return web_response(responses.json_response(data, status))
