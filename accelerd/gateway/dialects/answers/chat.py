"""OpenAI's chat completions: reads answers and streams into the neutral form, and writes them."""

from __future__ import annotations

import secrets
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
)
from accelerd.gateway.dialects.requests.chat import (
    ChatMessage,
    Function,
    ToolCall,
    arguments_of,
    assistant,
    calls_of,
    thinking_of,
)
from accelerd.gateway.response_framing import FramingError

DONE: Final = b"[DONE]"
STOPS: Final = {
    "stop": StopReason.END,
    "length": StopReason.LENGTH,
    "tool_calls": StopReason.CALLS,
    "function_call": StopReason.CALLS,
    "content_filter": StopReason.REFUSED,
}
REASONS: Final = {
    StopReason.END: "stop",
    StopReason.LENGTH: "length",
    StopReason.CALLS: "tool_calls",
    StopReason.REFUSED: "content_filter",
}


class TokenDetails(Struct, gc=False):
    cached_tokens: int | None = None


class ChatUsage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None


class ChatChoice(Struct, gc=False):
    index: int | None = None
    delta: ChatMessage | None = None
    message: ChatMessage | None = None
    finish_reason: str | None = None


class Completion(Struct, gc=False):
    """A whole answer, or an event of one."""

    id: str | None = None
    choices: list[ChatChoice] | None = None
    usage: ChatUsage | None = None
    error: Any = None


EVENT: Final = msgspec.json.Decoder(Completion)


def read_answer(body: bytes) -> Answer:
    """AccelError upstream_failed."""
    found = answer_of(Completion, body)
    message = found.choices[0].message if found.choices else None
    if message is None or not found.choices:
        raise AccelError("upstream_failed", "the engine answered with no choices")
    text = message.content if isinstance(message.content, str) else "".join(p.text for p in message.content or ())
    texts = [Text(one) for one in (text, message.refusal) if one]
    calls = [call if call.id else Call(_new_id(), call.name, call.arguments) for call in calls_of(message)]
    stop = STOPS.get(found.choices[0].finish_reason or "", StopReason.END)
    if calls and stop is StopReason.END:
        stop = StopReason.CALLS
    return Answer(found.id or "", (*thinking_of(message), *texts, *calls), stop, _usage(found.usage))


def write_answer(answer: Answer, to: Answering) -> Json:
    message = {**assistant(answer.parts), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": REASONS[answer.stop]}
    return {
        "id": _id(answer.id),
        "object": "chat.completion",
        "created": int(to.created),
        "model": to.model,
        "choices": [choice],
        "usage": _written_usage(answer.usage),
    }


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _id(engines: str) -> str:
    return f"chatcmpl-{engines.removeprefix('msg_').removeprefix('chatcmpl-') or secrets.token_hex(12)}"


def _usage(usage: ChatUsage | None) -> Usage:
    if usage is None:
        return Usage()
    details = usage.prompt_tokens_details or TokenDetails()
    return Usage(usage.prompt_tokens or 0, details.cached_tokens or 0, usage.completion_tokens or 0)


def _written_usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.prompt + usage.answer,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


class Reader:
    """Reads the data of a stream's events."""

    def __init__(self) -> None:
        self.done = False  # has the stream said that it is complete?
        self.stopped = False  # has the model?
        self._begun = False
        self._calls: list[str] = []  # their ids

    def read(self, data: bytes) -> list[Event]:
        """FramingError if that is no event of this API."""
        if data == DONE:
            self.done = True
            return []
        if data == b"null":  # llama-server's, where one of several prompts begins
            return []
        event = event_of(EVENT, data)
        if event.error:
            return [Failed(error_in(event.error))]
        found: list[Event] = []
        if not self._begun:
            self._begun = True
            found.append(Begin(event.id or ""))
        for choice in event.choices or ():
            if not choice.index:
                self._choice(choice, found)
        if event.usage is not None:
            found.append(_usage(event.usage))
        return found

    def _choice(self, choice: ChatChoice, found: list[Event]) -> None:
        delta = choice.delta
        if delta is not None:
            if thinking := delta.reasoning_content or delta.reasoning:
                found.append(Thinking(thinking))
            if isinstance(delta.content, list):
                found += [Text(part.text) for part in delta.content if part.text]
            elif text := delta.content or delta.refusal:
                found.append(Text(text))
            for call in delta.tool_calls or ():
                self._call(call, found)
        if choice.finish_reason:
            self.stopped = True
            reason = STOPS.get(choice.finish_reason, StopReason.END)
            found.append(Stop(StopReason.CALLS if self._calls and reason is StopReason.END else reason))

    def _call(self, call: ToolCall, found: list[Event]) -> None:
        """Where a call has no index, another id begins another call."""
        function, last = call.function or Function(), len(self._calls) - 1
        new = call.id is not None and call.id not in self._calls
        number = call.index if call.index is not None else last + 1 if new or last < 0 else last
        if not 0 <= number <= min(last + 1, MAX_CALLS):
            raise FramingError("it sent tool calls in no order")
        if number > last:
            self._calls.append(call.id or _new_id())
            found.append(CallBegin(number, self._calls[-1], function.name or ""))
        if arguments := arguments_of(function):
            found.append(CallText(number, arguments))


class Writer:
    """Writes events as SSE."""

    def __init__(self, to: Answering) -> None:
        self._to = to
        self._head: Json = {
            "id": "", "object": "chat.completion.chunk", "created": int(to.created), "model": to.model,
        }  # fmt: skip
        self._usage = Usage()
        self._stop: Stop | None = None
        self._calls = False

    def write(self, event: Event) -> bytes:
        match event:
            case Text():
                return self._delta({"content": event.text})
            case Thinking():
                return self._delta({"reasoning_content": event.text}) if event.text else b""
            case CallText():
                more = {"index": event.number, "function": {"arguments": event.arguments}}
                return self._delta({"tool_calls": [more]})
            case CallBegin():
                self._calls = True
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.number, "id": event.id, "type": "function", "function": function}
                return self._delta({"tool_calls": [call]})
            case Begin():
                self._head["id"], self._usage = _id(event.id), event.usage
                return self._delta({"role": "assistant", "content": ""})
            case Usage():
                self._usage = event
            case Stop():
                self._stop = event
            case Failed():
                return self.failed({"error": event.error})
        return b""

    def end(self) -> bytes:
        """The answer is complete."""
        stop = self._stop or Stop(StopReason.CALLS if self._calls else StopReason.END)
        last = self._delta({}, REASONS[stop.reason])
        if self._to.with_usage:
            last += _sse({**self._head, "choices": [], "usage": _written_usage(self._usage)})
        return last + b"data: [DONE]\n\n"

    def _delta(self, delta: Json, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        more: Json = {"usage": None} if self._to.with_usage else {}
        return _sse({**self._head, "choices": [choice], **more})

    @staticmethod
    def failed(body: Json) -> bytes:
        return _sse(body)


def _sse(data: Json) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(data)
