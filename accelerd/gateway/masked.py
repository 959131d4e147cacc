"""Errors that an engine answers with status 200, as FastFlowLM does: {"error": …}, or `null` for want of a model.

Pure: looks at a whole answer that is no stream.
"""

from __future__ import annotations

from typing import Final

import msgspec

LONGEST: Final = 64 << 10  # bytes that such an error may have: an answer is looked at no further
WORDS: Final = 400  # characters of it that are told


def hidden_error(content: bytes) -> str | None:
    """What the engine says that went wrong; None: it is an answer."""
    content = content.strip() if len(content) <= LONGEST else b""
    if content == b"null":
        return "it answered nothing, as it does without a model for that"
    if not content.startswith(b"{"):
        return None
    try:
        said = msgspec.json.decode(content, type=dict[str, object])
    except msgspec.DecodeError:
        return None
    error = said.get("error")
    if isinstance(error, dict):
        error = error.get("message", "it does not say why")
    return str(error)[:WORDS] if error is not None else None
