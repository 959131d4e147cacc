"""Small responses of accelerd's own: JSON, and errors with the headers that clients heed."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from aiohttp import web

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.gateway.endpoints import error_body


def cors_headers(origin: str) -> dict[str, str]:
    """What lets a page of an allowed origin read a response."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": f"{names.HEADER_MODEL}, Retry-After, x-should-retry",
        "Vary": "Origin",
    }


def json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(data) + b"\n", content_type="application/json", headers=headers
    )


def error_response(error: AccelError, path: str = "") -> web.Response:
    """The error with Retry-After where waiting helps, and x-should-retry where trying again cannot.

    `path`: what was asked; its clients want their own shape.
    """
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status >= 500 and not error.kind.retryable:
        headers["x-should-retry"] = "false"  # OpenAI's clients would repeat every 5xx
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if "allow" in error.fields:
        headers["Allow"] = error.fields["allow"]
    return json_response(error_body(error, path), error.status, headers)
