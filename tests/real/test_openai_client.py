"""OpenAI's own Python client against accelerd with a real llama-server: what users' programs do on their first day."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.harness import Daemon, DaemonFactory, dummy_gguf, fake_model
from tests.models import SHORT_REPLY, make_model

HELLO: list[Any] = [{"role": "user", "content": "good day"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "the weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
MANY = 20


@pytest.fixture(scope="module")
def daemon(llama_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With a chat model of four slots, an embedding model, and models that fail."""
    directory = tmp_path_factory.mktemp("openai")
    chat = make_model(directory / "models", reply=SHORT_REPLY)
    embed = make_model(directory / "models", kind="embed")
    dummy = dummy_gguf(directory)
    toml = f"""
[engines.llama-server]
binary = {json.dumps(llama_server)}

[defaults]
threads = 1

[models.chat]
path = {json.dumps(str(chat))}
context = 2048
parallel = 4
aliases = ["gpt-4o-mini", "org/chat"]

[models.one]
path = {json.dumps(str(chat))}
context = 2048
parallel = 1

[models.embed]
path = {json.dumps(str(embed))}
context = 256
embeddings = true
"""
    toml += fake_model("broken", dummy, mode="exit:3")
    toml += fake_model("dies", dummy, mode="cut-mid-stream")
    with DaemonFactory(directory) as factory:
        yield factory.start(toml + "\n[scheduler]\nmax_failures = 1\n", server="keepalive_after = 0.2")


@pytest.fixture
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=daemon.url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


# --- what works -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["chat", "one", "gpt-4o-mini", "org/chat"])
def test_chat(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO)
    assert answer.choices[0].message.content == SHORT_REPLY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == model, "as the client calls it"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("model", ["chat", "one"])
def test_streamed_chat(client: OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SHORT_REPLY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert len(chunks) > 5


@pytest.mark.parametrize("model", ["chat", "one"])
def test_completion(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="good day", max_tokens=5)
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    pieces = [
        c.choices[0].text for c in client.completions.create(model=model, prompt="good day", max_tokens=5, stream=True)
    ]
    assert "".join(pieces) == answer.choices[0].text


def test_embeddings(client: OpenAI) -> None:
    answer = client.embeddings.create(model="embed", input=["one", "another text"])
    assert len(answer.data) == 2
    assert len(answer.data[0].embedding) == len(answer.data[1].embedding) > 10
    assert answer.data[0].embedding != answer.data[1].embedding
    floats = client.embeddings.create(model="embed", input="one", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-5)


@pytest.mark.parametrize("model", ["chat", "one"])
def test_a_whole_tool_loop(client: OpenAI, model: str) -> None:
    messages = [*HELLO]
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert answer.choices[0].finish_reason == "tool_calls"
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_streamed_tools(client: OpenAI) -> None:
    name, arguments = "", ""
    for chunk in client.chat.completions.create(model="chat", messages=HELLO, tools=TOOLS, stream=True):
        for call in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Paris"})


@pytest.mark.parametrize("model", ["chat", "one"])
def test_responses_as_they_are_made(client: OpenAI, model: str) -> None:
    """The SDK puts together what it hears, and refuses a stream that lacks a field which it needs."""
    with client.responses.stream(model=model, input="good day") as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert answer.output_text == SHORT_REPLY
    tool: Any = {"type": "function", "strict": False, **TOOLS[0]["function"]}
    with client.responses.stream(model=model, input="weather?", tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        (call,) = stream.get_final_response().output
    assert "response.function_call_arguments.done" in kinds
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Paris"}


def test_a_conversation_that_is_too_long_is_one(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="`context` for chat") as caught:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "x" * 20_000}])
    assert caught.value.code == "context_length_exceeded"


def test_tokens_of_an_input(client: OpenAI) -> None:
    assert client.responses.input_tokens.count(model="chat", input="good day").input_tokens > 5


