"""Responses of accelerd's own, as bytes: JSON, and errors with the headers that clients heed. Knows no connection."""

from __future__ import annotations

import http
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.gateway.endpoints import error_body

JSON_TYPE = "application/json"


class Response(NamedTuple):
    """One whole response. `headers` are beside Content-Type, Content-Length and Connection."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}

    def readable_by(self, origin: str) -> Response:
        """With the headers that let a web page of that origin read it."""
        return self._replace(headers={**self.headers, **cors_headers(origin)})

    def encode(self, *, keep_alive: bool, head_only: bool = False) -> bytes:
        """The bytes to send. `head_only`: the answer to a HEAD request."""
        lines = [f"HTTP/1.1 {self.status} {reason(self.status)}"]
        if self.body or self.status != 204:
            lines += [f"Content-Type: {JSON_TYPE}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if not keep_alive:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return head if head_only else head + self.body


def reason(status: int) -> str:
    """The phrase of a status line."""
    return http.HTTPStatus(status).phrase if status in http.HTTPStatus._value2member_map_ else "Status"


def cors_headers(origin: str) -> dict[str, str]:
    """What lets a page of an allowed origin read a response."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": f"{names.HEADER_MODEL}, Retry-After, x-should-retry",
        "Vary": "Origin",
    }


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
    return headers
