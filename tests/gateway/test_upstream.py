"""Connections to engines: reused while they live, retried once when they had died idle, never after a byte came."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Dialect, Endpoint
from accelerd.gateway.response_framing import Head
from accelerd.gateway.upstream import MAX_AHEAD, ConnectionPool, UpstreamConnection, Upstreams
from tests.gateway.bench import DONE, SSE_HEAD, Asked, Speaker, bench, chunk, on_both_loops, plain, token, until
from tests.gateway.client import chat


class Notes:
    """A ResponseReceiver that writes down what it hears."""

    def __init__(self, contents: bool = False) -> None:
        self.contents = contents
        self.heard: list[Any] = []
        self.ended = asyncio.Event()
        self.unread: bool | None = None

    def head(self, head: Head, more: bool) -> bool:
        self.heard.append(head.status)
        return self.contents

    def data(self, data: bytes) -> None:
        self.heard.append(data)

    def done(self) -> None:
        self.heard.append("done")
        self.ended.set()

    def lost(self, reason: str, *, clean: bool, answered: bool, unread: bool = False) -> None:
        self.heard.append(("lost", clean, answered))
        self.unread = unread
        self.ended.set()


class Scripted:
    """A server for one test of Pool: sends pieces, perhaps closes, to every request line it gets."""

    def __init__(self, path: Path, *pieces: bytes, close: bool = False) -> None:
        self.path, self.pieces, self.close = path, pieces, close
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)  # a connection may be on its way
        self._server.close()
        for writer in self.writers:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        while await reader.read(100):
            for piece in self.pieces:
                writer.write(piece)
                await asyncio.sleep(0.002)
            if self.close:
                writer.close()
                return


async def hear(path: Path, *pieces: bytes, close: bool = False, contents: bool = False) -> list[Any]:
    """What a sink hears of a response."""
    async with Scripted(path / "s.sock", *pieces, close=close) as server:
        connection = await ConnectionPool(Endpoint(unix=str(server.path))).connect()
        sink = Notes(contents)
        connection.send(sink, b"hi")
        async with asyncio.timeout(5):
            await sink.ended.wait()
        connection.transport.abort()
        await asyncio.sleep(0)
        return sink.heard


@on_both_loops
async def test_every_byte_alone_is_the_same_response(tmp_path: Path) -> None:
    raw = b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + plain(b"content")
    heard = await hear(tmp_path, *[raw[i : i + 1] for i in range(len(raw))])
    assert heard[0] == 200
    assert b"".join(heard[1:-1]) == b"content"
    assert heard[-1] == "done"


@on_both_loops
async def test_a_body_may_end_with_its_connection(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    assert await hear(tmp_path, head, b"all", close=True) == [200, b"all", "done"]


@on_both_loops
async def test_raw_chunks_or_their_contents(tmp_path: Path) -> None:
    raw = chunk(b"a") + chunk(b"b") + b"0\r\n\r\n"
    assert await hear(tmp_path, SSE_HEAD + raw) == [200, raw, "done"]
    assert await hear(tmp_path, SSE_HEAD + raw, contents=True) == [200, b"ab", "done"]


@pytest.mark.parametrize(
    ("pieces", "last"),
    [
        ((), ("lost", True, False)),
        ((b"HTTP/1.1 200 O",), ("lost", True, True)),
        ((SSE_HEAD,), ("lost", True, True)),
        ((SSE_HEAD, chunk(b"x")), ("lost", True, True)),
        ((SSE_HEAD, b"5\r\nhel"), ("lost", False, True)),
        ((SSE_HEAD, b"5\r\nhello"), ("lost", False, True)),
        ((SSE_HEAD, chunk(b"x") + b"0\r\n"), ("lost", False, True)),
        ((plain(b"content")[:-1],), ("lost", True, True)),
    ],
)
def test_what_is_told_of_a_broken_connection(tmp_path: Path, pieces: tuple[bytes, ...], last: Any) -> None:
    assert asyncio.run(hear(tmp_path, *pieces, close=True))[-1] == last


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * (65 << 10),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        plain(b"content") + b"more",
        SSE_HEAD + b"zz\r\n",
        SSE_HEAD + chunk(b"x") + b"0\r\n\r\nmore",
    ],
)
def test_what_is_no_response_ends_the_connection(tmp_path: Path, raw: bytes) -> None:
    assert asyncio.run(hear(tmp_path, raw))[-1][0] == "lost"


@on_both_loops
async def test_an_engine_that_speaks_unasked_is_hung_up_on(tmp_path: Path) -> None:
    async with Scripted(tmp_path / "s.sock") as server:
        pool = ConnectionPool(Endpoint(unix=str(server.path)))
        connection = await pool.connect()
        pool.give_back(connection)
        await until(lambda: server.writers, "accepted")
        server.writers[0].write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await until(connection.transport.is_closing, "closed")
        assert pool.reuse() is None


@on_both_loops
async def test_what_the_engine_closes_while_idle_leaves_the_pool(tmp_path: Path) -> None:
    async with Scripted(tmp_path / "s.sock") as server:
        pool = ConnectionPool(Endpoint(unix=str(server.path)))
        pool.give_back(await pool.connect())
        await until(lambda: server.writers, "accepted")
        server.writers[0].close()
        await until(lambda: not pool._idle, "left")
        assert pool.reuse() is None


@on_both_loops
async def test_sending_on_a_closed_connection_is_told_at_once(tmp_path: Path) -> None:
    async with Scripted(tmp_path / "s.sock") as server:
        connection = await ConnectionPool(Endpoint(unix=str(server.path))).connect()
        connection.transport.abort()
        await asyncio.sleep(0.01)
        sink = Notes()
        connection.send(sink, b"hi")
        assert sink.heard == [("lost", True, False)]


@on_both_loops
async def test_an_exchange_given_up_harms_nobody_elses(tmp_path: Path) -> None:
    """The end of one exchange and its cancellation may come in the same turn of the loop; then it is another's."""
    async with Scripted(tmp_path / "s.sock", plain(b"x")) as server:
        connection = await ConnectionPool(Endpoint(unix=str(server.path))).connect()
        first, second = Notes(), Notes()
        connection.send(first, b"hi")
        await first.ended.wait()
        connection.send(second, b"hi")
        connection.abort(first)
        connection.fail(first, "late")
        connection.pause(first)
        async with asyncio.timeout(5):
            await second.ended.wait()
        assert second.heard[-1] == "done"
        connection.transport.abort()
        await asyncio.sleep(0)


