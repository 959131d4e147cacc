"""Ollama's answers to a single prompt: reads requests into the neutral form, as a chat of one message."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from accelerd.gateway.dialects.neutral import Message, Request, Text, request_of, untranslatable
from accelerd.gateway.dialects.requests.ollama import Asked, OneMessage, neutral, parts_of


class GenerateRequest(Asked, gc=False, kw_only=True):
    prompt: str
    system: str | None = None
    images: list[str] | None = None
    suffix: str | None = None
    template: str | None = None
    raw: bool | None = None
    context: Any = None  # tokens of earlier prompts and answers


REQUEST: Final = msgspec.json.Decoder(GenerateRequest)


def read_request(body: bytes, engine: str) -> Request:
    """AccelError bad_request, not_supported_by_model. `engine`: the API that it is translated to, for people."""
    asked = request_of(REQUEST, body)
    for name in ("suffix", "template", "raw", "context"):
        if getattr(asked, name):
            untranslatable(f"`{name}`", name, engine)
    said = (Message("system", (Text(asked.system),)),) if asked.system else ()
    prompt = OneMessage("user", asked.prompt, images=asked.images)
    return neutral(asked, (*said, Message("user", tuple(parts_of(prompt)))), engine)
