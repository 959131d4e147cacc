"""server.unknown_parameters: fields that are not in OpenAI's API are passed on, dropped or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.config.variants import Variant
from accelerd.engines.base import Traits
from accelerd.gateway.known_fields import LLAMA_SERVER, OPENAI
from tests.gateway.bench import Speaker, bench, on_both_loops, plain

HELLO = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "verbosity": "low"},
    "/v1/completions": {"prompt": "hi", "best_of": 1},
    "/v1/embeddings": {"input": "hi", "encoding_format": "float"},
    "/v1/responses": {"input": "hi", "store": False},
}
VARIANT = Variant("v", set=((("sparkle",), b"1"), (("deep", "er"), b"true")))
MODELS = [ModelSpec("m", path="/m.gguf", variants=(VARIANT,)), ModelSpec("npu", engine="flm", model="x")]
ALL = Traits(frozenset(("chat", "completions", "embeddings", "responses")))
OTHERS = {"llama-server": Speaker(says=ALL), "flm": Speaker(says=ALL)}


async def asked(directory: Path, what: str, path: str, **body: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The answer, and what the engine was sent."""
    settings = ServerSettings(unknown_parameters=what)  # type: ignore[arg-type]
    async with bench(directory, settings, models=MODELS, others=OTHERS) as b, await b.client() as client:
        b.engine.says(plain(b"{}"))
        answer = await client.ask(path=path, body=body)
        return answer, [one.json() for one in b.engine.requests]


@pytest.mark.parametrize("path", OPENAI)
@on_both_loops
async def test_they_are_passed_on_if_nothing_is_set(tmp_path: Path, path: str) -> None:
    body = {"model": "npu", **BODIES[path], "sparkle": 1, "min_p": 0.5}
    answer, sent = await asked(tmp_path, ServerSettings().unknown_parameters, path, **body)
    assert (answer.status, sent) == (200, [body])


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize("model", ["m", "npu"])
@on_both_loops
async def test_they_are_dropped_and_what_is_llama_servers_is_known_there(tmp_path: Path, path: str, model: str) -> None:
    own = {name: 1 for name in sorted(LLAMA_SERVER[path] - OPENAI[path]) if name not in ("n_cmpl", "content")}
    known = {"model": model, **BODIES[path]}
    answer, sent = await asked(tmp_path, "drop", path, **known, **own, sparkle={"a": [1]})
    assert (answer.status, sent) == (200, [{**known, **own} if model == "m" else known])


@pytest.mark.parametrize("path", OPENAI)
@on_both_loops
async def test_they_are_refused_by_name_before_anything_is_asked(tmp_path: Path, path: str) -> None:
    answer, sent = await asked(tmp_path, "refuse", path, model="m", **BODIES[path], sparkle=1)
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"], sent) == (400, "bad_request", "sparkle", [])
    (tmp_path / "known").mkdir()
    answer, sent = await asked(tmp_path / "known", "refuse", path, model="m", **BODIES[path])
    assert (answer.status, sent) == (200, [{"model": "m", **BODIES[path]}])


@pytest.mark.parametrize("what", ["drop", "refuse"])
@on_both_loops
async def test_what_a_variant_sets_is_known(tmp_path: Path, what: str) -> None:
    answer, sent = await asked(tmp_path, what, "/v1/chat/completions", model="v", messages=HELLO)
    assert (answer.status, sent[0]["sparkle"], sent[0]["deep"]) == (200, 1, {"er": True})


@on_both_loops
async def test_other_apis_have_their_own_fields(tmp_path: Path) -> None:
    body = {"model": "m", "content": "hi", "sparkle": 1}
    others = {"llama-server": Speaker(says=Traits(frozenset(("llama-server",))))}
    settings = ServerSettings(unknown_parameters="refuse")
    async with bench(tmp_path, settings, models=MODELS[:1], others=others) as b, await b.client() as client:
        b.engine.says(plain(b"{}"))
        assert (await client.ask(path="/tokenize", body=body)).status == 200
