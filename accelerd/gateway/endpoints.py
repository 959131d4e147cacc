"""The paths of the API, the capability each needs, and the two formats of errors. Knows no requests."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from accelerd.base.errors import AccelError
from accelerd.engines.base import Task

TASKS: Final[dict[str, Task]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages",
    "/v1/responses": "responses",
    "/v1/audio/transcriptions": "transcription",
    "/v1/audio/translations": "transcription",
    "/v1/audio/speech": "speech",
}
PATH_ALIASES: Final = {"/v1/reranking": "/v1/rerank", "/rerank": "/v1/rerank", "/reranking": "/v1/rerank"}
FORMS: Final = ("/v1/audio/transcriptions", "/v1/audio/translations")  # their bodies are multipart/form-data
ANTHROPIC: Final = "/v1/messages"  # and what is below it: errors have Anthropic's shape
ASSEMBLED: Final = ("/v1/chat/completions", "/v1/completions")  # whose streams stream_assembly.py can put together
TOOLED: Final[frozenset[Task]] = frozenset(("chat", "messages", "responses"))  # where a request may bring tools

PHRASES: Final[dict[Task, str]] = {
    "chat": "chat",
    "completions": "complete text",
    "embeddings": "create embeddings",
    "rerank": "rank documents",
    "transcription": "transcribe audio",
    "speech": "generate speech",
    "messages": "serve Anthropic's messages API",
    "responses": "serve OpenAI's responses API",
    "tools": "use tools",
    "vision": "process images",
}


def error_body(error: AccelError, path: str) -> dict[str, Any]:
    """The error as clients of that path parse it."""
    return error.anthropic() if path.startswith(ANTHROPIC) else error.openai()


def error_event(error: AccelError, path: str) -> bytes:
    """The error as an event in a stream, which clients of that path raise."""
    return event_of(error_body(error, path))


def event_of(body: dict[str, Any]) -> bytes:
    """An SSE event with this data; with the name that Anthropic's errors have, where it is one."""
    name = b"event: error\n" if body.get("type") == "error" else b""
    return name + b"data: " + msgspec.json.encode(body) + b"\n\n"
