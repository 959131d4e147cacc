"""Answers have every field that OpenAI's published API says they have, whatever the engine leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, Sampling, ServerSettings
from accelerd.engines.base import Dialect
from accelerd.engines.llama_server.dialect import DIALECT
from accelerd.gateway.corrections import corrected_answer, correction_for
from accelerd.gateway.stream_events import event_of
from accelerd.gateway.whole_responses import repeated_of
from tests.gateway.bench import SSE_HEAD, Bench, Speaker, bench, chunk, on_both_loops, plain
from tests.gateway.client import CHAT

RESPONSES = "/v1/responses"
# What a response must have by the OpenAPI document of the Open Responses API, 2.3.0.
REQUIRED = {
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id"),
    *("instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p"),
    *(
        "presence_penalty",
        "frequency_penalty",
        "top_logprobs",
        "temperature",
        "reasoning",
        "usage",
        "max_output_tokens",
    ),
    *("max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key"),
}
USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
SAID = {"id": "resp_1", "object": "response", "created_at": 5, "status": "completed", "output": [], "usage": USAGE}
TOOL = {"type": "function", "name": "f"}
NOTHING_SET = Sampling()


def whole(asked: dict[str, Any], said: dict[str, Any], sampling: Sampling = NOTHING_SET) -> Any:
    repeated = repeated_of(json.dumps(asked).encode(), sampling, DIALECT)
    return json.loads(corrected_answer(RESPONSES, json.dumps({"model": "m", **said}).encode(), DIALECT, repeated))


def test_a_response_has_every_field_and_keeps_what_the_engine_says() -> None:
    found = whole({"input": "hi"}, {**SAID, "metadata": {"by": "engine"}})
    assert found.keys() >= REQUIRED
    assert found["usage"] == {
        **USAGE,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    assert (found["metadata"], found["created_at"], found["store"]) == ({"by": "engine"}, 5, False)
    assert (found["temperature"], found["top_p"]) == (0.8, 0.95)
    assert isinstance(found["completed_at"], int)


def test_a_response_repeats_what_was_asked_for() -> None:
    asked = {
        "input": "hi",
        "instructions": "be brief",
        "temperature": 0,
        "tools": [TOOL, {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "f"},
        "metadata": {"a": "b"},
        "reasoning": {"effort": "low"},
        "text": {"verbosity": "low"},
        "parallel_tool_calls": False,
        "max_output_tokens": None,
    }
    found = whole(asked, SAID, Sampling(temperature=0.3, top_p=0.5))
    assert {name: found[name] for name in ("instructions", "tool_choice", "metadata", "temperature", "top_p")} == {
        "instructions": "be brief",
        "tool_choice": {"type": "function", "name": "f"},
        "metadata": {"a": "b"},
        "temperature": 0,
        "top_p": 0.5,
    }
    assert found["tools"] == [{**TOOL, "description": None, "parameters": None, "strict": None}, {"type": "web_search"}]
    assert found["reasoning"] == {"effort": "low", "summary": None}
    assert found["text"] == {"format": {"type": "text"}, "verbosity": "low"}
    assert (found["parallel_tool_calls"], found["max_output_tokens"], found["status"]) == (False, None, "completed")


@pytest.mark.parametrize(
    "asked", [b"", b"[]", b"{", b'{"tools": 5, "text": "x", "reasoning": [1], "metadata": "\xff"}', b'{"tools":"f"}']
)
def test_a_request_that_nobody_can_read_spoils_no_answer(asked: bytes) -> None:
    repeated = repeated_of(asked, Sampling(), Dialect())
    assert json.loads(corrected_answer(RESPONSES, json.dumps(SAID).encode(), DIALECT, repeated))["id"] == "resp_1"
    assert corrected_answer(RESPONSES, b"<html>", DIALECT, repeated) == b"<html>"
    assert corrected_answer(RESPONSES, b'{"type":"message"}', DIALECT, None) == b'{"type":"message"}'


@pytest.mark.parametrize(("most", "status"), [(None, "completed"), (4, "completed"), (3, "incomplete")])
def test_an_answer_that_has_reached_its_limit_is_incomplete_plain_and_streamed(most: int | None, status: str) -> None:
    asked = {"input": "hi", "max_output_tokens": most}
    why = {"reason": "max_output_tokens"} if status == "incomplete" else None
    found = whole(asked, SAID)
    assert (found["status"], found["incomplete_details"]) == (status, why)
    assert (found["completed_at"] is None) == (why is not None)
    correction = correction_for(RESPONSES, "m", repeated=repeated_of(json.dumps(asked).encode(), Sampling(), DIALECT))
    assert correction is not None
    stream = correction.feed(event_of({"type": "response.completed", "response": SAID}, "response.completed"))
    name, data = stream.strip().split(b"\n")
    last = json.loads(data.removeprefix(b"data: "))
    assert name.decode() == f"event: response.{status}"
    assert (last["type"], last["response"]["status"]) == (f"response.{status}", status)
    assert last["response"].keys() >= REQUIRED


def choice(**message: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}).encode()


def test_chat_completions_of_every_engine_have_their_nullable_fields() -> None:
    found = json.loads(corrected_answer(CHAT, choice(role="assistant", tool_calls=[]), Dialect(), None))
    assert found["choices"][0]["logprobs"] is None
    assert found["choices"][0]["message"] == {"role": "assistant", "tool_calls": [], "content": None, "refusal": None}
    for body in (choice(refusal=None, text='"logprobs":'), b"null", b'{"choices":5}', b'{"choices":[[]]}', b"{"):
        said = corrected_answer(CHAT, body, Dialect(), None)
        assert said == body or json.loads(said)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("dialect", [DIALECT, Dialect()])
def test_probabilities_have_those_of_a_refusal(dialect: Dialect) -> None:
    body = (
        b'{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"a"},"logprobs":%b}]}'
    )
    found = json.loads(corrected_answer(CHAT, body % b'{"content":[]}', dialect, None))
    assert found["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    assert found["choices"][0]["message"]["refusal"] is None


# --- through the gateway ---------------------------------------------------------------------------------------------


async def ask(b: Bench, path: str, said: bytes, **body: Any) -> Any:
    async with await b.client() as client:
        b.engine.says(plain(said))
        return (await client.ask(path=path, body={"model": "m", **body})).json()


@on_both_loops
async def test_repair_can_be_switched_off(tmp_path: Path) -> None:
    hello = {"messages": [{"role": "user", "content": "hi"}]}
    for repair in ("auto", "off"):
        (folder := tmp_path / repair).mkdir()
        async with bench(folder, ServerSettings(repair=repair)) as b:  # type: ignore[arg-type]
            found = await ask(b, RESPONSES, json.dumps(SAID).encode(), input="hi", instructions="x")
            assert found == SAID if repair == "off" else found["instructions"] == "x"
            answer = choice(role="assistant", content="a")
            said = await ask(b, CHAT, answer, **hello)
            assert (said == json.loads(answer)) == (repair == "off")


def said(index: int, text: str) -> bytes:
    return event_of({"choices": [{"index": index, "delta": {"content": text}}], "id": "x"})


def used(tokens: int) -> bytes:
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    return event_of({"choices": [], "id": "x", "usage": usage})


@pytest.mark.parametrize("slots", [1, 4])
@on_both_loops
async def test_several_answers_in_one_stream_have_one_usage(tmp_path: Path, slots: int) -> None:
    """With a slot for each they are one stream of the engine's, with one slot a stream each."""
    speaker = Speaker()
    models = [ModelSpec("m", engine="flm", model="x", parallel=slots)]
    done = b"data: [DONE]\n\n"
    stream = said(0, "a") + used(2) + (said(1, "a") + used(2) if slots > 1 else b"") + done
    async with bench(tmp_path, models=models, others={"flm": speaker}) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, chunk(stream), b"0\r\n\r\n")
        more = {"messages": [{"role": "user", "content": "hi"}], "n": 2, "stream": True}
        got = await client.ask(path=CHAT, body={"model": "m", **more, "stream_options": {"include_usage": True}})
    *events, last = [one.removeprefix(b"data: ") for one in got.body.split(b"\n\n") if one]
    assert last == b"[DONE]"
    found = [json.loads(one) for one in events]
    assert [one["choices"][0]["delta"]["content"] for one in found[:-1]] == ["a", "a"]
    assert [one["choices"][0]["index"] for one in found[:-1]] == [0, 1]
    assert found[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
