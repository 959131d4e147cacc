"""Ollama's embeddings: writes answers."""

from __future__ import annotations

from accelerd.gateway.dialects.answers.ollama import NS
from accelerd.gateway.dialects.neutral import Answering, Json, Vectors


def write_answer(answer: Vectors, to: Answering) -> Json:
    return {
        "model": to.model,
        "embeddings": answer.vectors,
        "total_duration": round((to.now() - to.began) * NS),
        "load_duration": round((to.leased - to.began) * NS),
        "prompt_eval_count": answer.tokens,
    }
