"""Routes with tiers: what a request asks for decides which model gets it, for each API and over a conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerd.config.complexity import ComplexitySettings, KeywordRule, Tier, TierMembers
from accelerd.config.model import Route
from tests.gateway.bench import on_both_loops
from tests.gateway.client import Client
from tests.gateway.test_deployments import MODEL, answers, fault, table

SMART = Route(
    "r",
    tiers=TierMembers(("a",), ("b",), ("c",), ("d",)),
    complexity=ComplexitySettings(
        prefer_loaded=False,
        keyword_tier_rules=(KeywordRule(("invoice",), Tier.COMPLEX),),
    ),
)
EASY, CODE = "hello", "Write a python function to parse JSON and handle the error"
HARD = "think step by step and compare and contrast two sorting algorithms"


async def who(client: Client, messages: Any, headers: dict[str, str] | None = None, **more: Any) -> str:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    response = await client.ask(body={"model": "r", "messages": messages, **more}, headers=headers)
    assert response.status == 200, response.body
    return response.headers[MODEL]


@on_both_loops
async def test_the_last_message_of_a_person_decides(tmp_path: Path) -> None:
    async with table(tmp_path, SMART) as b, await b.client() as client:
        answers(b, {})
        assert [await who(client, text) for text in (EASY, CODE, "the invoice", HARD)] == ["a", "b", "c", "d"]
        system = {"role": "system", "content": HARD}
        reminder = f"<system-reminder>{HARD}</system-reminder>"
        assert (
            await who(client, [system, {"role": "user", "content": [{"type": "text", "text": reminder + EASY}]}]) == "a"
        )
        assert await who(client, [system, {"role": "tool", "content": HARD}]) == "b", "no person has said anything"


@on_both_loops
async def test_a_conversation_keeps_its_tier(tmp_path: Path) -> None:
    async with table(tmp_path, SMART) as b, await b.client() as client:
        answers(b, {})
        said = [{"role": "user", "content": HARD}]
        assert await who(client, said) == "d"
        said += [{"role": "assistant", "content": "so it is"}, {"role": "user", "content": "continue"}]
        assert await who(client, said) == "d"
        assert await who(client, "continue") == "a"
        for name in ({"user": "u"}, {"prompt_cache_key": "k"}, {"metadata": {"user_id": "m"}}):
            assert [await who(client, text, **name) for text in (EASY, HARD, EASY)] == ["a", "d", "d"]
        assert [await who(client, text, {"X-Session-Id": "s"}) for text in (CODE, EASY)] == ["b", "b"]


@on_both_loops
async def test_where_the_tier_fails_the_next_one_answers(tmp_path: Path) -> None:
    async with table(tmp_path, SMART) as b, await b.client() as client:
        asked = answers(b, {"a": fault(500), "b": fault(500)})
        assert await who(client, EASY) == "c"
        assert asked == ["a", "b", "c"]
