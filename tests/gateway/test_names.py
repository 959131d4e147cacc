"""Names of models may have any printable characters: they reach the model, the response's head and the comments."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from accelerd.base import names
from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.scheduler.placement import SharedLimits
from tests.gateway.bench import DONE, SSE_HEAD, bench, on_both_loops, token, until
from tests.gateway.client import chat

NAMES = ["日本語", "Größe 1", "claude-x[1m]", "me@work/a:b", 'a"b\\c', "emoji 🦙", "%41", "50% [1m]%", "a?b#c"]


@pytest.mark.parametrize("name", NAMES)
@on_both_loops
async def test_a_name_is_found_and_said_as_it_is(tmp_path: Path, name: str) -> None:
    models = [ModelSpec(name, path="/m.gguf")]
    async with bench(tmp_path, models=models) as b, await b.client() as client:
        answer = await client.ask(body=chat(name))
        assert answer.status == 200
        told = answer.headers[names.HEADER_MODEL.lower()]
        assert unquote(told) == name, "a header has ASCII alone, so some of it is escaped"
        assert told == name or not name.isascii() or "%" in name
        listed = (await client.ask("GET", "/v1/models")).json()["data"]
        assert name in [one["id"] for one in listed]
        one = await client.ask("GET", f"/v1/models/{quote(name, safe='')}")
        assert (one.status, one.json()["id"]) == (200, name)
        refused = await client.ask(body=chat(f"{name}!"))
        assert (refused.status, refused.code) == (404, "model_not_found")


@pytest.mark.parametrize("name", NAMES)
async def test_a_comment_says_it_too(tmp_path: Path, name: str) -> None:
    models, quick = [ModelSpec(name, path="/m.gguf")], ServerSettings(keepalive_after=0.01)
    async with bench(tmp_path, quick, models=models) as b, await b.client() as client:
        b.instances.hold = True
        b.engine.says(SSE_HEAD, token("a"), DONE)
        asking = asyncio.create_task(client.ask(body=chat(name, stream=True)))
        await until(lambda: b.scheduler.queued, "it waits")
        await asyncio.sleep(0.05)
        b.instances.let_go()
        answer = await asking
    assert answer.complete
    assert f": loading {name}, 0 s\n\n".encode() in answer.body


@on_both_loops
async def test_the_list_says_who_would_have_to_leave_and_searches_once_until_something_changes(tmp_path: Path) -> None:
    models = [ModelSpec(name, path=f"/{name}.gguf") for name in "abc"]
    async with bench(tmp_path, models=models, limits=SharedLimits(None, "none", 1)) as b, await b.client() as client:
        asked = list[str]()
        search = b.scheduler.displaced_by

        def displaced_by(name: str) -> tuple[str, ...]:
            asked.append(name)
            return search(name)

        b.scheduler.displaced_by = displaced_by  # type: ignore[method-assign]
        start = b.gateway._catalog._displaced_at
        b.gateway._catalog._now = lambda: start  # no time passes

        async def displaces() -> dict[str, list[str]]:
            listed = (await client.ask("GET", "/v1/models")).json()["data"]
            return {one["id"]: one["displaces"] for one in listed}

        assert [await displaces(), await displaces()] == [{"a": [], "b": [], "c": []}] * 2
        assert asked == ["a", "b", "c"]
        for loaded in "ab":
            assert (await client.ask(body=chat(loaded))).status == 200
            await b.settled()
            asked.clear()
            assert [await displaces(), await displaces()] == [
                {name: [loaded] if name != loaded else [] for name in "abc"}
            ] * 2
            assert asked == ["a", "b", "c"]
        b.gateway._catalog._now = lambda: start + 2
        await displaces()
        assert asked == ["a", "b", "c"] * 2, "requests, memory and time decide, too"
