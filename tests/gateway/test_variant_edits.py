"""What a variant makes of a request: against a plain reference, and what stays byte for byte."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerd.config.variants import Variant
from accelerd.gateway.request_body import read_form
from accelerd.gateway.variant_edits import edited, edited_form
from tests.gateway.test_form_body import FILE, WAV, B, form, part

CHAT = "/v1/chat/completions"
NAMES = st.sampled_from(["a", "b", "c", "temperature", "chat_template_kwargs"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
FIELDS = st.dictionaries(PATHS, LEAVES | st.lists(LEAVES, max_size=2), max_size=4)


def reference(body: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """The same in plain Python, on dicts."""
    found = copy.deepcopy(body)
    for *outer, last in variant.remove:
        at: Any = found
        for name in outer:
            at = at.get(name) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at.pop(last, None)
    for fields, over in ((variant.default, False), (variant.set, True)):
        for (*outer, last), value in fields:
            at = found
            for name in outer:
                if name not in at or (over and not isinstance(at[name], dict)):
                    at[name] = {}
                at = at[name]
                if not isinstance(at, dict):
                    break
            else:
                if over or last not in at:
                    at[last] = json.loads(value)
    return found


def encoded(fields: dict[tuple[str, ...], Any]) -> Any:
    return tuple((path, json.dumps(value).encode()) for path, value in fields.items())


@settings(max_examples=1000)
@given(
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.builds(
        lambda set, default, remove: Variant("v", set=encoded(set), default=encoded(default), remove=tuple(remove)),
        FIELDS,
        FIELDS,
        st.lists(PATHS, max_size=4),
    ),
)
def test_it_does_what_the_reference_does(body: dict[str, Any], variant: Variant) -> None:
    assert json.loads(edited(variant, json.dumps(body).encode(), "/v1/embeddings")) == reference(body, variant)


def test_what_is_not_named_stays_as_it_was() -> None:
    body = rb'{"n": 1.0e2, "s": "\u00e4\/", "o": {"x":  [1,2], "y": 3e0}, "big": 123456789012345678901234567890}'
    variant = Variant("v", set=((("o", "y"), b"4"),), remove=(("absent",), ("n", "deeper")))
    made = edited(variant, body, "/v1/embeddings")
    expected = rb'{"n":1.0e2,"s":"\u00e4\/","o":{"x":[1,2],"y":4},"big":123456789012345678901234567890}'
    assert made == expected


def prompted(messages: list[dict[str, Any]], mode: Any = "before", path: str = CHAT, **more: Any) -> Any:
    body = json.dumps({"messages": messages, **more}).encode()
    return json.loads(edited(Variant("v", system="Ours.", system_mode=mode), body, path))


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "mode", "first", "count"),
    [
        ([USER], "before", "Ours.", 2),
        ([{"role": "system", "content": "Theirs."}, USER], "before", "Ours.\n\nTheirs.", 2),
        ([{"role": "developer", "content": "Theirs.", "name": "x"}, USER], "before", "Ours.\n\nTheirs.", 2),
        ([{"role": "system", "content": ""}, USER], "before", "Ours.", 2),
        ([{"role": "system", "content": "Theirs."}, USER, {"role": "system", "content": "b"}], "instead", "Ours.", 2),
        ([USER], "instead", "Ours.", 2),
    ],
)
def test_the_system_prompt_of_a_chat(messages: list[dict[str, Any]], mode: str, first: str, count: int) -> None:
    made = prompted(messages, mode)["messages"]
    assert (made[0]["content"], len(made)) == (first, count)
    assert made[-1] == USER
    assert {key: value for key, value in made[0].items() if key == "name"} == (
        {"name": "x"} if "name" in messages[0] else {}
    )


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("mode", ["before", "instead"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"n": 1}',
        b'{"messages": null}',
        b'{"messages": "hi"}',
        b'{"messages": [1, null, [[]], {"role": 5}, {"role": null}]}',
        b'{"messages": [{"role": "system", "content": {"a": 1}}], "system": {"a": 1}, "instructions": 5}',
        b'{"messages": [{"role": "system", "content": "\xff"}], "system": "\xff", "instructions": "\xff"}',
        b'{"messages": [{"role": "\xff"}]}',
    ],
)
def test_a_system_prompt_meets_what_no_client_should_send(path: str, mode: Any, body: bytes) -> None:
    assert b'"model":"m"' in edited(Variant("v", system="Ours.", system_mode=mode), b'{"model":"m",' + body[1:], path)


def test_content_that_is_neither_text_nor_blocks_stays_for_the_engine_to_refuse() -> None:
    assert prompted([{"role": "system", "content": {"a": 1}}])["messages"][0]["content"] == {"a": 1}


def test_messages_that_the_variant_itself_takes_away_are_missed_afterwards() -> None:
    variant = Variant("v", remove=(("messages",),), system="Ours.")
    assert edited(variant, b'{"messages":[{"role":"user"}],"n":1}', CHAT) == b'{"n":1}'


def test_a_system_prompt_of_parts_gets_one_more() -> None:
    block = {"type": "text", "text": "Theirs.", "cache_control": {"type": "ephemeral"}}
    made = prompted([{"role": "system", "content": [block]}, USER])["messages"]
    assert made[0]["content"] == [{"type": "text", "text": "Ours."}, block]


@pytest.mark.parametrize(
    ("path", "field", "there", "becomes"),
    [
        ("/v1/messages", "system", "Theirs.", "Ours.\n\nTheirs."),
        ("/v1/messages/count_tokens", "system", None, "Ours."),
        (
            "/v1/messages",
            "system",
            [{"type": "text", "text": "T"}],
            [{"type": "text", "text": t} for t in ("Ours.", "T")],
        ),
        ("/v1/responses", "instructions", "Theirs.", "Ours.\n\nTheirs."),
        ("/v1/responses", "instructions", None, "Ours."),
        ("/v1/completions", "system", None, None),
        ("/v1/embeddings", "system", "x", "x"),
    ],
)
def test_the_system_prompt_of_other_requests(path: str, field: str, there: Any, becomes: Any) -> None:
    more = {} if there is None else {field: there}
    assert prompted([USER], path=path, **more).get(field) == becomes
    if path == "/v1/messages":
        assert prompted([USER], "instead", path, **more)[field] == "Ours."


def test_a_form_gets_and_loses_fields() -> None:
    body = form(part("model", b"m"), FILE, part("language", b"de"), part("temperature", b"1"), part("prompt", b"p"))
    variant = Variant(
        "v",
        set=((("temperature",), b"0"), (("response_format",), b'"srt"')),
        default=((("language",), b'"en"'), (("no_context",), b"true")),
        remove=(("prompt",),),
    )
    made, read = edited_form(variant, body, read_form(body, B), "/v1/audio/transcriptions")
    assert read.model == "m"
    assert WAV in made
    fields = {name: value for name, value in _fields(made).items() if name not in ("model", "file")}
    assert fields == {"temperature": b"0", "response_format": b"srt", "language": b"de", "no_context": b"true"}


def _fields(body: bytes) -> dict[str, bytes]:
    found = {}
    for one in body.split(b"--" + B.encode() + b"\r\n")[1:]:
        head, _, content = one.partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        found[name] = content.rpartition(b"\r\n")[0] if not content.endswith(b"--\r\n") else content.split(b"\r\n")[0]
    return found
