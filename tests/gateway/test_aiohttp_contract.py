"""What connection.py and relay.py rely on inside aiohttp. Red here: read RequestHandler again before raising the pin.

Each test names one fact; the code that needs it is in brackets.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_parser import HttpRequestParser
from aiohttp.web_protocol import RequestHandler, _ErrInfo

import accelerd.gateway.connection as connection_module
from accelerd.base.ports import SystemClock
from accelerd.config.model import ServerSettings
from accelerd.gateway.connection import ClientConnection, Server
from accelerd.gateway.relay import Sent
from accelerd.gateway.sweeper import Sweeper
from tests.gateway.bench import on_both_loops, until
from tests.gateway.client import Client, request

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, **settings: Any) -> AsyncIterator[tuple[Server, int]]:
    loop = asyncio.get_running_loop()
    sweeper = Sweeper(loop, SystemClock())
    server = Server(handler, ServerSettings(**settings), sweeper)
    sock = socket.create_server(("127.0.0.1", 0))
    listener = await loop.create_server(server, sock=sock)
    try:
        yield server, sock.getsockname()[1]
    finally:
        listener.close()
        await server.shutdown(0)
        sweeper.close()
        await asyncio.sleep(0.01)


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


def test_the_parser_is_the_quick_one() -> None:
    """Four times the speed of the one in Python (perf.md): the wheel or package must have it."""
    assert HttpRequestParser.__module__ == "aiohttp._http_parser"


def test_what_is_overridden_is_there() -> None:
    for name in ("connection_made", "connection_lost", "handle_error", "_process_keepalive", "data_received"):
        assert callable(getattr(RequestHandler, name)), name
    for name in ("pause_writing", "resume_writing"):
        assert name in vars(BaseProtocol)
        assert name not in vars(RequestHandler), f"{name}: super() now does more"
    parameters = list(inspect.signature(RequestHandler.handle_error).parameters)
    assert parameters == ["self", "request", "status", "exc", "message"]
    assert "__slots__" in vars(RequestHandler)


def test_malformed_input_is_queued_as_this() -> None:
    """[data_received: looks whether the parser gave up, to end a body that is still awaited]"""
    assert {a.name for a in _ErrInfo.__attrs_attrs__} == {"status", "exc", "message"}  # type: ignore[attr-defined]
    assert "_messages" in RequestHandler.__slots__
    assert "_current_request" in RequestHandler.__slots__


def test_the_options_are_understood() -> None:
    """[Server.__init__: a misspelt option makes aiohttp fall back to a plain RequestHandler without a word]"""
    known = set(inspect.signature(RequestHandler.__init__).parameters)
    assert known >= {"access_log", "auto_decompress", "keepalive_timeout", "lingering_time", "loop"}
    assert "handler_cancellation" in inspect.signature(web.Server.__init__).parameters


def test_attributes_of_a_new_connection() -> None:
    """[fresh, idle, connection_made, _process_keepalive]"""

    async def scenario() -> None:
        async with serving(hello) as (server, _):
            connection = server()
            assert isinstance(connection, ClientConnection)
            assert connection._manager is server
            assert connection._request_count == 0
            assert connection._request_in_progress is False
            assert not connection._messages
            assert connection._next_keepalive_close_time == 0.0
            assert connection._keepalive_handle is None
            assert connection.transport is None
            assert connection._loop is asyncio.get_running_loop()
            assert connection.fresh
            assert not connection.idle  # its handler has not come to wait for a request yet
            assert not hasattr(connection, "__dict__") or "relay" in ClientConnection.__slots__

    asyncio.run(scenario())


@on_both_loops
async def test_the_server_lists_its_connections_and_forgets_them() -> None:
    """[connection cap, Listeners.drain]"""
    async with serving(hello) as (server, port):
        async with await Client.open(port) as client:
            assert (await client.ask("GET", "/")).status == 200
            (connection,) = server.connections
            assert isinstance(connection, ClientConnection)
            assert not connection.fresh
            await until(lambda: connection.idle, "idle")
        await until(lambda: not server.connections, "forgotten")
        assert connection._manager is None, "[connection_lost, pause_writing]"
        assert connection.transport is None


@on_both_loops
async def test_the_keepalive_handle_is_used_for_the_first_head_and_rearmed_after_it() -> None:
    """[connection_made moves the deadline; _process_keepalive closes only who waits]"""
    async with (
        serving(hello, header_timeout=0.2) as (server, port),
        await Client.open(port) as silent,
        await Client.open(port) as quick,
    ):
        assert (await quick.ask("GET", "/")).status == 200
        assert await silent.rest(within=5) == b""
        assert (await quick.ask("GET", "/")).status == 200, "closed by the deadline of its first head"
        (connection,) = server.connections
        assert connection._next_keepalive_close_time > asyncio.get_running_loop().time() + 60
        assert connection._keepalive_handle is not None


@on_both_loops
async def test_a_handler_may_run_past_the_deadline_of_the_head() -> None:
    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.Response(text="late")

    async with serving(slow, header_timeout=0.1) as (_, port), await Client.open(port) as client:
        assert (await client.ask("GET", "/")).body == b"late"


@on_both_loops
async def test_a_client_that_goes_cancels_its_handler() -> None:
    """[handler_cancellation: leases are released by it]"""
    cancelled = asyncio.Event()

    async def forever(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async with serving(forever) as (_, port):
        client = await Client.open(port)
        client.send(request("GET", "/"))
        await asyncio.sleep(0.02)
        await client.close()
        async with asyncio.timeout(1):
            await cancelled.wait()


@on_both_loops
async def test_pause_and_resume_reach_the_protocol_of_the_transport_that_relays_write_to() -> None:
    """[Relay writes to request.transport; the handle of the connection is request.protocol]"""
    heard: list[str] = []
    big = b"x" * (8 << 20)

    class Spy:
        def pause(self) -> None:
            heard.append("pause")

        def resume(self) -> None:
            heard.append("resume")

    async def write(request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, ClientConnection)
        assert request.transport is connection.transport
        connection.relay = Spy()  # type: ignore[assignment]
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(big))
        request.transport.write(big)
        await until(lambda: "pause" in heard, "paused")
        assert connection.writing_paused
        await until(lambda: "resume" in heard, "resumed")
        connection.relay = None
        return Sent(keep_alive=True)

    async with serving(write) as (server, port), await Client.open(port) as client:
        client.send(request("GET", "/"))
        await until(lambda: heard, "the first")
        assert len(server.sweeper._unread) == 1
        response = await client.response()
        assert response.body == big
        assert heard == ["pause", "resume"]
        assert not server.sweeper._unread


@on_both_loops
async def test_sent_is_taken_as_a_finished_response() -> None:
    """[Sent: nothing more is written; keep_alive decides about the connection]"""

    async def raw(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nraw")
        sent = Sent(keep_alive=request.raw_path != "/last")
        assert sent.prepared
        return sent

    async with serving(raw) as (_, port), await Client.open(port) as client:
        for _ in range(3):
            assert (await client.ask("GET", "/")).body == b"raw"
        assert (await client.ask("GET", "/last")).body == b"raw"
        assert await client.rest() == b"", "more than what was written, or not closed"


@on_both_loops
async def test_handle_error_answers_for_malformed_requests_and_for_bugs() -> None:
    """[handle_error is called with 400 and the parser's message, or 500 and the exception]"""

    async def buggy(request: web.BaseRequest) -> web.StreamResponse:
        raise ZeroDivisionError("a bug")

    async with serving(buggy) as (_, port):
        async with await Client.open(port) as client:
            response = await client.ask("GET", "/")
            assert (response.status, response.code) == (500, "internal")
            assert b"ZeroDivision" not in response.body
            assert await client.rest() == b""
        async with await Client.open(port) as client:
            client.send(b"nonsense\r\n\r\n")
            response = await client.response()
            assert (response.status, response.code) == (400, "bad_request")
            assert await client.rest() == b""


@on_both_loops
async def test_what_the_gateway_reads_of_a_request() -> None:
    seen: dict[str, Any] = {}

    async def look(request: web.BaseRequest) -> web.StreamResponse:
        seen.update(
            raw_path=request.raw_path,
            method=request.method,
            version=request.version,
            keep_alive=request.keep_alive,
            content_type=request.content_type,
            content=type(request.content),
            eof=request.content.is_eof(),
            body=request.content.read_nowait(-1),
        )
        return web.Response()

    async with serving(look) as (_, port), await Client.open(port) as client:
        await client.ask("POST", "/a%2Fb/../c?q=%20", {"x": 1}, {"Content-Type": "application/json; charset=utf-8"})
        assert seen == {
            "raw_path": "/a%2Fb/../c?q=%20",
            "method": "POST",
            "version": HttpVersion11,
            "keep_alive": True,
            "content_type": "application/json",
            "content": StreamReader,
            "eof": True,
            "body": b'{"x": 1}',
        }
        client.send(request("GET", "/old", version="HTTP/1.0"))
        await client.response()
        assert (seen["version"], seen["keep_alive"], seen["raw_path"]) == (HttpVersion10, False, "/old")
        assert HttpVersion10 < HttpVersion11


@on_both_loops
async def test_closing_lingers_so_that_a_refusal_is_not_lost() -> None:
    """[LINGER: what is still sent is read and dropped, for a bounded time]"""

    async def refuse(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=413, text="too much")

    async with serving(refuse) as (_, port), await Client.open(port) as client:
        client.send(request("POST", "/", headers={"Content-Length": str(64 << 20)}))
        for _ in range(40):
            client.send(bytes(1 << 18))
            await asyncio.sleep(0)
        assert (await client.response()).status == 413
        await client.writer.drain()
    assert 0 < connection_module.LINGER <= 5


@on_both_loops
async def test_an_idle_connection_whose_answer_is_not_read_does_not_stay() -> None:
    """[_process_keepalive: aiohttp only calls close(), which waits for the reader for ever]"""

    async def write(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bytes(16 << 20))

    async with serving(write) as (server, port):
        client = await Client.open(port, receive_buffer=4096)
        client.send(request("GET", "/"))
        await until(lambda: server.connections and server.connections[0].idle is False, "answering")
        (connection,) = server.connections
        assert isinstance(connection, ClientConnection)
        await until(lambda: connection.writing_paused, "paused")
        waiter = connection._waiter = asyncio.get_running_loop().create_future()  # as between two requests
        connection._next_keepalive_close_time = 0.0
        connection._process_keepalive()
        assert waiter.cancelled()
        await until(lambda: not server.connections, "gone")
        await client.close()


@pytest.mark.parametrize("name", ["request_factory", "request_handler", "handler_cancellation", "requests_count"])
def test_what_a_server_needs_to_have(name: str) -> None:
    async def scenario() -> None:
        async with serving(hello) as (server, _):
            assert hasattr(server, name)
            assert server.handler_cancellation is True

    asyncio.run(scenario())
