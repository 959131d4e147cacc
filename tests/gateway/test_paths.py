"""What clients may leave out: `/v1`, the model if there is only one; and what they may ask for without a key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from accelerd.config.model import ModelSpec, Route, ServerSettings
from accelerd.engines.base import Traits
from tests.gateway.bench import Speaker, bench, on_both_loops, plain
from tests.gateway.client import CHAT, chat
from tests.gateway.test_audio import HEADERS
from tests.gateway.test_form_body import FILE, form, part

KEYS = (bytes(32),)  # of no key
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
VECTORS = ModelSpec("vectors", path="/e.gguf", embeddings=True)
ONE_CHATS = {
    "vectors": Traits(frozenset(("embeddings",))),
    "m": Traits(frozenset(("chat", "completions"))),
    "other": Traits(frozenset(("chat",))),
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", MESSAGES),
        ("/completions", {"prompt": "hi"}),
        ("/embeddings", {"input": "hi"}),
        ("/embeddings", {"content": "hi"}),
        ("/responses", {"input": "hi"}),
        ("/responses/input_tokens", {"input": "hi"}),
        ("/chat/completions/input_tokens", MESSAGES),
        ("/rerank", {"query": "q", "texts": ["a"]}),
        ("/audio/speech", {"input": "hi"}),
    ],
)
@on_both_loops
async def test_v1_may_be_missing(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(b"{}"))
        for written in (path, f"/v1{path}"):
            assert (await client.ask(path=written, body={"model": "m", **body})).status == 200
        assert [r.head.split()[1] for r in b.engine.requests] == [f"/v1{path}".encode()] * 2


@on_both_loops
async def test_the_only_model_needs_no_name(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        for body in (MESSAGES, {"model": None, **MESSAGES}):
            answer = await client.ask(body=body)
            assert (answer.status, answer.headers["x-accelerd-model"]) == (200, "m")
        assert [json.loads(r.body) for r in b.engine.requests] == [MESSAGES, {"model": None, **MESSAGES}]


@on_both_loops
async def test_of_several_the_only_one_for_the_task_is_meant(tmp_path: Path) -> None:
    models = [ModelSpec("m", path="/m.gguf"), ModelSpec("other", path="/o.gguf"), VECTORS]
    engines = {"llama-server": Speaker(of=ONE_CHATS)}
    async with bench(tmp_path, models=models, others=engines) as b, await b.client() as client:
        b.engine.says(plain(b"{}"))
        for path, body, model in (
            ("/v1/embeddings", {"input": "hi"}, "vectors"),
            ("/v1/completions", {"prompt": "hi"}, "m"),
        ):
            answer = await client.ask(path=path, body=body)
            assert (answer.status, answer.headers["x-accelerd-model"]) == (200, model)
        refused = await client.ask(body=MESSAGES)
        assert (refused.status, refused.code, refused.json()["error"]["param"]) == (400, "bad_request", "model")
        assert "name one of m, other" in refused.json()["error"]["message"]


@on_both_loops
async def test_a_form_needs_no_name_either(tmp_path: Path) -> None:
    """An engine that wants to hear one gets its own."""
    hears = Traits(frozenset(("transcription",)), wire_name="whisper-v3")
    async with bench(tmp_path, others={"llama-server": Speaker(says=hears)}) as b, await b.client() as client:
        b.engine.says(plain(b"{}"))
        answer = await client.ask(path="/v1/audio/transcriptions", body=form(FILE), headers=HEADERS)
        assert answer.status == 200
        assert b.engine.requests[0].body == form(part("model", b"whisper-v3"), FILE)


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/health?x=full", "/v1"])
@on_both_loops
async def test_that_something_listens_is_said_without_a_key(tmp_path: Path, path: str) -> None:
    async with bench(tmp_path, keys=KEYS) as b, await b.client() as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert (await client.ask("GET", path, None, headers)).json() == {"status": "ok"}
        assert (await client.ask("HEAD", path)).status == 200
        assert (await client.ask("GET", "/v1/models")).status == 401
        assert (await client.ask("POST", CHAT, chat())).status == 401
        foreign = await client.ask("GET", path, host="evil.example")
        assert (foreign.status, foreign.code) == (403, "host_not_allowed")


@on_both_loops
async def test_names_that_clients_cannot_change_are_taken(tmp_path: Path) -> None:
    models = [ModelSpec("m", path="/m.gguf", aliases=("claude-*", "gpt-*")), ModelSpec("other", path="/o.gguf")]
    routes = [Route("rest", ("m",), aliases=("*",))]
    async with bench(tmp_path, models=models, routes=routes) as b, await b.client() as client:
        for name in ("claude-haiku-4-5-20251001", "gpt-4o[1m]", "o3", "日本"):
            answer = await client.ask(body={"model": name, **MESSAGES})
            assert (answer.status, answer.headers["x-accelerd-model"]) == (200, "m")
            assert (await client.ask("GET", f"/v1/models/{quote(name)}")).status == 200
        assert not b.gateway.router._usual.keys() & {(name, CHAT) for name in ("gpt-4o[1m]", "o3")}, "names without end"


@on_both_loops
async def test_what_names_no_model_goes_to_the_default(tmp_path: Path) -> None:
    models = [ModelSpec("other", path="/o.gguf"), ModelSpec("m", path="/m.gguf")]
    for default in ("m", "rest"):
        settings, folder = ServerSettings(default_model=default), tmp_path / default
        folder.mkdir()
        routes = [Route("rest", ("m",))]
        async with bench(folder, models=models, routes=routes, settings=settings) as b, await b.client() as client:
            answer = await client.ask(body=MESSAGES)
            assert (answer.status, answer.headers["x-accelerd-model"]) == (200, "m")
            assert (await client.ask(body={"model": "nobody", **MESSAGES})).status == 404


@on_both_loops
async def test_what_the_default_cannot_do_goes_to_the_only_one_that_can(tmp_path: Path) -> None:
    models = [ModelSpec("m", path="/m.gguf"), ModelSpec("other", path="/o.gguf"), VECTORS]
    for default in ("m", "rest"):
        settings, folder = ServerSettings(default_model=default), tmp_path / default
        folder.mkdir()
        routes = [Route("rest", ("m", "other"))]
        engines = {"llama-server": Speaker(of=ONE_CHATS)}
        given: Any = {"models": models, "routes": routes, "settings": settings, "others": engines}
        async with bench(folder, **given) as b, await b.client() as client:
            b.engine.says(plain(b"{}"))
            answer = await client.ask(path="/v1/embeddings", body={"input": "hi"})
            assert (answer.status, answer.headers["x-accelerd-model"]) == (200, "vectors")
            answer = await client.ask(path="/v1/completions", body={"prompt": "hi"})
            assert (answer.status, answer.headers["x-accelerd-model"]) == (200, "m")
            refused = await client.ask(path="/v1/rerank", body={"query": "q", "documents": ["a"]})
            assert (refused.status, refused.code) == (400, "not_supported_by_model")


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/proxy/v1/chat/completions", "base URL so that it asks for /v1/chat/completions"),
        ("/v1/v1/chat/completions", "base URL so that it asks for /v1/chat/completions"),
        ("/openai/v1/embeddings", "base URL so that it asks for /v1/embeddings"),
        ("/v1/chat/completions/responses", "base URL so that it asks for /v1/responses"),
        ("/v2/nothing", ""),
    ],
)
@on_both_loops
async def test_a_path_that_is_not_there_says_where_to_go(tmp_path: Path, path: str, advice: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        for method in ("GET", "POST"):
            answer = await client.ask(method, path)
            assert (answer.status, answer.code) == (404, "not_found")
            said, _, rest = json.loads(answer.body)["error"]["message"].partition("; ")
            assert said == f"there is nothing at '{path}'"
            assert (rest.endswith(advice), bool(rest)) == (True, bool(advice))


@pytest.mark.parametrize("name", ["a\0b", "a\x1b[31m", "a\nb", "\x7f", "\u202e"])
@on_both_loops
async def test_no_pattern_matches_what_cannot_be_printed(tmp_path: Path, name: str) -> None:
    async with (
        bench(tmp_path, models=[ModelSpec("m", path="/m.gguf", aliases=("*",))]) as b,
        await b.client() as client,
    ):
        answers = [
            await client.ask(body={"model": name, **MESSAGES}),
            await client.ask("GET", f"/v1/models/{quote(name)}"),
            await client.ask("GET", f"/v1/models/{quote(name)}", None, {"anthropic-version": "2023-06-01"}),
        ]
        assert [answer.status for answer in answers] == [404] * 3
        assert b.scheduler.snapshot("m").state == "stopped"
        for path in ("%zz", "%", "a%2", "%ff", "%ed%a0%80"):
            answer = await client.ask("GET", f"/v1/models/{path}")
            assert (answer.status, answer.code) == (404, "model_not_found")
        assert (await client.ask("GET", "/v1/models/any%20%25")).json()["id"] == "m"


@on_both_loops
async def test_what_is_unlisted_is_served_and_not_shown(tmp_path: Path) -> None:
    models = [ModelSpec("m", path="/m.gguf", unlisted=True), ModelSpec("shown", path="/o.gguf")]
    routes = [Route("hidden", ("m",), unlisted=True), Route("seen", ("m",), aliases=("auto",))]
    async with bench(tmp_path, models=models, routes=routes) as b, await b.client() as client:
        listed = {one["id"]: one["aliases"] for one in (await client.ask("GET", "/v1/models")).json()["data"]}
        assert listed == {"shown": ["local/shown"], "seen": ["auto"]}
        version = {"anthropic-version": "2023-06-01"}
        page = (await client.ask("GET", "/v1/models", None, version)).json()
        assert ([one["id"] for one in page["data"]], page["first_id"]) == (["shown", "seen"], "shown")
        for name in ("m", "hidden"):
            assert (await client.ask(body={"model": name, **MESSAGES})).status == 200
            assert (await client.ask("GET", f"/v1/models/{name}")).status == 200
            assert (await client.ask("GET", f"/v1/models/{name}", None, version)).status == 200
