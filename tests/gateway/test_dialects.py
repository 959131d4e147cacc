"""Translation between OpenAI's chat, Anthropic's messages and Ollama's chat, against what engines have answered."""

from __future__ import annotations

import json
import re
from itertools import groupby, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelerd.base.errors import AccelError
from accelerd.gateway.dialects import translation
from accelerd.gateway.dialects.neutral import Answering
from accelerd.gateway.dialects.translation import (
    CHAT,
    MESSAGES,
    OLLAMA,
    TranslatedResponse,
    Translation,
    offered,
    translation_for,
)
from accelerd.gateway.response_framing import FramingError

RECORDED = Path(__file__).parent / "recorded"
STREAMS = {path.name: path.read_bytes() for path in sorted(RECORDED.iterdir()) if path.suffix in (".sse", ".ndjson")}
API = {"chat": CHAT, "messages": MESSAGES, "ollama": OLLAMA, "anthropic": MESSAGES}
PAIRS = list(permutations((CHAT, MESSAGES, OLLAMA), 2))  # client, engine
TO = Answering("m", 1000.0, lambda: 5.0, 4.0, 4.25, with_usage=True)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SLOW = [HealthCheck.too_slow]  # so are busy machines
CUTS = settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
ROUND_TRIPS = settings(max_examples=70, deadline=None, suppress_health_check=SLOW)
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def api_of(name: str) -> str:
    return API[name.partition("-")[0]]


def response(client: str, engine: str) -> TranslatedResponse:
    return TranslatedResponse(Translation(client, engine), TO)


def request(client: str, engine: str, body: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.loads(Translation(client, engine).request(data).body)


def translated(data: bytes, client: str, engine: str, *cuts: int) -> bytes:
    """A whole stream, cut at these places; ids that are made anew are all the same."""
    stream = response(client, engine).stream()
    ends = [*sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    written = b"".join([*map(stream.feed, pieces), stream.end()])
    return re.sub(rb"(chatcmpl-|msg_|call_)[0-9a-f]{24}", rb"\1new", written)


def events(data: bytes, path: str) -> list[Any]:
    if path == OLLAMA:
        return [json.loads(line) for line in data.splitlines()]
    found = re.findall(rb"^data: (.*)$", data, re.MULTILINE)
    return [one.decode() if one == b"[DONE]" else json.loads(one) for one in found]


def kind(event: Any, path: str) -> str:
    """What an event is, without what it says."""
    if path == MESSAGES:
        part = event.get("content_block") or event.get("delta") or {}
        return f"{event['type']} {part.get('type', '')} {part.get('stop_reason', '')} {event.get('index', '')}"
    if path == OLLAMA:
        message = {name for name, value in event["message"].items() if value}
        return f"{sorted(message)} {event['done']} {event.get('done_reason')}"
    if isinstance(event, str):
        return event
    if not event["choices"]:
        return f"usage {sorted(event['usage'])}"
    choice = event["choices"][0]
    delta = sorted(name for name, value in choice["delta"].items() if name == "role" or value)
    return f"{delta} {choice['finish_reason']}"


def kinds(data: bytes, path: str) -> list[str]:
    """Each once where it comes several times in a row: engines cut texts as they like."""
    return [one for one, _ in groupby(kind(event, path) for event in events(data, path))]


@pytest.mark.parametrize("what", ["text", "length", "tool", "thinking"])
@pytest.mark.parametrize(("client", "engine"), PAIRS)
def test_a_translated_stream_has_the_events_of_a_native_one(what: str, client: str, engine: str) -> None:
    files = {api_of(name): data for name, data in STREAMS.items() if name.partition("-")[2].startswith(f"{what}.")}
    found, native = kinds(translated(files[engine], client, engine), client), kinds(files[client], client)
    if what == "thinking" and client == MESSAGES:  # llama-server closes its blocks at the end, Anthropic one by one
        ends = ["content_block_delta signature_delta  0", "content_block_stop   0"]
        first, text = native.index(ends[0]), native.index("content_block_start text  1")
        native = [*native[:text], *native[first : first + 2], *native[text:first], *native[first + 2 :]]
    assert found == native


def test_thoughts_texts_and_calls_follow_each_other_as_anthropic_has_them() -> None:
    """There and back: over a chat completion nothing but the signature is lost."""
    native = STREAMS["anthropic-tools.sse"].replace(b'event: ping\ndata: {"type":"ping"}\n\n', b"")
    chat = translated(native, CHAT, MESSAGES)
    back = translated(chat, MESSAGES, CHAT)
    assert kinds(back, MESSAGES) == kinds(native, MESSAGES)
    said = {"thinking": "", "text": "", "partial_json": ""}
    for event in events(back, MESSAGES):
        for name in said:
            said[name] += event.get("delta", {}).get(name, "")
    assert said == {
        "thinking": "They ask for two cities.",
        "text": "Let me check the weather:",
        "partial_json": '{"city": "Paris"}{"city": "Rome"}',
    }
    (last,) = [event["usage"] for event in events(back, MESSAGES) if event["type"] == "message_delta"]
    assert (last["input_tokens"], last["output_tokens"]) == (472, 89)
    lines = events(translated(native, OLLAMA, MESSAGES), OLLAMA)
    calls = [call["function"] for line in lines for call in line["message"].get("tool_calls", ())]
    assert [(call["index"], call["arguments"]["city"]) for call in calls] == [(0, "Paris"), (1, "Rome")]


@pytest.mark.parametrize("name", STREAMS)
@CUTS
@given(data=st.data())
def test_where_a_stream_is_cut_makes_no_difference(name: str, data: st.DataObject) -> None:
    stream, engine = STREAMS[name], api_of(name)
    if data.draw(st.booleans(), "carriage returns"):
        stream = stream.replace(b"\n", b"\r\n")
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12), "cuts")
    for client in {CHAT, MESSAGES, OLLAMA} - {engine}:
        assert translated(stream, client, engine, *cuts) == translated(STREAMS[name], client, engine)


