"""One HTTP/1.1 request to an engine, for its status and the beginning of its answer: readiness and the one-token probe.

Bounded in time and in bytes; one connection per request. It never logs what it sends: the secret is in it. The relay of
clients' requests is the gateway's and shares nothing with this.
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
JSON: Final = "application/json"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*(?:\r\n|$)")
_UCRED: Final = struct.Struct("iII")  # pid, uid, gid


class ProbeError(Exception):
    """No usable answer: refused, reset, timed out, or not HTTP. The text says which."""


async def connect(endpoint: Endpoint) -> socket.socket:
    """A connected non-blocking socket. OSError when nobody listens."""
    family = socket.AF_UNIX if endpoint.unix else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        address = endpoint.unix or ("127.0.0.1", endpoint.port)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def unix_peer(sock: socket.socket) -> int:
    """The pid that listens at the other end of a unix socket; 0 when it is not visible from here."""
    pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)


async def status(
    endpoint: Endpoint, path: str, *, within: float, bearer: str = "", body: bytes | None = None, kind: str = JSON
) -> int:
    """The final status of GET `path`, or of POST with a `body`; `within` seconds for all of it. ProbeError."""
    return (await answer(endpoint, path, within=within, bearer=bearer, body=body, kind=kind, most=0))[0]


async def answer(
    endpoint: Endpoint,
    path: str,
    *,
    within: float,
    bearer: str = "",
    body: bytes | None = None,
    kind: str = JSON,
    most: int = ANSWER_BYTES,
) -> tuple[int, bytes]:
    """The same, and at most `most` bytes of the answer's body, as they came over the wire. ProbeError."""
    try:
        async with asyncio.timeout(within):
            sock = await connect(endpoint)
            try:
                return await _exchange(sock, _request(path, bearer, body, kind), most)
            finally:
                sock.close()
    except TimeoutError:
        raise ProbeError(f"no answer to {path} within {within:g} s") from None
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)  # asyncio has a text of its own
        raise ProbeError(f"cannot ask for {path}: {what}") from None


def _request(path: str, bearer: str, body: bytes | None, kind: str) -> bytes:
    head = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    if bearer:
        head.append(f"Authorization: Bearer {bearer}")
    if body is not None:
        head += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


async def _exchange(sock: socket.socket, request: bytes, most: int) -> tuple[int, bytes]:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, request)
    seen = b""
    while True:
        # Interim answers (1xx) come before the final one.
        while (end := seen.find(b"\r\n\r\n")) >= 0:
            code = _code(seen)
            if code >= 200:
                return code, await _body(sock, seen[:end].lower(), seen[end + 4 :], most)
            seen = seen[end + 4 :]
        if len(seen) > HEAD_BYTES:
            raise ProbeError(f"the answer's head is longer than {HEAD_BYTES} bytes")
        piece = await loop.sock_recv(sock, 4096)
        if not piece:
            raise ProbeError("the connection ended before an answer")
        seen += piece


async def _body(sock: socket.socket, head: bytes, seen: bytes, most: int) -> bytes:
    """Up to Content-Length, or to the end of the connection."""
    length = _LENGTH.search(head)
    wanted = min(most, int(length[1])) if length else most
    while len(seen) < wanted and (piece := await asyncio.get_running_loop().sock_recv(sock, 4096)):
        seen += piece
    return seen[:wanted]


def _code(head: bytes) -> int:
    parts = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise ProbeError("the answer is not HTTP/1.x")
    return int(parts[1])
