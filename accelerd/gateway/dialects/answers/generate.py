"""Ollama's answers to a single prompt: writes them."""

from __future__ import annotations

from accelerd.gateway.dialects.answers import ollama
from accelerd.gateway.dialects.neutral import Answer, Answering, Json, given


def write_answer(answer: Answer, to: Answering) -> Json:
    return ollama.whole(answer, to, as_response)


def as_response(said: Json) -> Json:
    return {"response": said["content"], **given(thinking=said.get("thinking"))}


class Writer(ollama.Writer):
    """Writes events as lines."""

    shape = staticmethod(as_response)
