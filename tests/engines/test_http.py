"""The HTTP client for engines: an answer or what is wrong, within bounds of time and bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from accelerd.engines.base import Endpoint
from accelerd.engines.http import HttpError, HttpTimeout, HttpUnreachable, request
from tests.ports import free_port


@asynccontextmanager
async def answering(answer: bytes, seen: list[bytes] | None = None, hang: bool = False) -> AsyncIterator[Endpoint]:
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = await reader.readuntil(b"\r\n\r\n")
        if b"POST" in got:
            got += await reader.readexactly(2)
        if seen is not None:
            seen.append(got)
        writer.write(answer)
        if hang:
            await done.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Endpoint(port=server.sockets[0].getsockname()[1])
        done.set()


async def test_get_and_post() -> None:
    seen: list[bytes] = []
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", seen) as endpoint:
        assert await request(endpoint, "/a", within=5) == (200, b"")
        assert await request(endpoint, "/b", within=None, bearer="geheim", body=b"{}") == (200, b"")
    assert seen[0].startswith(b"GET /a HTTP/1.1\r\n")
    assert b"Authorization" not in seen[0]
    assert seen[1].startswith(b"POST /b HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer geheim\r\n" in seen[1]
    assert seen[1].endswith(b"Content-Length: 2\r\n\r\n{}")


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", b"null"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length:2\r\nZ: y\r\n\r\n{}and more", b"{}"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil its end", b"until its end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000, b"x" * 16),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nin\r\n04\r\n two\r\n0\r\n\r\n", b"in two"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nxxxxxxxxx\r\n9\r\nxxxxxxxxx", b"x" * 16),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
async def test_a_body_is_read_to_its_end_or_as_far_as_wanted(sent: bytes, body: bytes) -> None:
    async with answering(sent) as endpoint:
        assert await request(endpoint, "/", within=5, most=16) == (200, body)


async def test_interim_answers_are_passed_over() -> None:
    answers = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\nHTTP/1.1 503 No\r\n\r\n"
    async with answering(answers) as endpoint:
        assert (await request(endpoint, "/", within=5))[0] == 503


@pytest.mark.parametrize(
    ("sent", "error", "text"),
    [
        (b"", HttpUnreachable, "ended before an answer"),
        (b"HTTP/1.1 200 OK\r\nhalf", HttpUnreachable, "ended before an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut", HttpUnreachable, "ended before"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ncut", HttpUnreachable, "ended before"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnine\r\n", HttpError, "not HTTP"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", HttpError, "not HTTP"),
        (b"HTTP/1.1 OK\r\n\r\n", HttpError, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"h" * 100_000, HttpError, "longer than"),
    ],
)
async def test_no_usable_answer(sent: bytes, error: type[HttpError], text: str) -> None:
    async with answering(sent) as endpoint:
        with pytest.raises(HttpError, match=text) as raised:
            await request(endpoint, "/", within=5)
    assert raised.type is error


async def test_silence_is_bounded() -> None:
    async with answering(b"HTTP/1.1 200", hang=True) as endpoint:
        with pytest.raises(HttpTimeout, match=r"/ within 0\.05 s"):
            await request(endpoint, "/", within=0.05)


async def test_nobody_listens() -> None:
    with pytest.raises(HttpUnreachable, match="cannot request /: Connection refused"):
        await request(Endpoint(port=free_port()), "/", within=5)
    with pytest.raises(HttpUnreachable, match="No such file"):
        await request(Endpoint(unix="/no/such.sock"), "/", within=5)


async def test_a_server_on_ipv6_alone() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nsix")
        writer.close()

    async with await asyncio.start_server(serve, "::1", 0) as server:
        endpoint = Endpoint(port=server.sockets[0].getsockname()[1], host="::1")
        assert await request(endpoint, "/", within=5) == (200, b"six")