@pytest.mark.parametrize("name", ["chat-tool.sse", "messages-tool.sse", "ollama-tool.ndjson", "chat-thinking.sse"])
def test_byte_by_byte_it_is_the_same(name: str) -> None:
    stream, engine = STREAMS[name], api_of(name)
    for client in {CHAT, MESSAGES, OLLAMA} - {engine}:
        assert translated(stream, client, engine, *range(len(stream))) == translated(stream, client, engine)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_breaks_off_is_no_answer(name: str) -> None:
    stream, engine = STREAMS[name], api_of(name)
    marks = {CHAT: b'"finish_reason":"', MESSAGES: b'"stop_reason":"', OLLAMA: b'"done":true'}
    enough = stream.rindex(marks[engine])  # from here on the model has said why it stops
    for client in {CHAT, MESSAGES, OLLAMA} - {engine}:
        for length in range(0, enough, 7):
            with pytest.raises(FramingError):
                translated(stream[:length], client, engine)


def called(message: Any) -> list[Any]:
    """The tools that a message of OpenAI's or Ollama's calls, with their arguments."""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    arguments = [one["arguments"] for one in functions]
    decoded = [json.loads(one) if isinstance(one, str) else one for one in arguments]
    return list(zip([one["name"] for one in functions], decoded, strict=True))


@pytest.mark.parametrize("what", ["text", "tool", "thinking"])
@pytest.mark.parametrize(("client", "engine"), PAIRS)
def test_a_whole_answer_says_what_the_native_one_says(what: str, client: str, engine: str) -> None:
    files = {api_of(path.name): path.read_bytes() for path in RECORDED.glob(f"*-{what}.json")}
    found, native = json.loads(response(client, engine).answer(files[engine])), json.loads(files[client])
    assert found["model"] == "m"
    if client == CHAT:
        message, expected = found["choices"][0]["message"], native["choices"][0]["message"]
        assert found["choices"][0]["finish_reason"] == native["choices"][0]["finish_reason"]
        assert (message["content"] or "") == expected["content"]
        assert message.get("reasoning_content") == expected.get("reasoning_content")
        assert called(message) == called(expected)
    elif client == MESSAGES:
        drop = {"id": None, "signature": None}
        assert [{**block, **drop} for block in found["content"]] == [{**block, **drop} for block in native["content"]]
        assert (found["stop_reason"], found["type"]) == (native["stop_reason"], "message")
    else:
        assert called(found["message"]) == called(native["message"])
        for name in ("role", "content", "thinking"):
            assert found["message"].get(name) == native["message"].get(name)
        assert set(native) == set(found)


