"""Corrects what an engine's responses have wrong by the API of their path. Pure: bytes in, bytes out.

The events of OpenAI's Responses API get the fields that its clients demand; Anthropic's messages get the reason for
which they stopped. Streams of other paths are not looked at. Errors become events here; engine_errors.py shapes them.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, Final, Protocol

import msgspec

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.engines.base import Dialect
from accelerd.gateway.engine_errors import shaped
from accelerd.gateway.responses import ANTHROPIC, GENERATE, RESPONSES, error_body, is_ollamas, iso_date
from accelerd.gateway.stream_events import Json, SeveralAnswers, WholeEvents, decoded, event_of, line_of
from accelerd.gateway.whole_responses import DEFAULTS, ResponsesCorrection, whole_response

CHAT: Final = "/v1/chat/completions"
MESSAGES: Final = ANTHROPIC  # and not what is below it: only this one streams


class Correction(Protocol):
    """Corrects one stream."""

    def feed(self, data: bytes) -> bytes:
        """What the client gets of the next bytes: whole events."""
        ...

    def end(self) -> bytes:
        """What the client gets at the end: what was no whole event."""
        ...

    def failed(self, body: Json) -> bytes:
        """The events for an error with this body; nothing may follow."""
        ...


def correction_for(path: str, model: str, *, several: bool = False, repeated: Json | None = None) -> Correction | None:
    """None: streams of this path go through as they are. `several`: of several answers; `repeated`: see
    whole_responses.py."""
    if path == RESPONSES:
        return ResponsesCorrection(model, repeated or DEFAULTS)
    if several:
        return SeveralAnswers()
    return MessagesCorrection() if path == MESSAGES else None


def error_event(error: AccelError, path: str, correction: Correction | None = None) -> bytes:
    """The error as events in a stream, which clients of that path raise. `correction`: of what came before it."""
    return _events(error_body(error, path), path, "", correction)


def refusal_event(corrected: bytes, path: str, model: str) -> bytes:
    """An engine's corrected error as events."""
    return _events(msgspec.json.decode(corrected), path, model)


def _events(body: Json, path: str, model: str, correction: Correction | None = None) -> bytes:
    if correction is None and is_ollamas(path):
        return line_of(body)
    correction = correction or correction_for(path, model)
    return event_of(body) if correction is None else correction.failed(body)


def waiting_event(text: str, path: str, model: str) -> bytes:
    """What a streaming client gets while it waits: a comment, or Ollama's clients an empty line."""
    if not is_ollamas(path):
        return b": %b\n\n" % text.encode()
    said = {"response": ""} if path == GENERATE else {"message": {"role": "assistant", "content": ""}}
    return line_of({"model": model, "created_at": iso_date(time.time()), **said, "done": False})


def renamed(body: bytes, model: str, parts: tuple[str, ...] = ("response", "message")) -> bytes:
    """A response, or the data of an event, with this name of the model; the rest is not read. What is no JSON object
    is returned itself.

    `parts`: with a name of their own, in events of the Responses API and of Anthropic's.
    """
    return _renamed_once(body, model) or _renamed_anywhere(body, model, parts)


class _Called(msgspec.Struct, gc=False):
    model: msgspec.Raw = msgspec.Raw(b"")


CALLED: Final = msgspec.json.Decoder(_Called)
MODEL: Final = b'"model"'


def _renamed_once(body: bytes, model: str) -> bytes | None:
    """The quick way where the name is all that could be one, as in most events; None: it is not."""
    if body.count(MODEL) != 1:
        return None
    try:
        said = bytes(CALLED.decode(body).model)
    except (msgspec.DecodeError, RecursionError):
        return body
    key = body.index(MODEL) + len(MODEL)
    start = body.find(said, key)
    if not said.startswith(b'"') or body[key:start].strip(b" \t\r\n") != b":":
        return None
    return body[:start] + msgspec.json.encode(model) + body[start + len(said) :]


def _renamed_anywhere(body: bytes, model: str, parts: tuple[str, ...]) -> bytes:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return body
    if bytes(fields.get("model", b"")).startswith(b'"'):
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    for part in parts:
        if bytes(fields.get(part, b"")).startswith(b"{"):
            fields[part] = msgspec.Raw(_renamed_anywhere(bytes(fields[part]), model, ()))
    return msgspec.json.encode(fields)


