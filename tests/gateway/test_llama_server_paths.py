"""llama-server's own paths, by model: what they need of it, and what monitors read without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, Route, ServerSettings
from accelerd.engines.base import Dialect, LaunchPlan, Traits
from accelerd.engines.llama_server.dialect import DIALECT
from accelerd.gateway import engine_monitor
from tests.gateway.bench import ALL, SECRET, SSE_HEAD, Bench, Speaker, bench, chunk, on_both_loops, plain
from tests.gateway.client import chat

MODELS = [
    ModelSpec("org/coder:q4", path="/m.gguf", parallel=2, aliases=("coder",), context=4096),
    ModelSpec("npu", engine="flm", model="qwen3:4b"),
]
OTHERS = {"flm": Speaker(Dialect(), Traits(ALL - {"llama-server"}))}
BODIES: dict[str, dict[str, Any]] = {
    "/completion": {"prompt": "x"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/embedding": {"content": "x"},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": [{"role": "user", "content": "x"}]},
}


def monitored(b: Bench) -> None:
    """The engine of every model is the bench's."""
    b.gateway.monitor.plan_of = lambda model: LaunchPlan(model, (), {}, b.instances._endpoint, SECRET, ())


@pytest.mark.parametrize("path", BODIES)
@on_both_loops
async def test_the_model_is_named_in_the_body_or_in_the_query_or_is_the_only_one_that_can(
    tmp_path: Path, path: str
) -> None:
    async with bench(tmp_path, models=MODELS, others=OTHERS) as b, await b.client() as client:
        b.engine.says(plain(b'{"model":"org/coder:q4","content":"x"}'))
        body = BODIES[path]
        for target, named in ((path, {"model": "coder"}), (f"{path}?x=1&model=org%2Fcoder%3Aq4", {}), (path, {})):
            answer = await client.ask(path=target, body={**named, **body})
            assert (answer.status, answer.headers["x-accelerd-model"]) == (200, "org/coder:q4")
            assert answer.json()["model"] == named.get("model", "org/coder:q4")
        assert [one.head.split()[1].decode() for one in b.engine.requests] == [path] * 3
        assert json.loads(b.engine.requests[1].body) == body


@pytest.mark.parametrize("path", BODIES)
@on_both_loops
async def test_an_engine_without_them_is_not_loaded_for_them(tmp_path: Path, path: str) -> None:
    async with bench(tmp_path, models=MODELS, others=OTHERS) as b, await b.client() as client:
        for target, named in ((path, {"model": "npu"}), (f"{path}?model=npu", {})):
            answer = await client.ask(path=target, body={**named, **BODIES[path]})
            assert (answer.status, answer.code, answer.json()["error"]["capability"]) == (
                400, "not_supported_by_model", "llama-server",
            )  # fmt: skip
            assert "org/coder:q4" in answer.json()["error"]["message"]
        assert b.scheduler.snapshot("npu").instance is None
        assert not b.engine.requests


@on_both_loops
async def test_a_model_that_makes_no_text_has_only_what_it_is_for(tmp_path: Path) -> None:
    others = {"llama-server": Speaker(of={"m": Traits(frozenset(("embeddings", "llama-server")))})}
    async with bench(tmp_path, others=others) as b, await b.client() as client:
        b.engine.says(plain(b"{}"))
        got = {path: (await client.ask(path=path, body=body)).status for path, body in BODIES.items()}
        assert got == {**dict.fromkeys(BODIES, 200), "/completion": 400, "/infill": 400}


@pytest.mark.parametrize(
    ("path", "body", "missing"),
    [
        ("/infill", {"input_suffix": "b"}, "input_prefix"),
        ("/completion", {"n_predict": 1}, "prompt"),
        ("/apply-template", {}, "messages"),
        ("/embedding", {}, "input"),
    ],
)
@on_both_loops
async def test_what_is_missing_is_said_before_a_load(
    tmp_path: Path, path: str, body: dict[str, Any], missing: str
) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        answer = await client.ask(path=path, body=body)
        assert (answer.status, answer.code, answer.json()["error"]["param"]) == (400, "bad_request", missing)
        assert b.scheduler.snapshot("m").instance is None


@on_both_loops
async def test_a_stream_is_passed_on_as_it_is_and_the_lease_ends_with_it(tmp_path: Path) -> None:
    event = b'data: {"content":"x","stop":false}\n\n'
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, chunk(event), chunk(event) + b"0\r\n\r\n")
        answer = await client.ask(path="/completion", body={"prompt": "x", "stream": True})
        assert (answer.status, answer.body, answer.complete) == (200, event * 2, True)
        await b.settled()


