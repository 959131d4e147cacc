"""OpenAI's embeddings: reads answers."""

from __future__ import annotations

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.gateway.dialects.neutral import Vectors, answer_of


class One(Struct, gc=False):
    embedding: list[float]
    index: int = 0


class Tokens(Struct, gc=False):
    prompt_tokens: int = 0


class Embeddings(Struct, gc=False):
    data: list[One]
    usage: Tokens | None = None


def read_answer(body: bytes) -> Vectors:
    """AccelError upstream_failed."""
    found = answer_of(Embeddings, body)
    if not found.data:
        raise AccelError("upstream_failed", "the engine answered with no embedding")
    tokens = found.usage.prompt_tokens if found.usage is not None else 0
    return Vectors([one.embedding for one in sorted(found.data, key=lambda one: one.index)], tokens)
