"""Ollama's embeddings: reads requests."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from accelerd.gateway.dialects.neutral import Inputs, request_of


class EmbedRequest(Struct, gc=False):
    input: str | list[str]
    model: str | None = None
    dimensions: int | None = None


REQUEST: Final = msgspec.json.Decoder(EmbedRequest)


def read_request(body: bytes, engine: str) -> Inputs:
    """AccelError bad_request. `engine`: the API that it is translated to, for people."""
    asked = request_of(REQUEST, body)
    return Inputs(asked.input, asked.model, asked.dimensions)
