"""What a model cannot do is refused before anything is loaded; engines with names of their own are asked by those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Dialect, Traits
from tests.gateway.bench import DONE, SSE_HEAD, Bench, Speaker, bench, on_both_loops, plain, token, until
from tests.gateway.client import CHAT, chat, request

NPU = ModelSpec("npu-chat", engine="flm", model="qwen3:4b")
GPU = ModelSpec("gpu", path="/m.gguf", parallel=4, aliases=("gpt-4o",))
VECTORS = ModelSpec("vectors", path="/e.gguf", embeddings=True)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def table(tmp_path: Path, **more: Any) -> Any:
    """A chat model of another engine, without tools; one that can all, and one that makes embeddings."""
    chats = Traits(
        frozenset(("chat", "completions")),
        {"tools": "qwen3:4b was not trained for them", "embeddings": "set embeddings = true for it"},
        wire_name="qwen3:4b", labels=("reasoning",), recipe="flm", device="npu",
    )  # fmt: skip
    flm = Speaker(Dialect(busy=frozenset({503})), chats)
    return bench(tmp_path, models=[GPU, NPU, VECTORS], others={"flm": flm}, **more)


def only_vectors(b: Bench) -> None:
    b.engines["llama-server"] = Speaker(of={"vectors": Traits(frozenset(("embeddings",)))})


@pytest.mark.parametrize(
    ("path", "body", "said", "param"),
    [
        (
            "/v1/embeddings",
            {"input": "x"},
            ("create embeddings", "set embeddings = true", "these models can: gpu"),
            "model",
        ),
        ("/v1/rerank", {"query": "q", "documents": ["d"]}, ("rank documents", "flm does not support it"), "model"),
        ("/v1/responses", {"input": "x"}, ("responses API",), "model"),
        (CHAT, {"messages": [{}], "tools": [TOOL]}, ("use tools", "not trained for them"), "tools"),
        (CHAT, {"messages": [{}], "tools": [TOOL], "stream": True}, ("use tools",), "tools"),
    ],
)
@on_both_loops
async def test_it_is_refused_before_any_load(
    tmp_path: Path, path: str, body: dict[str, Any], said: tuple[str, ...], param: str
) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        response = await client.ask(path=path, body={"model": "npu-chat", **body})
        assert (response.status, response.code) == (400, "not_supported_by_model")
        error = response.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        for words in said:
            assert words in error["message"]
        assert b.scheduler.snapshot("npu-chat").instance is None
        assert (await client.ask("GET", "/health")).status == 200, "the connection is good for more"


@pytest.mark.parametrize("tools", [[], None])
@on_both_loops
async def test_tools_that_are_none_are_no_matter(tmp_path: Path, tools: Any) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        assert (await client.ask(body=chat("npu-chat", tools=tools))).status == 200
        assert b.engine.requests[0].json()["tools"] == tools


@on_both_loops
async def test_it_is_said_when_nobody_can(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        only_vectors(b)
        b.engines["flm"].says = Traits(frozenset())
        b.engines["llama-server"].says = Traits(frozenset())
        response = await client.ask(body=chat("vectors"))
        assert response.json()["error"]["message"].endswith("no configured model can")


@on_both_loops
async def test_an_embedding_model_does_not_chat_and_a_chat_model_makes_none(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        only_vectors(b)
        assert (await client.ask(body=chat("vectors"))).code == "not_supported_by_model"
        assert (await client.ask(path="/v1/embeddings", body={"model": "vectors", "input": "x"})).status == 200


@on_both_loops
async def test_B_the_engine_hears_its_own_name_and_everything_else_as_it_was(tmp_path: Path) -> None:
    """flm loads another model when a request names one."""
    body = (
        b'{"z":1.50,"messages":[{"role":"user","content":"h\\u00e4 "}],"model":"npu/npu-chat",'
        b'"a":{"model":"npu/npu-chat"},"b":1e0}'
    )
    async with table(tmp_path) as b, await b.client() as client:
        response = await client.ask(body=body)
        assert response.status == 200
        assert response.headers["x-accelerd-model"] == "npu-chat"
        assert b.engine.requests[0].body == body.replace(b"npu/npu-chat", b"qwen3:4b", 1)
        assert b.engine.requests[0].head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


@on_both_loops
async def test_the_answer_carries_the_name_that_the_client_can_use(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, token("a", model="qwen3:4b"), DONE)
        response = await client.ask(body=chat("npu-chat", stream=True))
        assert response.events()[0]["model"] == "npu-chat"


@on_both_loops
async def test_a_path_of_the_engines_own_is_taken(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        b.engines["flm"].says = Traits(frozenset(("chat",)), paths={CHAT: "/api/v1/chat/completions"})
        for _ in range(2):
            assert (await client.ask(body=chat("npu-chat"))).status == 200
        assert {r.head.split(b" ")[1] for r in b.engine.requests} == {b"/api/v1/chat/completions"}


@on_both_loops
async def test_A_how_it_is_asked_is_what_its_load_has_shown(tmp_path: Path) -> None:
    """Lemonade: whether a model's own server is asked, and by which name, is known once it runs."""
    async with table(tmp_path) as b, await b.client() as client:
        b.instances.hold = True
        client.send(request(body=chat("npu-chat")))
        await until(lambda: b.scheduler.queued, "it waits")
        b.engines["flm"].says = Traits(frozenset(("chat",)), wire_name="seen", paths={CHAT: "/api/v1/chat"})
        b.instances.let_go()
        assert (await client.response()).status == 200
        asked = b.engine.requests[0]
        assert (asked.json()["model"], asked.head.split(b" ")[1]) == ("seen", b"/api/v1/chat")


