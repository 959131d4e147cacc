"""Ollama's embedding of one prompt, as older clients ask for it: writes answers."""

from __future__ import annotations

from accelerd.gateway.dialects.neutral import Answering, Json, Vectors


def write_answer(answer: Vectors, to: Answering) -> Json:
    return {"embedding": answer.vectors[0]}
