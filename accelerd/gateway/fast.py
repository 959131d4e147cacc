"""The fast path: a request whose head is, but for the digits of its length, one that was accepted before on the same
connection goes to an idle connection of its engine without a task and without aiohttp's objects.

It is a memo of the slow path's verdict, valid until the next configuration, and decides nothing by itself: whatever is
not usual it declines, and what fails before an answer began goes back, so that every refusal and every error is said
by the slow path alone. Calls the scheduler and the pools of engines as gateway.py does; connection.py calls it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Protocol

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.gateway.peek import DECODERS, peek
from accelerd.gateway.relay import Relay
from accelerd.gateway.request_router import PassThrough
from accelerd.gateway.sweeper import Sweeper
from accelerd.gateway.upstream import Upstreams
from accelerd.scheduler.service import Scheduler

MAX_DIGITS = 10  # of a Content-Length
# Only what aiohttp cannot read in two ways: tokens, one colon, no control characters, CRLF at every end of a line.
HEAD = re.compile(
    rb"(?P<method>GET|HEAD|POST|OPTIONS|DELETE) (?P<path>/[!-~]*) HTTP/1\.1\r\n"
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)+\r\n"
)
LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,%d})\r\n" % MAX_DIGITS)
# These change where a body ends, or what becomes of the connection; to ask for what HTTP/1.1 does anyway is harmless.
FRAMING = re.compile(
    rb"\r\n(?:transfer-encoding|upgrade|expect|trailer|proxy-connection):|\r\nconnection:(?! ?keep-alive\r\n)"
)


class Known:
    """A request head with a gap where the digits of its Content-Length are. `epoch`: of the configuration it met."""

    __slots__ = ("epoch", "path", "prefix", "suffix")

    def __init__(self, prefix: bytes, suffix: bytes, path: str, epoch: int) -> None:
        self.prefix = prefix
        self.suffix = suffix
        self.path = path
        self.epoch = epoch

    def body(self, data: bytes) -> bytes | None:
        """The body, if `data` is this head with any length and a body of just that length."""
        if not data.startswith(self.prefix):
            return None
        start = len(self.prefix)
        end = data.find(b"\r", start, start + MAX_DIGITS + 1)
        if end < 0 or not data.startswith(self.suffix, end):
            return None
        digits, at = data[start:end], end + len(self.suffix)
        if not digits.isdigit() or int(digits) != len(data) - at:
            return None
        return data[at:]


def study(data: bytes, epoch: int) -> tuple[int, Known | None] | None:
    """Of the request that `data` begins with: the whole size, and its head if it is one to remember.

    None when the end of the head is not there or where the request ends is not plain.
    """
    match = HEAD.match(data)
    if match is None:
        return None
    head = match[0].lower()
    lengths = head.count(b"\r\ncontent-length:")
    if FRAMING.search(head) or lengths > 1:
        return None
    if not lengths:
        return len(head), None
    length = LENGTH.search(head)
    if length is None:
        return None
    known = None
    path = match["path"].decode()
    if match["method"] == b"POST" and path in DECODERS and b"\r\norigin:" not in head:
        known = Known(data[: length.start(1)], data[length.end(1) : len(head)], path, epoch)
    return len(head) + int(length[1]), known


class Heads:
    """What is known of one client's requests: where they end, as long as that is plain, and one accepted head."""

    __slots__ = ("_candidate", "_known", "_owed")

    def __init__(self) -> None:
        self._owed: int | None = 0  # bytes of a body that are still to come; None: who knows
        self._candidate: Known | None = None  # the head of the request that the slow path has in hand
        self._known: Known | None = None

    def recognise(self, data: bytes, epoch: int) -> tuple[str, bytes] | None:
        """Path and body, if `data` is a whole request whose head was accepted under this configuration."""
        known = self._known
        if known is None or self._owed != 0:
            return None
        if known.epoch != epoch:
            self._known = None
            return None
        body = known.body(data)
        if body is None:
            return None
        self._candidate = None
        return known.path, body

    def follow(self, data: bytes, epoch: int, *, idle: bool) -> None:
        """`data` takes the slow path. `idle`: nothing that came before it is still to be answered."""
        owed = self._owed
        if owed:
            self._owed = owed - len(data) if len(data) <= owed else None
            return
        self._candidate = None
        if owed is None:
            return
        found = study(data, epoch)
        if found is None or found[0] < len(data):
            self._owed = None
            return
        self._owed = found[0] - len(data)
        if idle:
            self._candidate = found[1]

    def accepted(self) -> None:
        """The request in hand was let in and got its lease."""
        if self._candidate is not None:
            self._known, self._candidate = self._candidate, None


