"""One exchange between a client and an engine: bytes through, back-pressure both ways, an honest end in every case.

A Relay writes straight to the client's transport; aiohttp only learns that the response was sent. After the head is out
a failure becomes an SSE error event and a closed connection, never a clean end. Takes no decision about models: it is
given a lease, notes signs of life on it, and whoever made it releases it.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import msgspec
from aiohttp import web

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.gateway.endpoints import ANTHROPIC, error_event, event_of
from accelerd.gateway.framing import FramingError, Head, chunk
from accelerd.gateway.masked import hidden_error
from accelerd.gateway.responses import cors_headers
from accelerd.gateway.upstream import Connection, Sink
from accelerd.scheduler.record import Lease

EVENT_STREAM = b"text/event-stream"
TURNED_AWAY = bytes(bytearray(b"busy"))  # an object of its own: what an engine says is never it
LAST_CHUNK = b"0\r\n\r\n"
MAX_COLLECTED = 64 << 20  # bytes of an answer that is put together here
MAX_REFUSAL = 64 << 10  # bytes of an engine's error that is told as an event
STALE_WITHIN = 1.0  # s: an idle connection that had died says so at once; later it was the engine that failed


class Outcome(Protocol):
    """Who hears that an exchange is over, once: a future, or the fast path."""

    def done(self) -> bool: ...
    def set_result(self, result: AccelError | None, /) -> None: ...


class Sent(web.StreamResponse):
    """A response that is on the wire already; aiohttp sees it as prepared and finished."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._eof_sent = True
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


@lru_cache(maxsize=512)
def response_head(status: int, content_type: bytes, model: str, keep_alive: bool, origin: str | None) -> bytes:
    """Status line and headers, without framing and the final empty line. The engine's other headers are dropped."""
    phrase = http.HTTPStatus(status).phrase if status in http.HTTPStatus._value2member_map_ else "Status"
    lines = [
        f"HTTP/1.1 {status} {phrase}".encode(),
        b"Content-Type: " + content_type,
        f"{names.HEADER_MODEL}: {model}".encode(),
    ]
    if content_type.startswith(EVENT_STREAM):
        lines += [b"Cache-Control: no-cache", b"X-Accel-Buffering: no"]
    if origin is not None:
        lines += [f"{name}: {value}".encode() for name, value in cors_headers(origin).items()]
    if not keep_alive:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n"


def refusal_event(body: bytes, path: str) -> bytes:
    """The engine's own error as an event, if it is one."""
    try:
        said = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.DecodeError:
        said = {}
    if not isinstance(said.get("error"), dict):
        text = "the engine refused the request and did not say why"
        return error_event(AccelError("upstream_failed", text), path)
    return event_of({**said, "type": "error"} if path.startswith(ANTHROPIC) else said)


