"""Requests in one API to an engine that has another, through the gateway: what the engine and the client get."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, Route, ServerSettings
from accelerd.engines.base import Dialect, Task, Traits
from tests.gateway.bench import ALL, SSE_HEAD, Bench, Speaker, bench, chunk, on_both_loops, plain, until
from tests.gateway.client import Client, Response, request

CHAT, MESSAGES, OLLAMA = "/v1/chat/completions", "/v1/messages", "/api/chat"
NATIVE: dict[str, Task] = {CHAT: "chat", MESSAGES: "messages", OLLAMA: "ollama"}
RECORDED = Path(__file__).parent / "recorded"
NAMES = {CHAT: "chat", MESSAGES: "messages", OLLAMA: "ollama"}
PAIRS = [(client, engine) for client in NATIVE for engine in NATIVE if client != engine]
LINES_HEAD = SSE_HEAD.replace(b"text/event-stream", b"application/x-ndjson")
TOOL = {"name": "get_weather", "description": "", "input_schema": {"type": "object"}}
FUNCTION = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
HELLO = [{"role": "user", "content": "hi"}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
ERRORS = {
    CHAT: b'{"error":{"code":400,"message":"no such thing","type":"invalid_request_error"}}',
    MESSAGES: b'{"type":"error","error":{"type":"invalid_request_error","message":"no such thing"}}',
    OLLAMA: b'{"error":"no such thing"}',
}


def only(engine: str, *more: Task, **traits: Any) -> Speaker:
    return Speaker(says=Traits(frozenset((NATIVE[engine], "tools", *more)), **traits))


def fresh(directory: Path) -> Path:
    """A new folder there: a gateway's sockets are in one of its own."""
    folder = directory / str(len(list(directory.iterdir())))
    folder.mkdir()
    return folder


def table(directory: Path, engine: str, *more: Task, dialect: Dialect | None = None, **traits: Any) -> Any:
    """A gateway with one model, `m`, whose engine has one API only."""
    speaker = only(engine, *more, **traits)
    speaker.dialect = dialect or Dialect()
    models = [ModelSpec("m", engine="flm", model="x", parallel=2)]
    return bench(fresh(directory), ServerSettings(keepalive_after=0.02), models=models, others={"flm": speaker})


def asks(client: str, **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "m", "messages": HELLO, **more}
    if client == MESSAGES:
        body["max_tokens"] = 64
    return body


def streamed(engine: str, what: str) -> list[bytes]:
    """A recorded stream as an engine sends it, in two pieces."""
    data = (RECORDED / f"{NAMES[engine]}-{what}.{'ndjson' if engine == OLLAMA else 'sse'}").read_bytes()
    head = LINES_HEAD if engine == OLLAMA else SSE_HEAD
    half = len(data) // 2
    return [head, chunk(data[:half]), 0.01, chunk(data[half:]) + b"0\r\n\r\n"]


def text_of(response: Response, client: str) -> str:
    """The text of a streamed answer."""
    if client == OLLAMA:
        return "".join(json.loads(line)["message"]["content"] for line in response.body.splitlines())
    found = [event for event in response.events() if isinstance(event, dict)]
    if client == MESSAGES:
        return "".join(event.get("delta", {}).get("text", "") for event in found)
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in found if event["choices"])


def said(response: Response, client: str) -> str:
    """The message of an error, in the shape of the client's API and no other."""
    body = response.json()
    if client == OLLAMA:
        assert set(body) == {"error"}
        return str(body["error"])
    assert set(body) == ({"type", "error"} if client == MESSAGES else {"error"})
    return str(body["error"]["message"])


@pytest.mark.parametrize(("client", "engine"), PAIRS)
@on_both_loops
async def test_a_stream_is_translated(tmp_path: Path, client: str, engine: str) -> None:
    async with table(tmp_path, engine) as b, await b.client() as c:
        b.engine.says(*streamed(engine, "text"))
        for _ in range(2):  # the model is loaded for the first
            response = await c.ask(path=client, body=asks(client, stream=True))
            assert (response.status, response.complete) == (200, True)
            kind = "application/x-ndjson" if client == OLLAMA else "text/event-stream"
            assert (response.headers["content-type"], response.headers["x-accelerd-model"]) == (kind, "m")
            assert text_of(response, client) == "Hello from accelerd, a tiny model answers."
        asked = b.engine.requests[0]
        assert asked.head.split(b" ")[1].decode() == engine
        assert asked.json()["stream"] is True
        await b.settled()


