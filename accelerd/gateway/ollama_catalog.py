"""What Ollama's clients ask of models before they chat: the list, and a description. Made of the catalog's own."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final

import msgspec
from msgspec import Struct

from accelerd.gateway.dialects.neutral import request_of
from accelerd.gateway.request_body import MAX_NAME
from accelerd.gateway.responses import iso_date

Json = dict[str, Any]
VERSION: Final = "0.13.0"  # of Ollama, whose API this is: clients ask for the one that they need
# What Ollama calls our capabilities, in its order.
WORDS: Final = {"chat": "completion", "embeddings": "embedding", "tools": "tools", "vision": "vision"}
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
