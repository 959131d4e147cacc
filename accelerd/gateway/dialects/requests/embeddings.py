"""OpenAI's embeddings: writes requests."""

from __future__ import annotations

from typing import Final

from accelerd.gateway.dialects.neutral import Inputs, Json, given

NAME: Final = "embeddings"


def write_request(request: Inputs) -> Json:
    return given(model=request.model, input=request.input, dimensions=request.dimensions)
