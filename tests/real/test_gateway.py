"""The whole daemon with a real llama-server: answers untouched, and work that nobody waits for is ended."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.gateway.client import CHAT, Client, Response, request
from tests.harness import Daemon, DaemonFactory, eventually
from tests.models import SHORT_REPLY, make_model

HELLO = [{"role": "user", "content": "good day"}]
WITHIN = 10.0  # s; on a machine at rest it takes milliseconds
SLOTS = 3
CONTEXT = 60_000  # tokens: many seconds of work


@pytest.fixture(scope="module")
def daemon(llama_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Two ways to one model: `wide` has several slots (plain answers are asked as streams), `narrow` one."""
    directory = tmp_path_factory.mktemp("gateway")
    model = make_model(directory / "models", reply=SHORT_REPLY, ctx=CONTEXT)
    toml = f"[engines.llama-server]\nbinary = {json.dumps(llama_server)}\n[defaults]\nthreads = 1\n"
    for name, parallel in (("wide", SLOTS), ("narrow", 1)):
        toml += f"[models.{name}]\npath = {json.dumps(str(model))}\ncontext = {CONTEXT}\nparallel = {parallel}\n"
    with DaemonFactory(directory) as factory:
        daemon = factory.start(toml)
        for name in ("wide", "narrow"):
            assert daemon.chat(name).status == 200
        yield daemon


def endless(model: str, *, stream: bool) -> dict[str, Any]:
    return {"model": model, "messages": HELLO, "ignore_eos": True, "max_tokens": CONTEXT, "stream": stream}


@pytest.mark.parametrize("how", ["close", "vanish"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("model", ["wide", "narrow"])
def test_the_slot_of_a_client_who_has_gone_is_free_at_once(daemon: Daemon, model: str, stream: bool, how: str) -> None:
    """Each request asks for so many tokens that the engine would work much longer than the test waits."""
    engine = engine_of(daemon, model)

    async def scenario() -> None:
        await _until_processing(engine, 0)
        client = await Client.open(daemon.port)
        client.send(request(body=endless(model, stream=stream)))
        if stream:
            await client.head()
        await _until_processing(engine, 1)
        await getattr(client, how)()
        # With one slot, llama-server looks at the reader of a plain answer in a second without other requests.
        await _until_processing(engine, 0, every=0.02 if stream or model == "wide" else 1.3)

    asyncio.run(scenario())
    eventually(lambda: daemon.status(model)["leases"] == 0, "released", within=WITHIN)
    assert daemon.chat(model).json()["choices"][0]["message"]["content"] == SHORT_REPLY


def test_the_prompt_of_several_answers_from_one_slot_is_computed_once(daemon: Daemon) -> None:
    body = {"model": "narrow", "messages": HELLO, "max_tokens": 3, "n": 3, "stream": True}
    body["stream_options"] = {"include_usage": True}

    async def scenario() -> Response:
        async with await Client.open(daemon.port) as client:
            return await client.ask(body=body)

    (usage,) = [one["usage"] for one in asyncio.run(scenario()).events()[:-1] if one.get("usage")]
    assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] == 1, "as of the last answer"
    assert usage["completion_tokens"] == 9
    assert len(daemon.chat("narrow", max_tokens=3, n=3).json()["choices"]) == 3


def test_a_plain_request_is_ended_though_another_stream_runs(daemon: Daemon) -> None:
    """llama-server alone would generate to the end: its look at the reader is put off by every token of the other."""

    engine = engine_of(daemon, "wide")

    async def scenario() -> None:
        async with await Client.open(daemon.port) as other:
            other.send(request(body=endless("wide", stream=True)))
            await other.head()
            gone = await Client.open(daemon.port)
            gone.send(request(body=endless("wide", stream=False)))
            drain = asyncio.ensure_future(_drain(other))
            await _until_processing(engine, 2)
            await gone.close()
            await _until_processing(engine, 1)
            assert not drain.done(), "the other stream has ended by itself: nothing was shown"
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)

    asyncio.run(scenario())


async def _drain(client: Client) -> None:
    async for _ in client.chunks():
        await asyncio.sleep(0)


async def _until_processing(
    engine: tuple[Path, str], count: int, *, within: float = WITHIN, every: float = 0.02
) -> None:
    """Until so many slots of the engine work; times in seconds."""
    async with asyncio.timeout(within):
        while True:
            slots = await direct(engine, "GET", "/slots")
            assert slots.status == 200, slots.body
            if sum(slot["is_processing"] for slot in slots.json()) == count:
                return
            await asyncio.sleep(every)


def engine_of(daemon: Daemon, model: str) -> tuple[Path, str]:
    """Socket and key of the engine behind a model."""
    argv = daemon.control("GET", f"explain?model={model}").json()["argv"]
    environ = psutil.Process(daemon.status(model)["pid"]).environ()
    return Path(argv[argv.index("--host") + 1]), environ["LLAMA_API_KEY"]


async def direct(engine: tuple[Path, str], method: str, path: str, body: Any = None) -> Response:
    """The engine's own answer."""
    async with await Client.open_unix(engine[0]) as client:
        return await client.ask(method, path, body, {"Authorization": f"Bearer {engine[1]}"})


# --- bytes ----------------------------------------------------------------------------------------------------------

REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"stream": False},
    "stream": {"stream": True},
    "usage": {"stream": True, "stream_options": {"include_usage": True}},
    "logprobs": {"stream": True, "logprobs": True, "top_logprobs": 2, "max_tokens": 5},
    "length": {"stream": False, "max_tokens": 3},
    "error": {"top_logprobs": 3},
    "error-stream": {"top_logprobs": 3, "stream": True},
}


def without_chance(body: bytes) -> bytes:
    """Without what differs between any two answers: ids, dates, timings. And the nulls that accelerd adds."""
    body = re.sub(rb'"(logprobs|refusal)":null,', b"", body)
    body = re.sub(rb'"timings":\{[^}]*\}', b'"timings":{}', body)
    body = re.sub(rb'"id":"[^"]*"', b'"id":""', body)
    return re.sub(rb'"created":[0-9]+', b'"created":0', body)


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_the_engines_byte_for_byte(daemon: Daemon, name: str) -> None:
    """Asked directly and through accelerd, twice on the same connection."""
    fields = {"messages": HELLO, "seed": 1, "temperature": 0, "cache_prompt": False, **REQUESTS[name]}
    body = {"model": "narrow", **fields}
    expected = asyncio.run(direct(engine_of(daemon, "narrow"), "POST", CHAT, body))
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    try:
        for _ in range(3):
            connection.request("POST", CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"})
            response = connection.getresponse()
            got = response.read()
            assert response.status == expected.status
            assert response.getheader("Content-Type") == expected.headers["content-type"]
            assert without_chance(got) == without_chance(expected.body)
    finally:
        connection.close()
