"""Joins the API of a client and that of an engine: a request there, an answer, a stream or an error back.

Which APIs an engine has is in its Traits. What the client's own API has natively is never translated. Bounded: of a
stream no more is kept than one event, or what one tool call has for arguments.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.engines.base import Task
from accelerd.gateway.dialects.neutral import Answering, Failed, Request, error_in
from accelerd.gateway.response_framing import FramingError
from accelerd.gateway.stream_events import MAX_EVENT

Json = dict[str, Any]
JSON_LINES: Final = b"application/x-ndjson"
EVENT_STREAM: Final = b"text/event-stream"
CHAT, MESSAGES, OLLAMA = "/v1/chat/completions", "/v1/messages", "/api/chat"
GENERATE, EMBED, EMBED_ONE, EMBEDDINGS = "/api/generate", "/api/embed", "/api/embeddings", "/v1/embeddings"
# Path → those that it is translated to, the one that loses less first, and the task for each.
OTHERS: Final = {
    CHAT: (MESSAGES, OLLAMA),
    MESSAGES: (CHAT, OLLAMA),
    OLLAMA: (CHAT, MESSAGES),
    GENERATE: (CHAT, MESSAGES),
    EMBED: (EMBEDDINGS,),
    EMBED_ONE: (EMBEDDINGS,),
}
NATIVE: Final[dict[str, Task]] = {
    CHAT: "chat", MESSAGES: "messages", OLLAMA: "ollama", GENERATE: "ollama", EMBEDDINGS: "embeddings",
}  # fmt: skip
CHATS: Final[frozenset[Task]] = frozenset(("chat", "messages", "ollama"))  # each is served by any of them
REQUESTS, ANSWERS = "requests", "answers"
MODULES: Final = {
    CHAT: "chat", MESSAGES: "messages", OLLAMA: "ollama", GENERATE: "generate",
    EMBED: "embed", EMBED_ONE: "embed_one", EMBEDDINGS: "embeddings",
}  # fmt: skip


@cache
def _module(kind: str, path: str) -> Any:
    """The reader and the writer of an API. Loaded when something is translated: most daemons translate nothing."""
    return importlib.import_module(f"accelerd.gateway.dialects.{kind}.{MODULES[path]}")


class Translation(Struct, frozen=True):
    """From the API of a client to that of an engine, each by its path."""

    client: str
    engine: str

    def request(self, body: bytes) -> TranslatedRequest:
        """AccelError bad_request, or not_supported_by_model for what the engine's API cannot express."""
        client, engine = _module(REQUESTS, self.client), _module(REQUESTS, self.engine)
        found: Request = client.read_request(body, engine.NAME)
        return TranslatedRequest(msgspec.json.encode(engine.write_request(found)), found.with_usage)


class TranslatedRequest(Struct, frozen=True):
    """A request as the engine is to get it."""

    body: bytes
    with_usage: bool  # does the client want usage in a stream of chat completions?


class TranslatedResponse(Struct, frozen=True):
    """What the client gets of the engine's response."""

    translation: Translation
    to: Answering

    @property
    def stream_type(self) -> bytes:
        """The Content-Type of a stream."""
        return JSON_LINES if self.translation.client in (OLLAMA, GENERATE) else EVENT_STREAM

    def answer(self, body: bytes) -> bytes:
        """A whole answer. AccelError upstream_failed."""
        answer = _module(ANSWERS, self.translation.engine).read_answer(body)
        return msgspec.json.encode(_module(ANSWERS, self.translation.client).write_answer(answer, self.to))

    def error(self, body: bytes) -> bytes:
        """The engine's error in OpenAI's shape, from which corrections.py makes that of the client."""
        try:
            found = from_json(body, dict[str, Any])
        except msgspec.DecodeError:
            found = {}
        return msgspec.json.encode({"error": error_in(found["error"])}) if found.get("error") else body

    def stream(self) -> StreamTranslator:
        """For a stream of events."""
        engine = self.translation.engine
        reader, writer = _module(ANSWERS, engine).Reader(), _module(ANSWERS, self.translation.client).Writer(self.to)
        return StreamTranslator(reader, writer, lines=engine == OLLAMA)


def answering_as(
    model: str, now: Callable[[], float], began: float, leased: float | None, with_usage: bool
) -> Answering:
    """`model`: as the client sees it; `began`, `leased`: when its request was received and had its turn, by `now`."""
    return Answering(model, time.time() - (now() - began), now, began, began if leased is None else leased, with_usage)


def translation_for(path: str, tasks: Collection[Task]) -> Translation | None:
    """How requests to this path are served by an engine with these tasks; None: not by translation."""
    if path not in OTHERS or NATIVE.get(path) in tasks:
        return None
    return next((Translation(path, other) for other in OTHERS[path] if NATIVE[other] in tasks), None)


def offered(tasks: frozenset[Task]) -> frozenset[Task]:
    """The tasks of a model with those that are served by translation."""
    return tasks if CHATS.isdisjoint(tasks) else tasks | CHATS


class StreamTranslator:
    """Translates one stream as it comes, cut anywhere. A Correction of corrections.py."""

    def __init__(self, reader: Any, writer: Any, *, lines: bool) -> None:
        """`lines`: each line is an event, else it is SSE."""
        self._reader = reader
        self._writer = writer
        self._lines = lines
        self._rest = bytearray()  # of a line
        self._data: list[bytes] = []  # of an event
        self._size = 0
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """FramingError where the engine's stream is not what its API has."""
        self._rest += data
        self._check(len(self._rest))
        if b"\n" not in data:
            return b""
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return b"".join([written for line in lines if (written := self._line(line.removesuffix(b"\r")))])

    def end(self) -> bytes:
        """FramingError if the stream was not complete."""
        try:
            written = self._line(bytes(self._rest)) + self._event()
        except FramingError:
            written = b""  # it was cut in that event
        if not self._ended:
            if not self._reader.stopped:
                raise FramingError("it ended its response before it was complete")
            written += self._finish()
        return written

    def failed(self, body: Json) -> bytes:
        """The events for an error with this body; nothing may follow."""
        self._ended = True
        written: bytes = self._writer.failed(body)
        return written

    def _check(self, size: int) -> None:
        if size > MAX_EVENT:
            raise FramingError(f"it sent an event of more than {MAX_EVENT >> 20} MiB")

    def _line(self, line: bytes) -> bytes:
        if self._lines:
            return self._read(line) if line.strip() else b""
        if not line:
            return self._event()
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._size += len(line)
            self._check(self._size)
        return b""  # comments, and names of events, which the data has, too

    def _event(self) -> bytes:
        """What the lines of an event say."""
        if not self._data:
            return b""
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data, self._size = [], 0
        return self._read(data.strip())

    def _read(self, data: bytes) -> bytes:
        if self._ended or not data:
            return b""
        written = []
        for event in self._reader.read(data):
            written.append(self._writer.write(event))
            if isinstance(event, Failed):
                self._ended = True
                break
        if self._reader.done and not self._ended:
            written.append(self._finish())
        return b"".join(written)

    def _finish(self) -> bytes:
        self._ended = True
        written: bytes = self._writer.end()
        return written
