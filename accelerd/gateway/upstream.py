"""Connections to engines: raw, pooled per instance, one request at a time on each.

Parses no more of a response than its head and framing; hands the bytes to a ResponseReceiver as they come. Knows
nothing of clients, models or leases. A connection that an engine closes while it idles removes itself.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from accelerd.engines.base import Endpoint
from accelerd.gateway.response_framing import MAX_HEAD, Chunked, FramingError, Head, parse_head
from accelerd.gateway.responses import JSON_TYPE

CONNECT_TIMEOUT = 5.0  # s: the engine is on this machine
MAX_AHEAD = 8  # connections opened ahead of the next requests
AHEAD_DELAY = 0.002  # s until connections are closed and opened: requests that arrive together come first


class ResponseReceiver(Protocol):
    """Who receives one response. Exactly one of `done` and `lost` ends it."""

    def head(self, head: Head, more: bool) -> bool:
        """The response begins. True: hand over the content of chunks; False: the bytes as they come.

        `more`: some of the body came with it. Unless the receiver wants contents, `data` or `lost` is called at once.
        """
        ...

    def data(self, data: bytes) -> None: ...
    def done(self) -> None: ...
    def lost(self, reason: str, *, clean: bool, answered: bool, unread: bool = False) -> None:
        """The connection broke; `clean`: not in the middle of a chunk; `answered`: a byte of the response had come;
        `unread`: the engine has not read the request."""


class Connection(Protocol):
    """Carries one exchange at a time. What follows does nothing unless `receiver` is the one that is being served."""

    def abort(self, receiver: ResponseReceiver) -> None:
        """Close at once, which tells the engine to stop working on the response."""
        ...

    def fail(self, receiver: ResponseReceiver, reason: str) -> None:
        """Close at once and tell the receiver why."""
        ...

    def pause(self, receiver: ResponseReceiver) -> None:
        """Read no more from the engine: its reader is slow."""
        ...

    def resume(self, receiver: ResponseReceiver) -> None:
        """Its reader is ready again."""
        ...

    def close(self) -> None:
        """At once, without a word to anybody."""
        ...


ConnectionT = TypeVar("ConnectionT", bound=Connection)


class Pool(Protocol[ConnectionT]):
    """Connections to one instance."""

    def reuse(self) -> ConnectionT | None:
        """An idle connection, or None."""
        ...

    async def connect(self) -> ConnectionT:
        """A new one. OSError or TimeoutError when the engine does not take it; AccelError."""
        ...

    def exchange(
        self, connection: ConnectionT, receiver: ResponseReceiver, kind: str, path: str, secret: str, body: bytes
    ) -> None:
        """Begin one, with a body of this Content-Type."""
        ...

    def close(self) -> None:
        """The instance is leaving."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine. `send` when idle; `abort` at any time."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._receiver: ResponseReceiver | None = None
        self._buffer = b""
        self._head: Head | None = None
        self._left: int | None = 0
        self._chunked: Chunked | None = None
        self._content = False  # does the receiver want chunk contents instead of raw bytes?
        self._answered = False  # has any byte of this response come?
        self._paused = False
        self._reset = False  # did what was sent reach a socket that was closed already?
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._pool.opened(self)

    def send(self, receiver: ResponseReceiver, request: bytes) -> None:
        """Begin an exchange."""
        self._head, self._chunked, self._answered = None, None, False
        if self.transport.is_closing():  # connection_lost has been called already, or will not find a receiver
            receiver.lost("it closed the connection", clean=True, answered=False, unread=True)
            return
        self._receiver = receiver
        self.transport.write(request)

    # When an exchange is over, its connection may serve another one before its owner learns of the end: the methods
    # below do nothing unless `receiver` is still the one that is being served.

    def abort(self, receiver: ResponseReceiver) -> None:
        """Close at once, which tells the engine to stop working on the response."""
        if self._receiver is receiver:
            self._receiver = None
            self.transport.abort()

    def fail(self, receiver: ResponseReceiver, reason: str) -> None:
        """Close at once and tell the receiver why."""
        if self._receiver is receiver:
            self._lose(reason)
            self.transport.abort()

    def close(self) -> None:
        """At once, without a word to anybody."""
        self.transport.abort()

    def pause(self, receiver: ResponseReceiver) -> None:
        """Read no more from the engine: its reader is slow."""
        if self._receiver is receiver and not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self, receiver: ResponseReceiver) -> None:
        """Its reader is ready again."""
        if self._receiver is receiver:
            self._read_on()

    def _read_on(self) -> None:
        if self._paused:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:  # data without a request, or the rest of an exchange that was given up
            self.transport.abort()
            return
        self._answered = True
        try:
            if self._head is None:
                rest = self._take_head(data, receiver)
                if rest is None:
                    return
                data = rest
            self._take_body(data, receiver)
        except FramingError as error:
            self.fail(receiver, f"malformed response: {error}")

    def _take_head(self, data: bytes, receiver: ResponseReceiver) -> bytes | None:
        data = self._buffer + data if self._buffer else data
        while True:
            end = data.find(b"\r\n\r\n")
            if (end if end >= 0 else len(data)) > MAX_HEAD:
                raise FramingError(f"a head larger than {MAX_HEAD >> 10} KiB")
            if end < 0:
                self._buffer = data
                return None
            head = parse_head(data[:end])
            data = data[end + 4 :]
            if head.status >= 200:
                break
            if head.status == 101:
                raise FramingError("an unrequested protocol switch")
        self._buffer = b""
        self._head = head
        self._chunked = Chunked() if head.chunked else None
        self._left = head.length
        self._content = receiver.head(head, bool(data))
        return data

    def _take_body(self, data: bytes, receiver: ResponseReceiver) -> None:
        chunked = self._chunked
        if chunked is not None:
            if data and self._content:
                parts: list[bytes] = []
                chunked.feed(data, parts)
                if parts:
                    receiver.data(b"".join(parts))
            elif data:
                chunked.feed(data)
                receiver.data(data)
            if chunked.done:
                self._finish(receiver)
        elif self._left is None:  # until the connection closes
            if data:
                receiver.data(data)
        else:
            if len(data) > self._left:
                raise FramingError("bytes after the end of the body")
            self._left -= len(data)
            if data:
                receiver.data(data)
            if self._left == 0:
                self._finish(receiver)

    def _finish(self, receiver: ResponseReceiver) -> None:
        assert self._head is not None
        # llama-server closes the connection after every stream without announcing it: it is not used again.
        keep = self._head.keep_alive and self._chunked is None
        self._receiver = None
        if keep:
            self._read_on()  # the next reader is another
            self._pool.give_back(self)
        else:
            self._pool.retire(self)
        receiver.done()

    def _lose(self, reason: str, *, unread: bool = False) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            clean = self._chunked is None or self._chunked.at_boundary
            receiver.lost(reason, clean=clean, answered=self._answered, unread=unread)

    def eof_received(self) -> None:
        # TCP tells of an end first, and only then that nobody reads any more: the second is not what a read returns.
        error = self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._reset = error != 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        if self._receiver is None:
            return
        if self._head is not None and self._chunked is None and self._left is None and exc is None:
            receiver, self._receiver = self._receiver, None
            receiver.done()  # a body that ends with its connection
        else:
            # An engine that ends closes what it has read; where something is left unread, the kernel resets.
            unread = (self._reset or isinstance(exc, OSError)) and not self._answered
            reason = "the connection closed in the middle of the response" if self._answered else "it sent no response"
            self._lose(reason, unread=unread)