def test_usage_counts_what_was_cached_as_each_api_does() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 60}}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    answer = json.dumps({"id": "1", "choices": [choice], "usage": usage}).encode()
    message = json.loads(response(MESSAGES, CHAT).answer(answer))
    assert (message["usage"]["input_tokens"], message["usage"]["cache_read_input_tokens"]) == (40, 60)
    back = json.loads(response(CHAT, MESSAGES).answer(json.dumps(message).encode()))
    assert back["usage"] == {**usage, "total_tokens": 107}
    line = json.loads(response(OLLAMA, CHAT).answer(answer))
    assert (line["prompt_eval_count"], line["eval_count"], line["total_duration"]) == (100, 7, 1_000_000_000)
    assert (line["load_duration"], line["eval_duration"]) == (250_000_000, 750_000_000)


def test_ollamas_durations_are_those_of_waiting_of_the_prompt_and_of_the_answer() -> None:
    clock = iter([5.0, 5.0, *[8.0] * 20])  # its turn came 1 s after it was received
    to = Answering("m", 1000.0, lambda: next(clock), 2.0, 3.0)
    stream = TranslatedResponse(Translation(OLLAMA, CHAT), to).stream()
    last = events(stream.feed(STREAMS["chat-length.sse"]), OLLAMA)[-1]
    names = ("load_duration", "prompt_eval_duration", "eval_duration", "total_duration")
    assert [last[name] / 1e9 for name in names] == [1, 2, 3, 6]


# --- requests that go there and back ---------------------------------------------------------------------------------

texts = st.text(min_size=1, max_size=20)
ids = st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True)
objects = st.dictionaries(texts, st.integers(-5, 5) | texts | st.booleans(), max_size=3)
urls = st.sampled_from([f"data:image/png;base64,{PIXEL}", "https://example.com/a.png"])
shown = st.builds(lambda text: {"type": "text", "text": text}, texts)
seen = st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, urls)
user = st.builds(
    lambda content: {"role": "user", "content": content}, texts | st.lists(shown | seen, min_size=2, max_size=4)
)


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """One of the user, one of the assistant, and what the tools that it has called have returned."""
    said: dict[str, Any] = {"role": "assistant", "content": draw(texts)}
    calls = draw(st.lists(ids, max_size=3, unique=True))
    if not calls:
        return [draw(user), said]
    said["tool_calls"] = [
        {"id": one, "type": "function", "function": {"name": draw(ids), "arguments": compact(draw(objects))}}
        for one in calls
    ]
    said["content"] = draw(st.none() | texts)
    return [draw(user), said, *({"role": "tool", "tool_call_id": one, "content": draw(texts)} for one in calls)]


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@st.composite
def chats(draw: st.DrawFn) -> dict[str, Any]:
    """Requests of OpenAI's chat that all three APIs can express."""
    system = draw(st.lists(st.builds(lambda text: {"role": "system", "content": text}, texts), max_size=1))
    body: dict[str, Any] = {
        "model": draw(texts),
        "messages": [*system, *(one for turn in draw(st.lists(turns(), max_size=3)) for one in turn), draw(user)],
        "max_tokens": draw(st.integers(1, 5000)),
    }
    optional: dict[str, st.SearchStrategy[Any]] = {
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(1, 100),
        "stop": st.lists(texts, min_size=1, max_size=3),
        "tools": st.lists(tools, min_size=1, max_size=3),
        "reasoning_effort": st.just("none"),
        "response_format": st.sampled_from([
            {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "answer", "schema": WEATHER}}
        ]),
    }  # fmt: skip
    body |= {name: draw(value) for name, value in optional.items() if draw(st.booleans())}
    if draw(st.booleans()):
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


tools = st.builds(
    lambda name, text: {"type": "function", "function": {"name": name, "description": text, "parameters": WEATHER}},
    ids,
    texts,
)
choices = st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}])


@ROUND_TRIPS
@given(chats(), choices, st.none() | st.booleans())
def test_a_chat_that_becomes_messages_and_a_chat_again_is_the_same(
    body: dict[str, Any], choice: Any, parallel: bool | None
) -> None:
    if "tools" in body:
        body["tool_choice"] = choice
        if parallel is not None and choice != "none":
            body["parallel_tool_calls"] = parallel
    assert request(MESSAGES, CHAT, request(CHAT, MESSAGES, body)) == body


