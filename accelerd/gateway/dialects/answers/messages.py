"""Anthropic's messages: reads answers and streams into the neutral form, and writes them."""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec
from msgspec import Struct

from accelerd.base.errors import AccelError, anthropic_type
from accelerd.gateway.dialects.neutral import (
    MAX_CALLS,
    Answer,
    Answering,
    Begin,
    Call,
    CallBegin,
    CallText,
    Event,
    Failed,
    Json,
    Part,
    Stop,
    StopReason,
    Text,
    Thinking,
    Usage,
    answer_of,
    error_in,
    event_of,
    text_of,
)
from accelerd.gateway.dialects.requests.messages import Block, block_of
from accelerd.gateway.response_framing import FramingError

STOPS: Final = {
    "end_turn": StopReason.END,
    "stop_sequence": StopReason.END,
    "max_tokens": StopReason.LENGTH,
    "model_context_window_exceeded": StopReason.LENGTH,
    "tool_use": StopReason.CALLS,
    "refusal": StopReason.REFUSED,
}
REASONS: Final = {
    StopReason.END: "end_turn",
    StopReason.LENGTH: "max_tokens",
    StopReason.CALLS: "tool_use",
    StopReason.REFUSED: "refusal",
}
NONE: Final = Usage()


class TokenUsage(Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Delta(Struct, gc=False):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class WholeMessage(Struct, gc=False):
    id: str = ""
    content: list[Block] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: TokenUsage | None = None


class StreamEvent(Struct, gc=False):
    type: str = ""
    index: int = 0
    message: WholeMessage | None = None
    content_block: Block | None = None
    delta: Delta | None = None
    usage: TokenUsage | None = None
    error: Any = None


EVENT: Final = msgspec.json.Decoder(StreamEvent)


def read_answer(body: bytes) -> Answer:
    """AccelError upstream_failed."""
    found = answer_of(WholeMessage, body)
    if found.stop_reason is None:
        raise AccelError("upstream_failed", "the engine answered with no message")
    parts = [part for block in found.content if (part := _answered(block)) is not None]
    stop = STOPS.get(found.stop_reason, StopReason.END)
    return Answer(found.id, tuple(parts), stop, _usage(found.usage), found.stop_sequence)


def _answered(block: Block) -> Part | None:
    if block.type == "text":
        return Text(block.text)
    if block.type == "thinking":
        return Thinking(block.thinking, block.signature)
    return Call(block.id, block.name, text_of(block.input or {})) if block.type == "tool_use" else None


def write_answer(answer: Answer, to: Answering) -> Json:
    return {
        "id": _id(answer.id),
        "type": "message",
        "role": "assistant",
        "model": to.model,
        "content": [block_of(part) for part in answer.parts],
        "stop_reason": _reason(answer.stop, answer.sequence),
        "stop_sequence": answer.sequence,
        "usage": _written_usage(answer.usage),
    }


def _id(engines: str) -> str:
    return f"msg_{engines.removeprefix('chatcmpl-').removeprefix('msg_') or secrets.token_hex(12)}"


def _reason(stop: StopReason, sequence: str | None) -> str:
    return "stop_sequence" if sequence is not None and stop is StopReason.END else REASONS[stop]


def _usage(usage: TokenUsage | None, known: Usage = NONE) -> Usage:
    """`known`: what the stream has said before; a later event may say it again, or only what is new."""
    if usage is None:
        return known
    answer = known.answer if usage.output_tokens is None else usage.output_tokens
    if usage.input_tokens is None:
        return Usage(known.prompt, known.cached, answer)
    cached = usage.cache_read_input_tokens or 0
    return Usage(usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0), cached, answer)