@pytest.mark.parametrize(("client", "engine"), PAIRS)
@on_both_loops
async def test_a_plain_answer_is_translated(tmp_path: Path, client: str, engine: str) -> None:
    tools = {"tools": [TOOL if client == MESSAGES else FUNCTION]}
    async with table(tmp_path, engine) as b, await b.client() as c:
        b.engine.says(plain((RECORDED / f"{NAMES[engine]}-tool.json").read_bytes()))
        for _ in range(2):
            response = await c.ask(path=client, body=asks(client, stream=False, **tools))
            assert (response.status, response.headers["content-type"]) == (200, "application/json")
            assert response.json()["model"] == "m"
            assert re.search(r'"city\\?": ?\\?"Paris', response.body.decode())
        (tool,) = b.engine.requests[0].json()["tools"]
        assert (tool if engine == MESSAGES else tool["function"])["name"] == "get_weather"


@pytest.mark.parametrize(("client", "engine"), PAIRS)
@on_both_loops
async def test_an_error_has_the_shape_of_the_client(tmp_path: Path, client: str, engine: str) -> None:
    async with table(tmp_path, engine) as b, await b.client() as c:
        for stream in (False, True):
            for body, expected in ((ERRORS[engine], "no such thing"), (b"<html>", "no reason given")):
                b.engine.says(plain(body, 400))
                response = await c.ask(path=client, body=asks(client, stream=stream))
                assert (response.status, said(response, client)) == (400, expected)
        response = await c.ask(path=client, body={"model": "nobody", "messages": HELLO})
        assert (response.status, "no model" in said(response, client)) == (404, True)


@pytest.mark.parametrize(("client", "engine"), PAIRS)
@on_both_loops
async def test_a_stream_that_breaks_never_looks_complete(tmp_path: Path, client: str, engine: str) -> None:
    head = LINES_HEAD if engine == OLLAMA else SSE_HEAD
    whole = streamed(engine, "text")[1]
    for rest, why in ((b"0\r\n\r\n", "before it was complete"), (chunk(b"\ndata: {]\n\n{]\n"), "unknown format")):
        async with table(tmp_path, engine) as b, await b.client() as c:
            b.engine.says(head, whole, rest, close=True)
            response = await c.ask(path=client, body=asks(client, stream=True))
            assert not response.complete
            data = response.body.rstrip().split(b"\n")[-1].removeprefix(b"data: ")
            error = json.loads(data)["error"]
            assert why in (error if client == OLLAMA else error["message"])
            await b.settled()


@pytest.mark.parametrize(("client", "engine"), PAIRS)
@on_both_loops
async def test_an_answer_that_is_none_is_an_error(tmp_path: Path, client: str, engine: str) -> None:
    async with table(tmp_path, engine) as b, await b.client() as c:
        for stream, body in ((False, b"[]"), (False, b"{}"), (True, b"{}")):
            b.engine.says(plain(body))
            response = await c.ask(path=client, body=asks(client, stream=stream))
            assert response.status == 502
            assert "engine" in said(response, client)
        await b.settled()


@pytest.mark.parametrize("client", [CHAT, MESSAGES, OLLAMA])
@on_both_loops
async def test_what_cannot_be_translated_loads_nothing(tmp_path: Path, client: str) -> None:
    engine = MESSAGES if client == CHAT else CHAT
    wrong = [{"role": "robot", "content": "hi"}]
    async with table(tmp_path, engine) as b, await b.client() as c:
        response = await c.ask(path=client, body=asks(client) | {"messages": wrong})
        assert (response.status, "unknown role 'robot'" in said(response, client)) == (400, True)
        assert b.scheduler.snapshot("m").instance is None
        assert b.leases() == 0


