"""Putting a stream together, where no engine is needed to know what is right.

The comparison with a real one's own plain answers is in tests/real/test_assemble.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.base.errors import AccelError
from accelerd.gateway.stream_assembly import UNLIKE, ask_for_stream, assemble

DONE = b"data: [DONE]\n\n"


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "finish_reason": finish, "delta": fields}
    return {"choices": [choice], "object": "chat.completion.chunk", "id": "x", "created": 1, "model": "m"}


def whole(*events: Any) -> Any:
    status, body = assemble(sse(*events) + DONE)
    assert status == 200
    return json.loads(body)


# --- asking ---------------------------------------------------------------------------------------------------------


def test_only_stream_and_its_options_are_changed() -> None:
    body = b'{"model":"m", "seed": 1e2, "x":{"b":1,  "a":2}, "big": 12345678901234567890123, "stream":false, "n": null}'
    asked = ask_for_stream(body)
    assert asked is not None
    assert b'{"b":1,  "a":2}' in asked
    assert b'"seed":1e2' in asked
    assert b"12345678901234567890123" in asked
    assert json.loads(asked) == {
        **json.loads(body),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


TOLD_APART = (*UNLIKE, "return_progress")


@given(
    st.dictionaries(
        st.text().filter(lambda name: name not in TOLD_APART),
        st.none() | st.integers() | st.text() | st.lists(st.text()),
        max_size=6,
    )
)
def test_any_request_is_asked_for_as_a_stream(fields: dict[str, Any]) -> None:
    expected = {**fields, "stream": True, "stream_options": {"include_usage": True}}
    assert json.loads(ask_for_stream(json.dumps(fields).encode()) or b"") == expected


@pytest.mark.parametrize(
    ("fields", "streamed"),
    [
        ({}, True),
        ({"logprobs": True}, False),
        ({"logprobs": 2}, False),
        ({"logprobs": False, "tools": [], "verbose": None, "n_probs": 0}, True),
        ({"tools": [{"type": "function"}]}, False),
        ({"verbose": True}, False),
        ({"continue_final_message": True}, False),
        ({"reasoning_format": "none"}, False),
        ({"n": 2, "prompt": ["a", "b"]}, True),
    ],
)
def test_what_a_stream_has_not_is_asked_for_plainly(fields: dict[str, Any], streamed: bool) -> None:
    assert (ask_for_stream(json.dumps({"model": "m", **fields}).encode()) is not None) == streamed


def test_progress_is_not_asked_for() -> None:
    assert b"return_progress" not in (ask_for_stream(b'{"model":"m","return_progress":true}') or b"return_progress")


# --- putting together -----------------------------------------------------------------------------------------------


def test_text_is_joined_and_the_frame_kept() -> None:
    usage = {"choices": [], "usage": {"total_tokens": 3}, "timings": {"x": 1.5}}
    answer = whole(
        delta(role="assistant", content=None), delta(content="a"), delta(content="b"), delta(finish="stop"), usage
    )
    assert answer["object"] == "chat.completion"
    assert answer["usage"] == {"total_tokens": 3}
    assert answer["timings"] == {"x": 1.5}
    assert (answer["id"], answer["created"], answer["model"]) == ("x", 1, "m")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "ab"}
    assert choice["finish_reason"] == "stop"


def test_choices_are_told_apart_and_sorted() -> None:
    answer = whole(delta(1, content="b"), delta(0, content="a"), delta(1, content="B"), delta(0, content="A"))
    assert [c["message"]["content"] for c in answer["choices"]] == ["aA", "bB"]
    assert [c["index"] for c in answer["choices"]] == [0, 1]


def test_tool_calls_come_in_pieces() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function}

    answer = whole(
        delta(tool_calls=[{**call(0, name="f", arguments=""), "id": "1", "type": "function"}]),
        delta(tool_calls=[call(0, arguments='{"a":')]),
        delta(tool_calls=[{**call(1, name="g", arguments="{}"), "id": "2"}, call(0, arguments="1}")]),
        delta(finish="tool_calls"),
    )
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [
        {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"type": "function", "id": "2", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_thoughts_are_joined_too() -> None:
    answer = whole(delta(reasoning_content="hm "), delta(reasoning_content="yes"), delta(content="42"))
    assert answer["choices"][0]["message"]["reasoning_content"] == "hm yes"


def test_logprobs_are_put_one_after_the_other() -> None:
    events = [{**delta(content=c)} for c in "ab"]
    for index, event in enumerate(events):
        event["choices"][0]["logprobs"] = {"content": [{"token": "ab"[index]}], "refusal": None}
    logprobs = whole(*events)["choices"][0]["logprobs"]
    assert [t["token"] for t in logprobs["content"]] == ["a", "b"]


def test_comments_names_and_carriage_returns_do_not_matter() -> None:
    stream = (
        b": ping\r\n\r\nevent: x\r\nid: 1\r\n"
        + sse(delta(content="a")).replace(b"\n", b"\r\n")
        + b"data:[DONE]\r\n\r\n"
    )
    status, body = assemble(stream)
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"] == "a"


@given(st.lists(st.text(max_size=12), min_size=1, max_size=12))
def test_the_text_is_the_sum_of_its_pieces(pieces: list[str]) -> None:
    assert whole(*[delta(content=p) for p in pieces])["choices"][0]["message"]["content"] == "".join(pieces)
    texts = [{"choices": [{"index": 0, "text": p, "finish_reason": None}], "object": "text_completion"} for p in pieces]
    answer = whole(*texts)
    assert answer["choices"][0]["text"] == "".join(pieces)
    assert answer["object"] == "text_completion"


def test_usage_is_that_of_the_first_choice() -> None:
    """Whichever ends first. In a chat's stream it is in an event without choices, after the choice's last."""

    def usage(tokens: int) -> dict[str, Any]:
        return {"choices": [], "usage": {"completion_tokens": tokens}}

    first = [delta(0, content="a"), delta(0, finish="stop"), usage(1)]
    second = [delta(1, content="b"), delta(1, finish="length"), usage(7)]
    for events in (first + second, second + first, [first[0], *second, *first[1:]]):
        answer = whole(*events)
        assert answer["usage"] == {"completion_tokens": 1}
        assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]


@pytest.mark.parametrize("at", range(4))
def test_events_without_anything_and_of_progress_are_skipped(at: int) -> None:
    """llama-server's for the second of two prompts, and for how far a prompt is."""
    events: list[Any] = [delta(content="a"), delta(content="b"), delta(finish="stop")]
    plain = whole(*events)
    assert whole(*events[:at], None, *events[at:]) == plain
    progress = {**delta(role="assistant", content=None), "prompt_progress": {"total": 2}}
    assert whole(*events[:at], progress, *events[at:]) == plain


