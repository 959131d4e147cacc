"""The API's paths with the capability each needs, and responses of accelerd's own as bytes: JSON, errors in the format
of the path's clients, with the headers that they heed. Knows no connection."""

from __future__ import annotations

import http
import math
import time
from collections.abc import Mapping
from functools import lru_cache
from string import punctuation
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.engines.base import Task

JSON_TYPE = "application/json"
STREAMS: Final = (b"text/event-stream", b"application/x-ndjson")
PRINTABLE: Final = punctuation.replace("%", "") + " "  # beside letters and digits; all else is escaped, with %

TASKS: Final[dict[str, Task]] = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/input_tokens": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages",
    "/v1/responses": "responses",
    "/v1/responses/input_tokens": "responses",
    "/v1/audio/transcriptions": "transcription",
    "/v1/audio/translations": "transcription",
    "/v1/audio/speech": "speech",
    "/v1/images/generations": "images",
    "/v1/images/edits": "images",
    "/v1/images/variations": "images",
    "/api/chat": "ollama",
    "/api/generate": "ollama",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/completion": "completions",
    "/infill": "completions",
    "/embedding": "embeddings",
    "/tokenize": "llama-server",
    "/detokenize": "llama-server",
    "/apply-template": "llama-server",
}
# Of llama-server's own API: what they are for is not enough, the engine must have them.
OWN_PATHS: Final = frozenset(("/completion", "/infill", "/embedding", "/tokenize", "/detokenize", "/apply-template"))
ANTHROPIC: Final = "/v1/messages"  # and what is below it: errors have Anthropic's shape
COUNT_TOKENS: Final = "/v1/messages/count_tokens"  # what translates messages does not count them
PATH_ALIASES: Final = {  # OpenAI's clients may leave out /v1, and Lemonade's ask below /api/v1
    "/v1/reranking": "/v1/rerank",
    "/reranking": "/v1/rerank",
    "/v2/rerank": "/v1/rerank",  # Cohere's
    "/api/v1/reranking": "/v1/rerank",
    "/api/v1/models": "/v1/models",
    "/v1/props": "/props",
    "/api/v1/health": "/v1/health",
    **{f"/api{path}": path for path in TASKS if path.startswith("/v1/")},
    **{path.removeprefix("/v1"): path for path in TASKS if path.startswith("/v1/") and not path.startswith(ANTHROPIC)},
}
RESPONSES: Final = "/v1/responses"
EMBEDDINGS: Final = "/v1/embeddings"
RERANK: Final = "/v1/rerank"
GENERATE: Final = "/api/generate"
# Of Ollama's API what no model answers.
SHOW, TAGS, VERSION, PS, PULL = "/api/show", "/api/tags", "/api/version", "/api/ps", "/api/pull"
OF_OLLAMA: Final = (SHOW, TAGS, VERSION, PS, PULL)
# Paths whose bodies are multipart/form-data, and the field with the file; an image's may be written as an array, too.
FORMS: Final = {
    "/v1/audio/transcriptions": ("file",),
    "/v1/audio/translations": ("file",),
    "/v1/images/edits": ("image", "image[]"),
    "/v1/images/variations": ("image",),
}
# Whose answers are whole: what engines make of `stream` is passed on, but a client that waits gets no comments.
WHOLE: Final = frozenset(path for path, task in TASKS.items() if task in ("embeddings", "rerank", "images"))
ASSEMBLED: Final = ("/v1/chat/completions", "/v1/completions")  # whose streams stream_assembly.py can put together
LISTED: Final = ("/completion", "/infill")  # several plain answers are a list
# Where a request may bring tools.
TOOLED: Final[frozenset[Task]] = frozenset(("chat", "messages", "responses", "ollama"))

PHRASES: Final[dict[Task, str]] = {
    "chat": "chat",
    "completions": "complete text",
    "embeddings": "create embeddings",
    "rerank": "rank documents",
    "transcription": "transcribe audio",
    "speech": "generate speech",
    "images": "generate images",
    "messages": "serve Anthropic's messages API",
    "responses": "serve OpenAI's responses API",
    "tools": "use tools",
    "vision": "process images",
    "audio": "process audio",
    "files": "read files",
    "llama-server": "answer at llama-server's own paths",
}


def phrase(task: Task, path: str) -> str:
    """What a model cannot do that lacks this for a request to `path`."""
    return "count the tokens of messages" if path == COUNT_TOKENS and task == "messages" else PHRASES[task]