@on_both_loops
async def test_capabilities_are_asked_for_as_ever(tmp_path: Path) -> None:
    image = [{"role": "user", "content": "what is this?", "images": [PIXEL]}]
    async with table(tmp_path, CHAT) as b, await b.client() as c:
        response = await c.ask(path=OLLAMA, body=asks(OLLAMA) | {"messages": image})
        assert (response.status, "m cannot process images" in said(response, OLLAMA)) == (400, True)
    async with table(tmp_path, CHAT, "vision") as b, await b.client() as c:
        b.engine.says(plain((RECORDED / "chat-text.json").read_bytes()))
        response = await c.ask(path=OLLAMA, body=asks(OLLAMA, stream=False) | {"messages": image})
        assert response.json()["message"]["content"] == "Hello from accelerd, a tiny model answers."
        (part, _) = b.engine.requests[0].json()["messages"][0]["content"]
        assert part["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
    none = Speaker(says=Traits(frozenset(("embeddings",))))
    models = [ModelSpec("m", engine="flm", model="x")]
    async with bench(fresh(tmp_path), models=models, others={"flm": none}) as b, await b.client() as c:
        for path, what in ((OLLAMA, "chat"), (MESSAGES, "serve Anthropic's messages API")):
            response = await c.ask(path=path, body=asks(path))
            assert f"m cannot {what}" in said(response, path)


@on_both_loops
async def test_what_is_native_is_not_touched(tmp_path: Path) -> None:
    bodies = {CHAT: '{"model": "m", "messages":  [{}], "odd": 1}', OLLAMA: '{"model":"m","messages":[{}],"odd":1 }'}
    speaker = Speaker(says=Traits(ALL))
    models = [ModelSpec("m", engine="flm", model="x")]
    async with bench(tmp_path, models=models, others={"flm": speaker}) as b, await b.client() as c:
        b.engine.says(plain(b'{"odd" : 1}'))
        for path, body in bodies.items():
            response = await c.ask(path=path, body=body.encode())
            assert (response.body, b.engine.requests[-1].body.decode()) == (b'{"odd" : 1}', body)


@on_both_loops
async def test_ollamas_own_lines_get_our_name_of_the_model(tmp_path: Path) -> None:
    async with table(tmp_path, OLLAMA, wire_name="llama3.2") as b, await b.client() as c:
        b.engine.says(*streamed(OLLAMA, "text"))
        response = await c.ask(path=OLLAMA, body=asks(OLLAMA))
        found = [json.loads(line) for line in response.body.splitlines()]
        assert ({one["model"] for one in found}, found[-1]["done"]) == ({"m"}, True)
        assert b.engine.requests[0].json()["model"] == "llama3.2"


@pytest.mark.parametrize("engine", [CHAT, MESSAGES])
@on_both_loops
async def test_the_engine_is_asked_by_its_own_name_and_path(tmp_path: Path, engine: str) -> None:
    async with table(tmp_path, engine, wire_name="theirs", paths={engine: "/other"}) as b, await b.client() as c:
        b.engine.says(*streamed(engine, "text"))
        response = await c.ask(path=OLLAMA, body=asks(OLLAMA))
        assert {json.loads(line)["model"] for line in response.body.splitlines()} == {"m"}
        asked = b.engine.requests[0]
        assert (asked.head.split(b" ")[1], asked.json()["model"]) == (b"/other", "theirs")


@on_both_loops
async def test_an_ollama_client_that_waits_gets_empty_lines(tmp_path: Path) -> None:
    async with table(tmp_path, CHAT) as b, await b.client() as c:
        b.engine.says(*streamed(CHAT, "text"))
        found = await lines_of(b, c)
        assert (found[0]["message"]["content"], found[0]["done"]) == ("", False)
        assert "".join(one["message"]["content"] for one in found) == "Hello from accelerd, a tiny model answers."


async def lines_of(b: Bench, c: Client, path: str = OLLAMA, **body: Any) -> list[dict[str, Any]]:
    """What a client gets who has to wait for the model."""
    b.instances.hold = True
    c.send(request(path=path, body=body or asks(OLLAMA), headers={"Connection": "close"}))
    await until(lambda: b.scheduler.queued == 1, "it waits")
    await c.head()
    first = await c.reader.readuntil(b"\n")  # the size of a chunk
    first += await c.reader.readuntil(b"\n")
    b.instances.let_go()
    rest = await c.rest()
    return [json.loads(line) for line in re.findall(rb"^\{.*\}$", first + rest, re.MULTILINE)]


@on_both_loops
async def test_a_refusal_after_that_is_a_line(tmp_path: Path) -> None:
    for answer, why in ((plain(ERRORS[CHAT], 400), "no such thing"), (plain(b"<html>", 500), "no reason given")):
        async with table(tmp_path, CHAT) as b, await b.client() as c:
            b.engine.says(answer)
            found = await lines_of(b, c)
            assert found[-1] == {"error": why}


@on_both_loops
async def test_another_model_of_a_route_may_have_another_api(tmp_path: Path) -> None:
    models = [ModelSpec("one", engine="flm", model="x"), ModelSpec("two", engine="lemonade", model="y")]
    others = {"flm": only(CHAT), "lemonade": only(MESSAGES)}
    route = Route("both", models=("one", "two"))
    async with bench(tmp_path, models=models, others=others, routes=[route]) as b, await b.client() as c:

        async def script(asked: Any) -> None:
            native = asked.head.split(b" ")[1].decode()
            good = plain((RECORDED / "messages-text.json").read_bytes())
            asked.writer.write(good if native == MESSAGES else plain(b'{"error":{"message":"broken"}}', 500))

        b.engine.script = script
        for path in (CHAT, MESSAGES, OLLAMA):
            response = await c.ask(path=path, body=asks(path, stream=False) | {"model": "both"})
            assert (response.status, response.headers["x-accelerd-model"]) == (200, "two")
            assert "a tiny model answers" in response.body.decode()


@pytest.mark.parametrize("client", [MESSAGES, OLLAMA])
@on_both_loops
async def test_an_engine_that_hides_errors_is_seen_through(tmp_path: Path, client: str) -> None:
    async with table(tmp_path, CHAT, dialect=Dialect(masks_errors=True)) as b, await b.client() as c:
        for stream in (False, True):
            b.engine.says(plain(b'{"error":"max length reached"}'))
            response = await c.ask(path=client, body=asks(client, stream=stream))
            assert (response.status, "max length reached" in said(response, client)) == (502, True)
        b.engine.says(plain((RECORDED / "chat-text.json").read_bytes()))
        response = await c.ask(path=client, body=asks(client, stream=False))
        assert "a tiny model answers" in response.body.decode()


@on_both_loops
async def test_a_plain_answer_may_be_asked_as_a_stream_and_then_translated(tmp_path: Path) -> None:
    async with table(tmp_path, CHAT, dialect=Dialect(streams_notice_disconnect=True)) as b, await b.client() as c:
        b.engine.says(*streamed(CHAT, "text"))
        for path in (MESSAGES, OLLAMA):
            response = await c.ask(path=path, body=asks(path, stream=False))
            assert (response.status, response.headers["content-type"]) == (200, "application/json")
            assert "a tiny model answers" in response.body.decode()
            assert b.engine.requests[-1].json()["stream"] is True


@on_both_loops
async def test_ollamas_clients_find_the_models(tmp_path: Path) -> None:
    async with table(tmp_path, CHAT, "vision", labels=("reasoning",), context=4096) as b, await b.client() as c:
        assert "version" in (await c.ask("GET", "/api/version")).json()
        (model,) = (await c.ask("GET", "/api/tags")).json()["models"]
        assert (model["name"], model["model"], len(model["digest"])) == ("m", "m", 64)
        for body in ({"model": "m"}, {"name": "m"}):
            shown = (await c.ask(path="/api/show", body=body)).json()
            assert shown["capabilities"] == ["completion", "tools", "vision", "thinking"]
            architecture = shown["model_info"]["general.architecture"]
            assert shown["model_info"][f"{architecture}.context_length"] == 4096
        for method, path, body, status in (
            ("POST", "/api/show", {"model": "nobody"}, 404), ("POST", "/api/show", {"model": 5}, 400),
            ("GET", "/api/show", None, 405), ("GET", "/api/chat", None, 405), ("POST", "/api/pull", {}, 404),
        ):  # fmt: skip
            response = await c.ask(method, path, body)
            assert (response.status, bool(said(response, OLLAMA))) == (status, True)


@on_both_loops
async def test_ollama_streams_unless_told_otherwise(tmp_path: Path) -> None:
    async with table(tmp_path, CHAT) as b, await b.client() as c:
        b.engine.says(*streamed(CHAT, "text"))
        for body in (asks(OLLAMA), asks(OLLAMA, stream=None), asks(OLLAMA, keep_alive=-1)):
            response = await c.ask(path=OLLAMA, body=body)
            assert json.loads(response.body.splitlines()[-1])["done_reason"] == "stop"
            assert len(response.body.splitlines()) > 5
            assert b.engine.requests[-1].json()["stream"] is True
            assert "keep_alive" not in b.engine.requests[-1].json()