@on_both_loops
async def test_a_paused_connection_reads_again_in_its_next_exchange(tmp_path: Path) -> None:
    async with Scripted(tmp_path / "s.sock", plain(b"x")) as server:
        pool = ConnectionPool(Endpoint(unix=str(server.path)))
        connection = await pool.connect()

        class Slow(Notes):
            def data(self, data: bytes) -> None:  # the client's buffer is full with the very last byte
                connection.pause(self)

        for _ in range(3):
            sink = Slow()
            connection.send(sink, b"hi")
            async with asyncio.timeout(5):
                await sink.ended.wait()
            assert pool.reuse() is connection
        connection.transport.abort()
        await asyncio.sleep(0)


@on_both_loops
async def test_pausing_what_is_closed_is_harmless(tmp_path: Path) -> None:
    async with Scripted(tmp_path / "s.sock") as server:
        connection = await ConnectionPool(Endpoint(unix=str(server.path))).connect()
        sink = Notes()
        connection.send(sink, b"hi")
        connection.pause(sink)
        connection.transport.abort()
        connection.resume(sink)
        connection.pause(sink)
        await sink.ended.wait()
        connection.resume(sink)


def test_a_retired_pool_closes_what_idles_and_what_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Scripted(tmp_path / "s.sock") as server:
            upstreams = Upstreams()
            pool = upstreams.create(1, Endpoint(unix=str(server.path)))
            assert upstreams.get(1) is pool
            idle, busy = await pool.connect(), await pool.connect()
            pool.give_back(idle)
            upstreams.retire(1)
            assert idle.transport.is_closing()
            assert not busy.transport.is_closing()
            pool.give_back(busy)
            assert busy.transport.is_closing()
            upstreams.retire(1)  # both "stopping" and "gone" say so
            await asyncio.sleep(0.01)

    asyncio.run(scenario())


