"""Reads the header of a GGUF file on a web server without downloading the file: with HTTP range requests, a few MiB.

Reads at most 64 MiB in three minutes, writes nothing, and sends a token only to the hub that it is for. Knows no hub's
addresses but its first part: `accelerd.downloads` makes them. Blocks: call it in a thread.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO, Final, TypeVar, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.estimate.gguf import Budget, GgufError, Header
from accelerd.estimate.tensors import GgufModel, Tensor, parts, read_part

T = TypeVar("T")
BUDGET: Final = 64 << 20  # bytes of one model
FIRST: Final = 1 << 20  # bytes of the first request; each further one asks for twice as many …
LARGEST: Final = 8 << 20  # … up to these
LARGEST_ANSWER: Final = 16 << 20  # of a list of files
MOST_PARTS: Final = 64  # requests for one file; a server that sends what is asked for needs some ten
TIMEOUT: Final = 20.0  # s without an answer
OVERALL: Final = 180.0  # s for all headers of a model, whatever a server does
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
SHARD: Final = re.compile(r"-(\d{5})-of-\d{5}\.gguf$", re.IGNORECASE)
LENGTH: Final = re.compile("[0-9]{1,18}")
TOKEN: Final = "save a token that may read it in ~/.cache/huggingface/token, as `hf auth login` does, or set HF_TOKEN"
GATED: Final = f"check its name, accept its terms on its page, and {TOKEN}"
PRIVATE: Final = f"check its name; if it is private, {TOKEN}"
NAME_A_FILE: Final = "name the address of a .gguf file"
WHOLE: Final = "download it and ask again with the file"


class NoRanges(AccelError):
    """The server sends whole files only, so that a header cannot be read alone."""


def read_model_at(urls: Sequence[str], web: Web) -> tuple[GgufModel, list[RangeFile]]:
    """The model in the files at these addresses, its parts in their order, and the files. AccelError."""
    files = [RangeFile(url, web) for url in urls]
    first: Header | None = None
    tensors: dict[str, Tensor] = {}
    budget = Budget()
    for file in files:
        try:
            header, found = read_part(cast(BinaryIO, file), file.size, budget)
        except GgufError as error:
            raise AccelError("download_failed", f"{file.name}: {error}", hint=NAME_A_FILE) from error
        first = first or header
        tensors |= found
    assert first is not None
    count = first.values.get("split.count", 1)
    if isinstance(count, int) and count > 1 and count != len(files):
        text = f"{files[0].name} is one of {count} files, and not named like it"
        raise AccelError("download_failed", text, hint="name the first of them")
    return GgufModel(first, tensors, tuple(file.url for file in files)), files


def part_urls(url: str) -> list[str]:
    """All files of the model of which one is named."""
    split = urlsplit(url)
    first = SHARD.sub(lambda found: found[0].replace(f"-{found[1]}-of-", "-00001-of-"), split.path)
    return [urlunsplit((split.scheme, split.netloc, path, split.query, "")) for path in parts(first)]


def private(url: str) -> bool:
    """Can nobody on the way read it?"""
    split = urlsplit(url)
    return split.scheme == "https" or split.hostname in LOOPBACK


def check_private(url: str, hub: str) -> None:
    """Refuse an address that everybody on the way can read and change. AccelError."""
    if not private(url) and not url.startswith(f"{hub}/"):
        raise AccelError("bad_request", f"{url} is not an https address", hint="use https://")


def in_time(work: Callable[[], T]) -> T:
    """What `work` returns or raises. AccelError when it takes longer than OVERALL: its thread is left alone then."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result(OVERALL)
    except TimeoutError:
        text = f"the server is too slow: the header was not here in {OVERALL:.0f} s"
        raise AccelError("download_failed", text, hint=f"try again later, or {WHOLE}") from None


# --- reading --------------------------------------------------------------------------------------------------


class Web:
    """Requests to servers, and how much they have sent."""

    def __init__(self, hub: str, token: str | None = None) -> None:
        self.hub = hub.rstrip("/")
        self._token = token
        self.read = 0

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
        """The response, its body unread. AccelError."""
        request = urllib.request.Request(url, headers={"User-Agent": "accelctl", **(headers or {})})
        known = self._token is not None and url.startswith(f"{self.hub}/") and private(url)
        if known:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")  # never to where it leads
        try:
            response = cast(http.client.HTTPResponse, OPENER.open(request, timeout=TIMEOUT))
        except urllib.error.HTTPError as error:
            reason = error.headers.get("X-Error-Code", "")
            with error:
                if host(error.url or url) != host(url):
                    text = f"{host(error.url)}, to which {host(url)} leads, answers with HTTP {error.code}"
                    raise AccelError("download_failed", text, hint="try again later") from error
                if known and error.code == 401 and not reason:
                    text = f"{host(url)} does not accept the token of HF_TOKEN or of `hf auth login` (HTTP 401)"
                    raise AccelError("model_gated", text, hint="renew it, or do without for public models") from error
                raise refused(error.code, url, self.hub, reason) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            text = f"cannot reach {host(url)}: {why(error)}"
            raise AccelError("hub_offline", text, hint="check the address and the network") from error
        if wrong := unusable(response):
            response.close()
            text = f"{host(url)} {wrong}"
            raise AccelError("bad_request", text, hint="check the address, or download the file yourself")
        return response

    def body(self, response: http.client.HTTPResponse, url: str, most: int) -> bytes:
        """What it sends, up to `most` bytes."""
        try:
            data = response.read(most)
        except (OSError, http.client.HTTPException) as error:
            raise AccelError("download_failed", f"{host(url)} broke off: {why(error)}", hint="try again") from error
        self.read += len(data)
        return data

    def json(self, url: str) -> Any:
        with self.open(url) as response:
            data = self.body(response, url, LARGEST_ANSWER)
        self.read -= len(data)  # a list of files is no part of a model
        try:
            return from_json(data)
        except ValueError as error:
            text = f"{host(url)} did not send a list of files"
            raise AccelError("download_failed", text, hint="check HF_ENDPOINT") from error


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows, but never to what everybody on the way can read."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise ValueError(f"it leads to {host(newurl)} without https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


