"""Reads the header of a GGUF file on a web server without downloading the file: with HTTP range requests, a few MiB.

Knows Hugging Face's addresses, "hf:ORG/REPO[:QUANT]". Reads at most 64 MiB, writes nothing, and sends HF_TOKEN only
to the Hugging Face endpoint. Blocks: call it in a thread.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from accelerd.estimate.gguf import GgufError, Header
from accelerd.estimate.tensors import GgufModel, Tensor, parts, read_part

BUDGET: Final = 64 << 20  # bytes of one model
FIRST: Final = 1 << 20  # bytes of the first request; each further one asks for twice as many …
LARGEST: Final = 8 << 20  # … up to these
LARGEST_ANSWER: Final = 16 << 20  # of a list of files
TIMEOUT: Final = 20.0  # s without an answer
HUB: Final = "https://huggingface.co"
SCHEME: Final = "hf:"
PREFERRED: Final = ("Q4_K_M", "Q8_0")  # what llama-server takes of a repository when nobody says, in this order
REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+")
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
SHARD: Final = re.compile(r"-(\d{5})-of-\d{5}\.gguf$", re.IGNORECASE)


class RemoteError(Exception):
    """It cannot be read. `message` is one clause, `hint` says what to do."""

    def __init__(self, message: str, hint: str = "", candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.candidates = tuple(candidates)  # files, of which one must be named


@dataclass(frozen=True)
class Remote:
    """A model on a server."""

    url: str  # of the first file
    model: GgufModel
    size: int  # bytes of all files
    read: int  # bytes that were read
    projector: GgufModel | None = None


def is_remote(text: str) -> bool:
    """Is this an address rather than a file or a name?"""
    return text.startswith(("https://", "http://", SCHEME))


def read_remote(text: str, env: Mapping[str, str]) -> Remote:
    """The model at an address. RemoteError. `env`: HF_ENDPOINT and HF_TOKEN as Hugging Face's own tools know them."""
    web = Web(env)
    url, projector = hub_files(text, web) if text.startswith(SCHEME) else (page(text, web.hub), None)
    files = [RangeFile(part, web) for part in part_urls(url)]
    header, tensors = read_files(files)
    extra = None
    if projector is not None:
        opened = RangeFile(projector, web)
        extra = GgufModel(*read_files([opened]), files=(projector,))
    model = GgufModel(header, tensors, tuple(file.url for file in files))
    return Remote(files[0].url, model, sum(file.size for file in files), web.read, extra)


def read_files(files: Sequence[RangeFile]) -> tuple[Header, dict[str, Tensor]]:
    """The headers of all parts of a model, as one."""
    first: Header | None = None
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            header, found = read_part(cast(BinaryIO, file), file.size)
        except GgufError as error:
            raise RemoteError(f"{file.name}: {error}", "name the address of a .gguf file") from error
        first = first or header
        tensors |= found
    if first is None:
        raise RemoteError("it has no files")
    count = first.values.get("split.count", 1)
    if isinstance(count, int) and count > 1 and count != len(files):
        raise RemoteError(f"{files[0].name} is one of {count} files, and not named like it", "name the first of them")
    return first, tensors


# --- addresses ------------------------------------------------------------------------------------------------


def page(url: str, hub: str) -> str:
    """The file's own address; that of its page at Hugging Face, which a browser shows, becomes that of the file."""
    split = urlsplit(url)
    if split.scheme == "http" and split.hostname not in LOOPBACK and not url.startswith(f"{hub}/"):
        raise RemoteError(f"{url} is not an https address", "use https://")
    path = re.sub(r"^(/[^/]+/[^/]+)/blob/", r"\1/resolve/", split.path) if url.startswith(f"{hub}/") else split.path
    if not path.lower().endswith(".gguf"):
        raise RemoteError(f"{url} is not the address of a .gguf file", f"for a repository: {SCHEME}ORG/REPO:QUANT")
    return urlunsplit((split.scheme, split.netloc, path, split.query, ""))


def part_urls(url: str) -> list[str]:
    """All files of the model of which one is named."""
    split = urlsplit(url)
    first = SHARD.sub(lambda found: found[0].replace(f"-{found[1]}-of-", "-00001-of-"), split.path)
    return [urlunsplit((split.scheme, split.netloc, path, split.query, "")) for path in parts(first)]


def hub_files(text: str, web: Web) -> tuple[str, str | None]:
    """The addresses of the first file of a model, and of its projector, of "hf:ORG/REPO[:QUANT]"."""
    name, _, wanted = text.removeprefix(SCHEME).strip("/").partition(":")
    folder = "/".join(name.split("/")[:2])
    if not REPOSITORY.fullmatch(folder):
        raise RemoteError(f"{text} names no repository", f"it is called {SCHEME}ORG/REPO or {SCHEME}ORG/REPO:QUANT")

    def resolve(file: str) -> str:
        return f"{web.hub}/{folder}/resolve/main/{quote(file)}"

    if file := name[len(folder) + 1 :]:
        return resolve(file), None
    answer = web.json(f"{web.hub}/api/models/{folder}")
    listed = answer.get("siblings") if isinstance(answer, dict) else None
    names = [str(one.get("rfilename", "")) for one in listed or () if isinstance(one, dict)]
    chosen = choose([name for name in names if name.lower().endswith(".gguf")], folder, wanted)
    projectors = [name for name in names if is_projector(name)]
    return resolve(chosen), resolve(projectors[0]) if len(projectors) == 1 else None


