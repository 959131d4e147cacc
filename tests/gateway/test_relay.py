"""The client's side of one exchange without any network: what is written when, and who is told what."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint
from accelerd.gateway.collector import Collector
from accelerd.gateway.relay import Relay
from accelerd.gateway.response_framing import Head
from accelerd.gateway.responses import response_head
from accelerd.scheduler.record import Lease, ModelRecord
from tests.fakes.clock import FakeClock
from tests.gateway.bench import ONE_BYTE

PLAIN = Head(200, b"application/json", 5, False, True)
STREAM = Head(200, b"text/event-stream", None, True, True)


class Wire(asyncio.Transport):
    """A client's transport."""

    def __init__(self) -> None:
        self.written = b""
        self.end: str | None = None

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.end = self.end or "closed"

    def abort(self) -> None:
        self.end = "aborted"

    def is_closing(self) -> bool:
        return self.end is not None


class Ending:
    """In the place of a future."""

    def __init__(self) -> None:
        self.results: list[AccelError | None] = []

    def done(self) -> bool:
        return bool(self.results)

    def set_result(self, result: AccelError | None, /) -> None:
        self.results.append(result)


class Desk:
    """A relay with all that belongs to it."""

    def __init__(self, *, keep_alive: bool = True, http10: bool = False, origin: str | None = None) -> None:
        self.clock = FakeClock()
        self.wire, self.ending = Wire(), Ending()
        now = self.clock.monotonic
        self.relay = Relay(self.wire, now, keep_alive=keep_alive, http10=http10, origin=origin)
        record = ModelRecord(ModelSpec("m", path="/m.gguf"), ONE_BYTE)
        self.lease = self.relay.lease = Lease(record, 1, Endpoint(port=1), "secret", self.clock.now)
        self.relay.begin(self.ending)  # type: ignore[arg-type]

    @property
    def head(self) -> bytes:
        return self.wire.written.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.wire.written.partition(b"\r\n\r\n")[2]


def test_a_plain_answer() -> None:
    desk = Desk()
    assert desk.relay.head(PLAIN, False) is False
    desk.relay.data(b"hello")
    desk.relay.done()
    lines = [line for line in desk.head.split(b"\r\n") if not line.startswith(b"Date: ")]
    assert lines == [
        b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"X-Accelerd-Model: m", b"X-Accelerd-Attempts: 1",
        b"Content-Length: 5",
    ]  # fmt: skip
    assert desk.body == b"hello"
    assert desk.wire.end is None
    assert desk.ending.results == [None]
    assert desk.relay.ok is True


@pytest.mark.parametrize("status", [200, 404, 500, 503, 599])
def test_whether_the_engine_did_its_work(status: int) -> None:
    desk = Desk()
    desk.relay.head(PLAIN._replace(status=status), False)
    desk.relay.done()
    assert desk.relay.ok is (status < 500)
    assert desk.head.startswith(b"HTTP/1.1 %d " % status)


def test_the_end_is_told_once() -> None:
    desk = Desk()
    desk.relay.lost("gone", clean=True, answered=False)
    desk.relay.lost("gone", clean=True, answered=False)
    (error,) = desk.ending.results
    assert error is not None
    assert error.code == "upstream_failed"
    assert not desk.relay.unread
    assert desk.wire.written == b""


def test_every_byte_is_a_sign_of_life() -> None:
    desk = Desk()
    desk.relay.head(STREAM, False)
    desk.clock.advance(7)
    desk.relay.data(b"1\r\nx\r\n")
    assert desk.lease.progress == desk.clock.now


def test_the_time_in_which_a_client_did_not_read_is_not_the_engines() -> None:
    desk = Desk()
    desk.relay.pause()
    assert desk.relay.paused
    desk.clock.advance(1000)
    assert desk.lease.progress < desk.clock.now
    desk.relay.resume()
    assert not desk.relay.paused
    assert desk.lease.progress == desk.clock.now


def test_a_connection_that_is_given_while_the_client_does_not_read_waits_too() -> None:
    desk = Desk()
    calls: list[str] = []

    class Connection:
        def pause(self, sink: object) -> None:
            calls.append("pause")

        def resume(self, sink: object) -> None:
            calls.append("resume")

        def fail(self, sink: object, reason: str) -> None:
            calls.append(reason)

        def abort(self, sink: object) -> None:
            calls.append("abort")

    connection: Any = Connection()
    desk.relay.pause()
    desk.relay.attach(connection, desk.relay)
    desk.relay.resume()
    desk.relay.stall(3)
    desk.relay.abandon(300)
    assert calls == ["pause", "resume", "it stopped sending", "abort"]
    desk.relay.detach()
    desk.relay.pause()
    desk.relay.resume()
    desk.relay.abandon(300)
    assert len(calls) == 4


@pytest.mark.parametrize(("silence", "ok"), [(299, None), (301, False)])
def test_a_client_who_goes_is_no_verdict_unless_the_engine_was_silent_too_long(silence: float, ok: bool | None) -> None:
    desk = Desk()
    desk.clock.advance(silence)
    desk.relay.abandon(300)
    assert desk.relay.ok is ok


