"""Assembles a streamed response into the plain one that the client has asked for.

Why: llama-server notices at once that the reader of a stream has gone, but not always that the reader of a plain
response has (while another stream runs it never does, and generates to the end). So with several slots accelerd asks
for a stream and assembles it, unless a stream has less in it than the plain response (UNLIKE). Pure: bytes in, bytes
out; tests/compare holds it against the engine's own plain answers.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError

Json = dict[str, Any]
MAX_INDEX = 1024  # choices, or tool calls of one


class Delta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """What nearly every event adds: text of the answer, or of the reasoning before it."""

    content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    index: int
    delta: Delta
    finish_reason: None = None
    logprobs: None = None


class StreamEvent(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The usual event. An event with any other field or type is decoded as a dictionary."""

    choices: tuple[Choice]
    id: str
    created: int
    model: str
    object: str
    system_fingerprint: str | msgspec.UnsetType = msgspec.UNSET


USUAL = msgspec.json.Decoder(StreamEvent)
CHUNK: Final = "chat.completion.chunk"
# Fields that give a plain response what its stream lacks (the probabilities of tokens without text of their own, the
# text of a tool call that was cut or is none, the beginning that is continued, `__verbose`) or has in other words.
UNLIKE: Final = ("logprobs", "n_probs", "tools", "continue_final_message", "verbose", "reasoning_format")
UNSET: Final = (b"null", b"false", b"0", b"[]")
PROGRESS: Final = "prompt_progress"  # only streams have it


def ask_for_stream(body: bytes) -> bytes | None:
    """The request with stream and usage switched on; all other values are unchanged bytes.

    None: its stream cannot be assembled to the plain response.
    """
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    if any(name in fields and bytes(fields[name]) not in UNSET for name in UNLIKE):
        return None
    fields.pop("return_progress", None)
    fields["stream"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(b'{"include_usage":true}')
    return msgspec.json.encode(fields)


def assemble(stream: bytes) -> tuple[int, bytes]:
    """HTTP status and JSON body of a whole SSE stream. AccelError upstream_failed if it is not complete."""
    whole: Json = {}
    choices: dict[int, Json] = {}
    latest = 0  # the choice that was last written to: usage without a choice is that one's
    complete = False
    for line in stream.split(b"\n"):
        if not line.startswith(b"data:"):
            continue  # comments, empty lines, event names
        data = line[5:].strip()
        if data == b"[DONE]":
            complete = True
            continue
        if whole and (index := _merge_usual(data, whole, choices)) is not None:
            latest = index
            continue
        try:
            event = from_json(data, Json | None)
        except msgspec.DecodeError:
            raise AccelError("upstream_failed", "the engine sent an event that is not a JSON object") from None
        if event is None:  # llama-server says so that one of several prompts has begun
            continue
        if error := event.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            return (code if isinstance(code, int) and 400 <= code < 600 else 500), data
        try:
            for choice in event.pop("choices", None) or ():
                latest = _index(choice)
                _merge_choice(choices.setdefault(latest, {"finish_reason": None}), choice)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise AccelError("upstream_failed", "the engine sent an event of an unknown format") from None
        event.pop(PROGRESS, None)
        whole = {**whole, **event} if latest == 0 else {**event, **whole}  # plain responses have the usage of the first
    if not complete or not choices:
        raise AccelError("upstream_failed", "the engine ended its response before it was complete")
    if whole.get("object") == CHUNK:
        whole["object"] = "chat.completion"
    body = {"choices": [choices[index] for index in sorted(choices)], **whole}
    return 200, msgspec.json.encode(body)


def _merge_usual(data: bytes, whole: Json, choices: dict[int, Json]) -> int | None:
    """Merge an event that only adds text to a known choice, whose index is returned.

    None: it is another kind of event, and nothing was done.
    """
    try:
        event = USUAL.decode(data)
    except msgspec.DecodeError:
        return None
    choice, delta = event.choices[0], event.choices[0].delta
    key, text = "content", delta.content
    if text is msgspec.UNSET:
        key, text = "reasoning_content", delta.reasoning_content
    elif delta.reasoning_content is not msgspec.UNSET:
        return None
    message = choices.get(choice.index, {}).get("message")
    known = None if message is None else message.get(key, "")
    same = (
        event.id == whole.get("id")
        and event.created == whole.get("created")
        and event.model == whole.get("model")
        and event.object == whole.get("object")
        and event.system_fingerprint in (msgspec.UNSET, whole.get("system_fingerprint"))
    )
    if not same or message is None or not isinstance(known, str) or not isinstance(text, str):
        return None
    message[key] = known + text
    return choice.index


def _index(part: Json) -> int:
    """The index of a choice or a tool call. ValueError if it is invalid."""
    index = part["index"]
    if not isinstance(index, int) or not 0 <= index < MAX_INDEX:
        raise ValueError
    return index


def _merge_choice(into: Json, choice: Json) -> None:
    into["index"] = choice["index"]
    if choice.get("finish_reason") is not None:
        into["finish_reason"] = choice["finish_reason"]
    if "delta" in choice:
        message = into.setdefault("message", {"role": "assistant", "content": ""})
        _merge_delta(message, choice["delta"])
    if "text" in choice:
        into["text"] = into.get("text", "") + choice["text"]
        into.setdefault("logprobs", None)
    if logprobs := choice.get("logprobs"):
        known = into.get("logprobs") or {}
        into["logprobs"] = {key: [*(known.get(key) or ()), *(values or ())] for key, values in logprobs.items()}


def _merge_delta(message: Json, delta: Json) -> None:
    for key, value in delta.items():
        if value is None:
            continue
        if key == "role":
            message[key] = value
        elif key == "tool_calls":
            for part in value:
                _merge_tool_call(message.setdefault("tool_calls", []), part)
        elif isinstance(value, str):
            message[key] = message.get(key, "") + value
        else:
            message[key] = value


def _merge_tool_call(calls: list[Json], part: Json) -> None:
    index = _index(part)
    while len(calls) <= index:
        calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    function = part.get("function", {})
    for key in ("name", "arguments"):
        call["function"][key] += function.get(key) or ""
    for key in ("id", "type"):
        if part.get(key):
            call[key] = part[key]