class Client(Protocol):
    """The connection of a client, as far as an exchange needs it."""

    relay: Relay | None
    exchange: Exchange | None

    def exchange_over(self, again: bytes = b"", failure: AccelError | None = None) -> None:
        """The exchange has ended. `again`: the slow path shall take these bytes, and say `failure` if there is one."""
        ...


class Desk(Protocol):
    """What both paths do in the same way: gateway.py's part."""

    def assembles(self, spec: ModelSpec, path: str, stream: bool | None) -> bool:
        """Is the answer to be asked as a stream and put together here?"""
        ...

    def finish(self, relay: Relay) -> None:
        """End the lease and what goes with it."""
        ...


class Exchange:
    """One request on the fast path, and the Outcome of its Relay. Over when it is answered, handed back or given up."""

    __slots__ = ("_client", "_desk", "_over", "_relay", "_request")

    def __init__(self, desk: Desk, client: Client, relay: Relay, request: bytes) -> None:
        self._desk = desk
        self._client = client
        self._relay = relay
        self._request = request  # all its bytes, for the slow path
        self._over = False

    def done(self) -> bool:
        return self._over

    def set_result(self, failure: AccelError | None, /) -> None:
        """`failure`: nothing was answered. Then the slow path sends it again if that does no harm, or says why."""
        relay, again = self._relay, b""
        if failure is not None:
            again = self._request
            if relay.may_repeat(relay.unanswered):
                relay.ok = failure = None  # the next attempt shows what the engine is worth
        try:
            self._end()
        finally:
            self._client.exchange_over(again, failure)

    def give_up(self, stall_timeout: float) -> None:
        """The client has gone, or must go."""
        self._relay.abandon(stall_timeout)
        self._end()

    def _end(self) -> None:
        self._over = True
        self._request = b""  # it may be long, and a connection keeps its last relay
        self._relay.serve(None, None)
        self._desk.finish(self._relay)


class FastPath:
    """The fast path of one gateway, for all its connections."""

    def __init__(
        self,
        now: Callable[[], float],
        scheduler: Scheduler,
        upstreams: Upstreams,
        sweeper: Sweeper,
        desk: Desk,
        plain: Mapping[str, PassThrough],
    ) -> None:
        """`plain`: see RequestRouter."""
        self._plain = plain
        self._now = now
        self._scheduler = scheduler
        self._upstreams = upstreams
        self._sweeper = sweeper
        self._desk = desk
        self.epoch = 0  # of the configuration: heads accepted under an earlier one are forgotten
        self.settings: ServerSettings

    def configure(self, settings: ServerSettings) -> None:
        """Who may come, and with what, may have changed."""
        self.epoch += 1
        self.settings = settings

    def begin(self, client: Client, wire: asyncio.Transport, path: str, body: bytes, request: bytes) -> bool:
        """Send the request to its engine. False: not now or not this way, and nothing has happened."""
        if len(body) > self.settings.max_body:
            return False
        try:
            peeked = peek(path, body)
        except AccelError:
            return False
        plain = self._plain.get(peeked.model)
        if plain is None or path not in plain.ways:
            return False
        lease = self._scheduler.acquire(plain.model)
        if lease is None:
            return False
        pool = self._upstreams.pool(lease.instance, lease.endpoint)
        connection = None if self._desk.assembles(lease.record.spec, path, peeked.stream) else pool.reuse()
        if connection is None:
            self._scheduler.release(lease, None)
            return False
        relay = Relay(wire, self._now, keep_alive=True, http10=False, origin=None, path=path)
        exchange = Exchange(self._desk, client, relay, request)
        relay.lease = lease
        relay.begin(exchange)
        relay.serve(connection, relay)
        client.relay, client.exchange = relay, exchange
        self._sweeper.watch(relay, stream=bool(peeked.stream))
        connection.send(relay, pool.request(path, lease.secret, body))
        return True
