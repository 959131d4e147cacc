"""Answers put together from a stream are the plain answers that a real llama-server gives to the same request.

The server is asked both ways; what differs between any two answers of it (ids, times, timings) is left out.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from accelerd.config.model import ModelSpec
from accelerd.gateway.stream_assembly import ask_for_stream, assemble
from tests.models import make_model
from tests.real.server import Connection, Reply, Server, real_engine, running

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "good day"}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "x",
        "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, HELLO),
    "chat-length": (CHAT, {**HELLO, "max_tokens": 5}),
    "chat-one-token": (CHAT, {**HELLO, "max_tokens": 1}),
    "chat-stop-word": (CHAT, {**HELLO, "stop": ["accelerd"]}),
    "chat-two": (CHAT, {**HELLO, "n": 2, "max_tokens": 6}),
    "chat-logprobs": (CHAT, {**HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 6}),
    "chat-usage-asked": (CHAT, {**HELLO, "stream_options": {"include_usage": False}, "stream": False}),
    "chat-system": (CHAT, {"messages": [{"role": "system", "content": "be kind"}, *HELLO["messages"]]}),
    "tools": (CHAT, {**HELLO, "tools": [TOOL]}),
    "tools-required": (CHAT, {**HELLO, "tools": [TOOL], "tool_choice": "required"}),
    "json-schema": (CHAT, {**HELLO, "response_format": SCHEMA, "max_tokens": 60}),
    "timings-per-token": (CHAT, {**HELLO, "timings_per_token": True}),
    "progress": (CHAT, {**HELLO, "return_progress": True}),
    "completion": (COMPLETION, {"prompt": "good day"}),
    "completion-length": (COMPLETION, {"prompt": "good day", "max_tokens": 5}),
    "completion-two": (COMPLETION, {"prompt": "good day", "n": 2, "max_tokens": 6}),
    "completion-logprobs": (COMPLETION, {"prompt": "good day", "logprobs": 2, "max_tokens": 6}),
    "completion-stop": (COMPLETION, {"prompt": "good day", "stop": [" "]}),
    "completion-empty": (COMPLETION, {"prompt": "", "max_tokens": 3}),
    "too-long": (CHAT, {"messages": [{"role": "user", "content": "x" * 9000}]}),
    "bad-parameter": (CHAT, {**HELLO, "temperature": "hot"}),
    "bad-messages": (CHAT, {"messages": "hello"}),
    "bad-tool": (CHAT, {**HELLO, "tools": [{"type": "function"}]}),
    "bad-grammar": (COMPLETION, {"prompt": "x", "grammar": "root ::= nonsense"}),
    "bad-schema": (
        CHAT,
        {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "zz"}}}},
    ),
}
CHANCE = ("id", "created", "timings")  # differs between any two answers
ONLY_STREAMED = ("prompt_progress",)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Reply, Reply]]:
    """Each request's plain answer, and its answer as a stream."""
    directory = tmp_path_factory.mktemp("assemble")
    model = make_model(directory / "models", reply="Hello from accelerd, this is a tiny model speaking.")
    spec = ModelSpec("tiny", path=str(model), context=2048, parallel=4, threads=1)
    found: dict[str, tuple[Reply, Reply]] = {}

    async def ask() -> None:
        async with running(real_engine(directory / "cache"), spec, directory) as server:
            for name, (path, body) in REQUESTS.items():
                raw = json.dumps({"model": "tiny", "seed": 1, "temperature": 0, "cache_prompt": False, **body}).encode()
                plain = await server.ask("POST", path, raw)
                found[name] = plain, await streamed(server, path, ask_for_stream(raw))

    asyncio.run(ask())
    return found


async def streamed(server: Server, path: str, body: bytes) -> Reply:
    connection = await Connection.open(server.plan.endpoint)
    try:
        return await connection.request("POST", path, server.plan.secret, body)
    finally:
        await connection.close()


def comparable(value: Any) -> Any:
    """Without what differs by chance; numbers of a probability with the digits that both ways of printing share."""
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if k not in CHANCE and k not in ONLY_STREAMED}
    if isinstance(value, list):
        return [comparable(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


@pytest.mark.parametrize("name", REQUESTS)
def test_put_together_is_what_the_engine_says_plainly(answers: dict[str, tuple[Reply, Reply]], name: str) -> None:
    plain, stream = answers[name]
    if stream.headers["content-type"].startswith("text/event-stream"):
        status, body = assemble(stream.body)
    else:
        status, body = stream.status, stream.body  # an error before the first token is passed on as it is
    assert status == plain.status, (plain.body, body)
    assert comparable(json.loads(body)) == comparable(plain.json())


def test_the_requests_do_what_they_are_here_for(answers: dict[str, tuple[Reply, Reply]]) -> None:
    def plain(name: str) -> Any:
        return answers[name][0].json()

    assert plain("chat")["choices"][0]["finish_reason"] == "stop"
    assert plain("chat-length")["choices"][0]["finish_reason"] == "length"
    assert len(plain("chat-two")["choices"]) == 2
    assert len(plain("chat-logprobs")["choices"][0]["logprobs"]["content"]) == 6
    assert plain("tools")["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert plain("too-long")["error"]["type"] == "exceed_context_size_error"
    assert {name for name, (reply, _) in answers.items() if reply.status != 200} >= {"too-long", "bad-messages"}
    streams = [n for n, (_, s) in answers.items() if s.headers["content-type"].startswith("text/event-stream")]
    assert len(streams) >= 16
