"""An HTTP client that does what the test says: half requests, wrong requests, no reading, sudden ends."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 10.0  # s for what should take moments
CHAT = "/v1/chat/completions"


def chat(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def request(
    method: str = "POST",
    path: str = CHAT,
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    host: str | None = "localhost",
    version: str = "HTTP/1.1",
) -> bytes:
    """One whole request. `body`: bytes, or what becomes JSON; headers given override the usual ones."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    fields = {"Host": host} if host is not None else {}
    if data is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    fields |= headers or {}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"{method} {path} {version}\r\n{lines}\r\n".encode("utf-8", "surrogateescape") + (data or b"")


@dataclass
class Response:
    status: int
    headers: dict[str, str]  # names in lower case; repeated ones joined with ", "
    head: bytes
    body: bytes = b""
    complete: bool = True  # did it end as its framing says?

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def usual_head(self) -> bytes:
        """The head without what every response has of its own: date and id."""
        return re.sub(rb"Date: [^\r]*\r\n|x?-?request-id: [^\r]*\r\n", b"", self.head)

    @property
    def code(self) -> str:
        """The error code, of an error in OpenAI's shape."""
        error = self.json()["error"]
        assert set(error) >= {"message", "type", "param", "code"}, error
        return str(error["code"])

    def events(self) -> list[Any]:
        """The data of its SSE events: JSON decoded where it is JSON."""
        found = []
        for block in self.body.split(b"\n\n"):
            for line in block.split(b"\n"):
                if line.startswith(b"data: "):
                    data = line[6:]
                    found.append(data.decode() if data == b"[DONE]" else json.loads(data))
        return found


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, receive_buffer: int | None = None) -> Client:
        """`receive_buffer`: bytes that the kernel keeps for a client that does not read."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 16))

    @classmethod
    async def open_unix(cls, path: Path) -> Client:
        return cls(*await asyncio.open_unix_connection(str(path), limit=1 << 16))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(self, *args: Any, **more: Any) -> Response:
        """Send one request and read its response."""
        self.send(request(*args, **more))
        return await self.response(head_only=bool(args) and args[0] == "HEAD")

    async def head(self) -> Response:
        async with asyncio.timeout(PATIENCE):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            if line:
                name, _, value = line.partition(":")
                key = name.lower()
                headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
        return Response(int(lines[0].split(" ")[1]), headers, raw)

    async def response(self, *, head_only: bool = False) -> Response:
        response = await self.head()
        if head_only or response.status in (204, 304) or response.status < 200:
            return response
        try:
            async with asyncio.timeout(PATIENCE):
                if response.headers.get("transfer-encoding") == "chunked":
                    async for piece in self.chunks():
                        response.body += piece
                elif "content-length" in response.headers:
                    response.body = await self.reader.readexactly(int(response.headers["content-length"]))
                else:
                    response.body = await self.reader.read()
        except asyncio.IncompleteReadError as error:
            response.complete = False
            if "content-length" in response.headers:
                response.body = error.partial
        except ConnectionError:
            response.complete = False
        return response

    async def chunks(self) -> Any:
        """The chunks of a body, to its end."""
        while True:
            line = await self.reader.readuntil(b"\r\n")
            size = int(line, 16)
            data = await self.reader.readexactly(size + 2)
            if not size:
                return
            yield data[:-2]

    async def rest(self, within: float = PATIENCE) -> bytes:
        """What comes until the other side closes."""
        async with asyncio.timeout(within):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return

    async def vanish(self) -> None:
        """Go as a killed process on a far machine goes: with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await self.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
