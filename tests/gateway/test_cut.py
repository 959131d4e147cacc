"""Answers that are cut because their engine is stopped, or accelerd: an error that says so, never a bare disconnect."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from tests.gateway.bench import (
    SSE_HEAD,
    Asked,
    Bench,
    bench,
    fresh_and_reused,
    on_both_loops,
    plain,
    token,
)
from tests.gateway.client import chat

ENDING = AccelError("shutting_down", "accelerd is shutting down", retry_after=5)
WAYS = pytest.mark.parametrize("way", ["unload", "end"])


async def cut(b: Bench, way: str) -> str:
    """Cut all answers; the code that clients are to see."""
    if way == "unload":
        await b.scheduler.unload("m", force=True)
        return "model_unloaded"
    await b.listeners.cut(ENDING)
    return "shutting_down"


@WAYS
@fresh_and_reused
@on_both_loops
async def test_a_stream_ends_with_an_event(tmp_path: Path, way: str, primed: bool) -> None:
    async with bench(tmp_path) as b, await b.client(primed=primed) as client:
        b.engine.says(SSE_HEAD, token("a"), 60.0)
        asking = asyncio.create_task(client.ask(body=chat(stream=True)))
        asked = await b.engine.asked()
        await asyncio.sleep(0.05)
        code = await cut(b, way)
        answer = await asking
        assert (answer.status, answer.complete) == (200, False), "it must not look complete"
        assert answer.events()[0]["choices"][0]["delta"]["content"] == "a"
        assert answer.events()[-1]["error"]["code"] == code
        await asyncio.wait_for(asked.gone.wait(), 5)


@WAYS
@pytest.mark.parametrize("slots", [1, 4])
@fresh_and_reused
async def test_a_plain_answer_that_has_not_begun_is_an_http_error(
    tmp_path: Path, way: str, slots: int, primed: bool
) -> None:
    """`slots`: with several the answer is collected from a stream."""
    model = ModelSpec("m", path="/m.gguf", parallel=slots)
    async with bench(tmp_path, models=[model], assembles=True) as b, await b.client() as client:
        if primed:
            b.engine.says(plain(b"{}", 404))
            assert (await client.ask(body=chat())).status == 404
            b.engine.requests.clear()
        b.engine.script = b.engine.never
        asking = asyncio.create_task(client.ask(body=chat()))
        await b.engine.asked()
        code = await cut(b, way)
        answer = await asking
        assert (answer.status, answer.code) == (503, code)
        assert int(answer.headers["retry-after"]) > 0
        assert len(b.engine.requests) == 1, "it is not asked again"


async def test_the_engine_is_stopped_after_its_clients_were_told(tmp_path: Path) -> None:
    order: list[str] = []
    async with bench(tmp_path) as b, await b.client() as client:
        stop = b.instances.stop

        def stopped(instance: int, *more: object) -> None:
            relay = b.connections[0].relay
            assert relay is not None
            order.append(f"stop after {relay.cut_with.code if relay.cut_with else 'nothing'}")
            stop(instance)

        b.instances.stop = stopped  # type: ignore[method-assign, assignment]
        b.engine.says(SSE_HEAD, token("a"), 60.0)
        asking = asyncio.create_task(client.ask(body=chat(stream=True)))
        await b.engine.asked()
        await b.scheduler.unload("m", force=True)
        await asking
    assert order == ["stop after model_unloaded"]


async def test_a_request_that_waits_for_a_busy_engine_is_cut_too(tmp_path: Path) -> None:
    from accelerd.engines.base import Dialect
    from tests.gateway.bench import Speaker

    async def busy(asked: Asked) -> None:
        asked.writer.write(plain(b"{}", 503))

    speaker = Speaker(Dialect(busy=frozenset({503})))
    model = ModelSpec("m", path="/m.gguf", engine="flm")
    async with bench(tmp_path, models=[model], others={"flm": speaker}) as b, await b.client() as client:
        b.engine.script = busy
        asking = asyncio.create_task(client.ask(body=chat()))
        await b.engine.asked(2)
        await b.listeners.cut(ENDING)
        answer = await asking
        assert (answer.status, answer.code) == (503, "shutting_down")


async def test_a_cut_is_no_failure_of_the_engine(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        for _ in range(4):
            async with await b.client() as client:
                b.engine.requests.clear()
                b.engine.script = b.engine.never
                asking = asyncio.create_task(client.ask(body=chat()))
                await b.engine.asked()
                b.connections[-1].cut(ENDING)
                assert (await asking).code == "shutting_down"
        assert b.instances.probes == 0
