"""Takes the body of a request from its client: of the right kind, not too large, not too slowly."""

from __future__ import annotations

import asyncio

from aiohttp import StreamReader, web

from accelerd.base.errors import AccelError
from accelerd.config.model import ServerSettings

BODY_RATE = 4096  # bytes/s: a body that comes slower for longer than server.body_timeout is given up


async def read_body(request: web.BaseRequest, settings: ServerSettings, kind: str) -> bytes:
    """The whole body, which must have the Content-Type `kind`. AccelError."""
    headers, limit = request.headers, settings.max_body
    if request.content_type != kind:
        raise AccelError("unsupported_media_type", f"Content-Type must be {kind}")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise AccelError("unsupported_media_type", "compressed bodies are not taken")
    if int(headers.get("Content-Length", "0")) > limit:
        raise _too_large(limit)
    content = request.content
    try:
        if not content.is_eof():
            if headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return await _slow_body(content, limit, settings.body_timeout)
        body = content.read_nowait(-1)
    except web.RequestPayloadError:
        content.feed_eof()  # aiohttp need not look for the rest of it
        raise AccelError("bad_request", "malformed HTTP: bad chunks in the body") from None
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _slow_body(content: StreamReader, limit: int, patience: float) -> bytes:
    """A body that did not come in one piece with its head."""
    parts, size = [], 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(patience) as deadline:
            while not content.at_eof():
                part = await content.readany()
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
                deadline.reschedule(min(loop.time(), began + size / BODY_RATE) + patience)
    except TimeoutError:
        raise AccelError("request_timeout", "the body did not come in time (server.body_timeout)") from None
    return b"".join(parts)


def _too_large(limit: int) -> AccelError:
    return AccelError("body_too_large", f"the body is larger than {limit} bytes (server.max_body)")