@pytest.mark.parametrize("kind", [{"a": 1}, ["chat.completion.chunk"], None, 7, "thing"], ids=repr)
def test_an_odd_kind_of_object_is_passed_on(kind: Any) -> None:
    assert whole({**delta(content="a"), "object": kind}, delta(finish="stop") | {"object": kind})["object"] == kind


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 400, "message": "too long"}, 400),
        ({"code": 503, "message": "busy"}, 503),
        ({"code": "server_error", "message": "x"}, 500),
        ({"code": 200, "message": "x"}, 500),
        ({"message": "x"}, 500),
        ("text", 500),
    ],
)
def test_an_error_in_the_stream_is_an_error(error: Any, status: int) -> None:
    found, body = assemble(sse(delta(content="a"), {"error": error}))
    assert found == status
    assert json.loads(body) == {"error": error}


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        DONE,
        sse(delta(content="a")),
        sse({"choices": []}) + DONE,
        b"data: {\n\n" + DONE,
        b"data: [1]\n\n" + DONE,
        b"data: null\n\n" + DONE,
        b"data: \xff\n\n" + DONE,
        b'data: {"choices":' + b"[" * 100_000 + b"\n\n" + DONE,
        sse(delta(content="a")) + b'data: {"x":' + b'{"x":' * 100_000 + b"\n\n" + DONE,
        sse({"choices": [{}]}) + DONE,
        sse({"choices": [7]}) + DONE,
        sse({"choices": 7}) + DONE,
        sse({"choices": {"a": 1}}) + DONE,
        sse({"choices": [{"index": "x", "delta": 5}]}) + DONE,
        sse(delta(), {"choices": [{"index": "x", "delta": {}}]}) + DONE,
        sse({"choices": [{"index": [], "delta": {}}]}) + DONE,
        sse({"choices": [{"index": 0, "text": 5}]}) + DONE,
        sse({"choices": [{"index": 0, "logprobs": [1]}]}) + DONE,
        sse(delta(tool_calls=[{"index": -1}])) + DONE,
        sse(delta(tool_calls=[{"index": 1 << 40}])) + DONE,
        sse(delta(tool_calls=[{"index": 0, "function": None}])) + DONE,
        sse(delta(tool_calls=[{"index": 0, "function": {"name": 5}}])) + DONE,
        sse(delta(tool_calls=7)) + DONE,
        sse(delta(content="a"), delta(content={"x": 1}), delta(content="b")) + DONE,
    ],
)
def test_what_is_no_whole_answer_is_a_failure_of_the_engine(stream: bytes) -> None:
    with pytest.raises(AccelError) as caught:
        assemble(stream)
    assert caught.value.code == "upstream_failed"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1000) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
