"""The HTTP/1.1 client for accelerd's own requests to engines: readiness, probes, measurements, control of Lemonade.

One connection per request, bounded in time and bytes. It uses asyncio alone: importing aiohttp would delay the daemon's
start. It never logs what it sends, since that includes keys. Clients' requests are relayed by the gateway, not here.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from typing import Final

from accelerd.engines.base import Endpoint

HEAD_BYTES: Final = 16 * 1024
ANSWER_BYTES: Final = 64 * 1024
CONNECT_TIMEOUT: Final = 2.0  # s, for requests without a limit of their own
REFUSED: Final = frozenset((401, 403, 407))  # statuses: the key is not taken
JSON: Final = "application/json"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_STATUS: Final = re.compile(rb"HTTP/1\.\d (\d{3})[ \r]")
_UCRED: Final = struct.Struct("iII")  # pid, uid, gid


class HttpError(Exception):
    """No usable answer. The text says why."""


class HttpUnreachable(HttpError):
    """Nobody listens, or the connection ended before the answer did."""


class HttpTimeout(HttpError):
    """No answer in time."""


async def connect(endpoint: Endpoint) -> socket.socket:
    """A connected non-blocking socket. OSError when nobody listens."""
    family = socket.AF_UNIX if endpoint.unix else socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        address = endpoint.unix or (endpoint.host, endpoint.port)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def unix_peer(sock: socket.socket) -> int:
    """The pid that listens at the other end of a unix socket; 0 when it is not visible from here."""
    pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)


async def request(
    endpoint: Endpoint,
    path: str,
    *,
    within: float | None,
    bearer: str = "",
    body: bytes | None = None,
    kind: str = JSON,
    most: int = ANSWER_BYTES,
) -> tuple[int, bytes]:
    """The final status of GET `path`, or of POST with a `body`, and at most `most` bytes of the answer. HttpError.

    `within` seconds for all of it; None: only connecting is limited.
    """
    limit = CONNECT_TIMEOUT if within is None else within
    try:
        async with asyncio.timeout(limit) as deadline:
            sock = await connect(endpoint)
            if within is None:
                deadline.reschedule(None)
            reader, writer = await asyncio.open_connection(sock=sock, limit=HEAD_BYTES)
            try:
                writer.write(_head(path, bearer, body, kind) + (body or b""))
                return await _answer(reader, most)
            finally:
                writer.close()
    except TimeoutError:
        raise HttpTimeout(f"no answer to {path} within {limit:g} s") from None
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)  # asyncio has a text of its own
        raise HttpUnreachable(f"cannot request {path}: {what}") from None


def _head(path: str, bearer: str, body: bytes | None, kind: str) -> bytes:
    head = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    if bearer:
        head.append(f"Authorization: Bearer {bearer}")
    if body is not None:
        head += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode()


async def _answer(reader: asyncio.StreamReader, most: int) -> tuple[int, bytes]:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            found = _STATUS.match(head)
            if found is None:
                raise HttpError("the answer is not HTTP/1.x")
            if (code := int(found[1])) >= 200:  # interim answers come before the final one
                return code, await _body(reader, head, most)
    except asyncio.LimitOverrunError:
        raise HttpError(f"the answer's head is longer than {HEAD_BYTES} bytes") from None
    except asyncio.IncompleteReadError:
        raise HttpUnreachable("the connection ended before an answer") from None


async def _body(reader: asyncio.StreamReader, head: bytes, most: int) -> bytes:
    """Up to its stated length, or to the end of the connection."""
    if length := _LENGTH.search(head):
        return await reader.readexactly(min(most, int(length[1])))
    body = bytearray()
    if not _CHUNKED.search(head):
        while len(body) < most and (piece := await reader.read(most - len(body))):
            body += piece
        return bytes(body)
    while len(body) < most:
        size = (await reader.readuntil(b"\r\n")).partition(b";")[0].strip()
        try:
            count = int(size, 16)
        except ValueError:
            raise HttpError("the answer is not HTTP/1.x") from None
        if count <= 0:
            break
        body += await reader.readexactly(min(count, most - len(body)))
        if len(body) < most:
            await reader.readexactly(2)
    return bytes(body)


async def has_path(endpoint: Endpoint, path: str, bearer: str) -> bool:
    """Does a server know this path? An empty request costs it nothing. Where it does not say: yes."""
    try:
        return (await request(endpoint, path, within=2.0, bearer=bearer, body=b"{}", most=0))[0] != 404
    except HttpError:
        return True
