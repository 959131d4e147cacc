"""HTTP client for a Lemonade Server, with the few requests that accelerd needs.

Never logs a key. Versions differ in their answers; missing values are None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.engines.base import Endpoint
from accelerd.engines.http import HttpError, HttpUnreachable, request

T = TypeVar("T")

API: Final = "/api/v1"
QUICK: Final = 10.0  # s for a trivial request: while it unloads a model it answers nobody, 2.2 s and more
NAMESPACES: Final = ("user", "extra", "builtin")  # of its models' names; lists leave them out where a name is unique
MOST_SAID: Final = 400  # characters of an error
ANSWER_BYTES: Final = 16 << 20  # its list of models
MOST: Final = 1 << 53  # of any number that counts something


class LemonadeRefused(HttpError):
    """An error answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code  # "model_load_error", "model_not_found", …; "" if there is none
        self.message = message


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens, and its key."""

    url: str  # "http://127.0.0.1:13305"
    key: str = field(default="", repr=False)

    @property
    def endpoint(self) -> Endpoint:
        parts = urlsplit(self.url)
        host = parts.hostname or "localhost"
        return Endpoint(port=parts.port or 80, host="127.0.0.1" if host == "localhost" else host)


class LoadedModel(Struct, frozen=True):
    """A loaded model, an entry of `health.all_models_loaded`."""

    model: str
    pid: int | None  # of its backend; not reported before 10.4
    port: int | None  # where its backend listens on 127.0.0.1
    recipe: str
    checkpoint: str
    type: str  # "llm", "embedding", "reranking", "transcription", "tts", …
    device: str  # "gpu", "npu", "gpu npu", "cpu"
    pinned: bool


class Health(Struct, frozen=True):
    """The server's health report."""

    version: str
    loaded: Mapping[str, LoadedModel]  # by name in lower case

    @property
    def release(self) -> tuple[int, ...]:
        """Its version as numbers, (11, 7, 0); () if it is not a version."""
        return release(self.version)

    def of(self, model: str) -> LoadedModel | None:
        return named(model, self.loaded)


class LemonadeModel(Struct, frozen=True):
    """What is known about one model; empty and None: unknown."""

    model: str = ""
    recipe: str = ""
    size: int | None = None  # bytes
    downloaded: bool | None = None
    labels: tuple[str, ...] = ()
    checkpoint: str = ""
    context: int | None = None  # trained context, in tokens
    direct: bool | None = None  # do requests go to its backend? None: not loaded yet
    device: str = ""  # as the server reports while it is loaded: "gpu npu"


def named(model: str, known: Mapping[str, T]) -> T | None:
    """What is known by this name. `known`: by name in lower case, with or without the namespace."""
    name = model.casefold()
    spellings = [name, bare_name(name), *(f"{space}.{name}" for space in NAMESPACES)]
    return next((known[one] for one in spellings if one in known), None)


def bare_name(model: str) -> str:
    """A model's name without the namespace, in lower case."""
    space, dot, bare = model.casefold().partition(".")
    return bare if dot and space in NAMESPACES else model.casefold()


def release(version: str) -> tuple[int, ...]:
    """ "11.7.0" as numbers; () if it is not a version."""
    found = re.match(r"v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", version)
    return tuple(int(part) for part in found.groups() if part is not None) if found else ()


class LemonadeClient:
    """A client for one server; after its `close` it sends no more requests."""

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self._closed = False

    def close(self) -> None:
        """The server has ended: what listens there from now on must not be sent its key."""
        self._closed = True

    async def health(self, within: float = QUICK) -> Health:
        """HttpError."""
        said = await self._ask(f"{API}/health", within=within)
        found = [_loaded(one) for one in _list(said.get("all_models_loaded"))]
        return Health(str(said.get("version") or ""), {one.model.casefold(): one for one in found if one.model})

    async def models(self, within: float = 10.0) -> list[LemonadeModel]:
        """All models in its list, downloaded or not. HttpError."""
        said = await self._ask(f"{API}/models?show_all=true", within=within)
        return [one for one in map(_listed, _list(said.get("data"))) if one.model]

    async def load(self, body: Mapping[str, Any], within: float | None = None) -> None:
        """Returns when the model is loaded. Without `within` there is no time limit. HttpError."""
        await self._ask(f"{API}/load", body, within=within)

    async def unload(self, model: str, within: float = 30.0) -> None:
        """Unloads one model; an empty name, which would unload all, is an error. 404 if not loaded. HttpError."""
        if not model:
            raise HttpError("no model named")
        await self._ask(f"{API}/unload", {"model_name": model}, within=within)

    async def _ask(self, path: str, body: Mapping[str, Any] | None = None, *, within: float | None) -> dict[str, Any]:
        """GET, or POST with a `body`."""
        if self._closed:
            raise HttpUnreachable("the server was stopped")
        data = json.dumps(body).encode() if body is not None else None
        status, answer = await request(
            self.address.endpoint, path, within=within, bearer=self.address.key, body=data, most=ANSWER_BYTES
        )
        said = _object(answer)
        if status != 200:
            raise _refusal(status, said, path)
        return said


def _refusal(status: int, said: Mapping[str, Any], path: str) -> LemonadeRefused:
    error = said.get("error")
    if isinstance(error, dict):
        return LemonadeRefused(status, str(error.get("code") or error.get("type") or ""), _line(error.get("message")))
    return LemonadeRefused(status, "", _line(error) if error else f"status {status} to {path}")


def _line(said: object) -> str:
    """A text of the server as one line that can be shown."""
    text = "".join(char if char.isprintable() else " " for char in str(said or ""))
    return " ".join(text.split())[:MOST_SAID]


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = from_json(data) if data else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and value is not True and 0 < value < MOST else None


def _loaded(one: Mapping[str, Any]) -> LoadedModel:
    return LoadedModel(
        model=str(one.get("model_name") or ""),
        pid=_number(one.get("pid")),
        port=_local_port(str(one.get("backend_url") or "")),
        recipe=str(one.get("recipe") or ""),
        checkpoint=str(one.get("checkpoint") or ""),
        type=str(one.get("type") or ""),
        device=str(one.get("device") or ""),
        pinned=one.get("pinned") is True,
    )


def _listed(one: Mapping[str, Any]) -> LemonadeModel:
    size = one.get("size")
    labels = one.get("labels")
    downloaded = one.get("downloaded")
    return LemonadeModel(
        model=str(one.get("id") or ""),
        recipe=str(one.get("recipe") or ""),
        size=int(size * 1e9) if isinstance(size, int | float) and 0 < size < MOST else None,  # in units of 10^9 bytes
        downloaded=downloaded if isinstance(downloaded, bool) else None,
        labels=tuple(str(label) for label in labels) if isinstance(labels, list) else (),
        checkpoint=str(one.get("checkpoint") or ""),
        context=_number(one.get("max_context_window")) or _number(one.get("context_length")),
    )


def _local_port(url: str) -> int | None:
    """The port of a backend on this machine; None otherwise."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost"):
            return parts.port
    except ValueError:
        return None
    return None
