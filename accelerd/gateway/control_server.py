"""Passes control requests of the unix socket to aiohttp's low-level server, a whole request at a time.

The client's connection stays with connection.py, which parses, limits and times it; aiohttp builds the request object
and writes the response. aiohttp is loaded with the first control request.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import ClientConnectionResetError, web

from accelerd.base.errors import AccelError
from accelerd.gateway.connection import ClientConnection
from accelerd.gateway.request_parser import HttpRequest
from accelerd.gateway.responses import JSON_TYPE, Response, error_response

log = logging.getLogger(__name__)

Control = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse | None]]

NEVER = 10 * 365 * 86400.0  # s: connection.py closes what idles


class ControlServer:
    """Answers control requests with `control`, which gets aiohttp's request and the path without the query."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._server = web.Server(
            self._handle,
            handler_cancellation=True,  # a client that goes ends what it asked for
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=NEVER,
        )

    def answer(self, request: HttpRequest, connection: ClientConnection) -> None:
        """Answer a whole request."""
        protocol = connection.control
        if protocol is None:
            protocol = connection.control = self._server()
            protocol.connection_made(connection.transport)
        protocol.data_received(request.encode())

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is None:
            return web.Response()  # the client has disconnected
        connection = request.transport.get_protocol()
        assert isinstance(connection, ClientConnection)
        try:
            response = await self._response(request, request.raw_path.partition("?")[0])
            response.headers.setdefault("Server", "accelerd")  # else aiohttp's and Python's versions
            await response.prepare(request)
            await response.write_eof()
        except ClientConnectionResetError:
            return web.Response()  # the client has disconnected meanwhile
        connection.answered(keep_alive=bool(response.keep_alive))
        return response

    async def _response(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        try:
            response = await self._control(request, path)
            if response is None:
                raise AccelError("not_found", f"there is nothing at {path[:200]!r}")
        except AccelError as error:
            response = web_response(error_response(error, path))
        except ClientConnectionResetError:
            raise
        except Exception:
            log.exception("a control request failed")
            response = web_response(error_response(AccelError("internal", "internal error; see the journal")))
            response.force_close()
        return response


def web_response(response: Response) -> web.Response:
    return web.Response(
        status=response.status, body=response.body, content_type=JSON_TYPE, headers=dict(response.headers)
    )