@on_both_loops
async def test_A_what_its_load_shows_it_lacks_is_refused_then(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        b.instances.hold = True
        client.send(request(body=chat("npu-chat")))
        await until(lambda: b.scheduler.queued, "it waits")
        b.engines["flm"].says = Traits(frozenset(("transcription",)))
        b.instances.let_go()
        assert (await client.response()).code == "not_supported_by_model"
        assert not b.engine.requests
        await b.settled()


@on_both_loops
async def test_what_an_engine_is_found_to_lack_at_a_reload_is_refused(tmp_path: Path) -> None:
    """Engines are made anew: nothing of what the old ones said is remembered."""
    async with table(tmp_path) as b, await b.client() as client:
        for _ in range(2):
            assert (await client.ask(body=chat("gpu"))).status == 200
        b.engines["llama-server"] = Speaker(says=Traits(frozenset(("embeddings",))))
        b.configure(b.gateway._settings, ())
        assert (await client.ask(body=chat("gpu"))).code == "not_supported_by_model"


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/reranking", "/v1/reranking"])
@on_both_loops
async def test_rerank_has_many_names(tmp_path: Path, path: str) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        for _ in range(2):
            body = {"model": "gpu", "query": "q", "documents": ["d"]}
            assert (await client.ask(path=path, body=body)).status == 200
        assert {r.head.split(b" ")[1] for r in b.engine.requests} == {b"/v1/rerank"}


@on_both_loops
async def test_the_list_says_what_each_can(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        listed = {m["id"]: m for m in (await client.ask("GET", "/v1/models")).json()["data"]}
        npu = listed["npu-chat"]
        assert npu["capabilities"] == ["chat", "completions", "messages"]  # the last by translation
        assert (npu["labels"], npu["recipe"], npu["engine"], npu["device"]) == (["reasoning"], "flm", "flm", "npu")
        assert npu["aliases"] == ["npu/npu-chat"]
        assert listed["gpu"]["aliases"] == ["gpt-4o", "local/gpu"]
        assert listed["gpu"]["device"] == "cpu"
        assert (await client.ask("GET", "/v1/models/npu%2Fnpu-chat")).json() == npu


@on_both_loops
async def test_a_busy_engine_that_is_not_said_to_be_one_is_relayed(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(b'{"error":{}}', 503))
        assert (await client.ask(body=chat("gpu"))).status == 503
        await until(lambda: len(b.engine.requests) == 1, "asked once")