def _written_usage(usage: Usage) -> Json:
    return {
        "input_tokens": max(0, usage.prompt - usage.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.answer,
    }


class Reader:
    """Reads the data of a stream's events."""

    def __init__(self) -> None:
        self.done = False  # has the stream said that it is complete?
        self.stopped = False  # has the model?
        self._usage = Usage()
        self._calls: dict[int, int] = {}  # index of a block → number of its call
        self._whole: dict[int, str] = {}  # arguments that came with the begin of a block

    def read(self, data: bytes) -> list[Event]:
        """FramingError if that is no event of this API."""
        event = event_of(EVENT, data)
        kind = event.type
        if kind == "content_block_delta" and event.delta is not None:
            return self._delta(event.index, event.delta)
        if kind == "content_block_start" and event.content_block is not None:
            return self._start(event.index, event.content_block)
        if kind == "content_block_stop":
            arguments = self._whole.pop(event.index, "")
            return [CallText(self._calls[event.index], arguments)] if arguments else []
        if kind == "message_start" and event.message is not None:
            self._usage = _usage(event.message.usage)
            return [Begin(event.message.id, self._usage)]
        if kind == "message_delta":
            return self._message_delta(event)
        if kind == "message_stop":
            self.done = True
        if kind == "error" or event.error:
            return [Failed(error_in(event.error))]
        return []

    def _message_delta(self, event: StreamEvent) -> list[Event]:
        self._usage = _usage(event.usage, self._usage)
        delta = event.delta or Delta()
        if delta.stop_reason is None:
            return [self._usage]
        self.stopped = True
        return [Stop(STOPS.get(delta.stop_reason, StopReason.END), delta.stop_sequence), self._usage]

    def _start(self, index: int, block: Block) -> list[Event]:
        if block.type == "text":
            return [Text(block.text)] if block.text else []
        if block.type == "thinking":
            return [Thinking(block.thinking, block.signature)] if block.thinking or block.signature else []
        if block.type != "tool_use":
            return []
        if index in self._calls or len(self._calls) >= MAX_CALLS:
            raise FramingError("it sent tool calls in no order")
        self._calls[index] = number = len(self._calls)
        if block.input:
            self._whole[index] = text_of(block.input)
        return [CallBegin(number, block.id, block.name)]

    def _delta(self, index: int, delta: Delta) -> list[Event]:
        if delta.type == "text_delta":
            return [Text(delta.text)]
        if delta.type == "thinking_delta":
            return [Thinking(delta.thinking)]
        if delta.type == "signature_delta":
            return [Thinking("", delta.signature)] if delta.signature else []
        if delta.type != "input_json_delta" or not delta.partial_json:
            return []
        if index not in self._calls:
            raise FramingError("it sent the arguments of a tool call that has not begun")
        self._whole.pop(index, None)
        return [CallText(self._calls[index], delta.partial_json)]


class Writer:
    """Writes events as SSE: one block after the other, as Anthropic does."""

    def __init__(self, to: Answering) -> None:
        self._to = to
        self._index = -1  # of the last block
        self._open: type[Event] | None = None  # what the last block has, if it is open
        self._call = -1  # the number of its call
        self._signature = ""
        self._usage = Usage()
        self._stop: Stop | None = None

    def write(self, event: Event) -> bytes:
        match event:
            case Text():
                begin = b"" if self._open is Text else self._begin(Text, {"type": "text", "text": ""})
                return begin + self._delta({"type": "text_delta", "text": event.text})
            case Thinking():
                block = {"type": "thinking", "thinking": "", "signature": ""}
                begin = b"" if self._open is Thinking else self._begin(Thinking, block)
                self._signature += event.signature
                more = self._delta({"type": "thinking_delta", "thinking": event.text}) if event.text else b""
                return begin + more
            case CallText():
                if self._open is not CallBegin or self._call != event.number:
                    raise FramingError("it sent the arguments of several tool calls at once")
                return self._delta({"type": "input_json_delta", "partial_json": event.arguments})
            case CallBegin():
                self._call = event.number
                return self._begin(CallBegin, {"type": "tool_use", "id": event.id, "name": event.name, "input": {}})
            case Begin():
                return self._message_start(event)
            case Usage():
                self._usage = event
            case Stop():
                self._stop = event
            case Failed():
                status = event.error.get("code")
                kind = anthropic_type(status if isinstance(status, int) else 500)
                return self.failed({"type": "error", "error": {**event.error, "type": kind}})
        return b""

    def end(self) -> bytes:
        """The answer is complete."""
        calls = self._call >= 0
        stop = self._stop or Stop(StopReason.CALLS if calls else StopReason.END)
        delta = {"stop_reason": _reason(stop.reason, stop.sequence), "stop_sequence": stop.sequence}
        last = {"type": "message_delta", "delta": delta, "usage": _written_usage(self._usage)}
        return self._close() + _sse(last) + _sse({"type": "message_stop"})

    def _message_start(self, event: Begin) -> bytes:
        self._usage = event.usage
        message: Json = {
            "id": _id(event.id), "type": "message", "role": "assistant", "model": self._to.model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": _written_usage(event.usage),
        }  # fmt: skip
        return _sse({"type": "message_start", "message": message})

    def _begin(self, kind: type[Event], block: Json) -> bytes:
        closed = self._close()
        self._open = kind
        self._index += 1
        return closed + _sse({"type": "content_block_start", "index": self._index, "content_block": block})

    def _close(self) -> bytes:
        """End the open block; of a thought its signature comes before."""
        if self._open is None:
            return b""
        signed = b""
        if self._open is Thinking:
            signed = self._delta({"type": "signature_delta", "signature": self._signature})
            self._signature = ""
        self._open = None
        return signed + _sse({"type": "content_block_stop", "index": self._index})

    def _delta(self, delta: Json) -> bytes:
        return _sse({"type": "content_block_delta", "index": self._index, "delta": delta})

    @staticmethod
    def failed(body: Json) -> bytes:
        return _sse(body)


def _sse(data: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), msgspec.json.encode(data))
