"""What Ollama's clients ask of models before they chat: the list, and a description. Made of the catalog's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Struct

from accelerd.gateway.dialects.neutral import request_of
from accelerd.gateway.request_body import MAX_NAME
from accelerd.gateway.responses import GENERATE, iso_date
from accelerd.memory.model import RAM
from accelerd.scheduler.record import Snapshot

Json = dict[str, Any]
VERSION: Final = "0.13.0"  # of Ollama, whose API this is: clients ask for the one that they need
# What Ollama calls our capabilities, in its order.
WORDS: Final = {"chat": "completion", "embeddings": "embedding", "tools": "tools", "vision": "vision"}
FOREVER: Final = 100 * 365 * 86400.0  # s, of a model that stays
UNKNOWN: Final = "unknown"  # of the architecture, which only the model's file says


class ShowRequest(Struct):
    model: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] = ""
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] = ""  # as older clients have it


SHOW: Final = msgspec.json.Decoder(ShowRequest)


def shown(body: bytes) -> str:
    """The name of the model that a request asks for. AccelError bad_request."""
    asked = request_of(SHOW, body)
    return asked.model or asked.name


def tags(models: Json) -> Json:
    """The answer to GET /api/tags. `models`: that to GET /v1/models."""
    return {"models": [_tag(model) for model in models["data"]]}


def _tag(model: Json) -> Json:
    digest = hashlib.sha256(model["id"].encode()).hexdigest()  # of the name: clients show the beginning of it
    return {
        "name": model["id"],
        "model": model["id"],
        "modified_at": iso_date(model["created"]),
        "size": model.get("size") or 0,
        "digest": digest,
        "details": _details(),
        "capabilities": _capabilities(model),
    }


def running(models: Sequence[tuple[Json, Snapshot]], now: float) -> Json:
    """The answer to GET /api/ps. `models`: each with its entry in GET /v1/models; `now`: since 1970."""
    return {"models": [_running(model, snapshot, now) for model, snapshot in models]}


def _running(model: Json, snapshot: Snapshot, now: float) -> Json:
    limit, held = snapshot.idle_timeout, snapshot.held
    left = FOREVER if limit is None or snapshot.unevictable else limit - (snapshot.idle or 0.0)
    tag = _tag(model)
    return {
        **{name: tag[name] for name in ("name", "model", "digest", "details")},
        "size": sum(held.values()),
        "size_vram": sum(size for pool, size in held.items() if pool != RAM),
        "expires_at": iso_date(now + max(0.0, left)),
        "context_length": model["context_length"] or 0,
    }


def prepared(name: str, path: str, now: float, keep: float | None) -> Json:
    """The answer to a request with nothing to answer. `keep`: 0 for a model that is given up."""
    said = {"response": ""} if path == GENERATE else {"message": {"role": "assistant", "content": ""}}
    done = {"done": True, "done_reason": "unload" if keep == 0 else "load"}
    return {"model": name, "created_at": iso_date(now), **said, **done}


def show(model: Json) -> Json:
    """The answer to POST /api/show. `model`: that to GET /v1/models/NAME."""
    context = model["context_length"]
    more = {} if context is None else {f"{UNKNOWN}.context_length": context}
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(),
        "model_info": {"general.architecture": UNKNOWN, **more},
        "capabilities": _capabilities(model),
        "modified_at": iso_date(model["created"]),
    }


def _details() -> Json:
    return {
        "parent_model": "", "format": "gguf", "family": "", "families": None, "parameter_size": "",
        "quantization_level": "",
    }  # fmt: skip


def _capabilities(model: Json) -> list[str]:
    found = [word for task, word in WORDS.items() if task in model["capabilities"]]
    return [*found, *(["thinking"] if "reasoning" in model["labels"] else [])]