@pytest.mark.parametrize(("clean", "end", "event"), [(True, "closed", True), (False, "aborted", False)])
def test_a_stream_that_breaks_never_ends_cleanly(clean: bool, end: str, event: bool) -> None:
    desk = Desk()
    desk.relay.head(STREAM, False)
    desk.relay.lost("gone", clean=clean, answered=True)
    assert desk.wire.end == end
    assert (b"upstream_failed" in desk.body) is event
    assert b"0\r\n\r\n" not in desk.body
    assert desk.ending.results == [None]


def test_a_plain_answer_that_breaks_is_a_cut() -> None:
    desk = Desk()
    desk.relay.head(PLAIN, False)
    desk.relay.data(b"he")
    desk.relay.lost("gone", clean=True, answered=True)
    assert (desk.wire.end, desk.body) == ("aborted", b"he")


def test_comments_and_then_the_stream_share_one_head() -> None:
    desk = Desk()
    desk.relay.comment("loading m, 2 s", "m")
    desk.relay.comment("loading m, 7 s", "m")
    assert desk.relay.head(STREAM, False) is False
    desk.relay.data(b"3\r\nabc\r\n0\r\n\r\n")
    desk.relay.done()
    assert desk.wire.written.count(b"HTTP/1.1") == 1
    assert desk.body == b"12\r\n: loading m, 2 s\n\n\r\n12\r\n: loading m, 7 s\n\n\r\n3\r\nabc\r\n0\r\n\r\n"


@pytest.mark.parametrize("http10", [True, False])
def test_a_stream_without_chunks_after_comments(http10: bool) -> None:
    desk = Desk(http10=http10)
    desk.relay.comment("x", "m")
    assert desk.relay.head(STREAM._replace(chunked=False), False) is http10
    desk.relay.data(b"abc")
    desk.relay.done()
    assert desk.body == (b": x\n\nabc" if http10 else b"5\r\n: x\n\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert desk.wire.end == ("closed" if http10 else None)


def test_a_refusal_after_the_head_is_kept_within_bounds() -> None:
    desk = Desk()
    desk.relay.comment("x", "m")
    assert desk.relay.head(PLAIN._replace(status=400, length=None), False) is True
    for _ in range(1000):
        desk.relay.data(b"x" * 1000)
    desk.relay.done()
    assert len(desk.wire.written) < 1000
    assert json.loads(desk.body.rpartition(b"data: ")[2].partition(b"\n")[0])["error"]["message"] == "x" * 400


@pytest.mark.parametrize(("keep_alive", "http10"), [(False, False), (True, True)])
def test_a_connection_that_is_not_kept_is_said_and_done(keep_alive: bool, http10: bool) -> None:
    desk = Desk(keep_alive=keep_alive, http10=http10)
    desk.relay.head(PLAIN, False)
    desk.relay.data(b"hello")
    desk.relay.done()
    assert b"Connection: close" in desk.head
    assert desk.wire.end == "closed"


def test_our_own_whole_answer() -> None:
    desk = Desk(origin="https://chat.example.org")
    desk.relay.reply(200, b"application/json", b"{}")
    assert b"Content-Length: 2" in desk.head
    assert b"Access-Control-Allow-Origin: https://chat.example.org" in desk.head
    assert desk.body == b"{}"


def test_a_stall_is_named() -> None:
    desk = Desk()

    class Connection:
        def fail(self, sink: Any, reason: str) -> None:
            sink.lost(reason, clean=True, answered=False)

    connection: Any = Connection()
    desk.relay.attach(connection, desk.relay)
    desk.relay.stall(300)
    (error,) = desk.ending.results
    assert error is not None
    assert (error.code, "300 s" in error.message) == ("upstream_timeout", True)
    assert not desk.relay.unread, "it would be asked again"


def test_a_head_that_comes_with_its_body_goes_out_with_it() -> None:
    desk = Desk()
    assert desk.relay.head(PLAIN, True) is False
    assert desk.wire.written == b""
    desk.relay.data(b"hello")
    assert desk.body == b"hello"
    desk.relay.done()
    assert desk.ending.results == [None]


def test_a_head_whose_body_is_bad_from_the_first_byte_was_never_sent() -> None:
    desk = Desk()
    desk.relay.head(STREAM, True)
    desk.relay.lost("bad chunk", clean=False, answered=True)
    (error,) = desk.ending.results
    assert error is not None
    assert (error.code, desk.wire.written, desk.wire.end) == ("upstream_failed", b"", None)


def test_heads_of_unknown_statuses() -> None:
    assert response_head(599, b"text/plain", "m", True, None).startswith(b"HTTP/1.1 599 Status\r\n")


def test_a_name_beyond_ascii_is_escaped_in_the_header() -> None:
    head = response_head(200, b"text/plain", "Größe [1m]/a:b", True, None)
    assert b"X-Accelerd-Model: Gr%C3%B6%C3%9Fe [1m]/a:b\r\n" in head


def test_a_collector_begins_anew() -> None:
    desk = Desk()
    collector = Collector(desk.lease, desk.clock.monotonic)
    collector.begin(desk.ending)
    collector.lost("gone", clean=True, answered=False, unread=True)
    assert (collector.failure, collector.unread, desk.ending.results) == ("gone", True, [None])
    again = Ending()
    collector.begin(again)
    assert (collector.failure, collector.unread) == (None, False)
    assert collector.head(STREAM, False) is True
    desk.clock.advance(5)
    collector.data(b"abc")
    collector.done()
    collector.done()
    assert (collector.parts, again.results, desk.lease.progress) == ([b"abc"], [None], desk.clock.now)
