"""GET /accelerd/v1/openapi.json on the control socket: every operation as OpenAPI 3.1 has it, made from its types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct

from accelerd import __version__
from accelerd.base.names import CONTROL_PREFIX, PROGRAM
from accelerd.control.operations import Kind, Operation

Json = dict[str, Any]

REF: Final = "#/components/schemas/{name}"
JSON: Final = "application/json"
ERROR: Final[Json] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "code"],
            "properties": {"message": {"type": "string"}, "code": {"type": "string"}},
        }
    },
}


def document(operations: Mapping[str, Operation], methods: Mapping[Kind, str], lines: str) -> Json:
    """`methods`: HTTP's by kind of operation; `lines`: the Content-Type of events, one a line."""
    answers = list(dict.fromkeys(one for operation in operations.values() for one in _structs(operation)))
    schemas, components = msgspec.json.schema_components(answers, ref_template=REF)
    found = dict(zip(answers, schemas, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{PROGRAM}: control", "version": __version__},
        "servers": [{"url": CONTROL_PREFIX}],
        "paths": {
            f"/{one.name}": {
                methods[one.kind].lower(): {
                    "operationId": one.name.replace("/", "_"),
                    "summary": one.doc,
                    "parameters": parameters(one),
                    "responses": _responses(one, [found[kind] for kind in _structs(one)], lines),
                }
            }
            for one in operations.values()
        },
        "components": {"schemas": {**components, "Error": ERROR}},
    }


def parameters(operation: Operation) -> list[Json]:
    """The fields of its request, in the query."""
    return [
        {
            "name": field.encode_name,
            "in": "query",
            "required": field.required,
            "schema": msgspec.json.schema(field.type),
        }
        for field in msgspec.structs.fields(operation.request)
    ]


def _structs(operation: Operation) -> Iterable[Any]:
    """What it may answer, as far as that is a Struct."""
    kinds = get_args(operation.answer) or (operation.answer,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Struct)]


def _responses(operation: Operation, answers: list[Json], lines: str) -> Json:
    whole = operation.kind in ("look", "action") or (operation.kind == "job" and not operation.progress)
    content: Json = {JSON if whole else lines: {"schema": {"anyOf": answers}} if whole and answers else {}}
    if operation.name == "logs":
        content = {"text/plain": {"schema": {"type": "string"}}}
    refused = {"content": {JSON: {"schema": {"$ref": REF.format(name="Error")}}}}
    return {
        "200": {"description": operation.doc, "content": content},
        "4XX": {"description": "The request is wrong, or cannot be met.", **refused},
        "5XX": {"description": "It has failed.", **refused},
    }
