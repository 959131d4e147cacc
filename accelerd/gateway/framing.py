"""HTTP/1.1 response heads and chunked bodies, as far as a relay needs them: pure, incremental, bounded.

Raises FramingError on anything an engine must not send. Source: RFC 9112 sections 4, 6 and 7.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_HEAD = 64 << 10  # bytes
MAX_LINE = 4 << 10  # a chunk-size line or a trailer line


class FramingError(Exception):
    """The engine's bytes are not an HTTP/1.1 response."""


class Head(NamedTuple):
    """What the relay needs of a response head."""

    status: int
    content_type: bytes
    length: int | None  # Content-Length
    chunked: bool
    keep_alive: bool


def parse_head(raw: bytes) -> Head:
    """A response head without its final empty line."""
    lines = raw.split(b"\r\n")
    version, _, rest = lines[0].partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit():
        raise FramingError("no HTTP status line")
    status = int(rest[:3])
    content_type = b"application/octet-stream"
    length: int | None = None
    chunked = False
    keep_alive = version == b"HTTP/1.1"
    for line in lines[1:]:
        key, colon, value = line.partition(b":")
        if not colon:
            raise FramingError("a header line without a colon")
        key = key.lower()
        if key == b"content-type":
            content_type = value.strip()
        elif key == b"content-length":
            value = value.strip()
            if not value.isdigit() or (length is not None and length != int(value)):
                raise FramingError("bad Content-Length")
            length = int(value)
        elif key == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise FramingError("an unknown Transfer-Encoding")
            chunked = True
        elif key == b"connection":
            keep_alive = b"close" not in value.lower()
    if chunked:
        length = None  # RFC 9112 6.3: Transfer-Encoding overrides
    if b"\r" in content_type or b"\n" in content_type:
        raise FramingError("bad Content-Type")
    return Head(status, content_type, length, chunked, keep_alive)


class Chunked:
    """Follows a chunked body through arbitrary pieces; optionally collects what the chunks hold."""

    __slots__ = ("_line", "_need", "_trailers", "done")

    def __init__(self) -> None:
        self._need = 0  # bytes left of the current chunk, its CRLF included
        self._line = b""  # an unfinished size or trailer line
        self._trailers = False
        self.done = False

    @property
    def at_boundary(self) -> bool:
        """Would a new chunk be well-formed right here?"""
        return not (self._need or self._line or self._trailers or self.done)

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> None:
        """Take the next piece. Chunk contents are appended to `payload` if given. Bytes after the end are an error."""
        i, n = 0, len(data)
        while i < n:
            if self.done:
                raise FramingError("bytes after the end of the body")
            if self._need:
                take = min(self._need, n - i)
                if payload is not None:
                    body = min(take, self._need - 2)  # the last two are CRLF
                    if body > 0:
                        payload.append(data[i : i + body])
                self._need -= take
                i += take
                continue
            end = data.find(b"\n", i)
            if end < 0:
                self._line += data[i:]
                if len(self._line) > MAX_LINE:
                    raise FramingError("an endless chunk-size line")
                return
            line = self._line + data[i:end]
            self._line = b""
            i = end + 1
            self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        if self._trailers:
            self.done = line in (b"", b"\r")
            return
        digits = line.split(b";", 1)[0].strip()
        if not digits or not digits.isalnum() or len(digits) > 15:
            raise FramingError("bad chunk size")
        try:
            size = int(digits, 16)
        except ValueError:
            raise FramingError("bad chunk size") from None
        if size:
            self._need = size + 2
        else:
            self._trailers = True


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
