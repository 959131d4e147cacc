"""Routes at the door: one name, the first model in order that could begin at once, and what is said of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, Route, ServerSettings
from accelerd.engines.base import Dialect, Traits
from tests.gateway.bench import ALL, Bench, Speaker, bench, on_both_loops, until
from tests.gateway.client import CHAT, chat, request

BIG = ModelSpec("big", path="/m.gguf", context=8192)
SMALL = ModelSpec("small", engine="flm", model="qwen3:4b", context=4096)
ROUTE = Route("assistant", ("big", "small"), "whoever is free")
TOOL = [{"type": "function", "function": {"name": "f"}}]


def table(tmp_path: Path, **more: Any) -> Any:
    """One on the processor, as far as the bench's scheduler knows, and one on an NPU."""
    npu = Speaker(Dialect(), Traits(frozenset(("chat", "transcription")), wire_name="qwen3:4b", device="npu"))
    gpu = Speaker(says=Traits(ALL - {"transcription"}))
    return bench(
        tmp_path, models=[BIG, SMALL], routes=[ROUTE, Route("npu-first", ("small", "big"))],
        others={"flm": npu, "llama-server": gpu}, **more,
    )  # fmt: skip


@on_both_loops
async def test_the_header_tells_who_answered(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        for route, model, wire in (("assistant", "big", "assistant"), ("npu-first", "small", "qwen3:4b")):
            for _ in range(2):
                response = await client.ask(body=chat(route))
                assert (response.status, response.headers["x-accelerd-model"]) == (200, model)
                assert b.engine.requests[-1].json()["model"] == wire


@on_both_loops
async def test_the_npu_answers_while_the_other_device_is_busy_and_then_the_shorter_queue(tmp_path: Path) -> None:
    async with table(tmp_path) as b:
        b.engine.script = b.engine.never
        clients = [await b.client() for _ in range(4)]
        # Who runs or waits at (big, small) after each request.
        for client, expected in zip(clients, ((1, 0), (1, 1), (2, 1), (2, 2)), strict=True):
            client.send(request(body=chat("assistant")))
            await until(lambda expected=expected: at_work(b) == expected, f"{expected}")
        for client in clients:
            await client.close()
        await b.settled()


def at_work(b: Bench) -> tuple[int, ...]:
    seen = [b.scheduler.snapshot(name) for name in ("big", "small")]
    return tuple(one.leases + one.queue for one in seen)


@on_both_loops
async def test_who_cannot_do_it_is_passed_over(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        response = await client.ask(body=chat("npu-first", tools=TOOL))
        assert (response.status, response.headers["x-accelerd-model"]) == (200, "big")
        body = {"model": "assistant", "input": "x"}
        response = await client.ask(path="/v1/embeddings", body=body)
        assert response.headers["x-accelerd-model"] == "big"


@on_both_loops
async def test_it_is_refused_when_none_can(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        response = await client.ask(path="/v1/audio/speech", body={"model": "assistant", "input": "x"})
        assert response.status == 200, "the bench's llama-server can all but hear"
        b.engines["llama-server"] = Speaker(says=Traits(frozenset(("chat",))))
        response = await client.ask(path="/v1/embeddings", body={"model": "assistant", "input": "x"})
        assert response.code == "not_supported_by_model"
        text = response.json()["error"]["message"]
        assert "no model of assistant supports this" in text
        assert "big cannot create embeddings; small cannot create embeddings" in text


@on_both_loops
async def test_each_decision_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "accelerd.gateway.request_router")
    async with table(tmp_path) as b, await b.client() as client:
        assert (await client.ask(body=chat("assistant", secret="hush"))).status == 200
    assert "assistant is answered by big: big is not loaded, and its device is free" in caplog.text
    assert "hush" not in caplog.text


@on_both_loops
async def test_the_context_is_what_the_engine_says(tmp_path: Path) -> None:
    """The settings of the engine may be more than it serves."""
    async with table(tmp_path) as b, await b.client() as client:
        b.engines["llama-server"] = Speaker(says=Traits(ALL, context=2048))
        listed = {m["id"]: m for m in (await client.ask("GET", "/v1/models")).json()["data"]}
        assert listed["big"]["context_length"] == 2048
        assert listed["small"]["context_length"] == 4096, "it does not say: as configured"
        assert listed["assistant"]["context_length"] == 2048


@on_both_loops
async def test_routes_are_listed_and_asked_for_by_name(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        listed = {m["id"]: m for m in (await client.ask("GET", "/v1/models")).json()["data"]}
        assert list(listed) == ["big", "small", "assistant", "npu-first"]
        route = listed["assistant"]
        assert (route["routes"], route["description"]) == (["big", "small"], "whoever is free")
        assert route["context_length"] == 4096
        assert {"chat", "transcription", "tools"} <= set(route["capabilities"])
        assert (await client.ask("GET", "/v1/models/assistant")).json() == route
        assert (
            (await client.ask(body=chat("asistant"))).json()["error"]["message"].endswith("did you mean 'assistant'?")
        )


@on_both_loops
async def test_a_reload_changes_routes_for_the_next_request(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        assert (await client.ask(body=chat("assistant"))).headers["x-accelerd-model"] == "big"
        b.routes = [Route("assistant", ("small",))]
        b.configure(ServerSettings(), ())
        assert (await client.ask(body=chat("assistant"))).headers["x-accelerd-model"] == "small"
        assert (await client.ask(body=chat("npu-first"))).code == "model_not_found"
        b.routes = []
        b.configure(ServerSettings(), ())
        assert (await client.ask(path=CHAT, body=chat("assistant"))).code == "model_not_found"