# --- connections opened ahead ---------------------------------------------------------------------------------------


async def stream_and_close(asked: Asked) -> None:
    """As llama-server does."""
    asked.writer.write(SSE_HEAD + token("a") + DONE)
    asked.writer.close()


def pool_of(b: Any) -> ConnectionPool:
    (pool,) = b.gateway.upstreams._pools.values()
    assert isinstance(pool, ConnectionPool)
    return pool


CLOSING = Speaker(Dialect(closes_after_streams=True))


@pytest.mark.parametrize("slots", [1, 2, 8])
@on_both_loops
async def test_the_next_connection_is_open_before_it_is_needed(tmp_path: Path, slots: int) -> None:
    models = [ModelSpec("m", path="/m.gguf", parallel=slots)]
    async with bench(tmp_path, models=models) as b, await b.client() as client:
        b.engines["llama-server"] = CLOSING
        b.engine.script = stream_and_close
        assert (await client.ask(body=chat(stream=True))).complete
        for _ in range(3):
            await until(lambda: pool_of(b)._idle and not pool_of(b)._filling, "the next one is open")
            await until(lambda: b.engine.connections > b.engine.requests[-1].connection, "the engine has taken it")
            ready = b.engine.connections
            assert len(pool_of(b)._open) <= min(slots, MAX_AHEAD)
            assert (await client.ask(body=chat(stream=True))).complete
            assert b.engine.requests[-1].connection <= ready


@on_both_loops
async def test_never_more_connections_than_slots(tmp_path: Path) -> None:
    models = [ModelSpec("m", path="/m.gguf", parallel=3)]
    async with bench(tmp_path, models=models) as b:
        b.engines["llama-server"] = CLOSING
        most = 0

        async def watch(asked: Asked) -> None:
            nonlocal most
            asked.writer.write(SSE_HEAD + token("a"))
            for _ in range(5):
                await asyncio.sleep(0.001)
                most = max(most, len(pool_of(b)._open))
            asked.writer.write(DONE)
            asked.writer.close()

        b.engine.script = watch

        async def ask() -> None:
            async with await b.client() as client:
                for _ in range(5):
                    assert (await client.ask(body=chat(stream=True))).complete

        await asyncio.gather(*(ask() for _ in range(6)))
        assert most == 3
        assert len(pool_of(b)._idle) <= MAX_AHEAD