@ROUND_TRIPS
@given(chats())
def test_a_chat_that_becomes_ollamas_and_a_chat_again_is_the_same(body: dict[str, Any]) -> None:
    """But for where in a message its images are, and that they are none of its own."""
    for message in body["messages"]:
        if isinstance(message["content"], list):
            message["content"] = message["content"][0].get("text", "an image")
    assert request(OLLAMA, CHAT, request(CHAT, OLLAMA, body)) == body


@ROUND_TRIPS
@given(chats())
def test_messages_that_become_a_chat_and_messages_again_are_the_same(body: dict[str, Any]) -> None:
    messages = request(CHAT, MESSAGES, body)
    assert request(CHAT, MESSAGES, request(MESSAGES, CHAT, messages)) == messages


# --- single matters --------------------------------------------------------------------------------------------------


def test_a_conversation_of_anthropics_with_tools_becomes_openais() -> None:
    body = {
        "model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"city": "Paris"}}]},
            {"role": "user", "content": [
                {"type": "text", "text": "and?"},
                {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": [
                    {"type": "text", "text": "rain"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}]}]}],
        "tools": [{"name": "f", "input_schema": WEATHER, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "metadata": {"user_id": "me"}, "stop_sequences": ["END"],
    }  # fmt: skip
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"city":"Paris"}'}}
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    assert request(MESSAGES, CHAT, body) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "a\n\nb"},
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": "Let me look.", "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "t1", "content": [{"type": "text", "text": "rain"}, image]},
            {"role": "user", "content": "and?"},
        ],
        "max_tokens": 9,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": WEATHER}}],
        "tool_choice": "required",
        "stop": ["END"],
        "parallel_tool_calls": False,
        "user": "me",
    }


def test_ollamas_results_find_their_calls_without_ids() -> None:
    body = {
        "model": "m", "think": True, "format": "json", "keep_alive": "5m",
        "options": {"num_ctx": 4096, "num_predict": -1},
        "messages": [
            {"role": "user", "content": "both?", "images": [PIXEL]},
            {"role": "assistant", "content": "", "tool_calls": [
                {"function": {"name": "f", "arguments": {"n": 1}}}, {"function": {"name": "g", "arguments": {}}},
                {"function": {"name": "f", "arguments": {"n": 2}}}]},
            {"role": "tool", "content": "of g", "tool_name": "g"},
            {"role": "tool", "content": "of f", "tool_name": "f"},
            {"role": "tool", "content": "of the last"},
            {"role": "tool", "content": "of nothing", "tool_name": "h"},
        ],
    }  # fmt: skip
    found = request(OLLAMA, CHAT, body)
    ids = [call["id"] for call in found["messages"][1]["tool_calls"]]
    assert len(set(ids)) == 3
    results = {one["content"]: one["tool_call_id"] for one in found["messages"] if one["role"] == "tool"}
    assert results == {"of g": ids[1], "of f": ids[0], "of the last": ids[2], "of nothing": "call_h"}
    assert found["messages"][0]["content"][0] == {
        "type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}
    }  # fmt: skip
    assert (found["stream"], found["response_format"]) == (True, {"type": "json_object"})
    assert (found["reasoning_effort"], "max_tokens" in found) == ("medium", False)