class Response(NamedTuple):
    """One whole response. `headers` are beside Content-Type, Content-Length and Connection."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    kind: str = JSON_TYPE  # its Content-Type

    def readable_by(self, origin: str) -> Response:
        """With the headers that let a web page of that origin read it."""
        return self._replace(headers={**self.headers, **cors_headers(origin)})

    def encode(self, *, keep_alive: bool, head_only: bool = False, request_id: str = "", path: str = "") -> bytes:
        """The bytes to send. `head_only`: the answer to a HEAD request; `path`: of the request."""
        lines = [f"HTTP/1.1 {self.status} {reason(self.status)}", date_and_id(request_id, path)]
        if self.body or self.status != 204:
            lines += [f"Content-Type: {self.kind}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if not keep_alive:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return head if head_only else head + self.body


def reason(status: int) -> str:
    """The phrase of a status line."""
    return http.HTTPStatus(status).phrase if status in http.HTTPStatus._value2member_map_ else "Status"


def date_and_id(request_id: str, path: str) -> str:
    """The headers that every response has, without the final CRLF. Anthropic's clients know the id by another name."""
    date = f"Date: {_date(int(time.time()))}"
    if not request_id:
        return date
    return f"{date}\r\n{'request-id' if path.startswith(ANTHROPIC) else 'x-request-id'}: {request_id}"


DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    now = time.gmtime(second)  # whatever the locale
    day, month = DAYS[now.tm_wday], MONTHS[now.tm_mon - 1]
    return f"{day}, {now.tm_mday:02} {month} {now.tm_year} {time.strftime('%H:%M:%S', now)} GMT"


def iso_date(seconds: float) -> str:
    """A moment since 1970 as Anthropic's and Ollama's lists have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def answered_by(model: str, route: str, attempt: int) -> dict[str, str]:
    """Which model answers, or was asked last; the route by which it was reached, "" if none; how many were asked."""
    named = {names.HEADER_MODEL: model, names.HEADER_ROUTE: route}
    said = {header: quote(name, safe=PRINTABLE) for header, name in named.items() if name}
    return {**said, names.HEADER_ATTEMPTS: str(attempt)}


def cors_headers(origin: str) -> dict[str, str]:
    """What lets a page of an allowed origin read a response."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": f"{names.HEADER_MODEL}, {names.HEADER_ROUTE}, {names.HEADER_ATTEMPTS}, "
        "Retry-After, x-should-retry, x-request-id, request-id",
        "Vary": "Origin",
    }


@lru_cache(maxsize=512)
def response_head(
    status: int, kind: bytes, model: str, keep_alive: bool, origin: str | None, route: str = "", attempt: int = 1
) -> bytes:
    """Status line and headers, without framing and the final empty line. The engine's other headers are dropped.

    `model`: which answers; "": that is not known yet. `route`: by which it was reached; `attempt`: how many were asked.
    """
    lines = [f"HTTP/1.1 {status} {reason(status)}".encode(), b"Content-Type: " + kind]
    if model:
        lines += [f"{name}: {value}".encode() for name, value in answered_by(model, route, attempt).items()]
    if kind.startswith(STREAMS):
        lines += [b"Cache-Control: no-cache", b"X-Accel-Buffering: no"]
    if origin is not None:
        lines += [f"{name}: {value}".encode() for name, value in cors_headers(origin).items()]
    if not keep_alive:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n"


def json_response(data: Any, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(data) + b"\n")


def error_response(error: AccelError, path: str = "") -> Response:
    """The error in the shape that clients of `path` expect."""
    return Response(error.status, msgspec.json.encode(error_body(error, path)) + b"\n", error_headers(error))


def error_headers(error: AccelError) -> dict[str, str]:
    """Retry-After where waiting helps, and x-should-retry where trying again cannot."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status >= 500 and not error.kind.retryable:
        headers["x-should-retry"] = "false"  # OpenAI's clients would repeat every 5xx
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if "allow" in error.fields:
        headers["Allow"] = error.fields["allow"]
    if "accept_encoding" in error.fields:
        headers["Accept-Encoding"] = error.fields["accept_encoding"]
    return headers


def is_ollamas(path: str) -> bool:
    """Is this a path of Ollama's API? Errors have its shape then. Lemonade's clients ask for OpenAI's below /api/v1."""
    return path.startswith("/api/") and not path.startswith("/api/v1/")


def error_body(error: AccelError, path: str) -> dict[str, Any]:
    """The error as clients of that path parse it."""
    if is_ollamas(path):
        return {"error": error.message}
    return error.anthropic() if path.startswith(ANTHROPIC) else error.openai()
