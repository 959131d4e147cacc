"""GET /openapi.json: the API as an OpenAPI 3.1 document, made from the tables and types by which requests are answered.

Request bodies say what accelerd itself checks: an engine may take, and demand, more. Made with the first request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, get_args, get_origin

import msgspec

from accelerd import __version__
from accelerd.base import names
from accelerd.base.errors import KINDS
from accelerd.gateway.engine_monitor import MONITORED
from accelerd.gateway.health import FullHealth, Health
from accelerd.gateway.ollama_catalog import ShowRequest
from accelerd.gateway.request_body import DECODERS, FORM, MAX_NAME
from accelerd.gateway.responses import ANTHROPIC, FORMS, JSON_TYPE, TASKS, is_ollamas, phrase

Json = dict[str, Any]

EVENTS: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"
REF: Final = "#/components/schemas/{name}"
# Bodies of which one of several fields must be there.
EITHER: Final = {"EmbeddingsBody": ("input", "content"), "RerankBody": ("documents", "texts")}

HEAD: Final = ("bad_request", "unauthorized", "host_not_allowed", "not_found", "method_not_allowed", "internal")
BODY: Final = (
    *HEAD, "request_timeout", "body_too_large", "unsupported_media_type", "expectation_failed", "too_many_bodies",
    "transfer_encoding_not_supported",
)  # fmt: skip
MODEL: Final = ("model_not_found",)
INFERENCE: Final = (
    *BODY, *MODEL, "not_supported_by_model", "context_length_exceeded", "queue_full", "queue_timeout", "shutting_down",
    "model_failed", "model_backing_off", "model_unloaded", "model_out_of_memory", "does_not_fit", "memory_in_use",
    "yielded", "model_stuck", "device_quarantined", "upstream_failed", "upstream_timeout", "model_gated",
    "disk_full", "download_failed",
)  # fmt: skip

TEXT: Final[Json] = {"type": "string"}
TEXTS: Final[Json] = {"type": "array", "items": {"type": "string"}}
OBJECT: Final[Json] = {"type": "object"}
TEXT_OR_NULL: Final[Json] = {"type": ["string", "null"]}
WHOLE_OR_NULL: Final[Json] = {"type": ["integer", "null"]}


def record(required: Mapping[str, Json], **optional: Json) -> Json:
    """An object with these fields, and perhaps others."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def ref(name: str) -> Json:
    return {"$ref": REF.format(name=name)}


