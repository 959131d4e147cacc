"""What a person has asked last in a conversation: the text that a request's complexity is judged by. Pure.

As LiteLLM reads it: the newest message of the user with a text, without what programs put into it. System prompts and
the results of tools say nothing about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

TEXTS: Final = frozenset(("text", "input_text"))  # kinds of parts of a message
REMINDER: Final = ("<system-reminder>", "</system-reminder>")
# What Codex, which uses the Responses API, puts into messages of its user.
OF_CODEX: Final = (
    ("<environment_context>", "</environment_context>"),
    ("<recommended_plugins>", "</recommended_plugins>"),
    ("<user_instructions>", "</user_instructions>"),
    ("<environments_instructions>", "</environments_instructions>"),
    ("# agents.md instructions for ", "</instructions>"),
)


class Body(msgspec.Struct, gc=False):
    messages: list[msgspec.Raw] | None = None
    input: msgspec.Raw = msgspec.Raw(b"")  # Responses API: a text or items
    prompt: Any = None


class Message(msgspec.Struct, gc=False):
    role: Any = None
    content: Any = None


BODY: Final = msgspec.json.Decoder(Body)
MESSAGE: Final = msgspec.json.Decoder(Message)
INPUT: Final = msgspec.json.Decoder(str | list[msgspec.Raw])


def last_ask(body: bytes) -> str:
    """ "" where no person says anything. `body`: of a chat, of messages, of the Responses API, or with a `prompt`."""
    try:
        return _ask(BODY.decode(body))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # a form, or what the engine refuses
        return ""


def _ask(body: Body) -> str:
    if body.messages is not None:
        return _newest(body.messages, (REMINDER,))
    if bytes(body.input):
        found, blocks = INPUT.decode(body.input), (REMINDER, *OF_CODEX)
        return without_blocks(found, blocks) if isinstance(found, str) else _newest(found, blocks)
    return without_blocks(body.prompt, (REMINDER,)) if isinstance(body.prompt, str) else ""


def _newest(messages: list[msgspec.Raw], blocks: Sequence[tuple[str, str]]) -> str:
    for raw in reversed(messages):
        message = MESSAGE.decode(raw)
        if message.role == "user" and (text := without_blocks(_text(message.content), blocks)):
            return text
    return ""


def _text(content: Any) -> str:
    """What results of tools and images bring is none."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") in TEXTS]
        return " ".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def without_blocks(text: str, blocks: Sequence[tuple[str, str]]) -> str:
    """The text without all that stands between two marks, in whatever case these are written."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few letters become two
        lowered = text
    spans = sorted(span for begin, end in blocks for span in _spans(lowered, begin, end))
    kept, at = [], 0
    for start, end in spans:
        kept.append(text[at : max(at, start)].strip())
        at = max(at, end)
    return " ".join(filter(None, [*kept, text[at:].strip()]))


def _spans(text: str, begin: str, end: str) -> Iterator[tuple[int, int]]:
    """A block that does not end is none."""
    start = text.find(begin)
    while start >= 0:
        close = text.find(end, start + len(begin))
        if close < 0:
            return
        yield start, close + len(end)
        start = text.find(begin, close + len(end))
