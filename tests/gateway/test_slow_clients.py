"""Clients that dawdle: with the head, with the body, with reading, and half-closed ones."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from accelerd.config.model import ServerSettings
from tests.gateway.bench import SSE_HEAD, Asked, bench, chunk, fresh_and_reused, on_both_loops, plain, until
from tests.gateway.client import CHAT, Client, chat, request

HASTE = ServerSettings(header_timeout=0.2, body_timeout=0.3, write_timeout=0.3, max_connections=3)
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()


# --- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"G", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: loc", b"\r\n"])
@on_both_loops
async def test_a_head_that_does_not_come_is_not_waited_for(tmp_path: Path, start: bytes) -> None:
    async with bench(tmp_path, HASTE) as b, await b.client() as client:
        began = time.monotonic()
        client.send(start)
        await client.rest(within=15)
        assert time.monotonic() - began > 0.15


@on_both_loops
async def test_one_byte_now_and_then_does_not_help(tmp_path: Path) -> None:
    async with bench(tmp_path, HASTE) as b, await b.client() as client:
        rest = asyncio.ensure_future(client.rest(within=15))
        for byte in b"GET /health HTTP/1.1\r\n" * 100:
            if rest.done():
                break
            client.send(bytes([byte]))
            await asyncio.sleep(0.02)
        await rest


@on_both_loops
async def test_too_many_connections_are_told_so(tmp_path: Path) -> None:
    settings = ServerSettings(max_connections=3)
    async with bench(tmp_path, settings) as b:
        first = [await b.client() for _ in range(3)]
        await until(lambda: len(b.connections) == 3, "accepted")
        async with await b.client() as client:
            response = await client.response()
            assert (response.status, response.code) == (503, "too_many_connections")
            assert response.headers["retry-after"] == "1"
            assert response.headers["connection"] == "close"
            assert await client.rest() == b""
        async with await Client.open_unix(b.unix) as local:  # the user's own tools have a limit of their own
            assert (await local.ask("GET", "/health")).status == 200
        assert (await first[0].ask("GET", "/health")).status == 200
        await first.pop().close()
        await until(lambda: len(b.connections) < 3, "left")
        async with await b.client() as client:
            assert (await client.ask("GET", "/health")).status == 200
        for each in first:
            await each.close()


# --- the body --------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_body_that_stops_is_a_408(tmp_path: Path) -> None:
    async with bench(tmp_path, HASTE) as b, await b.client() as client:
        client.send(HEAD + b'Content-Length: 100\r\n\r\n{"model":')
        response = await client.response()
        assert (response.status, response.code) == (408, "request_timeout")
        assert response.headers["connection"] == "close"
        assert not b.engine.requests


@on_both_loops
async def test_a_trickle_has_an_end_too(tmp_path: Path) -> None:
    """Each byte in time, the whole never: there is a least rate."""
    async with bench(tmp_path, HASTE) as b, await b.client() as client:
        client.send(HEAD + b"Content-Length: 100000\r\n\r\n")
        answer = asyncio.ensure_future(client.response())
        began = time.monotonic()
        while not answer.done():
            client.send(b" ")
            await asyncio.sleep(0.02)
            assert time.monotonic() - began < 20
        assert answer.result().status == 408


@on_both_loops
async def test_a_slow_body_that_goes_on_is_taken(tmp_path: Path) -> None:
    async with bench(tmp_path, HASTE) as b, await b.client() as client:
        body = request(body=chat(user="x" * 20_000)).partition(b"\r\n\r\n")[2]
        client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
        for i in range(0, len(body), 4000):
            client.send(body[i : i + 4000])
            await asyncio.sleep(0.1)
        assert (await client.response()).status == 200
        assert b.engine.requests[0].body == body


# --- reading ---------------------------------------------------------------------------------------------------------

CHUNK = chunk(b"data: " + b"x" * 16_000 + b"\n\n")


class Fountain:
    """An engine that streams for ever, as fast as it is read."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, asked: Asked) -> None:
        asked.writer.write(SSE_HEAD)
        while True:
            asked.writer.write(CHUNK)
            await asked.writer.drain()
            self.sent += len(CHUNK)