@on_both_loops
async def test_an_unused_connection_that_the_engine_closes_is_dropped_and_not_replaced(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engines["llama-server"] = CLOSING
        b.engine.script = stream_and_close
        assert (await client.ask(body=chat(stream=True))).complete
        await until(lambda: pool_of(b)._idle, "open ahead")
        await until(lambda: b.engine.open, "accepted")
        for writer in list(b.engine.open):
            writer.close()
        await until(lambda: not pool_of(b)._idle, "dropped")
        await asyncio.sleep(0.02)
        assert b.engine.connections == 2
        assert (await client.ask(body=chat(stream=True))).complete


@on_both_loops
async def test_other_engines_get_no_connection_that_nobody_needs(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.script = stream_and_close
        for _ in range(2):
            assert (await client.ask(body=chat(stream=True))).complete
        await asyncio.sleep(0.02)
        assert b.engine.connections == 2


@on_both_loops
async def test_plain_answers_open_nothing_ahead(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engines["llama-server"] = CLOSING
        for _ in range(3):
            assert (await client.ask(body=chat())).status == 200
        assert b.engine.connections == 1


# --- retrying, as the gateway does it -------------------------------------------------------------------------------


async def used_once(b: Any, client: Any, **more: Any) -> UpstreamConnection:
    """A pooled connection, after one good request."""
    assert (await client.ask(body=chat())).status == 200
    (pool,) = b.gateway.upstreams._pools.values()
    await until(lambda: pool._idle, "given back")
    return pool._idle[0]


@on_both_loops
async def test_a_stale_idle_connection_is_retried_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        connection = await used_once(b, client)

        def send(receiver: Any, data: bytes) -> None:  # as if it had been closed just before
            receiver.lost("it closed the connection", clean=True, answered=False, unread=True)

        connection.send = send  # type: ignore[method-assign]
        response = await client.ask(body=chat())
        assert response.status == 200, response.body
        assert [r.connection for r in b.engine.requests] == [1, 2]
        await b.settled()


@pytest.mark.parametrize("assembles", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@on_both_loops
async def test_what_the_engine_has_read_is_not_sent_again(tmp_path: Path, stream: bool, assembles: bool) -> None:
    """It may be what has ended the engine, and the client learns of that end, not of what came after it."""
    async with bench(tmp_path, assembles=assembles) as b, await b.client() as client:
        b.engine.says(plain(b"{}"))
        await used_once(b, client)

        async def broken(asked: Asked) -> None:
            b.engine.path.unlink()  # nobody listens any more
            asked.writer.transport.abort()

        b.engine.script = broken
        response = await client.ask(body=chat(stream=stream))
        assert (response.status, response.code) == (502, "upstream_failed")
        assert "sent no response" in response.json()["error"]["message"]
        assert len(b.engine.requests) == 2
        await b.settled()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
@pytest.mark.parametrize("read", [False, True])
@on_both_loops
async def test_whether_a_request_was_read_is_seen_by_how_the_connection_ends(
    tmp_path: Path, family: socket.AddressFamily, read: bool
) -> None:
    with socket.socket(family) as server:
        server.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "e.sock"))
        server.listen()
        inet = family == socket.AF_INET
        endpoint = Endpoint(port=server.getsockname()[1]) if inet else Endpoint(unix=server.getsockname())
        connection = await ConnectionPool(endpoint).connect()
        engine, notes = server.accept()[0], Notes()
        if read:
            connection.send(notes, b"GET")
            assert engine.recv(3) == b"GET"
            engine.close()
        else:
            engine.close()
            connection.send(notes, b"GET")
        await notes.ended.wait()
        assert notes.heard == [("lost", True, False)]
        assert notes.unread is not read


@on_both_loops
async def test_a_fresh_connection_is_not_retried(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(close=True)
        response = await client.ask(body=chat())
        assert (response.status, response.code) == (502, "upstream_failed")
        assert len(b.engine.requests) == 1


@pytest.mark.parametrize("first", [b"H", SSE_HEAD, SSE_HEAD + token("a"), plain(b"content")[:-1]])
@on_both_loops
async def test_nothing_is_retried_after_a_byte_of_the_response(tmp_path: Path, first: bytes) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        await used_once(b, client)
        b.engine.says(first, close=True)
        response = await client.ask(body=chat(stream=True))
        assert response.status == 502 or not response.complete
        assert len(b.engine.requests) == 2
        await b.settled()


@on_both_loops
async def test_an_engine_that_takes_no_connection_is_a_502(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.path.unlink()
        response = await client.ask(body=chat())
        assert (response.status, response.code) == (502, "upstream_failed")
        assert "cannot connect" in response.json()["error"]["message"]
        await b.settled()


def test_a_request_has_its_kind_and_a_key_only_where_there_is_one() -> None:
    pool = ConnectionPool(Endpoint(unix="/nowhere"))
    head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\n%bContent-Length: 2\r\n\r\n{}"
    key = b"Authorization: Bearer s\r\n"
    assert pool.request("/v1/x", "s", b"{}") == head % (b"application/json", key)
    assert pool.request_of("text/plain", "/v1/x", "s", b"{}") == head % (b"text/plain", key)
    assert pool.request("/v1/x", "s", b"{}") == head % (b"application/json", key)
    assert ConnectionPool(Endpoint(port=1)).request("/v1/x", "", b"{}") == head % (b"application/json", b"")
