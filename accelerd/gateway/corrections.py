"""Corrects what an engine's responses have wrong by the API of their path. Pure: bytes in, bytes out.

The events of OpenAI's Responses API get the fields that its clients demand; Anthropic's messages get the reason for
which they stopped. Streams of other paths are not looked at. Errors become events here; engine_errors.py shapes them.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.engines.base import Dialect
from accelerd.gateway.engine_errors import shaped
from accelerd.gateway.responses import ANTHROPIC, GENERATE, RESPONSES, error_body, is_ollamas, iso_date

Json = dict[str, Any]
CHAT: Final = "/v1/chat/completions"
MESSAGES: Final = ANTHROPIC  # and not what is below it: only this one streams
# What a response of the Responses API has, beside what is known of it.
RESPONSE: Final[Json] = {
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
}


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


def correction_for(path: str, model: str, *, several: bool = False) -> Correction | None:
    """None: streams of this path go through as they are. `several`: of several prompts."""
    if path == RESPONSES:
        return ResponsesCorrection(model)
    if several:
        return WithoutNulls()
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


def event_of(body: Mapping[str, Any], name: str = "") -> bytes:
    """An SSE event."""
    head = b"event: %b\n" % name.encode() if name else b""
    return b"%bdata: %b\n\n" % (head, msgspec.json.encode(body))


def line_of(body: Mapping[str, Any]) -> bytes:
    """An event of Ollama's streams."""
    return msgspec.json.encode(body) + b"\n"


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


class WholeEvents:
    """Cuts a stream into events, which subclasses correct or leave out."""

    after = b"\n\n"  # each event

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        *events, self._rest = (self._rest + data).split(self.after)
        return b"".join([event + self.after for one in events if (event := self.corrected(one)) is not None])

    def end(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest

    def corrected(self, event: bytes) -> bytes | None:
        """The event, without the empty line after it; None: it is left out."""
        raise NotImplementedError


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


class WithoutNulls(WholeEvents):
    """The events of several prompts: llama-server says null where one begins, and OpenAI's SDK breaks off."""

    def corrected(self, event: bytes) -> bytes | None:
        return None if event == b"data: null" else event

    def failed(self, body: Json) -> bytes:
        return event_of(body)


class MessagesCorrection(WholeEvents):
    """Anthropic's events: the reason of a stop, and the shape of an error."""

    def corrected(self, event: bytes) -> bytes:
        if event.startswith(b"event: message_delta\n") and b'"stop_sequence":null' not in event:
            return re.sub(rb'"stop_reason":"end_turn"', b'"stop_reason":"stop_sequence"', event, count=1)
        if event.startswith(b"event: error\n"):
            error = _decoded(event)
            status = error.get("code")
            body = shaped(error, status if isinstance(status, int) else 500, MESSAGES)
            return self.failed(body)[:-2]
        return event

    def failed(self, body: Json) -> bytes:
        return event_of(body, "error")


def with_nulls(body: bytes, dialect: Dialect) -> bytes:
    """A plain chat completion with the fields that OpenAI's always has, without reading it."""
    if not dialect.choice:
        return body
    logprobs = b"" if b'"logprobs":' in body else b'"logprobs":null,'
    return re.sub(dialect.choice, rb'\1%b\2"refusal":null,' % logprobs, body)


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


class ResponsesCorrection(WholeEvents):
    """The Responses API's events: numbers of events and items, whole responses, ends of calls, errors."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._number = 0  # of the next event
        self._items: dict[str, int] = {}  # id → output_index
        self._response: Json = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "model": model,
            "output": [],
            **RESPONSE,
        }

    def corrected(self, event: bytes) -> bytes:
        data = _decoded(event)
        kind = data.get("type")
        if kind is None and isinstance(data.get("error"), dict):  # it has failed
            return self.failed(data)[:-2]
        if not isinstance(kind, str):
            return event  # a comment
        if isinstance(data.get("response"), dict):
            data["response"] = self._whole(data["response"])
        item = data.get("item")
        before = b""
        if isinstance(item, dict):
            data["output_index"] = self._index(item.get("id"))
            if kind == "response.output_item.done" and item.get("type") == "function_call":
                done = {"type": CALL_DONE, "item_id": item.get("id"), "output_index": data["output_index"],
                        "name": item.get("name"), "arguments": item.get("arguments")}  # fmt: skip
                before = self._numbered(done)
        elif "item_id" in data:
            data["output_index"] = self._index(data["item_id"])
            if kind.startswith(TEXTS):
                data.setdefault("content_index", 0)
                if kind.startswith("response.output_text."):
                    data.setdefault("logprobs", [])
            if kind == "response.content_part.added" and isinstance(data.get("part"), dict):
                data["part"] = {"annotations": [], "logprobs": [], **data["part"]}
        return before + self._numbered(data)[:-2]

    def failed(self, body: Json) -> bytes:
        error = body["error"]
        code, message = str(error.get("code")), error.get("message")
        failed = {**self._response, "status": "failed", "error": {"code": code, "message": message}}
        events = b"" if self._number else self._numbered({"type": "response.created", "response": self._response})
        events += self._numbered({"type": "error", "code": code, "message": message, "param": error.get("param")})
        return events + self._numbered({"type": "response.failed", "response": failed})

    def _whole(self, response: Json) -> Json:
        """With every field that there must be. The first has the id and time of all."""
        self._response = {**self._response, **response, "created_at": self._response["created_at"]}
        return self._response

    def _index(self, item: Any) -> int:
        return self._items.setdefault(str(item), len(self._items))

    def _numbered(self, data: Json) -> bytes:
        data["sequence_number"] = self._number
        self._number += 1
        return event_of(data, data["type"])


PLAIN: Final = {CHAT: with_nulls, MESSAGES: stopped_by_sequence}  # path → correction of a whole response
CALL_DONE: Final = "response.function_call_arguments.done"
TEXTS: Final = ("response.output_text.", "response.content_part.", "response.reasoning_text.", "response.refusal.")


def _decoded(event: bytes) -> Json:
    """The data of an event; empty if that is no object."""
    _, _, data = (b"\n" + event).partition(b"\ndata: ")
    try:
        return from_json(data, dict[str, Any])
    except msgspec.DecodeError:
        return {}
