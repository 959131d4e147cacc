"""Anthropic's messages and OpenAI's responses: passed through where the engine has them, errors in their own shape."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.errors import KINDS, AccelError
from accelerd.config.model import ModelSpec, Route, ServerSettings
from accelerd.engines.base import Traits
from tests.gateway.bench import SSE_HEAD, Speaker, bench, chunk, on_both_loops, plain, until
from tests.gateway.client import Response, request

PATH = "/v1/messages"
KEY = (hashlib.sha256(b"sesame").digest(),)
CHATS = Speaker(says=Traits(frozenset(("chat",)), {"messages": "flm knows OpenAI's API only"}))
MODELS = [ModelSpec("m", path="/m.gguf", parallel=4), ModelSpec("npu", engine="flm", model="x")]


def message(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **more}


def anthropic(response: Response) -> dict[str, Any]:
    """The error, in Anthropic's shape and no other."""
    body = response.json()
    assert set(body) == {"type", "error"}
    assert body["type"] == "error"
    assert isinstance(body["error"]["message"], str)
    return dict(body["error"])


@pytest.mark.parametrize("path", [PATH, "/v1/messages/count_tokens", "/v1/responses"])
@on_both_loops
async def test_it_is_passed_through(tmp_path: Path, path: str) -> None:
    async with bench(tmp_path, models=MODELS, others={"flm": CHATS}) as b, await b.client() as client:
        b.engine.says(plain(b'{"type":"message"}'))
        for _ in range(3):
            response = await client.ask(path=path, body=message(input="hi"))
            assert (response.status, response.body) == (200, b'{"type":"message"}')
        assert {r.head.split(b" ")[1].decode() for r in b.engine.requests} == {path}
        assert b.engine.requests[0].json() == message(input="hi")


@on_both_loops
async def test_what_an_engine_without_it_cannot_do_is_said_in_anthropics_shape(tmp_path: Path) -> None:
    async with bench(tmp_path, models=MODELS, others={"flm": CHATS}) as b, await b.client() as client:
        response = await client.ask(path="/v1/messages/count_tokens", body=message("npu"))
        error = anthropic(response)
        assert (response.status, error["type"]) == (400, "invalid_request_error")
        assert error["message"].endswith("flm knows OpenAI's API only; these models can: m")
        assert "npu cannot count the tokens of messages: flm knows" in error["message"]
        assert (await client.ask(path="/v1/responses", body=message("npu"))).code == "not_supported_by_model"
        assert b.scheduler.snapshot("npu").instance is None


@on_both_loops
async def test_tokens_are_counted_by_whoever_can_or_by_nobody(tmp_path: Path) -> None:
    routes = [Route("team", ("npu", "m")), Route("alone", ("npu",))]
    chats = Speaker(says=Traits(frozenset(("chat",))))
    async with bench(tmp_path, models=MODELS, routes=routes, others={"flm": chats}) as b, await b.client() as client:
        b.engine.says(plain(b'{"input_tokens":9}'))
        counted = await client.ask(path="/v1/messages/count_tokens", body=message("team"))
        assert (counted.json(), counted.headers["x-accelerd-model"]) == ({"input_tokens": 9}, "m")
        for name, words in (
            ("npu", "npu cannot count the tokens of messages: flm does not support it with this model"),
            ("alone", "no model of alone supports this: npu cannot count the tokens of messages"),
        ):
            response = await client.ask(path="/v1/messages/count_tokens", body=message(name))
            assert (response.status, words in anthropic(response)["message"]) == (400, True)
        answer = await client.ask(path=PATH, body=message("npu"))
        assert answer.status == 502, "messages themselves are translated: it was asked, and has said something odd"


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind"),
    [
        (b"{", {}, 400, "invalid_request_error"),
        ({"model": "m", "messages": []}, {}, 400, "invalid_request_error"),
        (message("nobody"), {}, 404, "not_found_error"),
        (message(), {"Host": "evil.example"}, 403, "permission_error"),
        (message(), {"Content-Type": "text/plain"}, 415, "invalid_request_error"),
        (message(x="x" * 5000), {}, 413, "request_too_large"),
    ],
)
@on_both_loops
async def test_every_error_there_has_anthropics_shape(
    tmp_path: Path, body: Any, headers: dict[str, str], status: int, kind: str
) -> None:
    async with bench(tmp_path, ServerSettings(max_body=4096)) as b, await b.client() as client:
        response = await client.ask(path=PATH, body=body, headers=headers)
        assert (response.status, anthropic(response)["type"]) == (status, kind)


@pytest.mark.parametrize("code", KINDS)
def test_every_code_has_a_type_of_anthropics(code: str) -> None:
    error = AccelError(code, "text", extra=1).anthropic()["error"]
    assert error["type"].endswith("_error") or error["type"] == "request_too_large"
    assert (error["message"], error["code"], error["extra"]) == ("text", code, 1)


@on_both_loops
async def test_the_key_may_come_as_anthropics_clients_send_it(tmp_path: Path) -> None:
    async with bench(tmp_path, keys=KEY) as b, await b.client() as client:
        for headers, status in (({"x-api-key": "sesame"}, 200), ({"x-api-key": "wrong"}, 401), ({}, 401)):
            response = await client.ask(
                path=PATH, body=message(), headers={"anthropic-version": "2023-06-01", **headers}
            )
            assert response.status == status
            if status == 401:
                assert anthropic(response)["type"] == "authentication_error"
        assert b"sesame" not in b.engine.requests[0].head


@pytest.mark.parametrize("primed", [False, True], ids=["fresh", "reused"])
@on_both_loops
async def test_an_engine_that_dies_in_a_stream_is_an_error_event(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        if primed:
            assert (await client.ask(path=PATH, body=message())).status == 200
        b.engine.says(SSE_HEAD, chunk(b'event: message_start\ndata: {"type":"message_start"}\n\n'), close=True)
        response = await client.ask(path=PATH, body=message(stream=True))
        assert not response.complete
        last = response.body.split(b"\n\n")[-2]
        assert last.startswith(b"event: error\ndata: ")
        event = json.loads(last.partition(b"data: ")[2])
        assert (event["type"], event["error"]["type"]) == ("error", "api_error")
        await b.settled()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}', "too long"),
        (b"<html>", "no reason given"),
    ],
)
@on_both_loops
async def test_a_refusal_after_comments_is_an_event_in_its_shape(tmp_path: Path, answer: bytes, said: str) -> None:
    async with bench(tmp_path, ServerSettings(keepalive_after=0.02)) as b, await b.client() as client:
        b.instances.hold = True
        b.engine.says(plain(answer, 400))
        client.send(request(path=PATH, body=message(stream=True)))
        await client.head()
        await client.reader.readuntil(b": loading m")
        await until(lambda: b.scheduler.queued == 1, "it waits")
        b.instances.let_go()
        rest = await client.rest()
        event = json.loads(rest[rest.index(b"event: error\ndata: ") + 19 :].split(b"\n\n")[0])
        assert event["type"] == "error"
        assert said in event["error"]["message"]