def is_cut(body: bytes) -> bool:
    """Is it JSON that ends too early, or no JSON at all? NaN is, for Python's clients and engines."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except RecursionError:
        return False
    except msgspec.DecodeError:
        try:
            json.loads(body)
        except RecursionError:
            return False
        except ValueError:
            return True
    return False


class Renamed(WholeEvents):
    """The events of an engine that has another name for the model, with ours; then what else is to be corrected."""

    def __init__(self, model: str, further: Correction | None) -> None:
        super().__init__()
        self._model = model
        self._further = further

    def feed(self, data: bytes) -> bytes:
        events = super().feed(data)
        return events if self._further is None else self._further.feed(events)

    def end(self) -> bytes:
        rest = super().end()
        return rest if self._further is None else (self._further.feed(rest) if rest else b"") + self._further.end()

    def corrected(self, event: bytes) -> bytes:
        head, mark, data = (b"\n" + event).partition(b"\ndata:")
        return (head + mark + b" " + renamed(data.strip(), self._model))[1:] if b'"model"' in data else event

    def failed(self, body: Json) -> bytes:
        return event_of(body) if self._further is None else self._further.failed(body)


class RenamedLines(WholeEvents):
    """Ollama's lines with our name of the model."""

    after = b"\n"

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def corrected(self, event: bytes) -> bytes:
        return renamed(event, self._model) if event.strip() else event

    def failed(self, body: Json) -> bytes:
        return line_of(body)


class MessagesCorrection(WholeEvents):
    """Anthropic's events: the reason of a stop, and the shape of an error."""

    def corrected(self, event: bytes) -> bytes:
        if event.startswith(b"event: message_delta\n") and b'"stop_sequence":null' not in event:
            return re.sub(rb'"stop_reason":"end_turn"', b'"stop_reason":"stop_sequence"', event, count=1)
        if event.startswith(b"event: error\n"):
            error = decoded(event)
            status = error.get("code")
            body = shaped(error, status if isinstance(status, int) else 500, MESSAGES)
            return self.failed(body)[:-2]
        return event

    def failed(self, body: Json) -> bytes:
        return event_of(body, "error")


def with_nulls(body: bytes, dialect: Dialect) -> bytes:
    """A plain chat completion with the fields that OpenAI's always has; without reading it where the engine's answers
    all look the same."""
    if b'"refusal":' in body and b'"logprobs":' in body:
        return body
    if not dialect.choice or b'"logprobs":{' in body:
        return _filled(body)
    logprobs = b"" if b'"logprobs":' in body else b'"logprobs":null,'
    return re.sub(dialect.choice, rb'\1%b\2"refusal":null,' % logprobs, body)


def _filled(body: bytes) -> bytes:
    try:
        answer = from_json(body, dict[str, Any])
        for choice in answer["choices"]:
            if choice.setdefault("logprobs", None) is not None:
                _fill(choice["logprobs"])
            _fill(choice["message"])
    except (msgspec.DecodeError, AttributeError, KeyError, TypeError):
        return body  # no chat completion
    return msgspec.json.encode(answer)


def _fill(message: Json) -> None:
    message |= {key: message.get(key) for key in ("content", "refusal")}


def stopped_by_sequence(body: bytes, dialect: Dialect) -> bytes:
    """A plain message of Anthropic's with the reason of its stop."""
    if b'"stop_sequence":null' in body or b'"stop_sequence":' not in body:
        return body
    try:
        message = from_json(body, dict[str, Any])
    except msgspec.DecodeError:
        return body
    if message.get("stop_sequence") is not None and message.get("stop_reason") == "end_turn":
        message["stop_reason"] = "stop_sequence"
    return msgspec.json.encode(message)


PLAIN: Final = (CHAT, MESSAGES, RESPONSES)  # whose plain answers may need a correction


def corrected_answer(path: str, body: bytes, dialect: Dialect, repeated: Json | None) -> bytes:
    """A plain answer to a request to a path of PLAIN."""
    if path == CHAT:
        return with_nulls(body, dialect)
    return stopped_by_sequence(body, dialect) if path == MESSAGES else whole_response(body, repeated or DEFAULTS)