@pytest.mark.parametrize(
    ("client", "engine", "body", "param"),
    [
        (CHAT, MESSAGES, {"n": 2}, "n"),
        (CHAT, OLLAMA, {"logprobs": True}, "logprobs"),
        (CHAT, MESSAGES, {"tools": [{"type": "custom", "custom": {}}]}, "tools[0]"),
        (CHAT, MESSAGES, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content"),
        (CHAT, OLLAMA, {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}]}, "messages"),
        (MESSAGES, CHAT, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        (MESSAGES, CHAT, {"messages": [{"role": "user", "content": [{"type": "document", "source": {
            "type": "base64", "data": "x"}}]}]}, "messages[0].content"),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_is_refused(client: str, engine: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(AccelError) as error:
        request(client, engine, {"model": "m", "messages": [], **body})
    assert (error.value.code, error.value.param) == ("not_supported_by_model", param)


@pytest.mark.parametrize(
    ("client", "body", "param"),
    [
        (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [], "tool_choice": "perhaps"}, "tool_choice"),
        (CHAT, {"messages": [], "temperature": "hot"}, "temperature"),
        (MESSAGES, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (MESSAGES, {"messages": [], "tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
        (OLLAMA, {"messages": [{"role": "robot" * 1000, "content": "x"}]}, "messages[0].role"),
        (OLLAMA, {"messages": [], "options": {"seed": "x"}}, "options.seed"),
    ],
)
def test_what_is_not_valid_is_refused(client: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(AccelError) as error:
        request(client, CHAT if client != CHAT else MESSAGES, body)
    assert (error.value.code, error.value.param) == ("bad_request", param)
    assert len(error.value.message) < 200


@pytest.mark.parametrize(
    ("client", "asked", "engine", "expected"),
    [
        (CHAT, {"reasoning_effort": "none"}, MESSAGES, {"thinking": {"type": "disabled"}}),
        (CHAT, {"reasoning_effort": "low"}, MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        (CHAT, {"reasoning_effort": "high"}, OLLAMA, {"think": "high"}),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, OLLAMA, {"think": False}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 2000}}, CHAT, {"reasoning_effort": "low"}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 20000}}, CHAT, {"reasoning_effort": "high"}),
        (MESSAGES, {"thinking": {"type": "disabled"}}, CHAT, {"reasoning_effort": "none"}),
        (MESSAGES, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, CHAT,
         {"reasoning_effort": "high"}),
        (MESSAGES, {"thinking": {"type": "adaptive"}}, OLLAMA, {"think": True}),
        (OLLAMA, {"think": False}, CHAT, {"reasoning_effort": "none"}),
        (OLLAMA, {"think": "high"}, CHAT, {"reasoning_effort": "high"}),
        (OLLAMA, {"think": True}, MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 8192}}),
    ],
)  # fmt: skip
def test_whether_to_think_is_said_in_each_apis_words(
    client: str, asked: dict[str, Any], engine: str, expected: dict[str, Any]
) -> None:
    found = request(client, engine, {"model": "m", "messages": [{"role": "user", "content": "hi"}], **asked})
    words = ("thinking", "reasoning_effort", "think", "chat_template_kwargs")
    assert {name: value for name, value in found.items() if name in words} == expected


def test_anthropic_is_asked_to_think_only_where_it_takes_that() -> None:
    hello = {"role": "user", "content": "hi"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = [hello, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "x"}]
    for more in ({"messages": called}, {"tool_choice": "required"}, {"max_tokens": 1500}):
        found = request(CHAT, MESSAGES, {"messages": [hello], "reasoning_effort": "high", **more})
        assert "thinking" not in found
    found = request(CHAT, MESSAGES, {"messages": [hello], "reasoning_effort": "high", "temperature": 0.2})
    assert (found["thinking"]["budget_tokens"], "temperature" in found, found["max_tokens"]) == (16384, False, 24576)


@pytest.mark.parametrize(
    ("engine", "data"),
    [
        (CHAT, b"data: {\n\n"),
        (CHAT, b"data: []\n\n"),
        (CHAT, b'data: {"choices":[{"delta":{"content":5}}]}\n\n'),
        (CHAT, b'data: {"choices":[{"delta":{"tool_calls":[{"index":3,"id":"a"}]}}]}\n\n'),
        (CHAT, b"data: " + b"[" * 100_000 + b"\n\n"),
        (CHAT, b'data: "\xff"\n\n'),
        (MESSAGES, b'data: {"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta",'
                   b'"partial_json":"{"}}\n\n'),
        (MESSAGES, b'data: {"type":"message_start","message":5}\n\n'),
        (OLLAMA, b"data: {}\n"),
        (OLLAMA, b'{"message":{"content":["x"]}}\n'),
    ],
)  # fmt: skip
def test_what_is_no_event_of_the_api_is_an_error(engine: str, data: bytes) -> None:
    for client in {CHAT, MESSAGES, OLLAMA} - {engine}:
        with pytest.raises(FramingError):
            response(client, engine).stream().feed(data)


def test_anthropic_gets_no_message_without_content() -> None:
    messages = [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "reasoning_content": "unsigned"},
        {"role": "user", "content": "again"},
    ]  # fmt: skip
    found = request(CHAT, MESSAGES, {"messages": messages})["messages"]
    assert [one["content"] for one in found] == ["hi", "again"]


