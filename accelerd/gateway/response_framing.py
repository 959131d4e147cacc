"""HTTP/1.1 response heads and chunked bodies, as far as a relay needs them. Pure, incremental, bounded.

Raises FramingError on anything that is not valid. Source: RFC 9112 sections 4, 6 and 7.
"""

from __future__ import annotations

import math
import time
from datetime import UTC
from functools import lru_cache
from typing import NamedTuple

MAX_HEAD = 64 << 10  # bytes
LAST_CHUNK = b"0\r\n\r\n"
MAX_RETRY_AFTER = 10**9 - 1  # s, of nine digits
MAX_LINE = 4 << 10  # a chunk-size line or a trailer line
LENGTH_MARK = b"\r\nContent-Length: "
HEX = b"0123456789abcdefABCDEF"


class FramingError(Exception):
    """The engine's response is not valid HTTP/1.1."""


class Head(NamedTuple):
    """What the relay needs of a response head."""

    status: int
    content_type: bytes
    length: int | None  # Content-Length
    chunked: bool
    keep_alive: bool
    retry_after: int | None = None  # seconds


def seconds_of(retry_after: str, date: str = "") -> int | None:
    """What a Retry-After says, in seconds or as an HTTP date; None: neither.

    `date`: the response's own Date, by the server's clock. Without one the clock here counts.
    """
    said = retry_after.strip()
    if said.isascii() and said.isdigit():
        return int(said) if len(said) < 10 else None
    until = _moment(said)
    if until is None:
        return None
    since = _moment(date)
    return max(0, min(math.ceil(until - (time.time() if since is None else since)), MAX_RETRY_AFTER))


def _moment(said: str) -> float | None:
    """A date of RFC 9110 5.6.7 as seconds since 1970."""
    from email.utils import parsedate_to_datetime  # large, and seldom needed

    try:
        found = parsedate_to_datetime(said[:64])
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def parse_head(raw: bytes) -> Head:
    """A response head without its final empty line."""
    before, mark, rest = raw.partition(LENGTH_MARK)
    digits, _, after = rest.partition(b"\r\n")
    if mark and digits.isdigit() and len(digits) <= 18:  # the only difference between the heads of one engine
        usual = _usual(before, after)
        if usual is not None:
            return Head(usual.status, usual.content_type, int(digits), *usual[3:])
    return _parse_head(raw)


@lru_cache(maxsize=64)
def _usual(before: bytes, after: bytes) -> Head | None:
    """The head around a Content-Length, if that alone determines the length of the body."""
    around = (before + b"\n" + after).lower()
    if b"content-length" in around or b"retry-after" in around:  # what a date says passes
        return None
    try:
        head = _parse_head(before + LENGTH_MARK + b"1" + (b"\r\n" + after if after else b""))
    except FramingError:
        return None
    return head if head.length == 1 else None


def _parse_head(raw: bytes) -> Head:
    lines = raw.split(b"\r\n")
    version, _, rest = lines[0].partition(b" ")
    digits = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not digits.isdigit() or rest[3:4] not in (b" ", b""):
        raise FramingError("invalid HTTP status line")
    status = int(digits)
    if not 100 <= status <= 599:
        raise FramingError(f"invalid HTTP status {status}")
    content_type = b"application/octet-stream"
    length: int | None = None
    chunked = False
    keep_alive = version == b"HTTP/1.1"
    retry_after = date = b""
    for line in lines[1:]:
        key, colon, value = line.partition(b":")
        if not colon or not key or key[0] <= 0x20 or key[-1] <= 0x20:  # this excludes folded lines
            raise FramingError("a header line has no name")
        key = key.lower()
        if key == b"content-type":
            content_type = value.strip()
        elif key == b"content-length":
            value = value.strip()
            if not value.isdigit() or len(value) > 18 or (length is not None and length != int(value)):
                raise FramingError("invalid Content-Length")
            length = int(value)
        elif key == b"transfer-encoding":
            if chunked or value.strip().lower() != b"chunked":
                raise FramingError("unsupported Transfer-Encoding")
            chunked = True
        elif key == b"connection":
            keep_alive = b"close" not in value.lower()
        elif key == b"retry-after":
            retry_after = value
        elif key == b"date":
            date = value
    if status in (204, 304):
        length, chunked = 0, False  # no body, whatever the headers say
    elif chunked:
        length = None  # RFC 9112 6.3: Transfer-Encoding overrides
    if b"\r" in content_type or b"\n" in content_type or b"\0" in content_type:
        raise FramingError("invalid Content-Type")
    seconds = seconds_of(retry_after.decode("latin-1"), date.decode("latin-1")) if retry_after else None
    return Head(status, content_type, length, chunked, keep_alive, seconds)


class Chunked:
    """Parses a chunked body from arbitrary pieces; optionally collects the contents of the chunks.

    Strict, because clients get the same bytes: a lenient parser could find the end of the body elsewhere than they do.
    """

    __slots__ = ("_closing", "_line", "_need", "_trailers", "done")

    def __init__(self) -> None:
        self._need = 0  # bytes left of the current chunk's content
        self._closing = False  # after the content, before its CRLF
        self._line = b""  # an unfinished line: a size, a trailer, or that CRLF
        self._trailers = False
        self.done = False

    @property
    def at_boundary(self) -> bool:
        """Would a new chunk be well-formed right here?"""
        return not (self._need or self._closing or self._line or self._trailers or self.done)

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> None:
        """Parse the next piece; append chunk contents to `payload`, if given. FramingError for bytes after the end."""
        i, n = 0, len(data)
        while i < n:
            need = self._need
            if need:
                end = i + need
                if payload is not None:
                    payload.append(data[i:end])
                if data[end : end + 2] == b"\r\n":
                    self._need, i = 0, end + 2
                elif end <= n:
                    self._need, self._closing, i = 0, True, end
                else:
                    self._need, i = end - n, n
                continue
            if self.done:
                raise FramingError("bytes after the end of the body")
            end = data.find(b"\n", i)
            if (n if end < 0 else end) - i + len(self._line) > MAX_LINE:
                raise FramingError("a line between chunks is too long")
            if end < 0:
                self._line += data[i:]
                return
            line, self._line = self._line + data[i:end], b""
            i = end + 1
            self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        if line[-1:] != b"\r":
            raise FramingError("a line between chunks does not end with CRLF")
        if self._closing:
            if line != b"\r":
                raise FramingError("a chunk is longer than its size")
            self._closing = False
        elif self._trailers:
            self.done = line == b"\r"
        else:
            digits = line[:-1].partition(b";")[0].rstrip(b" \t")
            if not digits or len(digits) > 15 or digits.strip(HEX):
                raise FramingError("invalid chunk size")
            self._need = int(digits, 16)
            self._trailers = not self._need


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
