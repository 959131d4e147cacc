"""Corrects what an engine's responses have wrong by the API of their path. Pure: bytes in, bytes out.

Errors get the shape, status and code that the API's clients expect; the events of OpenAI's Responses API get the fields
that its clients demand; Anthropic's messages get the reason for which they stopped. Streams of other paths are not
looked at. accelerd's own errors become events here, too.
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
from accelerd.base.errors import AccelError, anthropic_type
from accelerd.engines.base import Dialect
from accelerd.gateway.responses import ANTHROPIC, RESPONSES, error_body, is_ollamas, iso_date

Json = dict[str, Any]
CHAT: Final = "/v1/chat/completions"
TOO_LONG: Final = "context_length_exceeded"  # the code of errors for a prompt that is too long
NO_DIALECT: Final = Dialect()
MESSAGES: Final = ANTHROPIC  # and not what is below it: only this one streams
MAX_HIDDEN: Final = 64 << 10  # bytes: a longer response with status 200 is not checked for an error
NO_REASON: Final = "no reason given"
MAX_READ: Final = 4 << 10  # bytes of an error that is a text or a page
MAX_QUOTED: Final = 400  # characters of an engine's own message that the client gets
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


def corrected_error(
    status: int, body: bytes, path: str, model: str, dialect: Dialect = NO_DIALECT, trained: int | None = None
) -> tuple[int, bytes]:
    """An engine's error as clients of that path expect it, whatever it has answered with: JSON, text or a page.

    `trained`: see Traits.
    """
    error = _error_in(body, path) or _error_of(status, body)
    message = str(error.get("message"))
    if status == 500 and dialect.request_faults and re.search(dialect.request_faults, message):
        status = 400
        error |= {"code": 400, "type": "invalid_request_error"}
        if dialect.too_large and (found := re.fullmatch(dialect.too_large, message)) is not None:
            text = f"the input has {found[1]} tokens, a batch of this model {found[2]}"
            keys = f"set a larger `ubatch`, `batch` and `context` for {model} in accelerd's configuration"
            error |= {"code": TOO_LONG, "message": f"{text}; for more, {keys}"}
    if dialect.too_long and error.get("type") == dialect.too_long:
        error |= {"code": TOO_LONG, "message": _too_long(error, path, model, trained)}
    for pattern, advice in dialect.advice:
        if re.search(pattern, message):
            error |= {"message": f"{message}; in accelerd's configuration, {advice.replace('{model}', model)}"}
    return status, msgspec.json.encode(_shaped(error, status, path))


def hidden_error(content: bytes) -> str | None:
    """The error in a response with status 200: FastFlowLM sends {"error": …}, and `null` if no model is loaded."""
    content = content.strip() if len(content) <= MAX_HIDDEN else b""
    if content == b"null":
        return "it returned null: no model is loaded for this request"
    if not content.startswith(b"{"):
        return None
    try:
        answer = from_json(content, dict[str, object])
    except msgspec.DecodeError:
        return None
    error = answer.get("error")
    if isinstance(error, dict):
        error = error.get("message", "no reason given")
    return str(error)[:MAX_QUOTED] if error is not None else None


def code_of(body: bytes) -> str | None:
    """The code in an error; None where it has none."""
    code = (_error_in(body, "") or {}).get("code")
    return code if isinstance(code, str) else None


def lacks_model(status: int, body: bytes, name: str) -> bool:
    """Does the error say that the engine has no model of this name, and not that it lacks the path?

    OpenAI and those who follow it have a code for that, or say which parameter is wrong; errors of others name the
    model.
    """
    if status not in (400, 404):
        return False
    try:
        answer = from_json(body, dict[str, Any])
    except msgspec.DecodeError:
        return False
    error = answer.get("error", answer)  # vLLM's is the whole answer, Ollama's a text
    fields = error if isinstance(error, dict) else {"message": error}
    if fields.get("code") == "model_not_found" or status == 400:
        return fields.get("code") == "model_not_found"
    named = rf"""(?:['"`]|\bmodel\b\W{{0,3}}){re.escape(name)}(?!\w)"""
    return fields.get("param") == "model" or bool(name and re.search(named, str(fields.get("message")), re.I))


def _error_in(body: bytes, path: str) -> Json | None:
    try:
        answer = from_json(body, dict[str, Any])
    except msgspec.DecodeError:
        return None
    error = answer.get("error")
    if isinstance(error, str) and is_ollamas(path):
        return {"message": error}
    return error if isinstance(error, dict) else None


def _error_of(status: int, body: bytes) -> Json:
    """The error in what has not the shape of one: in another field of an object, else the first line of a text."""
    try:
        answer = from_json(body, dict[str, Any])
    except msgspec.DecodeError:
        answer = {}
    told = next((one for key in ("error", "message", "detail") if isinstance(one := answer.get(key), str) and one), "")
    if not (told or answer):
        text = body[:MAX_READ].decode("utf-8", "replace")
        title = re.search(r"<title[^<>]*>([^<>]+)", text, re.I)
        lines = [title[1]] if title is not None else re.sub(r"<[^<>]*>", "\n", text).splitlines()
        told = next((line for line in lines if line.strip()), "")
    message = " ".join(told.split())[:MAX_QUOTED] or NO_REASON
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": None, "code": None}


def _too_long(error: Json, path: str, model: str, trained: int | None) -> str:
    text, tokens, limit = error.get("message"), error.get("n_prompt_tokens"), error.get("n_ctx")
    if path.startswith(ANTHROPIC) and tokens and limit:  # Claude Code shortens its conversation when it reads this
        text = f"prompt is too long: {tokens} tokens > {limit} maximum"
    if trained and isinstance(limit, int) and limit >= trained:
        return f"{text}; {model} was trained for no more than {trained}"
    return f"{text}{_for_more('context', model)}"


def _for_more(key: str, model: str) -> str:
    return f"; for more, set a larger `{key}` for {model} in accelerd's configuration"


def _shaped(error: Json, status: int, path: str) -> Json:
    if is_ollamas(path):
        return {"error": error.get("message")}
    if path.startswith(ANTHROPIC):
        return {"type": "error", "error": {**error, "type": anthropic_type(status)}}
    return {"error": error}


# --- events ----------------------------------------------------------------------------------------------------------


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
    message = {"role": "assistant", "content": ""}
    return line_of({"model": model, "created_at": iso_date(time.time()), "message": message, "done": False})


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
            body = _shaped(error, status if isinstance(status, int) else 500, MESSAGES)
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
