"""The engine's plans against a real llama-server: what we write is what that build understands and does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from accelerd.config.model import ModelSpec, Sampling
from tests.models import SHORT_REPLY, make_model
from tests.real.server import Connection, real_engine, running

CHAT = {"messages": [{"role": "user", "content": "good day"}]}
ENDLESS = {"prompt": "on and on", "ignore_eos": True, "max_tokens": 30000}
TRANSPORTS = ("unix", "tcp")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def tiny(models: Path) -> str:
    return str(make_model(models, reply=SHORT_REPLY))


def spec(path: str, **settings: object) -> ModelSpec:
    return ModelSpec("tiny", path=path, **{"context": 1024, "threads": 1, **settings})


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_key_is_asked_and_the_name_is_ours(transport: str, tiny: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(real_engine(tmp_path / "cache", transport), spec(tiny), tmp_path) as server:
            assert bool(server.plan.endpoint.unix) == (transport == "unix")
            models = await server.ask("GET", server.plan.warm_path)
            assert models.json()["data"][0]["id"] == "tiny"
            assert (await server.ask("GET", server.plan.warm_path, secret=None)).status == 401
            assert (await server.ask("GET", server.plan.warm_path, secret="other")).status == 401
            assert (await server.ask("GET", server.plan.health_path, secret=None)).status == 200
            probe = await server.ask("POST", server.plan.probe_path, server.plan.probe_body)
            assert probe.status == 200
            assert probe.json()["usage"]["completion_tokens"] == 1

    asyncio.run(scenario())


def test_warm_path_is_503_while_loading_and_never_200_without_the_key(models: Path, tmp_path: Path) -> None:
    big = str(make_model(models, size_mb=400))

    async def scenario() -> None:
        async with running(real_engine(tmp_path), spec(big, mmap=False), tmp_path, wait=False) as server:
            seen: list[int] = []
            anonymous: list[int] = []
            while 200 not in seen:
                try:
                    seen.append((await server.ask("GET", server.plan.warm_path)).status)
                    anonymous.append((await server.ask("GET", server.plan.warm_path, secret=None)).status)
                except (FileNotFoundError, ConnectionError):
                    await asyncio.sleep(0.002)
            assert seen[0] == 503
            assert set(seen) == {503, 200}
            assert set(anonymous) <= {503, 401}
            assert anonymous[-1] == 401

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_answers_and_streams_on_one_connection(transport: str, tiny: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(real_engine(tmp_path, transport), spec(tiny), tmp_path) as server:
            connection = await Connection.open(server.plan.endpoint)
            secret = server.plan.secret
            for temperature in (0, 1):
                reply = await connection.request(
                    "POST", "/v1/chat/completions", secret, {**CHAT, "temperature": temperature}
                )
                choice = reply.json()["choices"][0]
                assert choice["message"]["content"] == SHORT_REPLY
                assert choice["finish_reason"] == "stop"
            await connection.send("POST", "/v1/chat/completions", secret, {**CHAT, "stream": True})
            status, headers = await connection.head()
            assert status == 200
            assert headers["content-type"].startswith("text/event-stream")
            events = b"".join([chunk async for chunk in connection.chunks()]).decode().split("\n\n")
            assert events[-2:] == ["data: [DONE]", ""]
            deltas = [json.loads(event[6:])["choices"][0]["delta"].get("content") or "" for event in events[:-2]]
            assert "".join(deltas) == SHORT_REPLY
            assert len([delta for delta in deltas if delta]) > 3
            # What a connection pool must know: a stream's connection is closed by the server, without saying so before.
            assert "connection" not in headers
            async with asyncio.timeout(2):
                assert await connection.reader.read() == b""
            await connection.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_connection_serves_as_many_requests_as_it_says(transport: str, tiny: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(real_engine(tmp_path, transport), spec(tiny), tmp_path) as server:
            connection = await Connection.open(server.plan.endpoint)
            reply = await connection.request("GET", "/health", None)
            limit = int(reply.headers["keep-alive"].partition("max=")[2])
            for _ in range(limit - 1):
                assert (await connection.request("GET", "/health", None)).status == 200
            assert await connection.reader.read() == b""
            await connection.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_the_work(stream: bool, transport: str, models: Path, tmp_path: Path) -> None:
    """A stream is noticed at once, an unstreamed request by the server's poll once a second."""
    slow = str(make_model(models, size_mb=40, ctx=32768))

    async def scenario() -> float:
        async with running(real_engine(tmp_path, transport), spec(slow, context=32768), tmp_path) as server:
            connection = await Connection.open(server.plan.endpoint)
            await connection.send("POST", "/v1/completions", server.plan.secret, {**ENDLESS, "stream": stream})
            if stream:
                await connection.head()
            await server.saw("launch_slot_", 10)
            await connection.close()
            seconds = await server.saw("cancel task", 10)
            health = await server.ask("GET", "/health")
            assert health.status == 200
            return seconds

    seconds = asyncio.run(scenario())
    print(f"cancelled after {seconds:.3f} s ({transport}, {'stream' if stream else 'no stream'})")
    assert seconds < (1.0 if stream else 5.0)