@pytest.mark.parametrize(
    ("code", "kind"), [(503, "overloaded_error"), (400, "invalid_request_error"), ("x", "api_error")]
)
def test_an_error_in_a_stream_has_a_type_of_anthropics(code: Any, kind: str) -> None:
    error = {"error": {"code": code, "message": "it broke", "type": "server_error"}}
    (event,) = events(response(MESSAGES, CHAT).stream().feed(b"data: %b\n\n" % json.dumps(error).encode()), MESSAGES)
    assert (event["type"], event["error"]["type"], event["error"]["message"]) == ("error", kind, "it broke")


def test_calls_that_are_mixed_cannot_be_said_in_blocks() -> None:
    calls = [
        {"index": 0, "id": "a", "function": {"name": "f"}}, {"index": 1, "id": "b", "function": {"name": "g"}},
        {"index": 0, "function": {"arguments": "{}"}},
    ]  # fmt: skip
    data = b"".join(b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"tool_calls": [c]}}]}).encode() for c in calls)
    with pytest.raises(FramingError, match="several tool calls at once"):
        response(MESSAGES, CHAT).stream().feed(data)
    stream = response(OLLAMA, CHAT).stream()
    assert stream.feed(data) == b""  # they are kept until they are whole
    ended = events(stream.feed(b'data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}\n\n'), OLLAMA)
    assert [one["message"]["tool_calls"][0]["function"]["name"] for one in ended] == ["f", "g"]


def test_a_call_that_was_complete_gets_no_more_arguments() -> None:
    deltas = [
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]},
        {"content": "so"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
    ]
    data = b"".join(b"data: %b\n\n" % json.dumps({"choices": [{"delta": delta}]}).encode() for delta in deltas)
    for client in (MESSAGES, OLLAMA):
        with pytest.raises(FramingError):
            response(client, CHAT).stream().feed(data)


@pytest.mark.parametrize("engine", [CHAT, MESSAGES, OLLAMA])
@pytest.mark.parametrize("data", [b"x", b"data: x\n"])
def test_no_event_is_collected_without_an_end(engine: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "MAX_EVENT", 1000)
    for client in {CHAT, MESSAGES, OLLAMA} - {engine}:
        stream = response(client, engine).stream()
        with pytest.raises(FramingError):
            list(map(stream.feed, [data] * 1001))


@pytest.mark.parametrize(
    ("engine", "data"),
    [
        (CHAT, b'data: {"error":{"message":"it broke","type":"server_error"}}\n\n'),
        (MESSAGES, b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"it broke"}}\n\n'),
        (OLLAMA, b'{"error":"it broke"}\n'),
    ],
)
def test_an_error_of_the_engine_is_the_last_event(engine: str, data: bytes) -> None:
    for client in {CHAT, MESSAGES, OLLAMA} - {engine}:
        stream = response(client, engine).stream()
        (event,) = events(stream.feed(data + data), client)
        error = event["error"]
        assert (error if client == OLLAMA else error["message"]) == "it broke"
        assert stream.end() == b""


def test_usage_is_sent_only_to_those_who_ask_for_it() -> None:
    to = Answering("m", 1000.0, lambda: 5.0, 4.0, 4.0)
    stream = TranslatedResponse(Translation(CHAT, MESSAGES), to).stream()
    found = events(stream.feed(STREAMS["messages-text.sse"]), CHAT)
    assert not any("usage" in event for event in found if isinstance(event, dict))
    for asked in (False, True):
        body = {"messages": [], "stream_options": {"include_usage": asked}}
        assert Translation(CHAT, MESSAGES).request(json.dumps(body).encode()).with_usage is asked


def test_native_stays_native_and_the_closest_is_chosen() -> None:
    assert translation_for(CHAT, {"chat"}) is None
    assert translation_for("/v1/embeddings", {"chat"}) is None
    assert translation_for("/v1/messages/count_tokens", {"chat"}) is None
    assert translation_for(CHAT, {"embeddings"}) is None
    assert translation_for(MESSAGES, {"chat", "ollama"}) == Translation(MESSAGES, CHAT)
    assert translation_for(OLLAMA, {"messages", "chat"}) == Translation(OLLAMA, CHAT)
    assert translation_for(CHAT, {"ollama"}) == Translation(CHAT, OLLAMA)
    assert offered(frozenset({"messages"})) >= {"chat", "messages"}
    assert offered(frozenset({"embeddings"})) == {"embeddings"}
