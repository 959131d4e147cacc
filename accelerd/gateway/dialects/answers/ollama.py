"""Ollama's chat: reads answers and streams into the neutral form, and writes them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from accelerd.base.errors import AccelError
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
from accelerd.gateway.dialects.requests.ollama import OneMessage, ToolCall, parts_of, said, written_call
from accelerd.gateway.response_framing import FramingError
from accelerd.gateway.responses import iso_date

NS: Final = 1_000_000_000  # in a second
STOPS: Final = {"stop": StopReason.END, "length": StopReason.LENGTH}
MAX_ARGUMENTS: Final = 16 << 20  # characters of a call's arguments, which are sent whole


class Line(Struct, gc=False):
    """A whole answer, or a line of one."""

    message: OneMessage | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    error: Any = None


LINE: Final = msgspec.json.Decoder(Line)


def read_answer(body: bytes) -> Answer:
    """AccelError upstream_failed."""
    found = answer_of(Line, body)
    if found.message is None or not found.done:
        raise AccelError("upstream_failed", "the engine answered with no message")
    calls = [_read_call(call) for call in found.message.tool_calls or ()]
    parts = (*parts_of(found.message), *calls)
    return Answer("", parts, _stop(found, bool(calls)), _usage(found))


def _read_call(call: ToolCall) -> Call:
    return Call(call.id or f"call_{secrets.token_hex(12)}", call.function.name, text_of(call.function.arguments or {}))


def _stop(line: Line, calls: bool) -> StopReason:
    reason = STOPS.get(line.done_reason or "", StopReason.END)
    return StopReason.CALLS if calls and reason is StopReason.END else reason


def _usage(line: Line) -> Usage:
    return Usage(line.prompt_eval_count or 0, 0, line.eval_count or 0)


def write_answer(answer: Answer, to: Answering) -> Json:
    return whole(answer, to, as_message)


def whole(answer: Answer, to: Answering, shape: Callable[[Json], Json]) -> Json:
    """`shape`: how a line has what was said."""
    return {**_head(to), **shape(said(answer.parts)), **_end(answer.stop, answer.usage, to, to.leased)}


def as_message(said: Json) -> Json:
    return {"message": {"role": "assistant", **said}}


def _head(to: Answering) -> Json:
    created = to.created + to.now() - to.began
    return {"model": to.model, "created_at": f"{iso_date(created)[:-1]}.{int(created % 1 * 1e6):06}Z"}


def _end(stop: StopReason, usage: Usage, to: Answering, first: float) -> Json:
    """`first`: when the answer's first token came."""
    end = to.now()
    return {
        "done": True,
        "done_reason": "length" if stop is StopReason.LENGTH else "stop",
        "total_duration": round((end - to.began) * NS),
        "load_duration": round((to.leased - to.began) * NS),
        "prompt_eval_count": usage.prompt,
        "prompt_eval_duration": round((first - to.leased) * NS),
        "eval_count": usage.answer,
        "eval_duration": round((end - first) * NS),
    }


class Reader:
    """Reads the lines of a stream."""

    def __init__(self) -> None:
        self.done = False  # has the stream said that it is complete?
        self.stopped = False  # has the model?
        self._begun = False
        self._calls = 0

    def read(self, data: bytes) -> list[Event]:
        """FramingError if that is no line of this API."""
        line = event_of(LINE, data)
        if line.error:
            return [Failed(error_in(line.error))]
        found: list[Event] = []
        if not self._begun:
            self._begun = True
            found.append(Begin(""))
        message = line.message or OneMessage()
        if message.thinking:
            found.append(Thinking(message.thinking))
        if message.content:
            found.append(Text(message.content))
        for one in message.tool_calls or ():
            if self._calls >= MAX_CALLS:
                raise FramingError("it sent too many tool calls")
            call = _read_call(one)
            found += [CallBegin(self._calls, call.id, call.name), CallText(self._calls, call.arguments)]
            self._calls += 1
        if line.done:
            self.done = self.stopped = True
            found += [Stop(_stop(line, self._calls > 0)), _usage(line)]
        return found


class Writer:
    """Writes events as lines. A call is written when it is whole, as Ollama does."""

    shape = staticmethod(as_message)

    def __init__(self, to: Answering) -> None:
        self._to = to
        self._calls: list[CallBegin] = []
        self._arguments: dict[int, list[str]] = {}
        self._size = 0
        self._first: float | None = None
        self._usage = Usage()
        self._stop = Stop(StopReason.END)

    def write(self, event: Event) -> bytes:
        if self._first is None and not isinstance(event, Begin):
            self._first = self._to.now()
        match event:
            case Text():
                return self._whole_calls() + (self._line({"content": event.text}) if event.text else b"")
            case Thinking():
                return self._line({"content": "", "thinking": event.text}) if event.text else b""
            case CallText():
                if all(one.number != event.number for one in self._calls):
                    raise FramingError("it sent the arguments of a tool call that was complete")
                self._size += len(event.arguments)
                if self._size > MAX_ARGUMENTS:
                    raise FramingError("it sent tool calls that are too long")
                self._arguments.setdefault(event.number, []).append(event.arguments)
            case CallBegin():
                self._calls.append(event)
            case Begin():
                self._usage = event.usage
            case Usage():
                self._usage = event
            case Stop():
                self._stop = event
                return self._whole_calls()
            case Failed():
                return self.failed(event.error)
        return b""

    def end(self) -> bytes:
        """The answer is complete."""
        first = self._to.now() if self._first is None else self._first
        last = _end(self._stop.reason, self._usage, self._to, first)
        return self._whole_calls() + _json_line({**_head(self._to), **self.shape({"content": ""}), **last})

    def _whole_calls(self) -> bytes:
        begun, self._calls = self._calls, []
        calls = [Call(one.id, one.name, "".join(self._arguments.pop(one.number, ()))) for one in begun]
        return b"".join(
            self._line({"content": "", "tool_calls": [written_call(one.number, call)]})
            for one, call in zip(begun, calls, strict=True)
        )

    def _line(self, said: Json) -> bytes:
        return _json_line({**_head(self._to), **self.shape(said), "done": False})

    @staticmethod
    def failed(body: Json) -> bytes:
        """`body`: an error in any shape."""
        error = body.get("error", body)
        return _json_line({"error": error.get("message") if isinstance(error, dict) else error})


def _json_line(data: Json) -> bytes:
    return msgspec.json.encode(data) + b"\n"
