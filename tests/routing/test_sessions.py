"""Requests of one conversation have one key; what was chosen for it is kept, within bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.routing.sessions import SessionMemory, session_of


def key(named: bytes | None = None, **body: Any) -> bytes | None:
    return session_of(json.dumps(body).encode(), named)


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


HELLO = [said("system", "be brief"), said("user", "hello")]


def test_the_turns_of_a_chat_are_one_conversation() -> None:
    first = key(model="a", messages=HELLO)
    later = key(model="b", temperature=1, messages=[*HELLO, said("assistant", "hi"), said("user", "and now?")])
    assert first == later is not None
    assert key(messages=[said("system", "be brief"), said("user", "goodbye")]) != first
    assert key(messages=[said("system", "be long"), said("user", "hello")]) != first
    assert key(messages=[said("user", "hello")]) != first


def test_anthropic_and_responses_begin_with_what_stands_beside_the_messages() -> None:
    one = [said("user", [{"type": "text", "text": "hello"}])]
    assert key(system="a", messages=one) == key(system="a", messages=[*one, said("assistant", "x")])
    assert key(system="a", messages=one) != key(system="b", messages=one)
    assert key(instructions="a", input="hello") == key(instructions="a", input="hello", stream=True)
    assert key(instructions="a", input="hello") != key(instructions="b", input="hello")
    assert key(input=one) == key(input=[*one, {"type": "function_call", "name": "f"}])


@pytest.mark.parametrize(
    "name",
    [{"prompt_cache_key": "s"}, {"user": "s"}, {"metadata": {"user_id": "s"}}],
    ids=lambda name: next(iter(name)),
)
def test_a_name_in_the_body_is_the_conversation_whatever_is_said(name: dict[str, Any]) -> None:
    assert key(messages=HELLO, **name) == key(messages=[said("user", "other")], **name) is not None
    assert key(messages=HELLO, **name) != key(messages=HELLO)


def test_the_header_goes_before_and_names_of_different_kinds_are_different() -> None:
    assert key(b"s", messages=HELLO) == key(b"s", user="x", input="y") != key(messages=HELLO)
    assert len({key(b"s"), key(user="s"), key(prompt_cache_key="s"), key(metadata={"user_id": "s"})}) == 4
    assert session_of(b"--form\r\n", b"s") == key(b"s")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [said("assistant", "x")]},
        {"messages": "x" * 0},
        {"messages": [1, None, [], {"role": 5}]},
        {"user": 5, "metadata": "x", "prompt_cache_key": "", "prompt": "once upon"},
        {"input": [1, 2, 3], "metadata": None, "user": None},
        {"system": "only that"},
    ],
)
def test_what_tells_no_conversation_is_none(body: dict[str, Any]) -> None:
    assert key(**body) is None


def test_what_is_no_json_is_none() -> None:
    assert session_of(b"--boundary\r\nContent-Disposition") is None


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=200))
def test_the_least_recently_used_are_forgotten(asked: list[tuple[int, int]]) -> None:
    memory, reference = SessionMemory[int](4), dict[bytes, int]()
    for session, chosen in asked:
        name = b"%d" % session
        known = reference.pop(name, None)
        assert memory.recall("route", name) == known
        reference[name] = chosen
        memory.remember("route", name, chosen)
        while len(reference) > 4:
            del reference[next(iter(reference))]
        assert len(memory) == len(reference)


def test_routes_have_conversations_of_their_own_and_none_is_remembered_for_nobody() -> None:
    memory = SessionMemory[str]()
    memory.remember("a", b"1", "x")
    memory.remember("a", None, "y")
    assert (memory.recall("a", b"1"), memory.recall("b", b"1"), memory.recall("a", None)) == ("x", None, None)
