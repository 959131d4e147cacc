"""Ollama's API beside its chat: single prompts and embeddings, for engines that know nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.config.variants import Variant
from accelerd.scheduler.lifecycle import State
from tests.gateway.bench import Bench, bench, chunk, on_both_loops, plain, until
from tests.gateway.client import Response
from tests.gateway.test_translated import (
    CHAT,
    ERRORS,
    HELLO,
    LINES_HEAD,
    MESSAGES,
    NAMES,
    OLLAMA,
    PIXEL,
    RECORDED,
    lines_of,
    only,
    streamed,
    table,
)

GENERATE, EMBED, EMBED_ONE = "/api/generate", "/api/embed", "/api/embeddings"
ENGINES = [CHAT, MESSAGES]
VECTORS = plain(
    json.dumps({
        "object": "list", "model": "x", "usage": {"prompt_tokens": 7, "total_tokens": 7},
        "data": [
            {"object": "embedding", "index": 1, "embedding": [0.5, -1e-9]},
            {"object": "embedding", "index": 0, "embedding": [1, 0.25]},
        ],
    }).encode()
)  # fmt: skip


def lines(response: Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.body.splitlines()]


@pytest.mark.parametrize("engine", ENGINES)
@on_both_loops
async def test_a_prompt_is_a_chat_of_one_message(tmp_path: Path, engine: str) -> None:
    async with table(tmp_path, engine, "vision") as b, await b.client() as c:
        b.engine.says(*streamed(engine, "text"))
        body = {
            "model": "m", "prompt": "why?", "system": "be short", "format": "json", "images": [PIXEL],
            "options": {"num_predict": 5, "stop": ["."], "num_ctx": 4096}, "keep_alive": "5m",
        }  # fmt: skip
        response = await c.ask(path=GENERATE, body=body)
        assert (response.status, response.headers["content-type"]) == (200, "application/x-ndjson")
        *said, last = lines(response)
        assert "".join(one["response"] for one in said) == "Hello from accelerd, a tiny model answers."
        assert {"message"}.isdisjoint(key for one in (*said, last) for key in one)
        assert (last["response"], last["done"], last["done_reason"], last["model"]) == ("", True, "stop", "m")
        assert (last["eval_count"] > 0, last["total_duration"] >= last["eval_duration"]) == (True, True)
        asked = b.engine.requests[0]
        assert asked.head.split(b" ")[1].decode() == engine
        sent = asked.json()
        assert ("be short" in json.dumps(sent), "why?" in json.dumps(sent), PIXEL in json.dumps(sent)) == (True,) * 3
        assert (sent["max_tokens"], sent["stream"]) == (5, True)


@pytest.mark.parametrize("engine", ENGINES)
@on_both_loops
async def test_a_whole_answer_to_a_prompt(tmp_path: Path, engine: str) -> None:
    async with table(tmp_path, engine) as b, await b.client() as c:
        b.engine.says(plain((RECORDED / f"{NAMES[engine]}-text.json").read_bytes()))
        response = await c.ask(path=GENERATE, body={"model": "m", "prompt": "hi", "stream": False})
        answer = response.json()
        assert (response.status, response.headers["content-type"]) == (200, "application/json")
        assert (answer["response"], answer["done"]) == ("Hello from accelerd, a tiny model answers.", True)
        b.engine.says(plain(ERRORS[engine], 400))
        refused = await c.ask(path=GENERATE, body={"model": "m", "prompt": "hi", "stream": False})
        assert (refused.status, refused.json()) == (400, {"error": "no such thing"})


@pytest.mark.parametrize(
    "more", [{"suffix": "b"}, {"raw": True}, {"template": "{{ .Prompt }}"}, {"context": [1, 2]}, {"logprobs": True}]
)
@on_both_loops
async def test_what_a_chat_has_not_is_refused_and_loads_nothing(tmp_path: Path, more: dict[str, Any]) -> None:
    async with table(tmp_path, CHAT) as b, await b.client() as c:
        refused = await c.ask(path=GENERATE, body={"model": "m", "prompt": "hi", **more})
        assert (refused.status, f"`{next(iter(more))}`" in refused.json()["error"]) == (400, True)
        assert b.engine.requests == []


@on_both_loops
async def test_an_image_beside_a_prompt_needs_a_model_that_sees(tmp_path: Path) -> None:
    async with table(tmp_path, CHAT) as b, await b.client() as c:
        refused = await c.ask(path=GENERATE, body={"model": "m", "prompt": "hi", "images": [PIXEL]})
        assert (refused.status, "process images" in refused.json()["error"]) == (400, True)
        b.engine.says(*streamed(CHAT, "text"))
        assert (await c.ask(path=GENERATE, body={"model": "m", "prompt": "hi", "images": []})).status == 200


@on_both_loops
async def test_where_it_is_native_it_is_not_touched(tmp_path: Path) -> None:
    async with table(tmp_path, OLLAMA) as b, await b.client() as c:
        b.engine.says(LINES_HEAD, chunk(b'{"model":"m","response":"hi","done":true}\n'), b"0\r\n\r\n")
        body = {"model": "m", "prompt": "hi", "raw": True, "suffix": "x"}
        response = await c.ask(path=GENERATE, body=body)
        assert lines(response) == [{"model": "m", "response": "hi", "done": True}]
        assert (b.engine.requests[0].head.split(b" ")[1], b.engine.requests[0].json()) == (GENERATE.encode(), body)


@on_both_loops
async def test_who_waits_for_an_answer_to_a_prompt_gets_lines_without_text(tmp_path: Path) -> None:
    async with table(tmp_path, CHAT) as b, await b.client() as c:
        b.engine.says(*streamed(CHAT, "text"))
        found = await lines_of(b, c, GENERATE, model="m", prompt="hi")
        assert (found[0]["response"], found[0]["done"]) == ("", False)
        assert "".join(one["response"] for one in found) == "Hello from accelerd, a tiny model answers."


@on_both_loops
async def test_a_variant_has_its_system_prompt_in_it(tmp_path: Path) -> None:
    spec = ModelSpec(
        "m", engine="flm", model="x", parallel=2,
        variants=(Variant("v", system="You are a pirate.", set=((("options", "seed"), b"7"),)),),
    )  # fmt: skip
    async with bench(tmp_path, ServerSettings(), models=[spec], others={"flm": only(CHAT)}) as b, await b.client() as c:
        b.engine.says(*streamed(CHAT, "text"))
        response = await c.ask(path=GENERATE, body={"model": "v", "prompt": "hi", "system": "be short"})
        assert lines(response)[0]["model"] == "v"
        sent = b.engine.requests[0].json()
        assert sent["messages"][0] == {"role": "system", "content": "You are a pirate.\n\nbe short"}
        assert sent["seed"] == 7


@on_both_loops
async def test_embeddings(tmp_path: Path) -> None:
    async with table(tmp_path, CHAT, "embeddings") as b, await b.client() as c:
        b.engine.says(VECTORS)
        body = {"model": "m", "input": ["a", "b"], "truncate": True, "dimensions": 2, "options": {}}
        response = await c.ask(path=EMBED, body=body)
        answer = response.json()
        assert (response.status, answer["embeddings"]) == (200, [[1, 0.25], [0.5, -1e-9]])
        assert (answer["model"], answer["prompt_eval_count"]) == ("m", 7)
        asked = b.engine.requests[0]
        assert asked.head.split(b" ")[1] == b"/v1/embeddings"
        assert asked.json() == {"model": "m", "input": ["a", "b"], "dimensions": 2}
        one = await c.ask(path=EMBED_ONE, body={"model": "m", "prompt": "a", "keep_alive": 0})
        assert one.json() == {"embedding": [1, 0.25]}
        assert b.engine.requests[1].json() == {"model": "m", "input": "a"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBED, {"input": 3}),
        (EMBED, {}),
        (EMBED, {"input": ["a", 1]}),
        (EMBED_ONE, {"input": "a"}),
        (GENERATE, {"prompt": 1}),
        (GENERATE, {"prompt": "a", "keep_alive": "5 minutes"}),
    ],
)
@on_both_loops
async def test_what_is_not_valid_is_said_in_its_shape(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async with table(tmp_path, CHAT, "embeddings") as b, await b.client() as c:
        refused = await c.ask(path=path, body={"model": "m", **body})
        assert (refused.status, set(refused.json())) == (400, {"error"})
        assert b.engine.requests == []


@pytest.mark.parametrize("stream", [None, True, False])
@pytest.mark.parametrize(("path", "field"), [(EMBED, "input"), (EMBED_ONE, "prompt")])
@on_both_loops
async def test_embeddings_are_no_stream(tmp_path: Path, path: str, field: str, stream: bool | None) -> None:
    async with table(tmp_path, CHAT, "embeddings") as b, await b.client() as c:
        b.engine.says(VECTORS)
        answer = await c.ask(path=path, body={"model": "m", field: "a", "stream": stream})
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


@on_both_loops
async def test_embeddings_that_are_none(tmp_path: Path) -> None:
    async with table(tmp_path, CHAT, "embeddings") as b, await b.client() as c:
        for answer in (b'{"data": []}', b"{}", b"nothing"):
            b.engine.says(plain(answer))
            refused = await c.ask(path=EMBED, body={"model": "m", "input": "a"})
            assert (refused.status, set(refused.json())) == (502, {"error"})


# --- how long a model stays -----------------------------------------------------------------------------------------


def limit(b: Bench) -> float | None:
    """Seconds after which the model is unloaded now."""
    return b.scheduler.snapshot("m").idle_timeout


@pytest.mark.parametrize(
    ("keep_alive", "configured", "expected"),
    [
        ("5m", None, 300), (30, None, 30), ("1h30m", 60.0, 60.0), ("45.5s", 60.0, 45.5), (-1, 60.0, 60.0),
        ("-1m", None, None), (None, 60.0, 60.0), ("59999ms", 60.0, 59.999), (1e300, 60.0, 60.0),
    ],
)  # fmt: skip
@on_both_loops
async def test_a_client_may_shorten_how_long_a_model_stays_and_never_lengthen(
    tmp_path: Path, keep_alive: Any, configured: float | None, expected: float | None
) -> None:
    spec = ModelSpec("m", engine="flm", model="x", parallel=2, idle_timeout=configured)
    async with bench(tmp_path, models=[spec], others={"flm": only(CHAT, "embeddings")}) as b, await b.client() as c:
        for path, more, answer in (
            (OLLAMA, {"messages": HELLO}, streamed(CHAT, "text")),
            (GENERATE, {"prompt": "a"}, streamed(CHAT, "text")),
            (EMBED, {"input": "a"}, [VECTORS]),
            (GENERATE, {}, []),
        ):
            b.engine.says(*answer)
            assert (await c.ask(path=path, body={"model": "m", "keep_alive": keep_alive, **more})).status == 200
            await until(lambda: b.scheduler.snapshot("m").leases == 0, "it has ended")
            assert limit(b) == expected
            b.engine.says(*streamed(CHAT, "text"))
            assert (await c.ask(path=OLLAMA, body={"model": "m", "messages": HELLO})).status == 200
            await until(lambda: b.scheduler.snapshot("m").leases == 0, "it has ended")
            assert limit(b) == configured, "the next one has said nothing of it"


@pytest.mark.parametrize(("path", "more"), [(GENERATE, {}), (GENERATE, {"prompt": ""}), (OLLAMA, {"messages": []})])
@on_both_loops
async def test_a_request_with_nothing_to_answer_loads_and_unloads(
    tmp_path: Path, path: str, more: dict[str, Any]
) -> None:
    async with table(tmp_path, CHAT) as b, await b.client() as c:
        unloaded = await c.ask(path=path, body={"model": "m", "keep_alive": 0, **more})
        assert (unloaded.status, unloaded.json()["done_reason"]) == (200, "unload"), "it was not loaded"
        assert b.scheduler.snapshot("m").state is State.STOPPED
        loaded = await c.ask(path=path, body={"model": "m", **more})
        answer = loaded.json()
        assert (loaded.status, answer["done"], answer["done_reason"], answer["model"]) == (200, True, "load", "m")
        assert ("message" in answer, "response" in answer) == (path == OLLAMA, path == GENERATE)
        assert b.scheduler.snapshot("m").state is State.READY
        found = (await c.ask(path="/api/ps", method="GET")).json()["models"]
        assert [(one["name"], one["size_vram"]) for one in found] == [("m", 0)]
        assert (await c.ask(path=path, body={"model": "m", "keep_alive": "0s", **more})).json()[
            "done_reason"
        ] == "unload"
        await until(lambda: b.scheduler.snapshot("m").state is State.STOPPED, "it is unloaded")
        assert (await c.ask(path="/api/ps", method="GET")).json() == {"models": []}
        assert b.engine.requests == []
        unknown = await c.ask(path=path, body={"model": "nobody", **more})
        assert (unknown.status, "nobody" in unknown.json()["error"]) == (404, True)


@on_both_loops
async def test_a_model_that_stays_is_not_unloaded_by_a_client(tmp_path: Path) -> None:
    spec = ModelSpec("m", engine="flm", model="x", parallel=2, pin=True)
    async with bench(tmp_path, models=[spec], others={"flm": only(CHAT)}) as b, await b.client() as c:
        assert (await c.ask(path=GENERATE, body={"model": "m"})).status == 200
        assert (await c.ask(path=GENERATE, body={"model": "m", "keep_alive": 0})).status == 200
        b.engine.says(*streamed(CHAT, "text"))
        assert (await c.ask(path=GENERATE, body={"model": "m", "prompt": "a", "keep_alive": 0})).status == 200
        (one,) = (await c.ask(path="/api/ps", method="GET")).json()["models"]
        assert one["expires_at"] > "2100"
        assert b.scheduler.snapshot("m").state is State.READY


@on_both_loops
async def test_what_is_here_need_not_be_pulled(tmp_path: Path) -> None:
    async with table(tmp_path, CHAT) as b, await b.client() as c:
        for stream in (True, False):
            assert (await c.ask(path="/api/pull", body={"model": "m", "stream": stream})).json() == {
                "status": "success"
            }
        refused = await c.ask(path="/api/pull", body={"name": "llama3.2"})
        assert (refused.status, set(refused.json())) == (404, {"error"})
        assert "accelctl add" in refused.json()["error"]
        assert (await c.ask(path="/api/pull", method="GET")).status == 405
        for path in ("/api/create", "/api/push", "/api/copy"):
            answer = await c.ask(path=path, body={"model": "m"})
            assert (answer.status, "/api/generate" in answer.json()["error"]) == (404, True)
