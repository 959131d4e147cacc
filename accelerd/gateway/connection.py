"""A client's connection: parses HTTP/1.1 with httptools, enforces the limits and deadlines, answers requests in order.

One request is handled at a time. What a client sends meanwhile is kept unparsed up to MAX_PENDING bytes. A client that
closes its half of the connection counts as gone: its request is cancelled. Who may ask for what is decided in
gateway.py; control requests on the unix socket are passed whole to aiohttp (control_server.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import Protocol, cast

import httptools

from accelerd.base.errors import AccelError
from accelerd.config.model import ServerSettings
from accelerd.gateway.relay import Relay
from accelerd.gateway.responses import Response, error_response
from accelerd.gateway.sweeper import Sweeper

log = logging.getLogger(__name__)

KEEPALIVE = 75.0  # s: between two requests of one client
BODY_RATE = 4096  # bytes/s: a body that comes slower for longer than server.body_timeout is given up
MAX_PENDING = 256 << 10  # bytes kept of what a client sends before it has its answer
MAX_HEAD = 64 << 10  # bytes of a request's head
MAX_LINE = 8190  # bytes of the target, and of a header's value
MAX_HEADERS = 128
LINGER = 2.0  # s: a refused body is read and dropped, or the reset of the connection would take the refusal with it
ONCE = frozenset((b"host", b"content-type", b"content-length", b"content-encoding", b"transfer-encoding"))


class HttpRequest:
    """One request. `headers` have lower-case names; of a repeated header the first value counts.

    `path` and `origin` are filled in by Gateway.admit: `origin` only if that page may read the response.
    """

    __slots__ = ("admitted", "body", "complete", "head_complete", "headers", "http10", "keep_alive", "local", "method",
                 "origin", "parts", "path", "problem", "size", "target")  # fmt: skip

    def __init__(self, local: bool) -> None:
        self.local = local
        self.method = b""
        self.target = b""
        self.path = ""
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []  # of the body
        self.size = 0  # bytes of the body so far
        self.head_complete = self.complete = self.admitted = False
        self.keep_alive = True
        self.http10 = False
        self.problem = ""  # why the head is not valid
        self.origin: str | None = None

    def encode_head(self) -> bytes:
        """Request line and headers, without the final empty line."""
        lines = [b"%b %b HTTP/1.%d" % (self.method, self.target, 0 if self.http10 else 1)]
        lines += [b"%b: %b" % header for header in self.headers.items()]
        return b"\r\n".join(lines) + b"\r\n"


class Handler(Protocol):
    """What answers requests: gateway.Gateway."""

    sweeper: Sweeper

    def admit(self, request: HttpRequest) -> Response | None:
        """The head is here: the response if none of the body is needed for it, None to go on."""
        ...

    async def infer(self, request: HttpRequest, connection: ClientConnection) -> Response | None:
        """Answer a whole inference request. None: the response is on the wire already."""
        ...

    def pass_to_control(
        self, request: HttpRequest, connection: ClientConnection, protocol: asyncio.Protocol | None
    ) -> asyncio.Protocol | None:
        """Of a request of the unix socket: the aiohttp protocol that answers it, if it asks for control.

        `protocol`: what the last control request of this connection got. `connection.answered` is called at the end.
        """
        ...

    def control_gone(self, protocol: asyncio.Protocol) -> None:
        """The connection of that protocol is lost."""
        ...


class HttpServer:
    """The connections of one kind of listening socket; a protocol factory. `local`: of the unix socket."""

    def __init__(self, handler: Handler, settings: ServerSettings, *, local: bool) -> None:
        self.handler = handler
        self.settings = settings
        self.local = local
        self.connections: set[ClientConnection] = set()

    def __call__(self) -> ClientConnection:
        return ClientConnection(self)


class ClientConnection(asyncio.Protocol):
    """One client. `relay` is the last to write to it, for back-pressure."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._handler = server.handler
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._parsed: deque[HttpRequest] = deque()  # the last one may be incomplete
        self._receiving: HttpRequest | None = None
        self._headers: dict[bytes, bytes]  # of `_receiving`
        self._repeated: list[bytes]  # names of its headers that came again
        self._head_size = 0  # bytes parsed since the last complete head or message
        self._head_begun = True  # does the deadline of a head run? The first one's begins with the connection
        self._malformed: str | None = None  # what is wrong behind the last of `_parsed`
        self._pending = b""  # not parsed yet
        self._busy = False  # is a request being answered?
        self._task: asyncio.Task[None] | None = None
        self._ending = False  # answers no more: is closing, or drops what still comes
        self._requests = 0
        self._body_since = 0.0
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._control: asyncio.Protocol | None = None
        self._gone = self._loop.create_future()
        self.writing_paused = False
        self.relay: Relay | None = None
        self.transport: asyncio.Transport

    # --- asyncio ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses of asyncio's
        server = self._server
        server.connections.add(self)
        self._wait(server.settings.header_timeout)
        if len(server.connections) > server.settings.max_connections:
            error = AccelError("too_many_connections", "too many connections (server.max_connections)", retry_after=1)
            self._ending = True
            self.transport.write(error_response(error).encode(keep_alive=False))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._handler.sweeper.resumed(self)
        self._ending = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._control is not None:
            self._control.connection_lost(exc)
            self._handler.control_gone(self._control)
        self._gone.set_result(None)

    def eof_received(self) -> None:
        return None  # close: who closes its half is gone

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._handler.sweeper.paused(self)
        if self.relay is not None:
            self.relay.pause()
        if self._control is not None:
            self._control.pause_writing()

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._handler.sweeper.resumed(self)
        if self.relay is not None:
            self.relay.resume()
        if self._control is not None:
            self._control.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        if self._busy:
            before = len(self._pending)
            self._pending += data
            if before <= MAX_PENDING < len(self._pending):
                self.transport.pause_reading()
            return
        self._parse(data)
        self._advance()

    # --- httptools --------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._malformed = str(error).partition("\n")[0][:200] or "cannot parse it"

    def _ignore_upgrade(self, rest: bytes) -> None:
        """httptools stops after the head of an upgrade; it is an ordinary request, whose body may follow."""
        request = self._parsed[-1]
        self._parser = httptools.HttpRequestParser(self)
        if request.method == b"CONNECT":
            request.problem = "this is not a proxy"
            return
        self._parsed.pop()
        del request.headers[b"upgrade"]
        self._parse(request.encode_head() + b"\r\n")
        self._parsed[-1].problem = request.problem
        if rest:
            self._parse(rest)

    def on_message_begin(self) -> None:
        request = self._receiving = HttpRequest(self._server.local)
        self._headers = request.headers
        self._repeated = []
        self._parsed.append(request)

    def on_url(self, url: bytes) -> None:
        assert self._receiving is not None
        self._receiving.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        if key in self._headers:
            self._repeated.append(key)
        else:
            self._headers[key] = value

    def on_headers_complete(self) -> None:
        request, parser, headers = self._receiving, self._parser, self._headers
        assert request is not None
        request.method = parser.get_method()
        request.head_complete = True
        request.keep_alive = parser.should_keep_alive()
        version = parser.get_http_version()
        if version != "1.1":
            request.http10 = True
            if version != "1.0":
                request.problem = "only HTTP/1.1 and HTTP/1.0 are supported"
        elif b"host" not in headers:
            request.problem = "no Host header"
        if self._repeated and not ONCE.isdisjoint(self._repeated):
            request.problem = "a header that may come only once is repeated"
        if len(headers) + len(self._repeated) > MAX_HEADERS:
            request.problem = "too many headers"
        if self._head_size > MAX_LINE and any(len(line) > MAX_LINE for line in (request.target, *headers.values())):
            request.problem = "a line of the head is too long"
        self._head_size = 0
        self._head_begun = False

    def on_body(self, data: bytes) -> None:
        request = self._receiving
        assert request is not None
        request.parts.append(data)
        request.size += len(data)

    def on_message_complete(self) -> None:
        assert self._receiving is not None
        self._receiving.complete = True
        self._receiving = None
        self._head_size = 0

    # --- one request after the other --------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go on with what has been parsed, as far as it goes."""
        while not self._busy and not self._ending:
            request = self._parsed[0] if self._parsed else None
            if request is None or not request.head_complete:
                if self._malformed is not None or self._head_size > MAX_HEAD:
                    self._bad_request(self._malformed or "the head is too long")
                elif request is None and not self._head_size and self._requests:
                    self._deadline = self._loop.time() + KEEPALIVE
                    if self._timer is None:
                        self._arm()
                elif not self._head_begun:
                    self._head_begun = True
                    self._wait(self._server.settings.header_timeout)
                return
            if not request.admitted and not self._admit(request):
                continue
            if request.size > self._server.settings.max_body:
                self._reply(request, error_response(too_large(self._server.settings.max_body), request.path))
            elif request.complete:
                self._parsed.popleft()
                self._begin(request)
            elif self._malformed is not None:
                self._bad_request(f"{self._malformed} in the body")
            else:
                self._expect_body(request)
                return

    def _admit(self, request: HttpRequest) -> bool:
        """Judge a head. False: it has its answer."""
        self._requests += 1
        self.relay = None
        if request.problem:
            self._bad_request(request.problem)
            return False
        response = self._handler.admit(request)
        if response is not None:
            self._reply(request, response)
            return False
        request.admitted = True
        self._body_since = self._loop.time()
        if not request.complete and request.headers.get(b"expect", b"").lower() == b"100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _begin(self, request: HttpRequest) -> None:
        """Answer a whole request."""
        self._busy = True
        if request.local and (control := self._handler.pass_to_control(request, self, self._control)) is not None:
            self._control = control
        else:
            self._task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: HttpRequest) -> None:
        try:
            response = await self._handler.infer(request, self)
        except Exception:
            log.exception("a request handler failed")
            request.keep_alive = False
            response = error_response(AccelError("internal", "accelerd failed to handle this; see its journal"))
            if self.relay is not None and self.relay.committed:
                response = None
        self._task = None
        if response is not None:
            self._write(request, response)
        self.answered(keep_alive=not self.transport.is_closing())

    def answered(self, *, keep_alive: bool) -> None:
        """The response to the request in hand is on the wire: the next one may follow."""
        self._busy = False
        if not keep_alive:
            self._ending = True
            return
        pending, self._pending = self._pending, b""
        if len(pending) > MAX_PENDING:
            self.transport.resume_reading()
        if pending and self._malformed is None:
            self._parse(pending)
        self._advance()

    def _reply(self, request: HttpRequest, response: Response) -> None:
        """Answer a request without its body, if that is not here yet."""
        self._parsed.popleft()
        if request.complete:
            self._write(request, response)
        else:
            self._refuse(response, head_only=request.method == b"HEAD")

    def _write(self, request: HttpRequest, response: Response) -> None:
        keep_alive = request.keep_alive
        self.transport.write(response.encode(keep_alive=keep_alive, head_only=request.method == b"HEAD"))
        if not keep_alive:
            self._ending = True
            self.transport.close()

    def _bad_request(self, problem: str) -> None:
        peer = str(self.transport.get_extra_info("peername"))
        log.info("malformed request from %s: %s", peer, problem, extra={"peer": peer})
        self._refuse(error_response(AccelError("bad_request", f"not valid HTTP: {problem}")))

    def _refuse(self, response: Response, *, head_only: bool = False) -> None:
        """The last response on this connection: what the client still sends is dropped, for LINGER seconds."""
        self._ending = True
        self._parsed.clear()
        self._pending = b""
        self.transport.write(response.encode(keep_alive=False, head_only=head_only))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(LINGER)

    # --- deadlines --------------------------------------------------------------------------------------------

    def _expect_body(self, request: HttpRequest) -> None:
        """The rest of a body has server.body_timeout, and more as long as it comes quickly enough."""
        now, since = self._loop.time(), self._body_since
        self._wait(min(now, since + request.size / BODY_RATE) + self._server.settings.body_timeout - now)

    def _wait(self, seconds: float) -> None:
        self._deadline = self._loop.time() + seconds
        if self._timer is not None:
            self._timer.cancel()
        self._arm()

    def _arm(self) -> None:
        self._timer = self._loop.call_at(self._deadline, self._expired)

    def _expired(self) -> None:
        self._timer = None
        if self._busy:
            return  # armed again when it is answered
        if self._loop.time() < self._deadline:
            self._arm()
            return
        request = self._parsed[0] if self._parsed else None
        if self._ending:
            self.transport.abort()
        elif request is not None and request.admitted:
            error = AccelError("request_timeout", "the body did not come in time (server.body_timeout)")
            self._reply(request, error_response(error, request.path))
        else:
            self.close()
            if self.transport.get_write_buffer_size():
                self.transport.abort()  # has not read its last answer in all this time

    # --- for the listeners and the sweeper --------------------------------------------------------------------

    @property
    def fresh(self) -> bool:
        """Has it not sent a whole request head yet?"""
        return self._requests == 0

    @property
    def idle(self) -> bool:
        """Does it wait for nothing?"""
        return not self._busy and not any(request.head_complete for request in self._parsed)

    def close(self) -> None:
        """When what was written is sent."""
        self._ending = True
        self.transport.close()

    def abort(self) -> None:
        """At once, whatever was not sent yet."""
        self.transport.abort()

    async def ended(self) -> None:
        """Until it is closed and nothing is answered for it any more."""
        await self._gone
        if self._task is not None:
            await asyncio.wait((self._task,))


def too_large(limit: int) -> AccelError:
    return AccelError("body_too_large", f"the body is larger than {limit} bytes (server.max_body)")
