"""One streamed answer of a model: the request, the pieces as they arrive and are printed, and the numbers at the end.

Owns the reading of chat.completion chunks and what a broken stream means. Control characters of a model's text other
than newline and tab are escaped: a terminal could obey them. Imports rich for the spinner only, and only on a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from accelerd.base.decoding import from_json
from accelerd.base.names import accelctl
from accelerd.base.ports import Clock
from accelerd.cli.connect import DaemonClient, failure_of
from accelerd.cli.failure import Failure
from accelerd.cli.output import CliOutput
from accelerd.cli.text import count, escape, printable, span

ROUTE = "/v1/chat/completions"
SHORTEST = 0.02  # s of generation that say something of the speed


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
        """Tokens per second: measured by the engine, else between the first piece and the last.

        None if that was too short to say anything: a few tokens of a tiny model, an answer that arrived at once.
        """
        if self.tokens < 2:
            return None
        if measured := (self.timings or {}).get("predicted_per_second"):
            return float(measured) if self.tokens / measured >= SHORTEST else None
        took = self.seconds - (self.first_token or 0.0)
        return (self.tokens - 1) / took if took >= SHORTEST else None

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
    display: AnswerPrinter,
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
            for kind, text in parse_sse(client.stream(response)):
                answer.seconds = clock.monotonic() - started
                if kind == "data":
                    if done := text == "[DONE]":
                        break
                    take(answer, text, display)
                elif text and not answer.pieces:
                    display.waiting(text)
    except KeyboardInterrupt:
        answer.interrupted = True
        answer.finish_reason = "interrupted"
    if not done and not answer.interrupted and answer.finish_reason is None:
        raise Failure("the answer ended early", code="upstream_failed", hint=f"see: {accelctl('logs', model)}")
    return answer


def take(answer: ChatAnswer, text: str, display: AnswerPrinter) -> None:
    """Put one chunk into the answer; a chunk that is an error is raised."""
    try:
        chunk = from_json(text)
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


class AnswerPrinter:
    """Shows one answer; `close` must be called in the end."""

    def __init__(self, out: CliOutput) -> None:
        self._out = out
        self._spinner: Any = None
        self._said = ""
        self._thinking = False
        self._at_line_start = True

    def waiting(self, why: str) -> None:
        if self._out.live:
            self._spin(printable(why))
        elif why != self._said and self._said and not self._out.json_mode:
            self._out.note(printable(why))
        self._said = why

    def _spin(self, why: str) -> None:
        from rich.text import Text

        if self._spinner is None:
            from rich.console import Console

            self._spinner = Console(file=self._out.stderr, highlight=False).status(Text(why, "dim"))
            self._spinner.start()
        else:
            self._spinner.update(Text(why, "dim"))

    def piece(self, text: str, *, thinking: bool) -> None:
        self.stop_spinner()
        if self._out.json_mode:
            return
        safe = "".join(c if c.isprintable() or c in "\n\t" else escape(c) for c in text)
        if thinking != self._thinking:
            if self._thinking and not self._at_line_start:
                safe = f"\n\n{safe.lstrip()}"
            self._thinking = thinking
        self._at_line_start = safe.endswith("\n") if safe else self._at_line_start
        # thinking is no part of the answer: a pipe must not get it
        stream = self._out.stderr if thinking else self._out.stdout
        stream.write(self._out.style(safe, "dim" if thinking else "", errors=thinking))
        stream.flush()

    def stop_spinner(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def close(self) -> None:
        """End the line of the answer, whatever ended the answer."""
        self.stop_spinner()
        if not self._at_line_start:
            self._out.line()
            self._at_line_start = True


def summary(answer: ChatAnswer) -> str:
    parts = [count(answer.tokens, "token")]
    if answer.rate is not None:
        parts.append(f"{answer.rate:.1f} tokens/s")
    if answer.first_token is not None:
        parts.append(f"first token after {span(answer.first_token)}")
    if answer.interrupted:
        parts.append("interrupted")
    elif answer.finish_reason == "length":
        parts.append("cut off at the token limit")
    return " · ".join(parts)


# --- server-sent events ---------------------------------------------------------------------------------------


def parse_sse(lines: Iterable[bytes]) -> Iterator[tuple[Literal["data", "comment"], str]]:
    """Server-sent events from lines. accelerd sends comments while a model is loading.

    An event that the end cuts off is dropped, as specified.
    """
    data: list[str] = []
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if data:
                yield "data", "\n".join(data)
                data = []
        elif line.startswith(":"):
            yield "comment", line[1:].strip()
        else:
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
