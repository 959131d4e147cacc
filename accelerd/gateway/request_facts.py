"""A request as the router sees it: what was read of it, and for routes its conversation and how long it is at least.

These are read of the body when a route wants to know them, once. Nothing of it is kept or logged.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec

from accelerd.base.decoding import from_json
from accelerd.engines.base import Task
from accelerd.gateway.request_body import FormBody, JsonBody
from accelerd.gateway.responses import ANTHROPIC, RESPONSES
from accelerd.routing.asks import last_ask
from accelerd.routing.sessions import session_of
from accelerd.routing.verdict import Verdict

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
OLLAMA: Final = ("/api/chat", "/api/generate")
# Embeddings may be cut by their engine.
MEASURED: Final = (CHAT, COMPLETIONS, RESPONSES, ANTHROPIC, *OLLAMA, "/completion")
TEXTS: Final = ("system", "instructions", "messages", "input", "prompt")
LEAST_WORD: Final = 2  # bytes that a word takes at least, with what separates it from the next


RequestInfo = JsonBody | FormBody  # what a request's body tells the router


class RequestFacts:
    """Of one request to `path`. `media`: what it brings beside text; `named`: its conversation, as a header has it."""

    __slots__ = ("_body", "_named", "_session", "_tokens", "info", "media", "path", "too_long", "verdicts")

    def __init__(
        self,
        path: str,
        info: RequestInfo,
        media: Collection[Task] = (),
        body: bytes = b"",
        named: bytes | None = None,
    ) -> None:
        self.path = path
        self.info = info
        self.media = media
        self.too_long = False  # for a model that it would go to
        self.verdicts: dict[str, Verdict] = {}  # by route: how much it asks for
        self._body = body
        self._named = named
        self._session: bytes | None = None
        self._tokens: int | None = None

    @property
    def asked_for(self) -> str:
        """The name that the client has given, for people."""
        return self.info.model or "the default"

    def session(self) -> bytes | None:
        """The key of its conversation; None: it belongs to none."""
        if self._session is None:
            self._session = session_of(self._body, self._named)
        return self._session

    def ask(self) -> str:
        """What a person has said last in it; "" if nobody has."""
        return last_ask(self._body)

    def exceeds(self, context: int) -> bool:
        """Is it longer than so many tokens, beyond doubt?

        A word takes a token at least, for every tokenizer that keeps words apart.
        """
        if self.path not in MEASURED or len(self._body) <= LEAST_WORD * context:
            return False
        return self.least_tokens() > context

    def least_tokens(self) -> int:
        """Tokens of its text at least; what is no text, such as images, counts nothing."""
        if self._tokens is None:
            try:
                body = from_json(self._body, dict[str, Any])
            except msgspec.DecodeError:
                body = {}
            self._tokens = sum(_words(body.get(key)) for key in TEXTS)
        return self._tokens


def _words(value: Any) -> int:
    """In a text, the content of a message, or a list of these."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, list):
        return sum(map(_words, value))
    if isinstance(value, dict):
        return _words(value.get("content")) + (_words(value["text"]) if isinstance(value.get("text"), str) else 0)
    return 0
