"""One streamed answer of a model: the request, the pieces as they arrive, and the numbers at the end.

Owns the reading of chat.completion chunks and what a broken stream means; prints nothing. The display is told piece by
piece and may be anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from accelerd.base.ports import Clock
from accelerd.cli.connect import DaemonClient, failure_of
from accelerd.cli.failure import Failure

ROUTE = "/v1/chat/completions"


class AnswerDisplay(Protocol):
    """Who shows an answer while it comes."""

    def waiting(self, why: str) -> None:
        """Nothing yet; the daemon says why ("loading …")."""
        ...

    def piece(self, text: str, *, thinking: bool) -> None: ...


@dataclass
class ChatAnswer:
    """What has arrived. Times in seconds since the request was sent."""

    model: str
    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    seconds: float = 0.0
    first_token: float | None = None
    pieces: int = 0
    interrupted: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the answer: counted by the engine, else the pieces that came."""
        counted = (self.usage or {}).get("completion_tokens")
        return int(counted) if counted is not None else self.pieces

    @property
    def rate(self) -> float | None:
        """Tokens per second: measured by the engine, else between the first piece and the last."""
        measured = (self.timings or {}).get("predicted_per_second")
        if measured:
            return float(measured)
        took = self.seconds - (self.first_token or 0.0)
        return (self.tokens - 1) / took if self.tokens > 1 and took > 0 else None

    def json(self) -> dict[str, Any]:
        rate = self.rate
        return {
            "model": self.model,
            "content": self.content,
            "reasoning": self.reasoning or None,
            "finish_reason": self.finish_reason,
            "tokens": self.tokens,
            "tokens_per_second": round(rate, 2) if rate is not None else None,
            "first_token_seconds": round(self.first_token, 3) if self.first_token is not None else None,
            "seconds": round(self.seconds, 3),
            "usage": self.usage,
            "timings": self.timings,
        }


def ask(
    client: DaemonClient,
    clock: Clock,
    model: str,
    messages: list[dict[str, str]],
    options: dict[str, Any],
    display: AnswerDisplay,
) -> ChatAnswer:
    """Stream one answer. Ctrl-C ends it with `interrupted` set and what has arrived; errors are raised as Failure."""
    body = {
        "model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **options,
    }  # fmt: skip
    answer = ChatAnswer(model)
    started = clock.monotonic()
    done = False
    try:
        display.waiting("waiting for the answer")
        with client.open("POST", ROUTE, body=json.dumps(body).encode(), timeout=None) as response:
            for event in parse_sse(client.stream(response)):
                answer.seconds = clock.monotonic() - started
                if isinstance(event, SseComment):
                    if event.text and not answer.pieces:
                        display.waiting(event.text)
                    continue
                if event.text == "[DONE]":
                    done = True
                    break
                take(answer, event.text, display)
    except KeyboardInterrupt:
        answer.interrupted = True
        answer.finish_reason = "interrupted"
    if not done and not answer.interrupted and answer.finish_reason is None:
        raise Failure("the answer ended early", code="upstream_failed", hint=f"see: accelctl logs {model}")
    return answer


def take(answer: ChatAnswer, text: str, display: AnswerDisplay) -> None:
    """Put one chunk into the answer; a chunk that is an error is raised."""
    try:
        chunk = json.loads(text)
    except ValueError as cause:
        raise Failure("the answer contains a chunk that is not JSON", code="bad_answer") from cause
    if not isinstance(chunk, dict):
        raise Failure("the answer contains a chunk that is not a JSON object", code="bad_answer")
    if chunk.get("error"):
        raise failure_of(chunk["error"])
    answer.usage = chunk.get("usage") or answer.usage
    answer.timings = chunk.get("timings") or answer.timings
    for choice in (chunk.get("choices") or ())[:1]:
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        delta = choice.get("delta") or {}
        for key, thinking in (("reasoning_content", True), ("content", False)):
            piece = delta.get(key)
            if not piece:
                continue
            if answer.first_token is None:
                answer.first_token = answer.seconds
            answer.pieces += 1
            if thinking:
                answer.reasoning += piece
            else:
                answer.content += piece
            display.piece(piece, thinking=thinking)


# --- server-sent events ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SseData:
    """The data of one event, its lines joined."""

    text: str


@dataclass(frozen=True)
class SseComment:
    """A comment line without its colon. accelerd sends them while a model is loading."""

    text: str


def parse_sse(lines: Iterable[bytes]) -> Iterator[SseData | SseComment]:
    """Server-sent events from lines: data and comments. An event that the end cuts off is dropped, as specified."""
    data: list[str] = []
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if data:
                yield SseData("\n".join(data))
                data = []
        elif line.startswith(":"):
            yield SseComment(line[1:].strip())
        else:
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
