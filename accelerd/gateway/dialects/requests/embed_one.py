"""Ollama's embedding of one prompt, as older clients ask for it: reads requests."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from accelerd.gateway.dialects.neutral import Inputs, request_of


class EmbeddingRequest(Struct, gc=False):
    prompt: str
    model: str | None = None


REQUEST: Final = msgspec.json.Decoder(EmbeddingRequest)


def read_request(body: bytes, engine: str) -> Inputs:
    """AccelError bad_request. `engine`: the API that it is translated to, for people."""
    asked = request_of(REQUEST, body)
    return Inputs(asked.prompt, asked.model)
