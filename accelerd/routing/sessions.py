"""Which requests belong to one conversation, and what was chosen for it last. Pure: bytes in, a key out.

A client may name the conversation; else its system prompt and first message from a person are what stays the same in
it. Only hashes of all that are kept, of a bounded number of conversations.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from hashlib import blake2b
from typing import Final, Generic, TypeVar

import msgspec

T = TypeVar("T")

MOST_SESSIONS: Final = 4096
HASH_SIZE: Final = 16  # bytes
EMPTY: Final = msgspec.Raw(b"")


class Body(msgspec.Struct, gc=False):
    """What names a conversation, and what it begins with."""

    prompt_cache_key: msgspec.Raw = EMPTY
    metadata: msgspec.Raw = EMPTY
    user: msgspec.Raw = EMPTY
    system: msgspec.Raw = EMPTY  # Anthropic's messages
    instructions: msgspec.Raw = EMPTY  # OpenAI's responses
    messages: msgspec.Raw = EMPTY
    input: msgspec.Raw = EMPTY  # OpenAI's responses


class Metadata(msgspec.Struct, gc=False):
    user_id: msgspec.Raw = EMPTY  # Claude Code's has the session in it


class Message(msgspec.Struct, gc=False):
    role: msgspec.Raw = EMPTY
    content: msgspec.Raw = EMPTY


BODY: Final = msgspec.json.Decoder(Body)
METADATA: Final = msgspec.json.Decoder(Metadata)
MESSAGE: Final = msgspec.json.Decoder(Message)
ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])


def session_of(body: bytes, named: bytes | None = None) -> bytes | None:
    """The key of the conversation that a request belongs to; None: nothing tells. `named`: by a header.

    `body`: valid JSON, or a form, which belongs to none by itself.
    """
    if named:
        return _key(b"header", [named])
    try:
        found = BODY.decode(body)
    except msgspec.MsgspecError:
        return None
    for kind, name in (
        (b"prompt_cache_key", found.prompt_cache_key),
        (b"user_id", _decoded(METADATA, found.metadata, Metadata()).user_id),
        (b"user", found.user),
    ):
        if _is_text(name):
            return _key(kind, [bytes(name)])
    begin = [found.system, found.instructions, *_beginning(found.messages), *_beginning(found.input)]
    return _key(b"beginning", map(bytes, begin)) if any(map(bytes, begin[2:])) else None


def _beginning(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """Everything to the first message from a person: what a system says, and that; nothing where nobody says anything.

    Of a plain text that.
    """
    if bytes(memoryview(raw)[:1]) != b"[":
        return [raw] if _is_text(raw) else []
    begin = []
    for item in ITEMS.decode(raw):
        message = _decoded(MESSAGE, item, Message())
        begin.append(message.content)
        if bytes(message.role) == b'"user"':
            return begin
    return []


def _decoded(decoder: msgspec.json.Decoder[T], raw: msgspec.Raw, otherwise: T) -> T:
    try:
        return decoder.decode(raw)
    except msgspec.MsgspecError:  # a text, a list, null or nothing
        return otherwise


def _is_text(raw: msgspec.Raw) -> bool:
    return len(memoryview(raw)) > 2 and bytes(memoryview(raw)[:1]) == b'"'


def _key(kind: bytes, parts: Iterable[bytes]) -> bytes:
    found = blake2b(digest_size=HASH_SIZE, person=kind[:16])
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()


class SessionMemory(Generic[T]):
    """What was chosen last for a conversation, by scope (a route). The least recently used are forgotten."""

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._chosen: OrderedDict[tuple[Hashable, bytes], T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._chosen)

    def recall(self, scope: Hashable, session: bytes | None) -> T | None:
        """None: nothing is known of it, or it is no conversation."""
        if session is None or (scope, session) not in self._chosen:
            return None
        self._chosen.move_to_end((scope, session))
        return self._chosen[scope, session]

    def remember(self, scope: Hashable, session: bytes | None, chosen: T) -> None:
        if session is None:
            return
        self._chosen[scope, session] = chosen
        self._chosen.move_to_end((scope, session))
        if len(self._chosen) > self._most:
            self._chosen.popitem(last=False)