@fresh_and_reused
@on_both_loops
async def test_who_does_not_read_holds_the_engine_up_and_no_memory(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path) as b, await b.client(receive_buffer=8192, primed=primed) as client:
        fountain = b.engine.script = Fountain()
        client.send(request(body=chat(stream=True)))
        await client.head()
        (connection,) = b.connections
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: connection.writing_paused, "paused")
        seen = -1
        while seen != fountain.sent:  # it fills what the kernel and the buffers hold, and stops
            seen = fountain.sent
            await asyncio.sleep(0.1)
        wire = connection.transport
        assert wire is not None
        assert wire.get_write_buffer_size() < 1 << 20
        assert seen < 16 << 20
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        got = 0
        async with asyncio.timeout(10):
            async for piece in client.chunks():
                got += len(piece)
                if got > seen + (1 << 20):
                    break
        assert fountain.sent > seen, "did not go on"


@fresh_and_reused
@on_both_loops
async def test_who_never_reads_is_cut_off_and_the_engine_told(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path, HASTE) as b, await b.client(receive_buffer=8192, primed=primed) as client:
        b.engine.script = Fountain()
        client.send(request(body=chat(stream=True)))
        await client.head()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        asked = await b.engine.asked()
        began = time.monotonic()
        await until(asked.gone.is_set, "the engine told")
        assert time.monotonic() - began > 0.2
        await b.settled()


@on_both_loops
async def test_a_slow_reader_who_reads_is_not_cut_off(tmp_path: Path) -> None:
    """However long that takes in all. A busy machine may hold everybody up for a while: nobody is in haste here."""
    async with bench(tmp_path, ServerSettings(write_timeout=2)) as b, await b.client(receive_buffer=8192) as client:
        pieces = 400
        b.engine.says(SSE_HEAD, *([CHUNK] * pieces), b"0\r\n\r\n")
        client.send(request(body=chat(stream=True)))
        await client.head()
        count = 0
        async for _ in client.chunks():
            count += 1
            if count % 40 == 0:
                await asyncio.sleep(0.25)
        assert count == pieces
        await b.settled()


@fresh_and_reused
@on_both_loops
async def test_a_whole_answer_that_is_not_read_has_the_same_limit(tmp_path: Path, primed: bool) -> None:
    """The engine has long ended then, the lease too: only the client's connection is left."""
    async with bench(tmp_path, HASTE) as b, await b.client(receive_buffer=8192, primed=primed) as client:
        b.engine.says(plain(b"x" * (24 << 20)))
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(request(body=chat()))
        await b.engine.asked()
        await until(lambda: not b.connections, "cut off")
        await b.settled()


@on_both_loops
async def test_the_next_request_is_not_held_up_by_the_last_ones_client(tmp_path: Path) -> None:
    """The connection to the engine was paused for a slow client when its answer ended: another's answer must flow."""
    async with bench(tmp_path) as b, await b.client(receive_buffer=8192) as slow, await b.client() as quick:
        b.engine.says(plain(b"x" * (4 << 20)))
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.send(request(body=chat()))
        await asyncio.sleep(0.1)
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await slow.response()
        for _ in range(3):
            assert len((await quick.ask(body=chat())).body) == 4 << 20
        assert b.engine.connections == 1


# --- half-closed -----------------------------------------------------------------------------------------------------


@fresh_and_reused
@on_both_loops
async def test_a_client_that_closes_its_half_is_taken_as_gone(tmp_path: Path, primed: bool) -> None:
    """aiohttp closes without a response (aio-libs/aiohttp#3659), and so ends the engine's work: nobody wants it."""
    async with bench(tmp_path) as b, await b.client(primed=primed) as client:
        b.engine.script = b.engine.never
        client.send(request(body=chat()))
        asked = await b.engine.asked()
        client.writer.write_eof()
        assert await client.rest() == b""
        await until(asked.gone.is_set, "the engine told", within=1)
        await b.settled()
