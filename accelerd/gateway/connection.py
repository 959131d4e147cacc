"""A client's connection: takes requests, enforces limits and deadlines, answers in order.

One request is handled at a time. What a client sends meanwhile is kept unparsed up to MAX_PENDING bytes. A client that
closes its half of the connection counts as gone: its request is cancelled. Who may ask for what is decided in
gateway.py; control requests on the unix socket are passed whole to aiohttp (control_server.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Coroutine
from typing import Protocol, cast

from accelerd.base.errors import AccelError
from accelerd.config.model import ServerSettings
from accelerd.gateway.handover import Parcel, Waiting
from accelerd.gateway.held_bodies import SMALL, HeldBodies
from accelerd.gateway.relay import Relay
from accelerd.gateway.request_parser import HttpRequest, RequestParser
from accelerd.gateway.responses import Response, error_response
from accelerd.gateway.sweeper import Sweeper
from accelerd.system.activation import peer_of

log = logging.getLogger(__name__)

KEEPALIVE = 75.0  # s: between two requests of one client
BODY_RATE = 4096  # bytes/s: a body that comes slower for longer than server.body_timeout is given up
MAX_PENDING = 256 << 10  # bytes kept of what a client sends before it has its answer
LOG_PERIOD = 10.0  # s
LINGER = 2.0  # s: a refused body is read and dropped, or the reset of the connection would take the refusal with it


class Handler(Protocol):
    """What answers requests: gateway.Gateway."""

    sweeper: Sweeper
    bodies: HeldBodies

    def admit(self, request: HttpRequest) -> Response | None:
        """The head is here: the response if none of the body is needed for it, None to go on."""
        ...

    def infer(
        self, request: HttpRequest, connection: ClientConnection
    ) -> Response | Coroutine[None, None, Response | None] | None:
        """Start a whole inference request: a refusal, or what finishes it. None: the response was sent."""
        ...

    async def control(self, request: HttpRequest, connection: ClientConnection) -> None:
        """Have a whole control request answered; `connection.answered` is called when it is."""
        ...


class LogLimit:
    """At most one line in LOG_PERIOD, so that no client can fill the disk."""

    def __init__(self) -> None:
        self._last = -math.inf
        self._held_back = 0

    def admit(self) -> str | None:
        """What to append to the line; None: log nothing."""
        now = asyncio.get_running_loop().time()
        if now - self._last < LOG_PERIOD:
            self._held_back += 1
            return None
        more = f" ({self._held_back} more were not logged)" if self._held_back else ""
        self._last, self._held_back = now, 0
        return more


class HttpServer:
    """The connections of one kind of listening socket; a protocol factory. `local`: of the unix socket."""

    def __init__(self, handler: Handler, settings: ServerSettings, *, local: bool) -> None:
        self.handler = handler
        self.settings = settings
        self.local = local
        self.connections: set[ClientConnection] = set()
        self.malformed = LogLimit()
        self.failures = LogLimit()

    def __call__(self) -> ClientConnection:
        return ClientConnection(self)


class ClientConnection(asyncio.Protocol):
    """One client. `relay` and `control` hear of back-pressure."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._handler = server.handler
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser(server.local)
        self._parsed = self._parser.requests
        self._head_begun = True  # does the deadline of a head run? The first one's begins with the connection
        self._pending = b""  # not parsed yet
        self._busy = False  # is a request being answered?
        self._request: HttpRequest | None = None  # that is being answered
        self._task: asyncio.Task[None] | None = None
        self._ending = False  # answers no more: is closing, or drops what still comes
        self._last = False  # is the request in hand the last one?
        self._requests = 0
        self._held = 0  # bytes of a body that is not small
        self._body_since = 0.0
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._gone = self._loop.create_future()
        self.writing_paused = False
        self.stream_begun = False  # an earlier daemon has sent the head of the answer that comes next
        self.relay: Relay | None = None
        self.control: asyncio.Protocol | None = None  # aiohttp's, once it has answered a control request here
        self.transport: asyncio.Transport
        self.peer: str  # the client's address; "local" on the unix socket

    # --- asyncio ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses of asyncio's
        address = transport.get_extra_info("peername")  # now: a closed transport cannot be asked
        self.peer = str(address[0]) if isinstance(address, tuple) else "local"
        server = self._server
        server.connections.add(self)
        self._wait(server.settings.header_timeout)
        error = None
        if server.local and peer_of(transport.get_extra_info("socket"))[1] not in (0, os.getuid()):
            error = AccelError("unauthorized", "only the user that runs accelerd may use its control socket")
        elif len(server.connections) > server.settings.max_connections:
            error = AccelError("too_many_connections", "too many connections (server.max_connections)", retry_after=1)
        if error is not None:
            self._ending = True
            self.transport.write(error_response(error).encode(keep_alive=False))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._handler.sweeper.resumed(self.transport)
        self._ending = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._loop.call_soon(self._task.cancel)  # after its first step: what it has to undo has begun already
        if self.control is not None:
            self.control.connection_lost(exc)
        self._request = None  # or its body would last until the next collection of garbage
        for request in self._parsed:
            request.parts.clear()
        self._gone.set_result(None)
        self.hold(0)

    def eof_received(self) -> None:
        return None  # close: who closes its half is gone

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._handler.sweeper.paused(self.transport)
        if self.relay is not None:
            self.relay.pause()
        if self.control is not None:
            self.control.pause_writing()

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._handler.sweeper.resumed(self.transport)
        if self.relay is not None:
            self.relay.resume()
        if self.control is not None:
            self.control.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        if self._busy:
            before = len(self._pending)
            self._pending += data
            if before <= MAX_PENDING < len(self._pending):
                self.transport.pause_reading()
            return
        self._parser.feed(data)
        self._advance()

    # --- one request after the other --------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go on with what has been parsed, as far as it goes."""
        while not self._busy and not self._ending:
            request = self._parsed[0] if self._parsed else None
            if request is None or not request.head_complete:
                if self._parser.malformed is not None:
                    code = "http_version_not_supported" if self._parser.wrong_version else "bad_request"
                    self._bad_request(self._parser.malformed, code)
                elif self._requests and not self._parser.in_head:
                    self._head_begun = False
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
                self._reply(request, refusal(request, too_large(self._server.settings.max_body)))
            elif request.size > SMALL and (error := self.hold(request.size)) is not None:
                self._reply(request, refusal(request, error))
            elif request.complete:
                self._parsed.popleft()
                self._begin(request)
            elif self._parser.malformed is not None:
                self._bad_request(f"{self._parser.malformed} in the body")
            else:
                self._expect_body(request)
                return

    def hold(self, size: int) -> AccelError | None:
        size = 0 if self._gone.done() else size  # its task ends a moment later
        more, self._held = size - self._held, size  # bytes of the body in hand
        return self._handler.bodies.hold(more)

    def _let_go(self) -> None:
        """The request is answered: nothing may keep its body."""
        self._request = self.relay = None
        if self._held:
            self.hold(0)

    def _admit(self, request: HttpRequest) -> bool:
        """Judge a head. False: it has its answer."""
        self._requests += 1
        self._head_begun = False
        if request.problem:
            self._bad_request(request.problem, request.problem_code)
            return False
        response = self._handler.admit(request)
        if response is not None:
            self._reply(request, response)
            return False
        request.admitted = True
        self._body_since = self._loop.time()
        if not request.complete and b"expect" in request.headers:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _begin(self, request: HttpRequest) -> None:
        """Answer a whole request."""
        self._busy, self._request = True, request
        if request.for_control:
            self._task = self._loop.create_task(self._pass_to_control(request))
            return
        try:
            answer: Response | Coroutine[None, None, Response | None] | None = self._handler.infer(request, self)
        except Exception:
            answer = self._internal_error(request)
        if answer is None or isinstance(answer, Response):
            self._busy = False
            if answer is not None:
                self._write(request, answer)
            self._let_go()
        else:
            self._task = self._loop.create_task(self._finish(request, answer))

    async def _pass_to_control(self, request: HttpRequest) -> None:
        try:
            await self._handler.control(request, self)
        except Exception:
            self._internal_error(request)
            self.abort()
        self._task = None

    async def _finish(self, request: HttpRequest, answer: Coroutine[None, None, Response | None]) -> None:
        try:
            response = await answer
        except Exception:
            response = self._internal_error(request)
        finally:
            self._task = None  # it knows where it was cancelled, and what there was
        if response is not None:
            self._write(request, response)
        self.answered(keep_alive=not self.transport.is_closing())

    def _internal_error(self, request: HttpRequest) -> Response | None:
        """Log the exception. The last response on this connection; None if another one has begun."""
        if (more := self._server.failures.admit()) is not None:
            log.exception("cannot handle a request: internal error%s", more)
        request.keep_alive = False
        if self.relay is not None and self.relay.committed:
            return None
        return refusal(request, AccelError("internal", "internal error; see the journal"))

    def answered(self, *, keep_alive: bool) -> None:
        """The response to the request in hand is on the wire: the next one may follow."""
        self._busy = False
        self._let_go()
        if self._last:
            self.close()
        if self._last or not keep_alive:
            self._ending = True
            return
        pending, self._pending = self._pending, b""
        if len(pending) > MAX_PENDING:
            self.transport.resume_reading()
        if pending and self._parser.malformed is None:
            self._parser.feed(pending)
        self._advance()

    def _reply(self, request: HttpRequest, response: Response) -> None:
        """Answer a request without its body, if that is not here yet."""
        self._parsed.popleft()
        request.parts.clear()  # the parser may still have the request
        self._let_go()
        if self.stream_begun:
            self.abort()  # no other response can follow
        elif request.complete:
            self._write(request, response)
        else:
            self._refuse(response, request)

    def _write(self, request: HttpRequest, response: Response) -> None:
        keep_alive = request.keep_alive
        self.transport.write(encoded(response, request, keep_alive=keep_alive))
        if not keep_alive:
            self._ending = True
            self.transport.close()

    def _bad_request(self, problem: str, code: str = "bad_request") -> None:
        if (more := self._server.malformed.admit()) is not None:
            log.info("malformed request from %s: %s%s", self.peer, problem, more, extra={"peer": self.peer})
        self._refuse(error_response(AccelError(code, f"not valid HTTP: {problem}")))

    def _refuse(self, response: Response, request: HttpRequest | None = None) -> None:
        """The last response on this connection: what the client still sends is dropped, for LINGER seconds."""
        self._ending = True
        self._parsed.clear()
        self._pending = b""
        data = encoded(response, request, keep_alive=False) if request else response.encode(keep_alive=False)
        self.transport.write(data)
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
            self._reply(request, refusal(request, error))
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

    def close_when_idle(self) -> None:
        """After the response to the request in hand, if there is one."""
        self._last = True
        if self.idle:
            self.close()

    def hand_over(self) -> Parcel | None:
        """Part with the connection for the next daemon, if its request waits for its model; None: it does not."""
        request, relay = self._request, self.relay
        if not self._busy or request is None or relay is None or relay.lease is not None:
            return None
        if self._parsed or self.transport.get_write_buffer_size():
            return None
        sock = self.transport.get_extra_info("socket")
        waiting = Waiting(self._server.local, relay.committed)
        data = request.encode() + self._pending
        parcel = Parcel(os.dup(sock.fileno()), waiting, data, request.path, http10=request.http10)
        relay.handed_over = True
        self.abort()
        return parcel

    def resume(self, data: bytes, *, begun: bool) -> None:
        """Go on with a request that an earlier daemon has handed over. `begun`: see Waiting."""
        self.stream_begun = begun
        self.data_received(data)

    def cut(self, error: AccelError) -> None:
        """End an answer that an engine is giving."""
        if self._busy and self.relay is not None:
            self.relay.cut(error)

    def abort(self) -> None:
        """At once, whatever was not sent yet."""
        self.transport.abort()

    async def ended(self) -> None:
        """Until it is closed and nothing is answered for it any more."""
        await self._gone
        if self._task is not None:
            await asyncio.wait((self._task,))


def encoded(response: Response, request: HttpRequest, *, keep_alive: bool) -> bytes:
    """The response to that request."""
    head_only = request.method == b"HEAD"
    return response.encode(keep_alive=keep_alive, head_only=head_only, request_id=request.id, path=request.path)


def refusal(request: HttpRequest, error: AccelError) -> Response:
    """The error as the response to an admitted request."""
    response = error_response(error, request.path)
    return response if request.origin is None else response.readable_by(request.origin)


def too_large(limit: int) -> AccelError:
    return AccelError("body_too_large", f"the body is larger than {limit} bytes (server.max_body)")