def test_several_prompts_at_once(client: OpenAI) -> None:
    answer = client.completions.create(model="chat", prompt=["a", "b", "c"], max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for model in ("chat", "one"):
        texts = {0: "", 1: ""}
        for part in client.completions.create(model=model, prompt=["a", "b"], max_tokens=4, stream=True):
            texts[part.choices[0].index] += part.choices[0].text
        assert texts[0] == texts[1] == answer.choices[0].text


def test_a_client_without_v1(daemon: Daemon) -> None:
    with OpenAI(base_url=daemon.url.removesuffix("/v1"), api_key="unused", max_retries=0) as client:
        assert client.chat.completions.create(model="chat", messages=HELLO).choices[0].message.content == SHORT_REPLY
        assert client.completions.create(model="chat", prompt="a", max_tokens=3).choices[0].text
        assert client.responses.create(model="chat", input="good day").output_text == SHORT_REPLY
        assert len(client.embeddings.create(model="embed", input=["a", "b"]).data) == 2


def test_several_choices_logprobs_and_a_schema(client: OpenAI) -> None:
    two = client.chat.completions.create(model="chat", messages=HELLO, n=2, max_tokens=4)
    assert [c.index for c in two.choices] == [0, 1]
    logs = client.chat.completions.create(model="chat", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=4)
    assert logs.choices[0].logprobs is not None
    assert len(logs.choices[0].logprobs.content or ()) == 4
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}}},
    }
    shaped = client.chat.completions.create(model="chat", messages=HELLO, response_format=schema, max_tokens=80)
    assert (shaped.choices[0].message.content or "").lstrip().startswith("{")


def test_models(client: OpenAI) -> None:
    assert {m.id for m in client.models.list()} == {"chat", "one", "embed", "broken", "dies"}
    assert client.models.retrieve("chat").id == "chat"
    assert client.models.retrieve("org/chat").id == "chat"


def test_raw_response_says_which_model_answered(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="org/chat", messages=HELLO, max_tokens=1)
    assert raw.headers["x-accelerd-model"] == "chat"


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    for stream in (True, False):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="gpt-5", messages=HELLO, stream=stream)
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"
        assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")
    with pytest.raises(openai.NotFoundError):
        client.moderations.create(input="x")


def test_bad_requests(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="chat", messages=[])
    for stream in (True, False):
        with pytest.raises(openai.BadRequestError, match="context"):
            client.chat.completions.create(
                model="chat", messages=[{"role": "user", "content": "x" * 20_000}], stream=stream
            )


def test_a_model_that_cannot_start_is_not_tried_again(daemon: Daemon) -> None:
    """The client would repeat it twice."""
    with OpenAI(base_url=daemon.url, api_key="unused", max_retries=5) as client:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="broken") as caught:
                client.chat.completions.create(model="broken", messages=HELLO)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_stream_that_breaks_off_raises(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="dies", messages=HELLO, stream=True)
    assert next(stream).choices
    with pytest.raises(openai.APIError, match="engine failed"):
        list(stream)


def test_a_plain_answer_that_breaks_off_raises(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="dies", messages=HELLO)
    assert caught.value.status_code == 502


def test_who_waits_too_long_hears_so_in_either_way(daemons: DaemonFactory, tmp_path: Path) -> None:
    """In a stream the head is out by then: the error comes as an event, after comments that the client skips."""
    toml = fake_model("busy", dummy_gguf(tmp_path), mode="slow-load:60") + "[scheduler]\nqueue_timeout = 0.5\n"
    daemon = daemons.start(toml, server="keepalive_after = 0.1")
    with OpenAI(base_url=daemon.url, api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="busy", messages=HELLO)
        assert caught.value.code == "queue_timeout"
        stream = client.chat.completions.create(model="busy", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError) as late:
            list(stream)
        assert late.value.code == "queue_timeout"


# --- many at once ---------------------------------------------------------------------------------------------------


def test_many_streams_at_once(daemon: Daemon) -> None:
    async def one(client: AsyncOpenAI, index: int) -> str:
        text = ""
        stream = await client.chat.completions.create(
            model=("chat", "one")[index % 2], messages=[{"role": "user", "content": f"number {index}"}], stream=True
        )
        async for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
        return text

    async def scenario() -> None:
        async with AsyncOpenAI(base_url=daemon.url, api_key="unused", max_retries=0) as client:
            async with asyncio.timeout(60):
                texts = await asyncio.gather(*(one(client, i) for i in range(MANY)))
            assert texts == [SHORT_REPLY] * MANY
            plain = await asyncio.gather(
                *(client.chat.completions.create(model="chat", messages=HELLO) for _ in range(MANY))
            )
            assert {p.choices[0].message.content for p in plain} == {SHORT_REPLY}

    asyncio.run(scenario())


def test_a_stream_that_is_not_read_to_its_end_is_given_up(daemon: Daemon, client: OpenAI, tmp_path: Path) -> None:
    for _ in range(8):
        with client.chat.completions.create(
            model="one", messages=HELLO, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
        ) as stream:
            next(iter(stream))
    answer = client.chat.completions.create(model="one", messages=HELLO, timeout=10)
    assert answer.choices[0].message.content == SHORT_REPLY
