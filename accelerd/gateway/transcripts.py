"""A whole transcript as the events of a stream, for a client that already has the head of one.

An engine that does not stream transcripts ignores `stream`, as OpenAI does for whisper-1. If the client has got
comments while the model was loaded, only a stream can follow.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from accelerd.gateway.response_framing import LAST_CHUNK, chunk

TRANSCRIPTS: Final = frozenset(("/v1/audio/transcriptions", "/v1/audio/translations"))


class Transcript(Struct):
    """What an engine answers in JSON."""

    text: str


class Delta(Struct, tag="transcript.text.delta"):
    delta: str


class Done(Struct, tag="transcript.text.done"):
    text: str


DECODER: Final = msgspec.json.Decoder(Transcript)


def transcript_stream(body: bytes, *, chunked: bool) -> bytes:
    """The rest of the stream for an answer in any format: OpenAI's events."""
    try:
        text = DECODER.decode(body).text
    except (msgspec.MsgspecError, UnicodeDecodeError):  # it is text, or has the times of its words
        text = body.decode("utf-8", "replace")
    events = b"".join(b"data: %b\n\n" % msgspec.json.encode(event) for event in (Delta(text), Done(text)))
    return chunk(events) + LAST_CHUNK if chunked else events
