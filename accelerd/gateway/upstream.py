"""Connections to engines: raw, pooled per instance, one request at a time on each.

Parses no more of a response than its head and framing; hands the bytes to a Sink as they come. Knows nothing of
clients, models or leases. A connection that an engine closes while it idles removes itself.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from accelerd.engines.base import Endpoint
from accelerd.gateway.framing import MAX_HEAD, Chunked, FramingError, Head, parse_head

JSON = "application/json"
CONNECT_TIMEOUT = 5.0  # s: the engine is on this machine


class Sink(Protocol):
    """Who receives one response. Exactly one of `done` and `lost` ends it."""

    def head(self, head: Head, more: bool) -> bool:
        """The response begins. True: hand over the content of chunks; False: the bytes as they come.

        `more`: some of the body came with it. Unless the sink wants contents, `data` or `lost` is called at once.
        """
        ...

    def data(self, data: bytes) -> None: ...
    def done(self) -> None: ...
    def lost(self, reason: str, *, clean: bool, answered: bool) -> None:
        """The connection broke; `clean`: not in the middle of a chunk; `answered`: a byte of the response had come."""


class Connection(asyncio.Protocol):
    """One connection to an engine. `send` when idle; `abort` at any time."""

    __slots__ = (
        "_answered",
        "_buffer",
        "_chunked",
        "_content",
        "_head",
        "_left",
        "_paused",
        "_pool",
        "_sink",
        "transport",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._sink: Sink | None = None
        self._buffer = b""
        self._head: Head | None = None
        self._left: int | None = 0
        self._chunked: Chunked | None = None
        self._content = False  # does the sink want chunk contents instead of raw bytes?
        self._answered = False  # has any byte of this response come?
        self._paused = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, sink: Sink, request: bytes) -> None:
        """Begin an exchange."""
        self._head, self._chunked, self._answered = None, None, False
        if self.transport.is_closing():  # nobody would ever hear of it
            sink.lost("it closed the connection at once", clean=True, answered=False)
            return
        self._sink = sink
        self.transport.write(request)

    # When an exchange is over its connection may be another's already, before anybody has heard of it: what follows
    # does nothing unless `sink` is still the one that is being served.

    def abort(self, sink: Sink) -> None:
        """Close at once: this is what tells the engine that nobody wants the answer any more."""
        if self._sink is sink:
            self._sink = None
            self.transport.abort()

    def fail(self, sink: Sink, reason: str) -> None:
        """Close at once and tell the sink why."""
        if self._sink is sink:
            self._lose(reason)
            self.transport.abort()

    def pause(self, sink: Sink) -> None:
        """Take no more from the engine: its reader is slow."""
        if self._sink is sink and not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self, sink: Sink) -> None:
        """Its reader is quick again."""
        if self._sink is sink:
            self._read_on()

    def _read_on(self) -> None:
        if self._paused:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:  # an engine that speaks unasked, or the rest of an exchange given up
            self.transport.abort()
            return
        self._answered = True
        try:
            if self._head is None:
                rest = self._take_head(data, sink)
                if rest is None:
                    return
                data = rest
            self._take_body(data, sink)
        except FramingError as error:
            self.fail(sink, f"it sent a malformed response: {error}")

    def _take_head(self, data: bytes, sink: Sink) -> bytes | None:
        data = self._buffer + data if self._buffer else data
        while True:
            end = data.find(b"\r\n\r\n")
            if (end if end >= 0 else len(data)) > MAX_HEAD:
                raise FramingError(f"a head of more than {MAX_HEAD >> 10} KiB")
            if end < 0:
                self._buffer = data
                return None
            head = parse_head(data[:end])
            data = data[end + 4 :]
            if head.status >= 200:
                break
            if head.status == 101:
                raise FramingError("a protocol switch that nobody asked for")
        self._buffer = b""
        self._head = head
        self._chunked = Chunked() if head.chunked else None
        self._left = head.length
        self._content = sink.head(head, bool(data))
        return data

    def _take_body(self, data: bytes, sink: Sink) -> None:
        chunked = self._chunked
        if chunked is not None:
            if data and self._content:
                parts: list[bytes] = []
                chunked.feed(data, parts)
                if parts:
                    sink.data(b"".join(parts))
            elif data:
                chunked.feed(data)
                sink.data(data)
            if chunked.done:
                self._finish(sink)
        elif self._left is None:  # until the connection closes
            if data:
                sink.data(data)
        else:
            if len(data) > self._left:
                raise FramingError("bytes after the end of the body")
            self._left -= len(data)
            if data:
                sink.data(data)
            if self._left == 0:
                self._finish(sink)

    def _finish(self, sink: Sink) -> None:
        assert self._head is not None
        # llama-server closes after every streamed answer without having said so: such a connection is not used again.
        keep = self._head.keep_alive and self._chunked is None
        self._sink = None
        if keep:
            self._read_on()  # the next reader is another
            self._pool.give_back(self)
        else:
            self.transport.close()
        sink.done()

    def _lose(self, reason: str) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            clean = self._chunked is None or self._chunked.at_boundary
            sink.lost(reason, clean=clean, answered=self._answered)

    def eof_received(self) -> None:
        return None  # close

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if self._sink is None:
            return
        if self._head is not None and self._chunked is None and self._left is None and exc is None:
            sink, self._sink = self._sink, None
            sink.done()  # a body that ends with its connection
        else:
            self._lose("the connection closed in the middle of the response" if self._answered else "it did not answer")


class Pool:
    """The connections to one instance."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._idle: list[Connection] = []
        self._heads: dict[str, bytes] = {}  # path: a request's head, to the digits of its length
        self._closed = False

    def request(self, path: str, secret: str, body: bytes) -> bytes:
        """A request of our own making: nothing of the client's headers reaches an engine."""
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = _head(path, secret, JSON)
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    def request_of(self, kind: str, path: str, secret: str, body: bytes) -> bytes:
        """The same with another Content-Type, which must be of our own making too."""
        return b"%b%d\r\n\r\n%b" % (_head(path, secret, kind), len(body), body)

    def reuse(self) -> Connection | None:
        """An idle connection, or None."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connect(self) -> Connection:
        """A new connection. OSError or TimeoutError when the engine does not take it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            if self._endpoint.unix is not None:
                _, connection = await loop.create_unix_connection(lambda: Connection(self), self._endpoint.unix)
            else:
                assert self._endpoint.port is not None
                _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._endpoint.port)
        return connection

    def give_back(self, connection: Connection) -> None:
        if self._closed:
            connection.transport.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """The instance is leaving: close what idles now, the rest when its exchange ends."""
        self._closed = True
        for connection in self._idle:
            connection.transport.close()
        self._idle.clear()


def _head(path: str, secret: str, kind: str) -> bytes:
    """To the digits of its length. Without a secret no key is sent: the engine knows none."""
    key = f"Authorization: Bearer {secret}\r\n" if secret else ""
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{key}Content-Length: ".encode()


class Upstreams:
    """The pools of all instances, made on first use."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}

    def pool(self, instance: int, endpoint: Endpoint) -> Pool:
        pool = self._pools.get(instance)
        if pool is None:
            pool = self._pools[instance] = Pool(endpoint)
        return pool

    def retire(self, instance: int) -> None:
        """The instance is stopping or gone."""
        pool = self._pools.pop(instance, None)
        if pool is not None:
            pool.close()