@pytest.mark.parametrize(("parallel", "context"), [(1, 1024), (2, 1024), (3, 2048)])
def test_context_is_for_each_request(parallel: int, context: int, tiny: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        model = spec(tiny, context=context, parallel=parallel)
        async with running(real_engine(tmp_path), model, tmp_path) as server:
            props = (await server.ask("GET", "/props")).json()
            assert props["total_slots"] == parallel
            assert props["default_generation_settings"]["n_ctx"] == context
            slots = (await server.ask("GET", "/slots")).json()
            assert [slot["n_ctx"] for slot in slots] == [context] * parallel

    asyncio.run(scenario())


def test_every_setting_is_understood(tiny: str, tmp_path: Path) -> None:
    template = tmp_path / "with space.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}<|im_start|>assistant\n")
    model = spec(
        tiny, parallel=2, cache_type_k="q8_0", cache_type_v="q8_0", flash_attention="on", mmap=False, gpu_layers="all",
        batch=256, ubatch=128, threads=2, chat_template_file=str(template), extra_args=("--metrics",),
        sampling=Sampling(temperature=0.5, top_p=0.9, top_k=20, min_p=0.1, repeat_penalty=1.1, presence_penalty=0.1,
                          frequency_penalty=0.1, seed=-1, max_tokens=4),
    )  # fmt: skip

    async def scenario() -> None:
        async with running(real_engine(tmp_path), model, tmp_path) as server:
            props = (await server.ask("GET", "/props")).json()
            params = props["default_generation_settings"]["params"]
            assert (params["temperature"], params["top_k"]) == (0.5, 20)
            assert (round(params["min_p"], 3), round(params["top_p"], 3)) == (0.1, 0.9)
            assert props["chat_template"] == template.read_text().rstrip("\n")
            assert (await server.ask("GET", "/metrics")).status == 200
            answer = (await server.ask("POST", "/v1/chat/completions", CHAT)).json()
            assert answer["usage"]["completion_tokens"] == 4
            assert answer["choices"][0]["finish_reason"] == "length"
            assert not server.plan.warnings

    asyncio.run(scenario())


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("flash", ["on", "off", "auto"])
def test_switches_start(mmap: bool, flash: str, tiny: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        model = spec(tiny, mmap=mmap, flash_attention=flash, gpu_layers=0)
        async with running(real_engine(tmp_path), model, tmp_path) as server:
            assert (await server.ask("POST", "/v1/chat/completions", CHAT)).status == 200

    asyncio.run(scenario())


def test_it_has_what_builds_differ_in_and_that_is_asked_without_work(tiny: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine, model = real_engine(tmp_path), spec(tiny, context=512)
        async with running(engine, model, tmp_path) as server:
            before = (await server.ask("GET", "/slots")).json()
            await engine.loaded(model, server.plan)
            traits = engine.traits(model)
            assert {"messages", "responses", "chat"} <= traits.tasks
            assert "projector for audio" in traits.why_not["transcription"]
            assert (await server.ask("GET", "/slots")).json() == before, "no slot had anything to do"

    asyncio.run(scenario())


def test_embeddings(models: Path, tmp_path: Path) -> None:
    path = str(make_model(models, kind="embed"))

    async def scenario() -> None:
        async with running(real_engine(tmp_path), spec(path, context=512, embeddings=True), tmp_path) as server:
            assert (await server.ask("POST", server.plan.probe_path, server.plan.probe_body)).status == 200
            texts = ["the cat sat", "sat the cat", "quick brown dog"]
            data = (await server.ask("POST", "/v1/embeddings", {"input": texts})).json()["data"]
            one, same, other = (item["embedding"] for item in data)
            assert sum(a * b for a, b in zip(one, same, strict=True)) > 0.999
            assert sum(a * b for a, b in zip(one, other, strict=True)) < 0.9
            # Longer than half the context: whole inputs fit one physical batch.
            assert (await server.ask("POST", "/v1/embeddings", {"input": "word " * 100})).status == 200

    asyncio.run(scenario())


def test_rerank(models: Path, tmp_path: Path) -> None:
    path = str(make_model(models, kind="rerank"))
    query = {"query": "cat", "documents": ["a cat", "dog", "quick brown fox"]}

    async def scenario() -> None:
        async with running(real_engine(tmp_path), spec(path, context=512, rerank=True), tmp_path) as server:
            assert (await server.ask("POST", server.plan.probe_path, server.plan.probe_body)).status == 200
            first = (await server.ask("POST", "/v1/rerank", query)).json()["results"]
            again = (await server.ask("POST", "/v1/rerank", query)).json()["results"]
            assert first == again
            assert len({result["relevance_score"] for result in first}) == 3

    asyncio.run(scenario())


def test_tool_call_and_its_result(tiny: str, tmp_path: Path) -> None:
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    tools = [{"type": "function", "function": tool}]

    async def scenario() -> None:
        async with running(real_engine(tmp_path), spec(tiny, context=4096), tmp_path) as server:
            asked = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "weather?"}]
            for choice in ("auto", "required"):
                reply = await server.ask(
                    "POST", "/v1/chat/completions", {"messages": asked, "tools": tools, "tool_choice": choice}
                )
                message = reply.json()["choices"][0]["message"]
                call = message["tool_calls"][0]
                assert call["function"]["name"] == "get_weather"
                assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
            result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
            reply = await server.ask(
                "POST", "/v1/chat/completions", {"messages": [*asked, message, result], "tools": tools}
            )
            assert reply.json()["choices"][0]["message"]["content"] == SHORT_REPLY

    asyncio.run(scenario())