@on_both_loops
async def test_a_name_that_is_reserved_is_not_taken_from_the_query_either(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        for name in ("m#trial", "x" * 300):
            answer = await client.ask(path=f"/tokenize?model={name.replace('#', '%23')}", body={"content": "x"})
            assert (answer.status, answer.code) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/slots", "/metrics", "/lora-adapters", "/slots?fail_on_no_slot=1", "/props"])
@on_both_loops
async def test_monitors_load_nothing(tmp_path: Path, path: str) -> None:
    async with bench(tmp_path, models=MODELS, others=OTHERS) as b, await b.client() as client:
        monitored(b)
        for query in ("", "model=coder"):
            answer = await client.ask("GET", f"{path}{'&' if '?' in path else '?'}{query}")
            if path == "/props":
                known = answer.json()
                assert (answer.status, known["is_sleeping"], known["model_alias"]) == (200, True, "org/coder:q4")
                assert (known["default_generation_settings"]["n_ctx"], known["total_slots"]) == (4096, 2)
                assert known["modalities"] == {"vision": True, "audio": True}
            else:
                assert (answer.status, answer.code) == (503, "model_unloaded")
                assert "org/coder:q4 is not loaded" in answer.json()["error"]["message"]
        assert (await client.ask("GET", f"{path.partition('?')[0]}?model=npu")).code == "not_supported_by_model"
        assert (await client.ask("GET", f"{path.partition('?')[0]}?model=nobody")).code == "model_not_found"
        assert b.scheduler.snapshot("org/coder:q4").instance is None
        assert not b.engine.requests


@on_both_loops
async def test_the_engine_of_a_loaded_model_answers_monitors_and_they_hold_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read a moment ago is not asked for again: an engine that is always asked cannot see who has gone."""
    async with bench(tmp_path, models=MODELS, others=OTHERS) as b, await b.client() as client:
        monitored(b)
        assert (await client.ask(body=chat("coder"))).status == 200
        before = b.scheduler.snapshot("org/coder:q4").history
        monkeypatch.setattr(engine_monitor, "FRESH", 3600.0)
        b.engine.says(plain(b"llamacpp:requests_processing 0\n", kind="text/plain; version=0.0.4"))
        for _ in range(3):
            answer = await client.ask("GET", "/metrics?model=coder")
            assert (answer.status, answer.body) == (200, b"llamacpp:requests_processing 0\n")
            assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert answer.headers["x-accelerd-model"] == "org/coder:q4"
        b.engine.says(plain(b"[]"))
        assert (await client.ask("GET", "/slots?model=coder&fail_on_no_slot=1&x=%0d%0a")).json() == []
        heads = [one.head.split(b"\r\n") for one in b.engine.requests[1:]]
        assert [one[0] for one in heads] == [b"GET /metrics HTTP/1.1", b"GET /slots?fail_on_no_slot=1 HTTP/1.1"]
        assert all(f"Authorization: Bearer {SECRET}".encode() in one for one in heads)
        monkeypatch.setattr(engine_monitor, "FRESH", -1.0)
        asked = len(b.engine.requests)
        b.engine.says(plain(b"llamacpp:requests_processing 1\n", kind="text/plain; version=0.0.4"))
        assert (await client.ask("GET", "/metrics?model=coder")).body == b"llamacpp:requests_processing 1\n"
        assert len(b.engine.requests) == asked + 1
        assert b.leases("org/coder:q4") == 0
        assert b.scheduler.snapshot("org/coder:q4").history == before


@on_both_loops
async def test_what_an_engine_was_not_started_for_is_said_with_where_to_set_it(tmp_path: Path) -> None:
    words = "This server does not support metrics endpoint. Start it with `--metrics`"
    said = {"error": {"code": 501, "message": words, "type": "not_supported_error"}}
    others = {"llama-server": Speaker(DIALECT)}
    async with bench(tmp_path, others=others) as b, await b.client() as client:
        monitored(b)
        assert (await client.ask(body=chat())).status == 200
        b.engine.says(plain(json.dumps(said).encode(), 501))
        answer = await client.ask("GET", "/metrics")
        assert answer.status == 501
        assert 'extra_args = ["--metrics"]' in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("POST", "/props", "is the engine's own"),
        ("POST", "/lora-adapters", "`lora` in a request"),
        ("POST", "/slots/0?action=save", "is the engine's own"),
        ("DELETE", "/metrics", ""),
    ],
)
@on_both_loops
async def test_what_would_change_a_model_for_everybody_is_refused(
    tmp_path: Path, method: str, path: str, hint: str
) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        answer = await client.ask(method, path, {"filename": "x"})
        assert (answer.status, answer.code) == (405, "method_not_allowed")
        assert hint in answer.json()["error"]["message"]
        assert b.scheduler.snapshot("m").instance is None


@on_both_loops
async def test_a_route_has_no_engine_to_monitor(tmp_path: Path) -> None:
    routes = [Route("both", ("org/coder:q4", "npu"))]
    async with bench(tmp_path, models=MODELS, others=OTHERS, routes=routes) as b, await b.client() as client:
        answer = await client.ask("GET", "/slots?model=both")
        assert (answer.status, answer.code) == (400, "bad_request")
        assert "org/coder:q4" in answer.json()["error"]["message"]
        assert (await client.ask(path="/tokenize", body={"model": "both", "content": "x"})).status == 200


@on_both_loops
async def test_a_key_is_needed_and_pages_that_may_come_can_read_the_answer(tmp_path: Path) -> None:
    settings = ServerSettings(allowed_origins=("http://ide.example",))
    async with bench(tmp_path, settings, keys=(bytes(32),)) as b, await b.client() as client:
        for path in ("/props", "/slots", "/metrics"):
            assert (await client.ask("GET", path)).status == 401
    folder = tmp_path / "open"
    folder.mkdir()
    async with bench(folder, settings) as b, await b.client() as client:
        answer = await client.ask("GET", "/props", headers={"Origin": "http://ide.example"})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "http://ide.example")
        assert (await client.ask("GET", "/props", headers={"Origin": "http://evil.example"})).status == 403


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/reranking", {"query": "q", "documents": ["d"]}),
        ("/v1/responses", {"input": "x"}),
    ],
)
@on_both_loops
async def test_lemonades_clients_ask_below_api(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(b'{"choices":[]}'))
        answer = await client.ask(path=f"/api{path}", body={"model": "m", **body})
        assert answer.status == 200
        assert b.engine.requests[0].head.split()[1].decode() == path.replace("reranking", "rerank")
        refused = await client.ask(path=f"/api{path}", body={"model": "nobody", **body})
        assert refused.json()["error"]["code"] == "model_not_found"


@on_both_loops
async def test_models_and_health_are_there_below_api_too(tmp_path: Path) -> None:
    async with bench(tmp_path, models=MODELS, others=OTHERS) as b, await b.client() as client:
        for path in ("/models", "/models/org/coder:q4", "/models/coder", "/health"):
            answer = await client.ask("GET", f"/api/v1{path}")
            assert answer.status == 200
            assert answer.json() == (await client.ask("GET", f"/v1{path}")).json()
        assert (await client.ask("GET", "/api/v1/models/nobody")).code == "model_not_found"
        assert (await client.ask("GET", "/api/v1/nothing")).code == "not_found"


@pytest.mark.parametrize("path", ["/tokenize", "/apply-template", "/props"])
@on_both_loops
async def test_without_a_name_the_one_that_generates_is_meant(tmp_path: Path, path: str) -> None:
    models = [ModelSpec(name, path="/m.gguf") for name in ("vectors", "talk", "ranks")]
    own = {"vectors": "embeddings", "talk": "completions", "ranks": "rerank"}
    traits = {name: Traits(frozenset(("llama-server", task))) for name, task in own.items()}  # type: ignore[arg-type]
    others = {"llama-server": Speaker(of=traits)}
    async with bench(tmp_path, models=models, others=others) as b, await b.client() as client:
        if path == "/props":
            assert (await client.ask("GET", path)).json()["model_alias"] == "talk"
            return
        b.engine.says(plain(b"{}"))
        for named in ({}, {"model": ""}, {"model": None}):
            answer = await client.ask(path=path, body={**named, **BODIES[path]})
            assert (answer.status, answer.headers["x-accelerd-model"]) == (200, "talk")


@pytest.mark.parametrize(("path", "count"), [("/infill", 3), ("/completion", 2)])
@on_both_loops
async def test_more_completions_than_slots_are_a_list_all_the_same(tmp_path: Path, path: str, count: int) -> None:
    """One after the other, each asked for by itself; what was not to be in the answers is not added."""
    models = [ModelSpec("m", path="/m.gguf", parallel=1)]
    async with bench(tmp_path, models=models) as b, await b.client() as client:
        for said, wanted in ((b'{"index":0,"content":"x","model":"m"}', [0, 1, 2]), (b'{"content":"x"}', [None] * 3)):
            b.engine.requests.clear()
            b.engine.says(plain(said))
            answer = await client.ask(path=path, body={**BODIES[path], "n_cmpl": count, "id_slot": 0})
            assert [one.get("index") for one in answer.json()] == wanted[:count]
            assert [one["content"] for one in answer.json()] == ["x"] * count
            assert len(b.engine.requests) == count
            assert all("n_cmpl" not in one.json() and one.json()["id_slot"] == 0 for one in b.engine.requests)
        b.engine.says(plain(b'{"content":"x"}'))
        assert (await client.ask(path=path, body={**BODIES[path], "n_cmpl": 1})).json() == {"content": "x"}
        assert b.engine.connections == 1, "an engine keeps those that idle"