CHOICE = st.fixed_dictionaries(
    {"index": st.integers(-1, 2) | JSON},
    optional={
        "delta": JSON | st.fixed_dictionaries({}, optional={"content": JSON, "tool_calls": JSON, "role": JSON}),
        "text": JSON,
        "logprobs": JSON,
        "finish_reason": JSON,
    },
)


@given(
    st.lists(st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=2) | JSON}, optional={"x": JSON}), max_size=4)
)
def test_no_events_do_more_than_fail(events: list[Any]) -> None:
    try:
        status, body = assemble(sse(*events) + DONE)
    except AccelError as error:
        outcome: object = error.code
    else:
        outcome = status
        assert json.loads(body)["choices"]
    assert outcome in (200, "upstream_failed")


@pytest.mark.parametrize("key", ["id", "created", "model", "object", "system_fingerprint"])
def test_of_what_the_events_have_in_common_the_last_counts(key: str) -> None:
    """Whether they are read the quick way or the other."""
    first, last = {**delta(content="a"), key: 1}, {**delta(content="c"), key: 3}
    answer = whole(first, {**delta(content="b"), key: 2}, last)
    assert (answer[key], answer["choices"][0]["message"]["content"]) == (3, "abc")
    as_text = [{**delta(content=c), "created": 7, key: 7 if key == "created" else c} for c in "abc"]
    assert whole(*as_text)[key] == (7 if key == "created" else "c")


USUALLY = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries(
                {
                    "index": st.integers(0, 1),
                    "delta": st.fixed_dictionaries(
                        {},
                        optional={
                            "role": st.just("assistant"),
                            "content": st.text(max_size=3) | st.none() | st.just(["odd"]),
                            "reasoning_content": st.text(max_size=3) | st.integers(0, 1),
                        },
                    ),
                },
                optional={"finish_reason": st.none() | st.just("stop"), "logprobs": st.none(), "x": st.just(1)},
            ),
            max_size=2,
        ),
        "id": st.sampled_from(["x", "y"]),
        "created": st.sampled_from([1, 2, 1.5]),
        "model": st.just("m"),
        "object": st.just("chat.completion.chunk"),
    },
    optional={"system_fingerprint": st.sampled_from(["b1", "b2"]), "usage": st.just({"n": 1})},
)


@given(st.lists(USUALLY, max_size=6))
def test_the_quick_reader_of_usual_events_changes_nothing(events: list[Any]) -> None:
    def outcome(events: list[Any]) -> object:
        try:
            status, body = assemble(sse(*events) + DONE)
        except AccelError as error:
            return error.code
        return status, json.loads(body)

    unusual = [  # the same to the slow reader, which leaves out what is null; the quick one declines it
        {**e, "choices": [{**c, "delta": {**c["delta"], "nothing": None}} for c in e["choices"]]} for e in events
    ]
    assert outcome(events) == outcome(unusual)