MODEL_ENTRY: Final = record(
    {"id": TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": TEXT},
    description=TEXT,
    aliases={"type": "array", "items": TEXT},
    capabilities={"type": "array", "items": TEXT},
    labels={"type": "array", "items": TEXT},
    context_length=WHOLE_OR_NULL,
    size=WHOLE_OR_NULL,
    status=record({"value": TEXT}, failed={"type": "boolean"}),
    state=TEXT,
    architecture=record(
        {"input_modalities": {"type": "array", "items": TEXT}, "output_modalities": {"type": "array", "items": TEXT}}
    ),
    meta={"type": ["object", "null"]},
    queue={"type": "integer"},
)
ANTHROPIC_ENTRY: Final = record({"type": {"const": "model"}, "id": TEXT, "display_name": TEXT, "created_at": TEXT})
SCHEMAS: Final[Json] = {
    "Error": record({"error": record({"message": TEXT}, type=TEXT, param=TEXT_OR_NULL, code={})}),
    "AnthropicError": record({"type": {"const": "error"}, "error": record({"type": TEXT, "message": TEXT})}),
    "OllamaError": record({"error": TEXT}),
    "Model": MODEL_ENTRY,
    "Models": record({"object": {"const": "list"}, "data": {"type": "array", "items": ref("Model")}}),
    "AnthropicModel": ANTHROPIC_ENTRY,
    "AnthropicModels": record(
        {"data": {"type": "array", "items": ref("AnthropicModel")}, "has_more": {"type": "boolean"}},
        first_id=TEXT_OR_NULL,
        last_id=TEXT_OR_NULL,
    ),
    "OllamaModels": record({"models": {"type": "array", "items": record({"name": TEXT, "model": TEXT})}}),
    "OllamaModel": record({"capabilities": {"type": "array", "items": TEXT}, "model_info": OBJECT}),
}


def document() -> Json:
    """The whole document."""
    _, health = msgspec.json.schema_components((Health, FullHealth, ShowRequest), ref_template=REF)
    types: list[Any] = [one.type for one in DECODERS.values()]
    bodies = {type_.__name__: body_schema(type_) for type_ in types}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": names.PROGRAM,
            "version": __version__,
            "description": "Local AI models behind one address. Request bodies are described as far as accelerd checks "
            "them; an engine may take more. /v1 may be left out, except of Anthropic's paths.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"key": []}],
        "paths": {**reads(), **{path: {"post": inference(path)} for path in TASKS}},
        "components": {
            "schemas": {**SCHEMAS, **health, **bodies},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def body_schema(type_: type[msgspec.Struct]) -> Json:
    """What is checked of a JSON body of this type. What stays bytes may be anything."""
    fields = msgspec.structs.fields(type_)
    schema: Json = {"type": "object", "properties": {one.encode_name: _value(one.type) for one in fields}}
    if needed := [one.encode_name for one in fields if one.required]:
        schema["required"] = needed
    if (either := EITHER.get(type_.__name__)) is not None:
        filled = {name: {"minItems": 1} for name in either if "items" in schema["properties"][name]}
        schema["anyOf"] = [
            {"required": [name], **({"properties": {name: filled[name]}} if name in filled else {})} for name in either
        ]
    return schema


def _value(kind: Any) -> Json:
    """Of a field, whose value may stay bytes, or be a list of what does."""
    if kind is msgspec.Raw:
        return {}
    inner, *notes = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(inner) is list and get_args(inner)[0] is msgspec.Raw:
        return msgspec.json.schema(Annotated[list[Any], *notes] if notes else list[Any])
    return msgspec.json.schema(kind)


def inference(path: str) -> Json:
    """A request that a model answers."""
    task = TASKS[path]
    return {
        "operationId": path.strip("/").replace("/", "_"),
        "summary": f"{phrase(task, path).capitalize()}." if task != "ollama" else "Chat, as Ollama has it.",
        "tags": [task],
        "requestBody": {"required": True, "content": _body(path)},
        "responses": {
            "200": {
                "description": "What the model answers, or its stream.",
                "headers": {names.HEADER_MODEL: {"description": "The model that answers.", "schema": TEXT}},
                "content": _answers(path),
            },
            "4XX": {"description": "An engine refuses the request.", "content": _error(path)},
            **refusals(INFERENCE, path),
        },
    }


def _body(path: str) -> Json:
    if path not in FORMS:
        return {JSON_TYPE: {"schema": ref(DECODERS[path].type.__name__)}}
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    fields = {"model": {"type": "string", "minLength": 1, "maxLength": MAX_NAME}, "stream": {"type": "boolean"}}
    schema: Json = {"type": "object", "properties": {**fields, **dict.fromkeys(FORMS[path], file)}}
    schema["anyOf"] = [{"required": [name]} for name in FORMS[path]]
    return {FORM: {"schema": schema}}


def _answers(path: str) -> Json:
    if TASKS[path] == "speech":
        return {"audio/*": {}, "application/octet-stream": {}, EVENTS: {}}
    found: Json = {JSON_TYPE: {"schema": {}}, (NDJSON if is_ollamas(path) else EVENTS): {}}
    if TASKS[path] == "transcription":
        found["text/*"] = {}
    return found


def refusals(codes: Iterable[str], path: str, *also: str) -> Json:
    """The responses with these errors by status. `also`: schemas of errors in other shapes."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(KINDS[code].status, []).append(code)
    return {
        str(status): {"description": ", ".join(codes), "content": _error(path, *also)}
        for status, codes in sorted(by_status.items())
    }


def _error(path: str, *also: str) -> Json:
    shape = "OllamaError" if is_ollamas(path) else "AnthropicError" if path.startswith(ANTHROPIC) else "Error"
    return {JSON_TYPE: {"schema": {"anyOf": [*map(ref, (shape, *also))]} if also else ref(shape)}}


def reads() -> Json:
    """What is answered from memory."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    version = {
        "name": "anthropic-version",
        "in": "header",
        "schema": TEXT,
        "description": "Asks for Anthropic's.",
    }
    full = {"name": "full", "in": "query", "schema": TEXT, "description": "Also queue, models, memory and devices."}
    model = {"name": "model", "in": "query", "schema": TEXT, "description": "Of several models, which."}
    page = {"text/plain": {"schema": TEXT}, "text/html": {"schema": TEXT}}
    return {
        "/": {"get": read("/", "What this is, for people.", page)},
        "/health": {"get": read("/health", "That it listens.", _either("Health", "FullHealth"), full)},
        "/openapi.json": {"get": read("/openapi.json", "This document.", _either())},
        **{path: {"get": monitored(path, kind, model)} for path, kind in MONITORED.items()},
        "/v1/models": {"get": read("/v1/models", "All models.", _either("Models", "AnthropicModels"), version)},
        "/v1/models/{name}": {
            "get": read("/v1/models/{name}", "A model.", _either("Model", "AnthropicModel"), name, version, more=MODEL)
        },
        "/api/tags": {"get": read("/api/tags", "All models, as Ollama has it.", _either("OllamaModels"))},
        "/api/ps": {"get": read("/api/ps", "The loaded models, as Ollama has it.", _either("OllamaModels"))},
        "/api/version": {"get": read("/api/version", "The version of Ollama's API.", _either())},
        "/api/show": {"post": asked("/api/show", "One model, as Ollama has it.", _either("OllamaModel"))},
        "/api/pull": {"post": asked("/api/pull", "That a model is there.", {**_either(), NDJSON: {}})},
    }


def monitored(path: str, kind: str, model: Json) -> Json:
    """What the llama-server of a model says of itself."""
    more = (*MODEL, "not_supported_by_model", "model_unloaded", "upstream_failed")
    found = read(
        path,
        f"{path} of the llama-server of a model.",
        {kind: {"schema": {} if kind is JSON_TYPE else TEXT}},
        model,
        more=more,
    )
    found["responses"]["501"] = {"description": "It was not started for this.", "content": _error(path)}
    return found


def asked(path: str, summary: str, content: Json) -> Json:
    """What is asked of one model in Ollama's API and answered from memory."""
    body = {"requestBody": {"required": True, "content": _either("ShowRequest")}}
    return {**read(path, summary, content, more=(*BODY, *MODEL)), **body}


def _either(*schemas: str) -> Json:
    return {JSON_TYPE: {"schema": {"anyOf": [*map(ref, schemas)]} if schemas else OBJECT}}


def read(path: str, summary: str, content: Json, *parameters: Json, more: Sequence[str] = ()) -> Json:
    """An operation that no model is asked for. `more`: errors beside those of every request."""
    anthropics = [] if is_ollamas(path) else ["AnthropicError"]  # whoever sends anthropic-version
    return {
        "operationId": path.strip("/").replace("/", "_").translate({ord("{"): None, ord("}"): None}) or "root",
        "summary": summary,
        "parameters": list(parameters),
        "responses": {
            "200": {"description": summary, "content": content},
            **refusals((*HEAD, *more), path, *anthropics),
        },
    }