class Relay:
    """The client's side of one exchange, and the Sink of the engine's.

    The Outcome given to `begin` hears when it is over: None when the response is on the wire, complete or ended as said
    above, or the AccelError to answer with when nothing was sent yet.
    """

    __slots__ = (
        "_connection",
        "_finished",
        "_held",
        "_http10",
        "_keep_alive",
        "_now",
        "_origin",
        "_path",
        "_raw",
        "_rechunk",
        "_refusal",
        "_sink",
        "_stalled",
        "_stream",
        "_transport",
        "busy",
        "committed",
        "complete",
        "lease",
        "ok",
        "only_stream",
        "paused",
        "unanswered",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        now: Callable[[], float],
        *,
        keep_alive: bool,
        http10: bool,
        origin: str | None,
        path: str = "",
    ) -> None:
        """`path`: what was asked, which decides how errors look."""
        self._path = path
        self.busy: frozenset[int] = frozenset()  # statuses that the client is not told
        self.only_stream = False  # what is no stream is an error, whatever its status says
        self._transport = transport
        self._now = now
        self._http10 = http10  # knows no chunks: contents only, ended by the close of the connection
        self._keep_alive = keep_alive and not http10
        self._origin = origin  # of the page that asks and may read the answer
        self._stream = False
        self._raw = False  # does the client get chunks?
        self._rechunk = False  # … although the engine sends none?
        self._refusal: bytes | None = None  # what the engine says that the client does not get as an answer
        self.committed = False  # is a head on the wire?
        self.complete = False  # is the whole response, and may the next one follow?
        self._finished: Outcome
        self._connection: Connection | None = None
        self._sink: Sink | None = None
        self.lease: Lease | None = None
        self.ok: bool | None = None  # for the lease: did the engine do its work?
        self.paused = False  # does the client read nothing just now?
        self.unanswered = False  # broke before a byte of a response: an idle connection that had died
        self._held = b""  # a head that goes out with the first bytes of its body
        self._stalled = 0.0  # seconds of silence after which the engine was given up

    def comment(self, text: str, model: str) -> None:
        """Keep a streaming client alive while it waits: sends the head if need be, then an SSE comment."""
        if not self.committed:
            self._transport.write(self._commit(200, EVENT_STREAM, model, chunked=True, length=None))
        self._write_event(b": " + text.encode() + b"\n\n")

    def fail(self, error: AccelError) -> AccelError | None:
        """End with an error: returned when it can still be a proper response, else written as an SSE event."""
        if not self.committed:
            return error
        if self._stream:
            self._write_event(error_event(error, self._path))
            self._transport.close()  # without a last chunk: nobody may take this for a complete answer
        else:
            self._transport.abort()
        return None

    def begin(self, finished: Outcome) -> None:
        """An attempt begins. There may be another if nothing of an answer came."""
        self._finished, self.unanswered = finished, False

    @property
    def turned_away(self) -> bool:
        """Did the engine say that it is busy? The client has heard nothing of it."""
        return self._refusal is TURNED_AWAY

    def ask_again(self) -> None:
        """After it was turned away: as if it had not been asked."""
        self._refusal = None

    def may_repeat(self, unanswered: bool) -> bool:
        """Does the attempt on a kept connection only show that it had died meanwhile? Then another can do no harm."""
        assert self.lease is not None
        return unanswered and not self.committed and self._now() - self.lease.progress <= STALE_WITHIN

    def abandon(self, stall_timeout: float) -> None:
        """The client has gone: end the engine's work. Only a silence that was already too long is its fault."""
        assert self.lease is not None
        if self._connection is not None and self._sink is not None:
            self._connection.abort(self._sink)
        self.ok = False if self._now() - self.lease.progress > stall_timeout else None

    def serve(self, connection: Connection | None, sink: Sink | None) -> None:
        """The connection that works for this client, and for which sink; None when it does no more."""
        self._connection, self._sink = connection, sink
        if self.paused and connection is not None and sink is not None:
            connection.pause(sink)

    def stall(self, seconds: float) -> None:
        """The engine has been silent too long: give its connection up."""
        self._stalled = seconds
        if self._connection is not None and self._sink is not None:
            self._connection.fail(self._sink, "it fell silent")

    def pause(self) -> None:
        """The client does not read what was written."""
        self.paused = True
        if self._connection is not None and self._sink is not None:
            self._connection.pause(self._sink)

    def resume(self) -> None:
        """It reads again."""
        self.paused = False
        if self.lease is not None:
            self.lease.progress = self._now()  # it was not the engine that was silent
        if self._connection is not None and self._sink is not None:
            self._connection.resume(self._sink)

    def abort(self) -> None:
        """Close the client's connection at once: nobody may take what it got for a whole response."""
        self._transport.abort()

    def failure(self, reason: str) -> AccelError:
        """What to tell the client about a broken exchange."""
        if self._stalled:
            text = f"the engine was silent for {self._stalled:.0f} s (server.stall_timeout)"
            return AccelError("upstream_timeout", text)
        return AccelError("upstream_failed", f"the engine failed: {reason}")

    def reply(self, status: int, content_type: bytes, body: bytes) -> None:
        """A whole response of our own making, in the name of the leased model."""
        assert self.lease is not None
        head = self._commit(status, content_type, self.lease.model, chunked=False, length=len(body))
        self._transport.write(head + body)
        self._leave()

    def sent(self) -> Sent:
        """What to return to aiohttp."""
        return Sent(keep_alive=self._keep_alive and not self._transport.is_closing())

    # --- Sink -------------------------------------------------------------------------------------------------

    def head(self, head: Head, more: bool) -> bool:
        if head.status != 200 and head.status in self.busy:
            self._refusal = TURNED_AWAY
            return True
        self.ok = head.status < 500
        if self.committed:  # comments went out before: only a stream may follow
            if head.status != 200 or not head.content_type.startswith(EVENT_STREAM):
                self._refusal = b""
                return True
            self._rechunk = self._raw and not head.chunked
            return self._http10
        assert self.lease is not None
        if self.only_stream and head.status == 200 and not head.content_type.startswith(EVENT_STREAM):
            self._refusal, self.ok = b"", False
            return True
        contents = head.chunked and self._http10
        raw = self._commit(head.status, head.content_type, self.lease.model, chunked=head.chunked, length=head.length)
        if more and not contents:
            self._held = raw
        else:
            self._transport.write(raw)
        return contents

    def data(self, data: bytes) -> None:
        assert self.lease is not None
        self.lease.progress = self._now()
        if self._held:
            self._transport.write(self._held + data)
            self._held = b""
        elif self._refusal is not None:
            if self._refusal is not TURNED_AWAY:
                self._refusal = (self._refusal + data)[:MAX_REFUSAL]
        else:
            self._transport.write(chunk(data) if self._rechunk else data)

    def done(self) -> None:
        if self._refusal is not None:
            if self.turned_away:
                self._end(None)
                return
            if not self.committed:
                self._end(self.failure(hidden_error(self._refusal) or "it answered with no stream"))
                return
            self._write_event(refusal_event(self._refusal, self._path))
            self._transport.close()
            self._end(None)
            return
        if self._rechunk:
            self._transport.write(LAST_CHUNK)
        self._leave()
        self._end(None)

    def lost(self, reason: str, *, clean: bool, answered: bool) -> None:
        if self.turned_away:
            self._end(None)  # what it had to say, it said
            return
        self.ok = False
        self.unanswered = not answered and not self._stalled
        if self._held:
            self._held, self.committed = b"", False  # after all there is nothing on the wire
        if self.committed and not clean:
            self._transport.abort()  # in the middle of a chunk: nothing can be said any more
            self._end(None)
            return
        self._end(self.fail(self.failure(reason)))

    # --- the wire ---------------------------------------------------------------------------------------------

    def _commit(self, status: int, content_type: bytes, model: str, *, chunked: bool, length: int | None) -> bytes:
        """The head to write: what follows can only be the body."""
        self.committed = True
        self._stream = content_type.startswith(EVENT_STREAM)
        self._raw = chunked and not self._http10
        if self._raw:
            framing = b"Transfer-Encoding: chunked\r\n\r\n"
        elif length is not None:
            framing = b"Content-Length: %d\r\n\r\n" % length
        else:
            self._keep_alive = False
            framing = b"\r\n"
        return response_head(status, content_type, model, self._keep_alive, self._origin) + framing

    def _leave(self) -> None:
        self.complete = self._keep_alive
        if not self._keep_alive:
            self._transport.close()

    def _write_event(self, event: bytes) -> None:
        self._transport.write(chunk(event) if self._raw else event)

    def _end(self, outcome: AccelError | None) -> None:
        if not self._finished.done():
            self._finished.set_result(outcome)


