"""Heads and chunked bodies of engines, in every split; whatever is not HTTP/1.1 is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.gateway.response_framing import MAX_LINE, Chunked, FramingError, chunk, parse_head, seconds_of

OK = b"HTTP/1.1 200 OK\r\n"


# --- heads ----------------------------------------------------------------------------------------------------------


def test_a_head_is_understood() -> None:
    head = parse_head(OK + b"Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\nX: y")
    assert head == (200, b"text/event-stream; charset=utf-8", None, True, True, None)
    assert parse_head(OK + b"content-length: 12").length == 12
    assert parse_head(b"HTTP/1.1 404") == (404, b"application/octet-stream", None, False, True, None)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (b" 30 ", 30), (b"0", 0), (b"-1", None), (b"soon", None), (b"1" * 10, None), (b"1.5", None), (b"\xb2", None),
        (b"Fri, 31 Dec 1999 23:59:59 GMT", 0), (b"Sun, 06 Nov 2094 08:50:37 GMT", 60),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 0), (b"Sun Nov  6 08:51:37 2094", 120),
        (b"Sun, 06 Nov 2094 09:49:47 +0100", 10), (b"Sun, 06 Nov 9999 08:49:37 GMT", 10**9 - 1),
        (b"Sun, 99 Nov 2094 08:49:37 GMT", None), (b"Sun, 06 Nov 2094", None), (b"x" * 60_000, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [b"", b"Content-Length: 12\r\n"])
def test_how_long_to_wait(said: bytes, seconds: int | None, length: bytes) -> None:
    date = b"\r\nDate: Sun, 06 Nov 2094 08:49:37 GMT"
    for _ in range(2):
        head = parse_head(b"HTTP/1.1 429 X\r\n" + length + b"Retry-After:" + said + date)
        assert head.retry_after == seconds


@pytest.mark.parametrize("length", [b"", b"Content-Length: 12\r\n"])
def test_a_date_without_the_servers_own_counts_from_now(monkeypatch: pytest.MonkeyPatch, length: bytes) -> None:
    said = b"HTTP/1.1 503 X\r\n" + length + b"Retry-After: Thu, 01 Jan 2026 00:01:00 GMT"
    for now, left in ((1767225600.0, 60), (1767225630.5, 30), (1767225700.0, 0)):
        monkeypatch.setattr("accelerd.gateway.response_framing.time.time", lambda now=now: now)
        assert parse_head(said).retry_after == left


@given(st.text())
def test_no_retry_after_breaks_a_head(said: str) -> None:
    found = seconds_of(said, said[::-1])
    assert found is None or 0 <= found < 10**9


@pytest.mark.parametrize(
    ("raw", "keep"),
    [
        (OK + b"Connection: keep-alive", True),
        (OK + b"Connection: close", False),
        (OK + b"connection: Close", False),
        (b"HTTP/1.0 200 OK\r\nX: y", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive", True),
    ],
)
def test_keep_alive(raw: bytes, keep: bool) -> None:
    assert parse_head(raw).keep_alive is keep


def test_transfer_encoding_overrides_content_length() -> None:
    head = parse_head(OK + b"Content-Length: 5\r\nTransfer-Encoding: Chunked")
    assert head.chunked
    assert head.length is None


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 0\r\nContent-Length: 1",
        b"Content-Length: 5\r\ncontent-length:1",
        b"content-length: 1\r\nContent-Length: 7",
        b"Content-Length: 2\r\nX: y\r\nCONTENT-LENGTH: 1\r\nY: z",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Content-Length: 1\r\nTransfer-Encoding: gzip, chunked",
    ],
)
def test_two_lengths_or_codings_are_refused(lines: bytes) -> None:
    with pytest.raises(FramingError):
        parse_head(OK + lines)


@pytest.mark.parametrize("status", [204, 304])
def test_what_never_has_a_body_has_none(status: int) -> None:
    head = parse_head(b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked" % status)
    assert (head.length, head.chunked) == (0, False)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"ICY 200 OK",
        b"HTTP/2 200 OK",
        b"HTTP/1.1200 OK",
        b"HTTP/1.1 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 099 Low",
        b"HTTP/1.1 600 High",
        b"http/1.1 200 OK",
        OK + b"no colon here",
        OK + b": no name",
        OK + b"Name : space before the colon",
        OK + b" folded: line",
        OK + b"X: y\r\n\tfolded: line",
        OK + b"Content-Length: -1",
        OK + b"Content-Length: +1",
        OK + b"Content-Length: 1, 2",
        OK + b"Content-Length: 0x10",
        OK + b"Content-Length: 1\r\nContent-Length: 2",
        OK + b"Content-Length: " + b"9" * 5000,
        OK + b"Transfer-Encoding: gzip, chunked",
        OK + b"Transfer-Encoding: chunked, chunked",
        OK + b"Content-Type: text/plain\nX-Injected: yes",
        OK + b"Content-Type: text/plain\rX-Injected: yes",
        OK + b"Content-Type: text\0plain",
    ],
)
def test_what_is_no_head_is_refused(raw: bytes) -> None:
    with pytest.raises(FramingError):
        parse_head(raw)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_refused(raw: bytes) -> None:
    for text in (raw, OK + raw):
        try:
            head = parse_head(text)
        except FramingError:
            continue
        assert 100 <= head.status <= 599
        assert not re.search(rb"[\r\n\0]", head.content_type)


# --- chunked bodies -------------------------------------------------------------------------------------------------

CONTENTS = st.lists(st.binary(min_size=1, max_size=40), max_size=8)
EXTENSIONS = st.sampled_from([b"", b";a=b", b' ; q="x;y"', b"   "])
TRAILERS = st.lists(st.sampled_from([b"X: y\r\n", b"Checksum: \r\n"]), max_size=2)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Contents and one way to write them as a chunked body."""
    contents = draw(CONTENTS)
    raw = b""
    for content in contents:
        size = draw(st.sampled_from([b"%x", b"%X", b"000%x"])) % len(content)
        raw += size + draw(EXTENSIONS) + b"\r\n" + content + b"\r\n"
    return contents, raw + b"0" + draw(EXTENSIONS) + b"\r\n" + b"".join(draw(TRAILERS)) + b"\r\n"


