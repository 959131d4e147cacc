"""GET /v1/models: what llama.cpp's, OpenAI's and Anthropic's clients read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, Route
from accelerd.engines.base import Task, Traits
from accelerd.gateway.catalog import _status
from accelerd.scheduler.lifecycle import State
from tests.gateway.bench import Speaker, bench, on_both_loops
from tests.gateway.client import Client

NAMES = [f"m{number}" for number in range(5)]
MODELS = [ModelSpec(name, path="/m.gguf") for name in NAMES]
ANTHROPIC = {"anthropic-version": "2023-06-01"}


async def page(client: Client, query: str = "") -> Any:
    answer = await client.ask("GET", f"/v1/models{query}", headers=ANTHROPIC)
    assert answer.status == 200
    return answer.json()


@on_both_loops
async def test_anthropics_clients_get_the_page_that_they_ask_for(tmp_path: Path) -> None:
    async with bench(tmp_path, models=MODELS) as b, await b.client() as client:
        for query, names, more in [
            ("", NAMES, False),
            ("?limit=2", NAMES[:2], True),
            ("?limit=2&after_id=m1", NAMES[2:4], True),
            ("?limit=2&after_id=m3", NAMES[4:], False),
            ("?after_id=m4", [], False),
            ("?limit=2&before_id=m4", NAMES[2:4], True),
            ("?limit=9&before_id=m2", NAMES[:2], False),
            ("?limit=1000&beta=true", NAMES, False),
        ]:
            found = await page(client, query)
            assert [one["id"] for one in found["data"]] == names, query
            assert found["has_more"] is more, query
            assert (found["first_id"], found["last_id"]) == ((names[0], names[-1]) if names else (None, None))


@on_both_loops
async def test_pages_lead_to_every_model_once(tmp_path: Path) -> None:
    async with bench(tmp_path, models=MODELS) as b, await b.client() as client:
        found, query = [], "?limit=2"
        while True:
            one = await page(client, query)
            found += [entry["id"] for entry in one["data"]]
            if not one["has_more"]:
                break
            query = f"?limit=2&after_id={one['last_id']}"
        assert found == NAMES


@pytest.mark.parametrize(
    "query", ["?limit=0", "?limit=1001", "?limit=x", "?limit=-1", "?after_id=none", "?before_id=%20"]
)
@on_both_loops
async def test_a_page_that_cannot_be_is_refused_in_anthropics_shape(tmp_path: Path, query: str) -> None:
    async with bench(tmp_path, models=MODELS) as b, await b.client() as client:
        answer = await client.ask("GET", f"/v1/models{query}", headers=ANTHROPIC)
        assert (answer.status, answer.json()["type"]) == (400, "error")
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert (await client.ask("GET", f"/v1/models{query}")).status == 200, "OpenAI's list has no pages"


@pytest.mark.parametrize(
    ("tasks", "into", "out"),
    [
        (("chat", "completions"), ["text"], ["text"]),
        (("chat", "vision", "audio"), ["text", "image", "audio"], ["text"]),
        (("transcription",), ["audio"], ["text"]),
        (("speech",), ["text"], ["audio"]),
        (("images",), ["text"], ["image"]),
        (("embeddings",), ["text"], ["text"]),
    ],
)
@on_both_loops
async def test_what_goes_into_a_model_and_comes_out(
    tmp_path: Path, tasks: tuple[Task, ...], into: list[str], out: list[str]
) -> None:
    meta = {"n_ctx_train": 512, "n_params": 7}
    speaker = Speaker(says=Traits(frozenset(tasks), meta=meta))
    routes = [Route("r", models=("m0", "m1"))]
    others = {"llama-server": speaker}
    async with bench(tmp_path, models=MODELS[:2], routes=routes, others=others) as b, await b.client() as client:
        for name in ("m0", "r"):
            entry = (await client.ask("GET", f"/v1/models/{name}")).json()
            assert entry["architecture"] == {"input_modalities": into, "output_modalities": out}
            assert entry.get("meta", meta) == meta


def test_states_are_said_in_the_words_of_llama_cpps_router() -> None:
    words = {"unloaded", "loading", "loaded", "sleeping", "downloading"}
    assert {_status(state)["value"] for state in State} == words
    assert [state for state in State if _status(state).get("failed")] == [State.BACKOFF, State.FAILED]
