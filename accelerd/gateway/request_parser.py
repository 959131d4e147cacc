"""Parses the requests of one connection with httptools (llhttp), strictly and bounded. Does no I/O, decides nothing."""

from __future__ import annotations

import itertools
import re
import secrets
from collections import deque
from typing import Final

import httptools

MAX_HEAD = 64 << 10  # bytes of a request's head
MAX_LINE = 8190  # bytes of the target, and of a header's value
MAX_HEADERS = 128
ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)([/?][^#]*)?", re.IGNORECASE)  # a target as proxies get it
VERSIONS: Final = "only HTTP/1.1 and HTTP/1.0 are supported"
VERSION: Final = re.compile(rb"^[!-~]+ [!-~]+ HTTP/(?!1\.[01]\r?\n)[0-9]", re.MULTILINE)  # one that is not spoken here
CLIENT_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")  # an id that a client gives its request
NUMBERS: Final = itertools.count(1)
OWN_ID: Final = f"req_{secrets.token_hex(6)}"  # the beginning of this process's
FRAMING = frozenset((b"content-length", b"transfer-encoding", b"expect", b"upgrade"))
ONCE = frozenset((b"host", b"content-type", b"content-length", b"content-encoding", b"transfer-encoding"))


class HttpRequest:
    """One request. `headers` have lower-case names; of a repeated header the first value counts.

    Gateway.admit fills in `path`, `for_control`, and `origin` if that web page may read the response.
    """

    __slots__ = ("admitted", "complete", "for_control", "head_complete", "headers", "http10", "id", "keep_alive",
                 "local", "method", "origin", "parts", "path", "problem", "problem_code",
                 "size", "target")  # fmt: skip

    def __init__(self, local: bool) -> None:
        self.local = local
        self.method = b""
        self.target = b""
        self.path = ""
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []  # of the body
        self.size = 0  # bytes of the body so far
        self.head_complete = self.complete = self.admitted = False
        self.for_control = False
        self.keep_alive = True
        self.http10 = False
        self.problem = ""  # why the head is not valid
        self.problem_code = "bad_request"
        self.id = ""  # the client's, or one of our own
        self.origin: str | None = None

    def encode(self) -> bytes:
        """The request as it came, its body in one piece."""
        for name in FRAMING & self.headers.keys():
            del self.headers[name]
        return b"%bcontent-length: %d\r\n\r\n%b" % (self.encode_head(), self.size, b"".join(self.parts))

    def encode_head(self) -> bytes:
        """Request line and headers, without the final empty line."""
        lines = [b"%b %b HTTP/1.%d" % (self.method, self.target, 0 if self.http10 else 1)]
        lines += [b"%b: %b" % header for header in self.headers.items()]
        return b"\r\n".join(lines) + b"\r\n"


class RequestParser:
    """Appends requests to `requests` as their bytes arrive; the last one may be incomplete.

    `malformed` says what is wrong with the bytes after the last of them.
    """

    def __init__(self, local: bool) -> None:
        self._local = local
        self._parser = httptools.HttpRequestParser(self)
        self._receiving: HttpRequest | None = None
        self._headers: dict[bytes, bytes]  # of `_receiving`
        self._repeated: list[bytes]  # names of its headers that came again
        self._head_size = 0  # bytes since the last complete head or message
        self.requests: deque[HttpRequest] = deque()
        self.malformed: str | None = None
        self.wrong_version = False  # that is what is wrong

    @property
    def in_head(self) -> bool:
        """Has a head begun that is not complete?"""
        return self._head_size > 0 or (self._receiving is not None and not self._receiving.head_complete)

    def feed(self, data: bytes) -> None:
        """Parse the next bytes, as long as `malformed` is None."""
        self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self.wrong_version = VERSION.search(data) is not None
            why = VERSIONS if self.wrong_version else str(error).partition("\n")[0][:200]
            self.malformed = why or "cannot parse it"
        else:
            if self._head_size > MAX_HEAD and (self._receiving is None or not self._receiving.head_complete):
                self.malformed = "the head is too long"

    def _ignore_upgrade(self, rest: bytes) -> None:
        """httptools stops after the head of an upgrade; it is an ordinary request, whose body may follow."""
        request = self.requests[-1]
        self._parser = httptools.HttpRequestParser(self)
        if request.method == b"CONNECT":
            request.problem = "this is not a proxy"
            return
        self.requests.pop()
        del request.headers[b"upgrade"]
        self.feed(request.encode_head() + b"\r\n")
        self.requests[-1].problem = request.problem
        if rest:
            self.feed(rest)

    def on_message_begin(self) -> None:
        request = self._receiving = HttpRequest(self._local)
        self._headers = request.headers
        self._repeated = []
        self.requests.append(request)

    def on_url(self, url: bytes) -> None:
        assert self._receiving is not None
        self._receiving.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        if key in self._headers:
            self._repeated.append(key)
        else:
            self._headers[key] = value

    def on_headers_complete(self) -> None:
        request, parser, headers = self._receiving, self._parser, self._headers
        assert request is not None
        request.method = parser.get_method()
        request.head_complete = True
        request.keep_alive = parser.should_keep_alive()
        version = parser.get_http_version()
        if version != "1.1":
            request.http10 = True
            if version != "1.0":
                request.problem_code = "http_version_not_supported"
                request.problem = VERSIONS
        elif b"host" not in headers:
            request.problem = "no Host header"
        if self._repeated and not ONCE.isdisjoint(self._repeated):
            request.problem = "a header that may come only once is repeated"
        if len(headers) + len(self._repeated) > MAX_HEADERS:
            request.problem = "too many headers"
        if self._head_size > MAX_LINE and any(len(line) > MAX_LINE for line in (request.target, *headers.values())):
            request.problem = "a line of the head is too long"
        if (expected := headers.get(b"expect")) is not None:
            if request.http10:
                del headers[b"expect"]  # RFC 9110, 10.1.1: such a client does not know the answer
            elif expected.strip().lower() != b"100-continue":
                request.problem = "the only expectation that is supported is 100-continue"
                request.problem_code = "expectation_failed"
        if (coding := headers.get(b"transfer-encoding")) is not None and coding.strip().lower() != b"chunked":
            # RFC 9112, 6.1: the chunks are understood, what is in them is not.
            request.problem = "the only transfer coding that is supported is chunked"
            request.problem_code = "transfer_encoding_not_supported"
        if not request.target.startswith(b"/") and (absolute := ABSOLUTE.fullmatch(request.target)):
            headers[b"host"] = absolute[1]  # RFC 9112, 3.2.2: the header does not count
            request.target = absolute[2] or b"/"
            if request.target.startswith(b"?"):
                request.target = b"/" + request.target
        given = headers.get(b"x-request-id")
        if given is not None and CLIENT_ID.fullmatch(given):
            request.id = given.decode()
        else:
            request.id = f"{OWN_ID}{next(NUMBERS):06x}"
        self._head_size = 0

    def on_body(self, data: bytes) -> None:
        request = self._receiving
        assert request is not None
        request.parts.append(data)
        request.size += len(data)

    def on_message_complete(self) -> None:
        assert self._receiving is not None
        self._receiving.complete = True
        self._receiving = None
        self._head_size = 0
