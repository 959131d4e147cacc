"""Which media a request brings beside text: images, audio, video. Looked at before anything is loaded for it.

Decodes nothing but the types of content parts, and only of a body in which one of their names occurs. What is not
shaped as the API has it is the engine's to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from accelerd.engines.base import Task

MEDIA: Final[dict[str, Task]] = {
    "image_url": "vision",  # OpenAI's chat
    "input_image": "vision",  # OpenAI's responses
    "image": "vision",  # Anthropic's messages
    "input_audio": "audio",
    "input_video": "vision",
    "video_url": "vision",
}
MARKS: Final = (b'"image', b'"input_image', b'"input_audio', b'"input_video', b'"video_url')
DEEPEST: Final = 3  # an image in the content of a tool's result, in that of a message
NONE: Final[frozenset[Task]] = frozenset()


class Part(msgspec.Struct, gc=False):
    """A message, an item of `input`, or a part of the content of one."""

    type: str = ""
    content: msgspec.Raw = msgspec.Raw(b"")
    output: msgspec.Raw = msgspec.Raw(b"")  # of a tool, in OpenAI's responses


class Body(msgspec.Struct, gc=False):
    messages: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")


BODY: Final = msgspec.json.Decoder(Body)
PARTS: Final = msgspec.json.Decoder(list[Part])


def media(body: bytes) -> frozenset[Task]:
    """What a model must be able to take in. `body`: valid JSON."""
    if not any(mark in body for mark in MARKS):
        return NONE
    try:
        found = BODY.decode(body)
    except msgspec.MsgspecError:
        return NONE
    return frozenset(task for raw in (found.messages, found.input) for task in _in(raw, DEEPEST))


def _in(raw: msgspec.Raw, depth: int) -> Iterator[Task]:
    if not depth or not bytes(memoryview(raw)[:16]).lstrip().startswith(b"["):
        return
    try:
        parts = PARTS.decode(raw)
    except msgspec.MsgspecError:
        return  # a list of strings or tokens, or nothing that the API knows
    for part in parts:
        if part.type in MEDIA:
            yield MEDIA[part.type]
        yield from _in(part.content, depth - 1)
        yield from _in(part.output, depth - 1)
