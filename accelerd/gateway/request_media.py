"""Which media a request brings beside text: images, audio, video, files. Looked at before anything is loaded for it.

Decodes nothing but the types of content parts, and only of a body in which one of their names occurs. What is not
shaped as the API has it is the engine's to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from accelerd.engines.base import Task

MEDIA: Final[dict[str, Task]] = {
    "image_url": "vision",  # OpenAI's chat
    "input_image": "vision",  # OpenAI's responses
    "image": "vision",  # Anthropic's messages
    "input_audio": "audio",
    "input_video": "vision",
    "video_url": "vision",
    "audio_url": "audio",
    "file": "files",  # OpenAI's chat; no engine takes it yet
    "input_file": "files",  # OpenAI's responses
}
MARKS: Final = (
    b'"image',
    b'"input_image',
    b'"input_audio',
    b'"input_video',
    b'"video_url',
    b'"audio_url',
    b'"file"',
    b'"input_file',
    b'"multimodal_data',
)
# How the base64 of files begins: llama-server's own prompts do not say what they bring.
FILES: Final[dict[bytes, Task]] = {
    b"iVBOR": "vision",  # PNG
    b"/9j/": "vision",  # JPEG
    b"R0lGOD": "vision",  # GIF
    b"ZkxhQ": "audio",  # FLAC
    b"SUQz": "audio",  # MP3
}
DEEPEST: Final = 3  # an image in the content of a tool's result, in that of a message
NONE: Final[frozenset[Task]] = frozenset()
EMPTY: Final = msgspec.Raw(b"")


class Part(msgspec.Struct, gc=False):
    """A message, an item of `input`, a part of the content of one, or a prompt."""

    type: Any = ""
    content: msgspec.Raw = EMPTY
    output: msgspec.Raw = EMPTY  # of a tool, in OpenAI's responses
    multimodal_data: msgspec.Raw = EMPTY  # of a prompt, as llama-server has it
    images: msgspec.Raw = EMPTY  # of a message, as Ollama has it


class Body(msgspec.Struct, gc=False):
    messages: msgspec.Raw = EMPTY
    input: msgspec.Raw = EMPTY
    prompt: msgspec.Raw = EMPTY
    content: msgspec.Raw = EMPTY  # llama-server's own name for `input`
    images: msgspec.Raw = EMPTY  # beside a prompt, as Ollama has it


BODY: Final = msgspec.json.Decoder(Body)
PART: Final = msgspec.json.Decoder(Part)
ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])


def media(body: bytes) -> frozenset[Task]:
    """What a model must be able to take in. `body`: valid JSON."""
    if not any(mark in body for mark in MARKS):
        return NONE
    try:
        found = BODY.decode(body)
    except msgspec.MsgspecError:
        return NONE
    whole = (found.messages, found.input, found.prompt, found.content)
    beside: tuple[Task, ...] = ("vision",) if _has_any(found.images) else ()
    return frozenset((*beside, *(task for raw in whole for task in _in(raw, DEEPEST))))


def _in(raw: msgspec.Raw, depth: int) -> Iterator[Task]:
    """What a part brings, or the parts of a list, each by itself: what is odd beside an image hides no image."""
    if not depth:
        return
    for item in _items(raw):
        if not _begins(item, b"{"):
            continue  # a text or a token
        try:
            part = PART.decode(item)
        except (msgspec.MsgspecError, RecursionError):
            continue
        if isinstance(part.type, str) and part.type in MEDIA:
            yield MEDIA[part.type]
        if _has_any(part.images):
            yield "vision"
        for data in _items(part.multimodal_data):
            yield from (task for start, task in FILES.items() if _begins(data, b'"' + start))
        yield from _in(part.content, depth - 1)
        yield from _in(part.output, depth - 1)


def _has_any(raw: msgspec.Raw) -> bool:
    return _begins(raw, b"[") and bool(ITEMS.decode(raw))


def _items(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """Those of a list; anything else is one."""
    return ITEMS.decode(raw) if _begins(raw, b"[") else [raw]


def _begins(raw: msgspec.Raw, start: bytes) -> bool:
    return bytes(memoryview(raw)[:16]).lstrip().startswith(start)