@st.composite
def split_bodies(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    contents, raw = draw(bodies())
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    return contents, [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@given(split_bodies())
def test_any_split_of_any_body_gives_its_contents(case: tuple[list[bytes], list[bytes]]) -> None:
    contents, pieces = case
    with_payload, without = Chunked(), Chunked()
    payload: list[bytes] = []
    for piece in pieces:
        assert not with_payload.done or not piece
        with_payload.feed(piece, payload)
        without.feed(piece)
        assert with_payload.done == without.done
        assert with_payload.at_boundary == without.at_boundary
    assert b"".join(payload) == b"".join(contents)
    assert with_payload.done
    assert not with_payload.at_boundary


@given(bodies())
def test_a_boundary_is_exactly_between_two_chunks(case: tuple[list[bytes], bytes]) -> None:
    """Byte by byte: at a boundary one more chunk can follow, and what was taken so far is whole chunks."""
    _, raw = case
    follower, taken = Chunked(), b""
    for index in range(len(raw)):
        if follower.at_boundary:
            whole: list[bytes] = []
            continued = Chunked()
            continued.feed(taken + b"1\r\n!\r\n0\r\n\r\n", whole)
            assert continued.done
            assert whole[-1:] == [b"!"]
        follower.feed(raw[index : index + 1])
        taken += raw[index : index + 1]
    assert follower.done


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n",
        b"xyz\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"-1\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\n",
        b"5\r\nhello\rX\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"1" * 16 + b"\r\n",
        b"\xb2\r\n",
        b"0\r\n\r\nmore",
        b"0\r\n\n",
        b"5" + b";" * (MAX_LINE + 1),
        b"0\r\n" + b"t" * (MAX_LINE + 1),
        b"5;" + b"e" * (MAX_LINE + 1) + b"\r\nhello\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_what_is_no_chunked_body_is_refused(raw: bytes, step: int) -> None:
    def feed() -> None:
        follower = Chunked()
        for i in range(0, len(raw), step):
            follower.feed(raw[i : i + step])

    with pytest.raises(FramingError):
        feed()


@given(st.binary(max_size=60), st.integers(1, 20))
def test_garbage_is_judged_the_same_however_it_is_cut(raw: bytes, step: int) -> None:
    def fate(size: int) -> tuple[object, ...]:
        follower, payload = Chunked(), list[bytes]()
        try:
            for i in range(0, len(raw), size):
                follower.feed(raw[i : i + size], payload)
        except FramingError:
            return ("refused",)
        return ("taken", b"".join(payload), follower.done, follower.at_boundary)

    assert fate(step) == fate(max(1, len(raw)))


@given(st.binary(min_size=1, max_size=200))
def test_our_own_chunks_are_understood(content: bytes) -> None:
    follower, payload = Chunked(), list[bytes]()
    follower.feed(chunk(content) + b"0\r\n\r\n", payload)
    assert follower.done
    assert b"".join(payload) == content
