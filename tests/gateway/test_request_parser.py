"""The parser of client requests by itself: what it makes of bytes, whole and cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.gateway.request_parser import MAX_HEAD, MAX_HEADERS, MAX_LINE, RequestParser

GET = b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHOST: x\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
UPGRADE = POST.replace(b"HOST", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost")


def parsed(*pieces: bytes) -> RequestParser:
    parser = RequestParser(local=False)
    for piece in pieces:
        if parser.malformed is None:
            parser.feed(piece)
    return parser


def summary(parser: RequestParser) -> list[tuple[bytes, bytes, bytes, bool, str]]:
    return [(r.method, r.target, b"".join(r.parts), r.complete, r.problem) for r in parser.requests]


@given(st.lists(st.integers(0, len(GET + POST + CHUNKED + UPGRADE + GET)), max_size=8))
def test_where_the_bytes_are_cut_does_not_matter(cuts: list[int]) -> None:
    data = GET + POST + CHUNKED + UPGRADE + GET
    ends = [*sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    parser = parsed(*(piece for piece in pieces if piece))
    assert parser.malformed is None
    assert not parser.in_head
    assert summary(parser) == [
        (b"GET", b"/a?b", b"", True, ""),
        (b"POST", b"/p", b"abc", True, ""),
        (b"POST", b"/c", b"abc", True, ""),
        (b"POST", b"/p", b"abc", True, ""),
        (b"GET", b"/a?b", b"", True, ""),
    ]


def test_names_of_headers_are_lower_case_and_the_first_of_a_repeated_one_counts() -> None:
    (request,) = parsed(GET.replace(b"Host", b"X-A: 1\r\nx-a: 2\r\nHOST")).requests
    assert request.headers == {b"x-a": b"1", b"host": b"x"}
    assert request.problem == ""


@pytest.mark.parametrize(
    "data",
    [
        GET.replace(b"Host: x\r\n", b""),
        GET.replace(b"Host", b"Host: y\r\nHost"),
        POST.replace(b"HOST", b"Content-Type: a\r\nContent-Type: b\r\nHost"),
        GET.replace(b"Host", b"X: " + b"x" * (MAX_LINE + 1) + b"\r\nHost"),
        GET.replace(b"/a?b", b"/" + b"a" * MAX_LINE),
        GET.replace(b"Host", b"X: 1\r\n" * MAX_HEADERS + b"Host"),
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_heads_that_are_refused(data: bytes) -> None:
    assert parsed(data).requests[0].problem


@pytest.mark.parametrize("piece", [b"x", b"x" * 1000, b"x: y\r\n"])
def test_a_head_without_an_end_is_given_up(piece: bytes) -> None:
    pieces = [b"GET / HTTP/1.1\r\n" + (b"a" if b":" not in piece else b"")]
    parser = parsed(*pieces, *[piece] * (MAX_HEAD // len(piece) + 1))
    assert parser.malformed == "the head is too long"


@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"1.2", b"9.9"])
def test_other_versions_are_not_spoken(version: bytes) -> None:
    parser = parsed(GET.replace(b"1.1", version))
    assert parser.malformed or parser.requests[0].problem


def test_what_keeps_a_connection_open() -> None:
    for data, keep_alive in (
        (GET, True),
        (GET.replace(b"1.1", b"1.0"), False),
        (GET.replace(b"Host", b"Connection: close\r\nHost"), False),
    ):
        assert parsed(data).requests[0].keep_alive is keep_alive
