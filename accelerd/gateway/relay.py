"""Relays one response from an engine to a client: unchanged bytes, back-pressure, no failure that looks like success.

A Relay writes to the client's transport. After the head is out a failure becomes an SSE error event and a closed
connection, never a clean end. Takes no decision about models: it is given a lease, notes signs of life on it, and
whoever made it releases it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from accelerd.base.errors import AccelError
from accelerd.engines.base import Traits
from accelerd.gateway.corrections import (
    PLAIN,
    Correction,
    Renamed,
    RenamedLines,
    corrected_answer,
    correction_for,
    error_event,
    is_cut,
    refusal_event,
    renamed,
    waiting_event,
)
from accelerd.gateway.dialects.translation import EVENT_STREAM, JSON_LINES, TranslatedResponse
from accelerd.gateway.engine_errors import NO_DIALECT, TOO_LONG, corrected_error, failure_of, hidden_error, sole_error
from accelerd.gateway.one_by_one import JoinedStreams
from accelerd.gateway.response_framing import LAST_CHUNK, FramingError, Head, chunk
from accelerd.gateway.responses import (
    JSON_TYPE,
    STREAMS,
    date_and_id,
    is_ollamas,
    response_head,
)
from accelerd.gateway.stream_events import Json
from accelerd.gateway.transcripts import TRANSCRIPTS, transcript_stream
from accelerd.gateway.upstream import Connection, ResponseReceiver
from accelerd.scheduler.record import Lease

MAX_COLLECTED = 64 << 20  # bytes of a response that is collected before it is sent


def never(error: AccelError) -> bool:
    return False


class Relay:
    """The client's side of one exchange, and the receiver of the engine's response.

    The future given to `begin` gets None when the response is on the wire, complete or ended as said above, or the
    AccelError to end with when nothing of a response was sent yet, except perhaps comments.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        now: Callable[[], float],
        *,
        keep_alive: bool,
        http10: bool,
        origin: str | None,
        path: str = "",
        request_id: str = "",
        repair: bool = True,
    ) -> None:
        """`path`: of the request; it decides the format of errors. `repair`: server.repair."""
        self._repair = repair
        self._path = path
        self._id = request_id
        self.busy_statuses: frozenset[int] = frozenset()  # that the client never sees
        self.only_stream = False  # an answer that is not a stream is an error, whatever its status
        self._transport = transport
        self._now = now
        self._http10 = http10  # no chunked encoding: the close of the connection ends the body
        self._keep_alive = keep_alive and not http10
        self._origin = origin  # of a web page that may read the response
        self.stream = False  # is the response a stream of events?
        self._raw = False  # is the body sent to the client chunked?
        self._rechunk = False  # … although the engine does not chunk it?
        self._whole: list[bytes] | None = None  # a response that the client gets changed, or not at all; see `_head`
        self._size = 0  # bytes of it
        self._head: Head | None = None
        self._correction: Correction | None = None  # of the stream that goes through
        self.dialect = NO_DIALECT
        self.traits: Callable[[], Traits] | None = None  # of the leased model
        self.replaceable: Callable[[AccelError], bool] = never  # may another model answer after such an error?
        self.others = False  # are there other models that may answer? Then a head alone is no answer yet
        self.called = self.called_there = ""  # the client's name for the model, and that in the request to the engine
        self.route, self.attempt = "", 1  # see response_head
        self.verdict: AccelError | None = None  # what the engine's answer says of it, if that is an error
        self.misnamed = False  # does the engine call the model otherwise than the client?
        self.translated: TranslatedResponse | None = None  # where the engine's API is not the client's
        self.repeated: Json | None = None  # what a response of the Responses API has of its request
        self.amend: Callable[[bytes], bytes] | None = None  # a plain answer, as the engine has it; see amendments.py
        self.several = False  # are several prompts answered in one stream?
        self.joined: JoinedStreams | None = None  # what makes one of several streams
        self.committed = False  # has a head been sent?
        self.passed = False  # has anything of an engine's response been sent?
        self._finished: asyncio.Future[AccelError | None]
        self._connection: Connection | None = None
        self._receiver: ResponseReceiver | None = None
        self.lease: Lease | None = None
        self.in_flight: asyncio.Future[AccelError | None] | None = None  # of the attempt that is under way already
        self.ok: bool | None = None  # for the lease: has the engine done its work?
        self.paused = False  # is the client not reading?
        self.unread = False  # the connection broke, and the engine has not read the request
        self._held = b""  # a head that is sent with the first bytes of its body
        self._stalled = 0.0  # seconds without data after which the engine was given up
        self.began = now()
        self.leased: float | None = None  # when it was the request's turn
        self.first_byte: float | None = None  # when the engine began to answer
        self.status = 0  # of the response; 0: none was sent
        self.error: str | None = None  # the code of that with which it ended
        self.handed_over = False  # the next daemon answers
        self.cut_with: AccelError | None = None  # why the answer is cut, although the engine works

    def go_on(self) -> None:
        """An earlier daemon has sent the head of a stream, and comments."""
        self.committed, self.status, self.stream, self._raw = True, 200, True, not self._http10

    def start_over(self) -> None:
        """Forget an attempt of which the client has received nothing: the request waits for a model again."""
        self.lease = self.in_flight = self.ok = self.cut_with = self.verdict = None
        self._whole = self._head = self._correction = self.joined = None
        self.unread, self._stalled, self._size = False, 0.0, 0

    def comment(self, text: str, model: str) -> None:
        """Send a comment to a streaming client that waits, and the head before the first one."""
        if not self.committed:
            kind = JSON_LINES if is_ollamas(self._path) else EVENT_STREAM
            self._write(self._commit(200, kind, model, chunked=True, length=None))
        self._write_event(waiting_event(text, self._path, model))

    def fail(self, error: AccelError) -> AccelError | None:
        """End with an error: returned while it can still be a response of its own, else sent as an SSE event."""
        self.error = error.code  # the error itself knows the frames where it was raised, with the body
        if not self.committed:
            return error
        if self.stream:
            self._write_event(error_event(error, self._path, self._correction))
            self._transport.close()  # without a last chunk: the response must not look complete
        else:
            self._transport.abort()
        return None

    def begin(self, finished: asyncio.Future[AccelError | None]) -> None:
        """Start an attempt. Another may follow if no part of a response arrives."""
        self._finished, self.unread = finished, False
        self._whole = self._head = None

    @property
    def engine_busy(self) -> bool:
        """Has the engine answered with one of `busy_statuses`? The client has received nothing of it."""
        return self._head is not None and self._head.status in self.busy_statuses

    @property
    def ended(self) -> bool:
        """Was an error sent, or has the client gone? Nothing may follow."""
        return self.status != 200 or self._transport.is_closing()

    def abandon(self, stall_timeout: float) -> None:
        """The client has disconnected: cancel the engine's work. It has failed only if it was already stalled."""
        assert self.lease is not None
        if self._connection is not None and self._receiver is not None:
            self._connection.abort(self._receiver)
        self.ok = False if self._now() - self.lease.progress > stall_timeout else None

    def attach(self, connection: Connection, receiver: ResponseReceiver) -> None:
        """`connection` now serves this client; `receiver` gets its response."""
        self._connection, self._receiver = connection, receiver
        if self.paused:
            connection.pause(receiver)

    def detach(self) -> None:
        """The exchange on that connection is over."""
        self._connection = self._receiver = None

    def stall(self, seconds: float) -> None:
        """The engine has sent nothing for too long: give it up."""
        self._stalled = seconds
        if self._connection is not None and self._receiver is not None:
            self._connection.fail(self._receiver, "it stopped sending")

    def cut(self, error: AccelError) -> None:
        """End the answer with this error: its engine is about to be stopped, or accelerd."""
        self.cut_with = error
        if self._connection is not None and self._receiver is not None:
            self._connection.fail(self._receiver, "its answer was cut")

    def pause(self) -> None:
        """The client has stopped reading."""
        self.paused = True
        if self._connection is not None and self._receiver is not None:
            self._connection.pause(self._receiver)

    def resume(self) -> None:
        """The client reads again."""
        self.paused = False
        if self.lease is not None:
            self.lease.progress = self._now()  # the pause was not the engine's
        if self._connection is not None and self._receiver is not None:
            self._connection.resume(self._receiver)

    def abort(self) -> None:
        """Close the client's connection at once: the response must not look complete."""
        self._transport.abort()

    def failure(self, reason: str) -> AccelError:
        """The error for an exchange that broke."""
        if self.cut_with is not None:
            self.ok = None  # that says nothing about the engine
            return self.cut_with
        if self._stalled:
            text = f"the engine sent nothing for {self._stalled:.0f} s (server.stall_timeout)"
            return AccelError("upstream_timeout", text)
        return AccelError("upstream_failed", f"the engine failed: {reason}")

    def rejected(self, head: Head, body: bytes) -> AccelError | None:
        """The engine's error as that of its model, where another one may answer instead; None: it is the answer.

        What the request has caused would come from any engine, and is an answer; but another may take a longer one.
        """
        assert self.lease is not None
        if head.status < 400:
            return None
        error = failure_of(head, body, self.lease.model, self.called_there, self.dialect)
        if error is None:
            return None
        if error.code != TOO_LONG:
            self.verdict = error
        if not self.replaceable(error):
            return None
        if error.fields.get("engine_status", 0) >= 500:
            self.ok = False
        return error

    def _corrected(self, status: int, body: bytes) -> tuple[int, bytes]:
        """The engine's error as the client is to get it."""
        assert self.lease is not None
        trained = self.traits().trained if self.traits is not None else None
        if self.translated is not None:
            body = self.translated.error(body)
        return corrected_error(status, body, self._path, self.lease.model, self.dialect, trained)

    def reply(self, status: int, content_type: bytes, body: bytes) -> None:
        """Send a whole response in the name of the leased model, corrected. AccelError if it cannot be translated."""
        assert self.lease is not None
        if status >= 400:
            status, body = self._corrected(status, body)
            if self.translated is not None or not content_type.startswith(b"application/json"):
                content_type = JSON_TYPE.encode()
        elif (said := sole_error(body)) is not None:
            raise AccelError("upstream_failed", f"the engine failed: {said}")
        elif self.translated is not None:
            body = body if self.amend is None else self.amend(body)
            body, content_type = self.translated.answer(body), JSON_TYPE.encode()
        else:
            if self.misnamed:
                named = renamed(body, self.called or self.lease.model)
                if named is body and content_type.startswith(b"application/json") and is_cut(body):
                    raise AccelError("upstream_failed", "the engine's answer is JSON that ends too early")
                body = named
            if self.amend is not None:
                body = self.amend(body)
            elif self._repair and self._path in PLAIN:
                body = corrected_answer(self._path, body, self.dialect, self.repeated)
        self.ok = status < 500
        head = self._commit(status, content_type, self.lease.model, chunked=False, length=len(body))
        self._write(head + body)
        self._finish_client()

    # --- ResponseReceiver -------------------------------------------------------------------------------------

    def head(self, head: Head, more: bool) -> bool:
        assert self.lease is not None
        if head.status != 200 and head.status in self.busy_statuses:
            return self._keep(head)
        self.ok = head.status < 500
        if not self.passed:
            self.first_byte = self._now()
        streams = head.status == 200 and head.content_type.startswith(STREAMS)
        whole = self.only_stream or self._path in PLAIN or self.translated is not None or self.amend is not None
        named = self.misnamed and head.content_type.startswith(b"application/json")
        whole = whole or (named and (head.length or 0) <= MAX_COLLECTED)
        if not streams and (self.committed or head.status >= 400 or whole):
            return self._keep(head)
        correction = self._correction_of_stream() if streams else None
        self._correction = correction
        if self.committed:  # comments have been sent
            self._rechunk = self._raw and (not head.chunked or correction is not None)
            return self._http10 or correction is not None
        chunked, length = (head.chunked, head.length) if correction is None else (True, None)
        kind = head.content_type if self.translated is None else self.translated.stream_type
        raw = self._commit(head.status, kind, self.lease.model, chunked=chunked, length=length)
        self._rechunk = self._raw and correction is not None
        contents = head.chunked and (self._http10 or correction is not None)
        if self.others or (more and not contents and correction is None):
            self._held = raw
        else:
            self.passed = True
            self._write(raw)
        return contents

    def _correction_of_stream(self) -> Correction | None:
        assert self.lease is not None
        if self.translated is not None:
            return self.translated.stream()
        model = self.called or self.lease.model
        if self.misnamed and is_ollamas(self._path):
            return RenamedLines(model)
        correction: Correction | None = self.joined
        if correction is None and self._repair:
            correction = correction_for(self._path, model, several=self.several, repeated=self.repeated)
        return Renamed(model, correction) if self.misnamed else correction

    def _keep(self, head: Head) -> bool:
        """Send nothing of this response before it is complete."""
        self._head, self._whole = head, []
        return True

    def data(self, data: bytes) -> None:
        assert self.lease is not None
        self.lease.progress = self._now()
        if self._whole is not None:
            self._size += len(data)
            if self._size > MAX_COLLECTED:
                raise FramingError(f"a response of more than {MAX_COLLECTED >> 20} MiB")
            self._whole.append(data)
            return
        if self._correction is not None:
            data = self._correction.feed(data)
        if data:
            held, self._held = self._held, b""
            self.passed = True
            self._write(held + (chunk(data) if self._rechunk else data))

    def done(self) -> None:
        if self._whole is not None:
            self._end(None if self.engine_busy else self._answer(b"".join(self._whole)))
            return
        try:
            rest = b"" if self._correction is None else self._correction.end()
        except FramingError as error:
            self.lost(str(error), clean=True, answered=True)
            return
        held, self._held = self._held, b""
        if rest or held:
            self.passed = True
            self._write(held + (chunk(rest) if rest and self._raw else rest))
        if self.joined is not None and self.joined.more:
            self._end(None)
            return
        if self._rechunk:
            self._write(LAST_CHUNK)
        self._finish_client()
        self._end(None)

    def _answer(self, body: bytes) -> AccelError | None:
        """Make of a response that was kept back what the client gets."""
        assert self.lease is not None
        assert self._head is not None
        status = self._head.status
        if status == 200 and self.only_stream:
            self.ok = False
            return self.failure(hidden_error(body) or "its response is not a stream")
        if (error := self.rejected(self._head, body)) is not None:
            return error
        if self.committed and status < 400:
            if self._path in TRANSCRIPTS:
                self._write(transcript_stream(body, chunked=self._raw))
                self._finish_client()
                return None
            self.ok, self.verdict = False, self.failure("its response is not a stream")
            return self.fail(self.verdict)
        if self.committed:
            status, body = self._corrected(status, body)
            self.ok = status < 500
            self._write_event(refusal_event(body, self._path, self.lease.model))
            self._transport.close()
            return None
        try:
            self.reply(status, self._head.content_type, body)
        except AccelError as found:
            self.ok = found.status < 500
            return found
        return None

    def lost(self, reason: str, *, clean: bool, answered: bool, unread: bool = False) -> None:
        if self.engine_busy:
            self._end(None)  # only the status of such a response counts
            return
        self.ok, self.unread = False, unread
        if self._held:
            self._held, self.committed = b"", False  # nothing has been sent yet
        self.verdict = failure = self.failure(reason)
        if not self.passed:
            self._end(failure)
        elif clean or self._correction is not None:
            self._end(self.fail(failure))
        else:
            self._transport.abort()  # in the middle of a chunk no event can be sent
            self._end(None)

    # --- the wire ---------------------------------------------------------------------------------------------

    def _commit(self, status: int, content_type: bytes, model: str, *, chunked: bool, length: int | None) -> bytes:
        """The head to send; only the body may follow."""
        self.committed, self.status = True, status
        self.stream = content_type.startswith(STREAMS)
        self._raw = chunked and not self._http10
        if self._raw:
            framing = b"Transfer-Encoding: chunked\r\n\r\n"
        elif length is not None:
            framing = b"Content-Length: %d\r\n\r\n" % length
        else:
            self._keep_alive = False
            framing = b"\r\n"
        if status >= 400 and self._head is not None and self._head.retry_after is not None:
            framing = b"Retry-After: %d\r\n" % self._head.retry_after + framing
        head = response_head(status, content_type, model, self._keep_alive, self._origin, self.route, self.attempt)
        return b"%b%b\r\n%b" % (head, date_and_id(self._id, self._path).encode(), framing)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # a client may be gone before its request is canceled
            self._transport.write(data)

    def _finish_client(self) -> None:
        if not self._keep_alive:
            self._transport.close()

    def _write_event(self, event: bytes) -> None:
        self._write(chunk(event) if self._raw else event)

    def _end(self, outcome: AccelError | None) -> None:
        if not self._finished.done():
            self._finished.set_result(outcome)