class Collector:
    """A Sink that keeps the whole content of a response, for answers that accelerd puts together itself."""

    __slots__ = ("_busy", "_finished", "_lease", "_now", "_size", "failure", "parts", "response", "unanswered")

    def __init__(self, lease: Lease, now: Callable[[], float], busy: frozenset[int] = frozenset()) -> None:
        self._busy = busy
        self._lease = lease
        self._now = now
        self._size = 0
        self.parts: list[bytes] = []
        self.response: Head | None = None
        self.failure: str | None = None
        self.unanswered = False
        self._finished: Outcome

    def begin(self, finished: Outcome) -> None:
        """An attempt begins. There may be another if nothing of an answer came."""
        self._finished, self.failure, self.unanswered, self.response = finished, None, False, None
        self.parts.clear()

    def ask_again(self) -> None:
        """After it was turned away: `begin` forgets what came."""

    @property
    def turned_away(self) -> bool:
        """Did the engine say that it is busy?"""
        return self.response is not None and self.response.status in self._busy

    def head(self, head: Head, more: bool) -> bool:
        self.response = head
        return True

    def data(self, data: bytes) -> None:
        self._lease.progress = self._now()
        self._size += len(data)
        if self._size > MAX_COLLECTED:
            raise FramingError(f"a response of more than {MAX_COLLECTED >> 20} MiB")
        self.parts.append(data)

    def done(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    def lost(self, reason: str, *, clean: bool, answered: bool) -> None:
        self.failure, self.unanswered = reason, not answered
        self.done()