def choose(names: Sequence[str], folder: str, wanted: str) -> str:
    """The file that is meant among those of a repository: first parts of models only."""
    models = sorted(name for name in names if not is_projector(name) and is_first(name))
    if not models:
        raise RemoteError(f"{folder} has no GGUF file", "look for a repository with GGUF in its name")
    for quant in (wanted,) if wanted else PREFERRED:
        pattern = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?=[-._/]|$)", re.IGNORECASE)
        found = [name for name in models if pattern.search(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise RemoteError(f"{folder} has {len(found)} models with {quant}", "name one: hf:ORG/REPO/FILE", found)
    if wanted or len(models) > 1:
        what = f"no model with {wanted}" if wanted else f"{len(models)} models"
        raise RemoteError(f"{folder} has {what}", "name one of these: hf:ORG/REPO:QUANT, or hf:ORG/REPO/FILE", models)
    return models[0]


def is_projector(name: str) -> bool:
    return "mmproj" in name.lower() and name.lower().endswith(".gguf")


def is_first(name: str) -> bool:
    found = SHARD.search(name)
    return found is None or int(found[1]) == 1


# --- reading --------------------------------------------------------------------------------------------------


class Web:
    """Requests to servers, and how much they have sent."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.hub = (env.get("HF_ENDPOINT") or HUB).rstrip("/")
        self._token = env.get("HF_TOKEN") or None
        self.read = 0

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
        """The response, its body unread. RemoteError."""
        request = urllib.request.Request(url, headers={"User-Agent": "accelctl", **(headers or {})})
        if self._token and url.startswith(f"{self.hub}/") and self._private(url):
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")  # never to where it leads
        try:
            return cast(http.client.HTTPResponse, OPENER.open(request, timeout=TIMEOUT))
        except urllib.error.HTTPError as error:
            with error:
                raise refused(error.code, url, self.hub) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RemoteError(f"cannot reach {host(url)}: {why(error)}", "check the address and the network") from error

    def _private(self, url: str) -> bool:
        """Can nobody on the way read it?"""
        split = urlsplit(url)
        return split.scheme == "https" or split.hostname in LOOPBACK

    def body(self, response: http.client.HTTPResponse, url: str, most: int) -> bytes:
        """What it sends, up to `most` bytes."""
        try:
            data = response.read(most)
        except (OSError, http.client.HTTPException) as error:
            raise RemoteError(f"{host(url)} broke off: {why(error)}", "try again") from error
        self.read += len(data)
        return data

    def json(self, url: str) -> Any:
        with self.open(url) as response:
            data = self.body(response, url, LARGEST_ANSWER)
        self.read -= len(data)  # a list of files is no part of a model
        try:
            return json.loads(data)
        except ValueError as error:
            raise RemoteError(f"{host(url)} did not send a list of files", "check HF_ENDPOINT") from error


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
        self.size = 0
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
        """Some of what comes next, at most `size` bytes; empty at the end. RemoteError."""
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
            raise RemoteError(text, "download it and ask again with the file")
        wanted = min(self._next, BUDGET - self._web.read)
        self._next = min(self._next * 2, LARGEST)
        asked = {"Range": f"bytes={start}-{start + wanted - 1}", "Accept-Encoding": "identity"}
        with self._web.open(self.url, asked) as response:
            if response.status != 206:
                text = f"{host(self.url)} sends whole files only, no parts of them"
                raise RemoteError(text, "download it and ask again with the file")
            self.size = total_of(response, start, self.url)
            self._window = self._web.body(response, self.url, wanted)
        self._start = start
        if not self._window:
            raise RemoteError(f"{host(self.url)} sent nothing of {self.name}", "try again")


def total_of(response: http.client.HTTPResponse, start: int, url: str) -> int:
    """The file's size, as the server says beside a part of it."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != start:
        text = f"{host(url)} does not say which part of the file it sends"
        raise RemoteError(text, "download it and ask again with the file")
    return int(found[3])


def refused(status: int, url: str, hub: str) -> RemoteError:
    """What an error status means to a person."""
    name = unquote(urlsplit(url).path.rpartition("/")[2]) or host(url)
    at_hub = url.startswith(f"{hub}/")
    if status in (401, 403):
        hint = "accept its terms on its page and set HF_TOKEN, or check its name" if at_hub else "download it yourself"
        return RemoteError(f"{host(url)} does not let you read {name} (HTTP {status})", hint)
    if status == 404:
        return RemoteError(f"{host(url)} has no {name} (HTTP 404)", "check the address")
    if status == 416:
        return RemoteError(f"{host(url)} has nothing in {name} (HTTP 416)", "check the address")
    if status == 429:
        return RemoteError(f"{host(url)} has had too many requests from here (HTTP 429)", "try again later")
    return RemoteError(f"{host(url)} answers with HTTP {status} for {name}", "try again later")


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