def test_shards_and_a_long_reply(models: Path, tmp_path: Path) -> None:
    path = str(make_model(models, reply_tokens=300, split=3))
    assert path.endswith("-00001-of-00003.gguf")

    async def scenario() -> None:
        async with running(real_engine(tmp_path), spec(path), tmp_path) as server:
            first = (await server.ask("POST", "/v1/chat/completions", CHAT)).json()
            assert first["usage"]["completion_tokens"] == 301  # with the token that ends the turn
            talk = [*CHAT["messages"], first["choices"][0]["message"], {"role": "user", "content": "more"}]
            second = (await server.ask("POST", "/v1/chat/completions", {"messages": talk})).json()
            assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 300  # its words are its tokens

    asyncio.run(scenario())


def test_secret_is_in_the_environment_only(tiny: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = real_engine(tmp_path, "auto", LLAMA_ARG_CTX_SIZE="256", LD_PRELOAD_X="1", LLAMA_API_KEY="theirs")
        async with running(engine, spec(tiny), tmp_path) as server:
            proc = Path(f"/proc/{server.process.pid}")
            secret = server.plan.secret.encode()
            assert secret not in (proc / "cmdline").read_bytes()
            environ = (proc / "environ").read_bytes().split(b"\0")
            assert b"LLAMA_API_KEY=" + secret in environ
            assert not [entry for entry in environ if entry.startswith((b"LLAMA_ARG_", b"LD_"))]
            assert not [line for line in server.lines if server.plan.secret in line]
            assert (await server.ask("GET", server.plan.warm_path, secret="theirs")).status == 401

    asyncio.run(scenario())


def test_underscores_do_not_smuggle_a_key_past_the_refusal(tiny: str, tmp_path: Path) -> None:
    """llama-server reads --api_key as --api-key; so do we."""
    from accelerd.base.errors import AccelError

    async def scenario() -> None:
        with pytest.raises(AccelError, match="extra_args --api-key"):
            await real_engine(tmp_path).plan(spec(tiny, extra_args=("--api_key", "x")), tmp_path)

    asyncio.run(scenario())
