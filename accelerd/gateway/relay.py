"""One exchange between a client and an engine: bytes through, back-pressure both ways, an honest end in every case.

A Relay writes to the client's transport. After the head is out a failure becomes an SSE error event and a closed
connection, never a clean end. Takes no decision about models: it is given a lease, notes signs of life on it, and
whoever made it releases it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import msgspec

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.gateway.endpoints import ANTHROPIC, error_event, event_of
from accelerd.gateway.framing import FramingError, Head, chunk
from accelerd.gateway.responses import cors_headers, reason
from accelerd.gateway.upstream import ResponseReceiver, UpstreamConnection
from accelerd.scheduler.record import Lease

EVENT_STREAM = b"text/event-stream"
ENGINE_BUSY = bytes(bytearray(b"busy"))  # an object of its own: what an engine sends is never it
LAST_CHUNK = b"0\r\n\r\n"
MAX_COLLECTED = 64 << 20  # bytes of an answer that is put together here
MAX_REFUSAL = 64 << 10  # bytes of an engine's error that is sent as an event
MAX_HIDDEN: Final = 64 << 10  # bytes that an error with status 200 may have: a longer answer is not looked at
MAX_QUOTED: Final = 400  # characters of an engine's own message that the client gets
STALE_WITHIN = 1.0  # s: an idle connection that had died says so at once; later it was the engine that failed


@lru_cache(maxsize=512)
def response_head(status: int, content_type: bytes, model: str, keep_alive: bool, origin: str | None) -> bytes:
    """Status line and headers, without framing and the final empty line. The engine's other headers are dropped."""
    lines = [
        f"HTTP/1.1 {status} {reason(status)}".encode(),
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
        answer = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.DecodeError:
        answer = {}
    if not isinstance(answer.get("error"), dict):
        text = "the engine refused the request and did not say why"
        return error_event(AccelError("upstream_failed", text), path)
    return event_of({**answer, "type": "error"} if path.startswith(ANTHROPIC) else answer)


def hidden_error(content: bytes) -> str | None:
    """The error in a whole answer with status 200: FastFlowLM sends {"error": …}, and `null` without a model."""
    content = content.strip() if len(content) <= MAX_HIDDEN else b""
    if content == b"null":
        return "it answered nothing, as it does without a model for that"
    if not content.startswith(b"{"):
        return None
    try:
        answer = msgspec.json.decode(content, type=dict[str, object])
    except msgspec.DecodeError:
        return None
    error = answer.get("error")
    if isinstance(error, dict):
        error = error.get("message", "it does not say why")
    return str(error)[:MAX_QUOTED] if error is not None else None


class Relay:
    """The client's side of one exchange, and the receiver of the engine's response.

    The future given to `begin` gets None when the response is on the wire, complete or ended as said above, or the
    AccelError to answer with when nothing was sent yet.
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
        "_receiver",
        "_rechunk",
        "_refusal",
        "_stalled",
        "_stream",
        "_transport",
        "busy_statuses",
        "committed",
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
        self.busy_statuses: frozenset[int] = frozenset()  # that the client never sees
        self.only_stream = False  # an answer that is not a stream is an error, whatever its status
        self._transport = transport
        self._now = now
        self._http10 = http10  # knows no chunks: contents only, ended by the close of the connection
        self._keep_alive = keep_alive and not http10
        self._origin = origin  # of the page that asks and may read the answer
        self._stream = False
        self._raw = False  # does the client get chunks?
        self._rechunk = False  # … although the engine sends none?
        self._refusal: bytes | None = None  # an engine's error that the client does not get as it is
        self.committed = False  # is a head on the wire?
        self._finished: asyncio.Future[AccelError | None]
        self._connection: UpstreamConnection | None = None
        self._receiver: ResponseReceiver | None = None
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

    def begin(self, finished: asyncio.Future[AccelError | None]) -> None:
        """An attempt begins. There may be another if nothing of an answer came."""
        self._finished, self.unanswered = finished, False

    @property
    def engine_busy(self) -> bool:
        """Did the engine answer with one of `busy_statuses`? The client got nothing of that."""
        return self._refusal is ENGINE_BUSY

    def ask_again(self) -> None:
        """Forget the answer of a busy engine."""
        self._refusal = None

    def may_repeat(self, unanswered: bool) -> bool:
        """Does the attempt on a kept connection only show that it had died meanwhile? Then another can do no harm."""
        assert self.lease is not None
        return unanswered and not self.committed and self._now() - self.lease.progress <= STALE_WITHIN

    def abandon(self, stall_timeout: float) -> None:
        """The client has gone: end the engine's work. Only a silence that was already too long is its fault."""
        assert self.lease is not None
        if self._connection is not None and self._receiver is not None:
            self._connection.abort(self._receiver)
        self.ok = False if self._now() - self.lease.progress > stall_timeout else None

    def attach(self, connection: UpstreamConnection, receiver: ResponseReceiver) -> None:
        """`connection` now works for this client; `receiver` gets what it answers."""
        self._connection, self._receiver = connection, receiver
        if self.paused:
            connection.pause(receiver)

    def detach(self) -> None:
        """The exchange on that connection is over."""
        self._connection = self._receiver = None

    def stall(self, seconds: float) -> None:
        """The engine has been silent too long: give its connection up."""
        self._stalled = seconds
        if self._connection is not None and self._receiver is not None:
            self._connection.fail(self._receiver, "it fell silent")

    def pause(self) -> None:
        """The client does not read what was written."""
        self.paused = True
        if self._connection is not None and self._receiver is not None:
            self._connection.pause(self._receiver)

    def resume(self) -> None:
        """It reads again."""
        self.paused = False
        if self.lease is not None:
            self.lease.progress = self._now()  # it was not the engine that was silent
        if self._connection is not None and self._receiver is not None:
            self._connection.resume(self._receiver)

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

    # --- ResponseReceiver -------------------------------------------------------------------------------------

    def head(self, head: Head, more: bool) -> bool:
        if head.status != 200 and head.status in self.busy_statuses:
            self._refusal = ENGINE_BUSY
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
            if self._refusal is not ENGINE_BUSY:
                self._refusal = (self._refusal + data)[:MAX_REFUSAL]
        else:
            self._transport.write(chunk(data) if self._rechunk else data)

    def done(self) -> None:
        if self._refusal is not None:
            if self.engine_busy:
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
        if self.engine_busy:
            self._end(None)  # the status is all that counts of such an answer
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
        if not self._keep_alive:
            self._transport.close()

    def _write_event(self, event: bytes) -> None:
        self._transport.write(chunk(event) if self._raw else event)

    def _end(self, outcome: AccelError | None) -> None:
        if not self._finished.done():
            self._finished.set_result(outcome)


class Collector:
    """Receives a response and keeps its whole content, for answers that are looked at before the client gets them."""

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
        self._finished: asyncio.Future[AccelError | None]

    def begin(self, finished: asyncio.Future[AccelError | None]) -> None:
        """An attempt begins. There may be another if nothing of an answer came."""
        self._finished, self.failure, self.unanswered, self.response = finished, None, False, None
        self.parts.clear()

    def ask_again(self) -> None:
        """Nothing to do: `begin` forgets what came."""

    @property
    def engine_busy(self) -> bool:
        """Did the engine answer with one of the busy statuses?"""
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