class ConnectionPool:
    """The connections to one instance.

    llama-server closes the connection after every stream; connecting anew costs the next request a good part of its
    time to the first token. So when a stream has ended and the engine allows it, the next connection is opened ahead.
    """

    def __init__(self, endpoint: Endpoint, limit_ahead: int = 0) -> None:
        """`limit_ahead`: none is opened ahead while as many as this are open; 0: never."""
        self._endpoint = endpoint
        self._limit_ahead = limit_ahead
        self._idle: list[UpstreamConnection] = []
        self._open: set[UpstreamConnection] = set()
        self._closes = False  # has the engine closed a connection after a stream?
        self._connecting = 0
        self._filling: asyncio.Task[None] | None = None
        self._tidying: asyncio.TimerHandle | None = None
        self._retired: list[UpstreamConnection] = []
        self._opening = asyncio.Lock()  # held while one is opened ahead
        self._heads: dict[str, bytes] = {}  # path: a request's head, to the digits of its length
        self._closed = False

    def request(self, path: str, secret: str, body: bytes) -> bytes:
        """A request of our own making: nothing of the client's headers reaches an engine."""
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = _head(path, secret, JSON_TYPE)
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    def request_of(self, kind: str, path: str, secret: str, body: bytes) -> bytes:
        """The same with another Content-Type, which must be of our own making too."""
        return b"%b%d\r\n\r\n%b" % (_head(path, secret, kind), len(body), body)

    def exchange(
        self, connection: UpstreamConnection, receiver: ResponseReceiver, kind: str, path: str, secret: str, body: bytes
    ) -> None:
        """Begin one."""
        make = self.request if kind is JSON_TYPE else partial(self.request_of, kind)
        connection.send(receiver, make(path, secret, body))

    def reuse(self) -> UpstreamConnection | None:
        """An idle connection, or None."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                if self._closes and self._limit_ahead:
                    self._tidy_later()
                return connection
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection, or one opened ahead just now. OSError or TimeoutError when the engine does not take it."""
        if self._opening.locked():
            async with self._opening:
                if (connection := self.reuse()) is not None:
                    return connection
        return await self._connect()

    async def _connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        self._connecting += 1
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if self._endpoint.unix is not None:
                    _, connection = await loop.create_unix_connection(self._make, self._endpoint.unix)
                else:
                    port = self._endpoint.port
                    assert port is not None
                    _, connection = await loop.create_connection(self._make, self._endpoint.host, port)
        finally:
            self._connecting -= 1
        return connection

    def _make(self) -> UpstreamConnection:
        return UpstreamConnection(self)

    def opened(self, connection: UpstreamConnection) -> None:
        """A connection was made."""
        self._open.add(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is gone, whoever closed it."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def give_back(self, connection: UpstreamConnection) -> None:
        """It has answered and can be used again."""
        if self._closed:
            connection.transport.close()
        else:
            self._idle.append(connection)

    def retire(self, connection: UpstreamConnection) -> None:
        """It has answered and is not used again; most engines close it themselves."""
        self._open.discard(connection)
        self._retired.append(connection)
        self._closes = True
        self._tidy_later()

    def _tidy_later(self) -> None:
        if self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_later(AHEAD_DELAY, self._tidy)

    def _tidy(self) -> None:
        self._tidying = None
        for connection in self._retired:
            connection.transport.close()
        self._retired.clear()
        if self._filling is None and self._wants_ahead():
            self._filling = asyncio.get_running_loop().create_task(self._fill())

    def _wants_ahead(self) -> bool:
        """One for every connection in use, because streams that start together end together."""
        idle, in_use = len(self._idle), len(self._open) - len(self._idle)
        wanted = min(MAX_AHEAD, max(1, in_use))
        return not self._closed and idle < wanted and len(self._open) + self._connecting < self._limit_ahead

    async def _fill(self) -> None:
        try:
            while self._wants_ahead():
                async with self._opening:
                    self.give_back(await self._connect())
        except (OSError, TimeoutError):
            return  # a request that needs a connection reports why
        finally:
            self._filling = None

    def close(self) -> None:
        """The instance is leaving: close what idles now, the rest when its exchange ends."""
        self._closed = True
        if self._tidying is not None:
            self._tidying.cancel()
            self._tidy()
        if self._filling is not None:
            self._filling.cancel()
        for connection in self._idle:
            connection.transport.close()
        self._idle.clear()


def _head(path: str, secret: str, kind: str) -> bytes:
    """To the digits of its length. Without a secret no key is sent: the engine knows none."""
    key = f"Authorization: Bearer {secret}\r\n" if secret else ""
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{key}Content-Length: ".encode()


class Upstreams:
    """The pools of all instances, by instance."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool[Any]] = {}

    def get(self, instance: int) -> Pool[Any] | None:
        return self._pools.get(instance)

    def create(self, instance: int, endpoint: Endpoint, limit_ahead: int = 0) -> ConnectionPool:
        """`limit_ahead`: see ConnectionPool."""
        pool = ConnectionPool(endpoint, limit_ahead)
        self.add(instance, pool)
        return pool

    def add(self, instance: int, pool: Pool[Any]) -> None:
        """One made elsewhere."""
        self._pools[instance] = pool

    def retire(self, instance: int) -> None:
        """The instance is stopping or gone."""
        pool = self._pools.pop(instance, None)
        if pool is not None:
            pool.close()