OPENER: Final = urllib.request.build_opener(Redirects())


class RangeFile(io.RawIOBase):
    """A file on a server as far as `read_part` needs one: what is read next is fetched, what is stepped over is not."""

    def __init__(self, url: str, web: Web) -> None:
        super().__init__()
        self.url = url
        self.name = unquote(urlsplit(url).path.rpartition("/")[2])
        self._web = web
        self._place = 0
        self._start = 0  # of the window in the file
        self._window = b""
        self._next = FIRST
        self._parts = 0  # requests
        self.size = 0
        self.version = ""  # what changes when the file does; empty: the server does not say
        self._fetch(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Some of what comes next, at most `size` bytes; empty at the end. AccelError."""
        if self._place >= self.size or size == 0:
            return b""
        at = self._place - self._start
        if not 0 <= at < len(self._window):
            self._fetch(self._place)
            at = 0
        piece = self._window[at : at + size] if size > 0 else self._window[at:]
        self._place += len(piece)
        return piece

    def _fetch(self, start: int) -> None:
        if self._web.read >= BUDGET:
            text = f"{self.name}: its header is larger than {BUDGET >> 20} MiB"
            raise AccelError("download_failed", text, hint=WHOLE)
        self._parts += 1
        if self._parts > MOST_PARTS:
            text = (
                f"{host(self.url)} sends less than it is asked for: {self.name} has not come in {MOST_PARTS} requests"
            )
            raise AccelError("download_failed", text, hint=WHOLE)
        wanted = min(self._next, BUDGET - self._web.read)
        self._next = min(self._next * 2, LARGEST)
        asked = {"Range": f"bytes={start}-{start + wanted - 1}", "Accept-Encoding": "identity"}
        with self._web.open(self.url, asked) as response:
            if response.status != 206:
                text = f"{host(self.url)} sends whole files only, no parts of them"
                raise NoRanges("download_failed", text, hint=WHOLE)
            self.version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            self.size = total_of(response, start, self.url)
            self._window = self._web.body(response, self.url, wanted)
        self._start = start
        if not self._window:
            raise AccelError("download_failed", f"{host(self.url)} sent nothing of {self.name}", hint="try again")


def unusable(response: http.client.HTTPResponse) -> str:
    """Why its body cannot be the file, by its headers; "" when it can."""
    coding = response.headers.get("Content-Encoding", "").strip()
    if coding.lower() not in ("", "identity"):
        return f"sends the encoding {coding[:32]!r}, which was not asked for"
    length = response.headers.get("Content-Length", "0").strip()
    return "" if LENGTH.fullmatch(length) else f"sends the length {length[:32]!r}, which is not a number of bytes"


def total_of(response: http.client.HTTPResponse, start: int, url: str) -> int:
    """The file's size, as the server says beside a part of it."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != start:
        text = f"{host(url)} does not say which part of the file it sends"
        raise AccelError("download_failed", text, hint=WHOLE)
    return int(found[3])


def refused(status: int, url: str, hub: str, reason: str = "") -> AccelError:
    """What an error status means to a person. `reason`: what a hub says beside it."""
    name = unquote(urlsplit(url).path.rpartition("/")[2]) or host(url)
    if reason == "GatedRepo":
        repo = "/".join(unquote(url.removeprefix(f"{hub}/").removeprefix("api/models/")).split("/")[:2])
        return gated(repo, hub)
    if reason == "RepoNotFound":
        return AccelError(
            "hub_not_found", f"{host(hub)} has no such repository, or does not show it to you", hint=PRIVATE
        )
    if status in (401, 403):
        text = f"{host(url)} does not let you read {name} (HTTP {status})"
        return AccelError("model_gated", text, hint=GATED if url.startswith(f"{hub}/") else "download it yourself")
    if status == 404:
        return AccelError("hub_not_found", f"{host(url)} has no {name} (HTTP 404)", hint="check the address")
    if status == 416:
        return AccelError("download_failed", f"{host(url)} has nothing in {name} (HTTP 416)", hint="check the address")
    if status == 429:
        text = f"{host(url)} has had too many requests from here (HTTP 429)"
        return AccelError("download_failed", text, hint="try again later, or set HF_TOKEN")
    text = f"{host(url)} answers with HTTP {status} for {name}"
    return AccelError("hub_offline" if status >= 500 else "download_failed", text, hint="try again later")


def gated(repo: str, hub: str) -> AccelError:
    return AccelError(
        "model_gated",
        f"{repo} is gated: its authors want you to accept their terms",
        hint=f"accept them at {hub}/{repo}, and {TOKEN} for the service",
    )


def host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or url


def why(error: BaseException) -> str:
    """The reason in an accident of the network, one clause."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not valid ({reason.verify_message})"
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} s"
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return " ".join(str(text).split())
