"""What is looked at in a request's body, and that no body can do more than be refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from accelerd.base.errors import AccelError
from accelerd.gateway.request_body import MAX_ITEMS, MAX_KEYS, MAX_TOKENS, read_json

CHAT = "/v1/chat/completions"
PATHS = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": ["hi"]},
    "/v1/rerank": {"query": "hi", "documents": ["a", "b"]},
}
# What is wrong, and the parameter that the answer names.
WRONG: dict[str, tuple[bytes, str | None]] = {
    "empty": (b"", None),
    "no-json": (b"{", None),
    "no-object": (b"[]", None),
    "a-number": (b"42", None),
    "null": (b"null", None),
    "trailing": (b'{"model":"m","messages":[{}]} x', None),
    "not-utf8": (b'{"model":"m","messages":[{"role":"\xff"}]}', None),
    "utf16": ('{"model":"m"}'.encode("utf-16"), None),
    "bom": (b'\xef\xbb\xbf{"model":"m","messages":[{}]}', None),
    "nan": (b'{"model":"m","messages":[{}],"temperature":NaN}', None),
    "infinity": (b'{"model":"m","messages":[{}],"temperature":Infinity}', None),
    "single-quotes": (b"{'model':'m'}", None),
    "model-number": (b'{"model":1,"messages":[{}]}', "model"),
    "no-messages": (b'{"model":"m"}', "messages"),
    "messages-empty": (b'{"model":"m","messages":[]}', "messages"),
    "messages-text": (b'{"model":"m","messages":"hi"}', "messages"),
    "stream-text": (b'{"model":"m","messages":[{}],"stream":"yes"}', "stream"),
    "n-text": (b'{"model":"m","messages":[{}],"n":"2"}', "n"),
    "deep-lists": (b'{"model":"m","messages":' + b"[" * 200_000, None),
    "deep-objects": (b'{"model":"m","x":' + b'{"a":' * 200_000, None),
    "deep-closed": (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "a-million-messages": (b'{"model":"m","messages":[' + b"{}," * 999_999 + b"{}]}", "messages"),
    "lone-surrogate": (b'{"model":"\\ud800","messages":[{}]}', None),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_bodies_are_refused_by_name(case: str) -> None:
    body, param = WRONG[case]
    with pytest.raises(AccelError) as caught:
        read_json(CHAT, body)
    assert caught.value.code == "bad_request"
    assert caught.value.param == param
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("path", PATHS)
def test_the_least_of_each_kind_is_enough(path: str) -> None:
    found = read_json(path, json.dumps({"model": "m", **PATHS[path], "unknown": {"x": [1, None]}}).encode())
    assert (found.model, found.stream) == ("m", False)
    assert read_json(path, json.dumps({"model": "m", **PATHS[path], "stream": True}).encode()).stream is True
    assert read_json(path, json.dumps({"model": "m", **PATHS[path], "stream": None}).encode()).stream is None


@pytest.mark.parametrize("path", PATHS)
def test_each_kind_wants_what_it_works_on(path: str) -> None:
    for key in PATHS[path]:
        fields = {"model": "m", **PATHS[path]}
        del fields[key]
        with pytest.raises(AccelError) as caught:
            read_json(path, json.dumps(fields).encode())
        assert caught.value.param == key


def test_the_model_is_read_at_the_top_level_only() -> None:
    body = b'{"messages":[{"role":"user","content":"\\"model\\":\\"evil\\"","model":"evil"}],"model":"good"}'
    assert read_json(CHAT, body).model == "good"


def test_of_duplicate_keys_the_last_counts_as_for_the_engine() -> None:
    assert read_json(CHAT, b'{"model":"a","messages":[{}],"model":"b","stream":true,"stream":false}').model == "b"


def test_many_messages_are_no_mistake() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}] * MAX_ITEMS}
    assert read_json(CHAT, json.dumps(body).encode()).model == "m"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("model", "messages", "prompt", "input", "stream", "n", "query", "documents"), JSON)
)


@given(st.sampled_from(list(PATHS)), FIELDS)
def test_any_json_is_understood_or_refused(path: str, fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    try:
        outcome: object = read_json(path, body).model
    except AccelError as error:
        outcome = error.code
    assert outcome in ("bad_request", fields.get("model"))


@given(st.sampled_from(list(PATHS)), st.binary(max_size=200))
@example("/v1/embeddings", b'{"content":""}')
def test_any_bytes_are_understood_or_refused_as_a_bad_request(path: str, body: bytes) -> None:
    try:
        read_json(path, body)
        outcome: object = type(json.loads(body))
    except AccelError as error:
        outcome = error.code
    assert outcome in ("bad_request", dict)


# --- many keys -------------------------------------------------------------------------------------------------------


def with_more(more: bytes) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"a: b"}],"more":' + more + b"}"


def keys(count: int, colon: bytes = b":", name: bytes = b"key%d", value: bytes = b"0") -> bytes:
    return (
        b"{" + b",".join(b'"%b"%b%b' % (name % i if b"%" in name else name, colon, value) for i in range(count)) + b"}"
    )


@pytest.mark.parametrize(
    "more",
    [
        keys(MAX_KEYS + 1),
        keys(1_000_000),
        keys(MAX_KEYS + 1, colon=b" \r\n\t : "),
        keys(MAX_KEYS + 1, name=b"the same"),
        keys(MAX_KEYS + 1, name=rb"\"%d{}\\"),
        keys(MAX_KEYS + 1, value=rb'"\\\"}{"'),
        keys(MAX_KEYS + 1, value=b'{"a":{}}'),
        b"[[" + keys(10) + b"," + keys(MAX_KEYS + 1) + b"]]",
        b'{"a":' + keys(MAX_KEYS + 1) + b"}",
    ],
    ids=[
        "one more",
        "a million",
        "spaces",
        "repeated",
        "odd names",
        "odd values",
        "objects",
        "in lists",
        "in an object",
    ],
)
def test_an_object_with_more_keys_than_engines_can_take_is_refused(more: bytes) -> None:
    with pytest.raises(AccelError, match=f"an object of more than {MAX_KEYS} keys") as caught:
        read_json(CHAT, with_more(more))
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("count", [3, 100])
def test_several_objects_are_together_no_more_work_than_one(count: int) -> None:
    with pytest.raises(AccelError, match="too many objects of thousands of keys") as caught:
        read_json(CHAT, with_more(b"[" + b",".join([keys(MAX_KEYS)] * count) + b"]"))
    assert caught.value.code == "bad_request"


def test_keys_beside_the_messages_count_too() -> None:
    with pytest.raises(AccelError, match="an object of more than"):
        read_json(CHAT, with_more(b"0")[:-1] + b"," + keys(80_000)[1:])


@pytest.mark.parametrize(
    "more",
    [
        keys(MAX_KEYS),
        keys(MAX_KEYS, value=b'{"a":1,"b":{"c":2}}'),
        b"[" + b",".join([keys(50)] * 4000) + b"]",
        b"[" + b",".join([keys(1000)] * 100) + b"]",
        b"[" + b",".join([keys(MAX_KEYS - 1)] * 2) + b"]",
        b'"' + b'a: b, {c}: \\"d\\": ' * 50_000 + b'"',
        b"[" + b'":",' * 20_000 + b'":"]',
        b"[" + b",".join(b"%d" % i for i in range(1_000_000)) + b"]",
    ],
    ids=["as many", "with objects", "of many tools", "of large ones", "two", "text", "short strings", "a list"],
)
def test_many_keys_in_many_objects_and_long_lists_are_good(more: bytes) -> None:
    assert read_json(CHAT, with_more(more)).model == "m"


@pytest.mark.parametrize("more", [b"[" + b"{}," * MAX_TOKENS + b'":"]', b"[" + b'":",' * MAX_TOKENS + b'":"]'],
                         ids=["objects", "strings"])  # fmt: skip
def test_how_long_it_takes_to_count_is_bounded(more: bytes) -> None:
    text = with_more(b"[" + more + b"," + keys(MAX_KEYS) + b"]")
    with pytest.raises(AccelError, match=f"more than {MAX_TOKENS} keys, strings and objects"):
        read_json(CHAT, text)
