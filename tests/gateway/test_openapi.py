"""The OpenAPI document says what the gateway does: its paths, what it checks of bodies, the shapes of its errors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.gateway.openapi import document
from accelerd.gateway.request_body import DECODERS, FORM, read_json
from accelerd.gateway.responses import FORMS, JSON_TYPE, TASKS
from tests.gateway.bench import bench, on_both_loops

Json = dict[str, Any]
KEYS = (hashlib.sha256(b"a-key").digest(),)
DOCUMENT = document()
SCHEMAS: Json = DOCUMENT["components"]["schemas"]
VALUES: Json = {"string": "x", "array": [{}], "integer": 1, "boolean": True}


def schema_of(path: str) -> Json:
    """Of a JSON body."""
    ref = DOCUMENT["paths"][path]["post"]["requestBody"]["content"][JSON_TYPE]["schema"]["$ref"]
    found: Json = SCHEMAS[ref.rpartition("/")[2]]
    return found


def value(schema: Json) -> Any:
    """Something that the field may be."""
    return VALUES[schema["type"]] if "type" in schema else value(schema["anyOf"][0]) if "anyOf" in schema else "x"


def whole(schema: Json) -> Json:
    """A body that is valid by its schema."""
    needed = [*schema.get("required", ()), *(schema.get("anyOf") or [{"required": []}])[0]["required"]]
    return {name: value(schema["properties"][name]) for name in needed}


def taken(path: str, body: Json) -> str | None:
    """None, or the field because of which it is refused."""
    try:
        read_json(path, json.dumps(body).encode())
    except AccelError as error:
        return error.param if error.code == "bad_request" else error.code
    return None


def test_every_path_that_a_model_answers_is_there_with_its_body() -> None:
    for path in TASKS:
        content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
        assert list(content) == [FORM if path in FORMS else JSON_TYPE]


@pytest.mark.parametrize("path", DECODERS)
def test_what_is_said_of_a_body_is_what_is_checked(path: str) -> None:
    schema = schema_of(path)
    body = whole(schema)
    assert taken(path, body) is None
    assert taken(path, {**body, "further": {"x": [1]}}) is None, "there may be more"
    for name in body:
        assert taken(path, {key: given for key, given in body.items() if key != name}) == name
    for name, kind in schema["properties"].items():
        checked = kind.get("type") or [one["type"] for one in kind.get("anyOf", ())]
        if checked:
            wrong = {"no": "such type"}
            assert taken(path, {**body, name: wrong}) == name
        else:
            assert taken(path, {**body, name: {"any": "thing"}}) is None


@pytest.mark.parametrize("path", [path for path in DECODERS if "anyOf" in schema_of(path)])
def test_of_two_fields_either_will_do(path: str) -> None:
    schema = schema_of(path)
    always = {name: value(schema["properties"][name]) for name in schema.get("required", ())}
    names = [one["required"][0] for one in schema["anyOf"]]
    assert len(names) > 1
    assert taken(path, always) == names[0]
    for name in names:
        assert taken(path, {**always, name: value(schema["properties"][name])}) is None


@on_both_loops
async def test_the_document_is_for_those_who_may_see_the_models(tmp_path: Path) -> None:
    async with bench(tmp_path, keys=KEYS) as b, await b.client() as client:
        assert (await client.ask("GET", "/openapi.json")).status == 401
        for _ in range(2):
            found = await client.ask("GET", "/openapi.json", None, {"x-api-key": "a-key"})
            assert (found.status, found.json()) == (200, DOCUMENT)
        assert (await client.ask("HEAD", "/openapi.json", None, {"x-api-key": "a-key"})).status == 200
        refused = await client.ask("POST", "/openapi.json", {}, {"x-api-key": "a-key"})
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", "Error"),
        ("/v1/messages", "AnthropicError"),
        ("/v1/messages/count_tokens", "AnthropicError"),
        ("/api/chat", "OllamaError"),
        ("/v1/audio/transcriptions", "Error"),
    ],
)
def test_errors_have_the_shape_of_the_paths_clients(path: str, shape: str) -> None:
    responses = DOCUMENT["paths"][path]["post"]["responses"]
    for status in ("400", "401", "404", "413", "429", "503", "4XX"):
        assert responses[status]["content"][JSON_TYPE]["schema"] == {"$ref": f"#/components/schemas/{shape}"}
    assert "body_too_large" in responses["413"]["description"]
