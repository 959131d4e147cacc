"""Whenever a client goes, the engine hears of it within a second and the lease is free again."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, SchedulerSettings, ServerSettings
from accelerd.engines.base import Dialect
from accelerd.gateway.relay import MAX_COLLECTED
from tests.gateway.bench import SSE_HEAD, Asked, Bench, Speaker, bench, fresh_and_reused, on_both_loops, token, until
from tests.gateway.client import CHAT, chat, request

WITHIN = 15.0  # s
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()


async def slowly(asked: Asked) -> None:
    asked.writer.write(SSE_HEAD)
    for i in range(100_000):
        asked.writer.write(token(f"t{i} "))
        await asked.writer.drain()
        await asyncio.sleep(0.01)


async def flood(asked: Asked) -> None:
    asked.writer.write(SSE_HEAD)
    while True:
        asked.writer.write(token("t") * 50)
        await asked.writer.drain()
        await asyncio.sleep(0)


async def noticed(b: Bench, asked: Asked) -> None:
    began = time.monotonic()
    await until(asked.gone.is_set, "the engine told", within=WITHIN)
    await until(lambda: not b.leases(), "the lease released", within=WITHIN)
    assert time.monotonic() - began < WITHIN


@pytest.mark.parametrize("how", ["close", "vanish"])
@pytest.mark.parametrize("kind", ["stream", "plain", "assembled"])
@fresh_and_reused
@on_both_loops
async def test_in_the_middle_of_an_answer(tmp_path: Path, how: str, kind: str, primed: bool) -> None:
    stream, assembles = kind == "stream", kind == "assembled"
    async with bench(tmp_path) as b:
        client = await b.client(primed=primed)
        b.engines["llama-server"] = Speaker(Dialect(streams_notice_disconnect=assembles))
        b.engine.script = slowly if stream or assembles else b.engine.never
        client.send(request(body=chat(stream=stream)))
        asked = await b.engine.asked()
        if stream:
            await client.head()
            await client.reader.readuntil(b"t3 ")
        else:
            await asyncio.sleep(0.05)
        assert b.leases() == 1
        await getattr(client, how)()
        await noticed(b, asked)
        b.engine.script = b.engine.ok
        b.engines["llama-server"] = Speaker()
        async with await b.client() as other:
            assert (await other.ask(body=chat())).status == 200


@on_both_loops
async def test_before_the_engine_has_said_a_word(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        client = await b.client()
        b.engine.script = b.engine.never
        client.send(request(body=chat(stream=True)))
        asked = await b.engine.asked()
        await client.close()
        await noticed(b, asked)


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_while_the_model_loads(tmp_path: Path, stream: bool) -> None:
    async with bench(tmp_path, ServerSettings(keepalive_after=0.05)) as b:
        b.instances.hold = True
        client = await b.client()
        client.send(request(body=chat(stream=stream)))
        await until(lambda: b.scheduler.queued == 1, "queued")
        if stream:
            assert b": loading m" in await client.reader.readuntil(b"\n\n")
        await client.close()
        await until(lambda: b.scheduler.queued == 0, "left the queue", within=WITHIN)
        b.instances.let_go()
        async with await b.client() as other:
            assert (await other.ask(body=chat())).status == 200
        assert len(b.engine.requests) == 1, "the request of a client who had gone was sent"
        await b.settled()


@on_both_loops
async def test_in_the_queue_for_a_slot(tmp_path: Path) -> None:
    models = [ModelSpec("m", path="/m.gguf", parallel=1)]
    async with bench(tmp_path, models=models) as b, await b.client() as first:
        b.engine.script = slowly
        first.send(request(body=chat(stream=True)))
        await b.engine.asked()
        second = await b.client()
        second.send(request(body=chat()))
        await until(lambda: b.scheduler.queued == 1, "queued")
        await second.close()
        await until(lambda: b.scheduler.queued == 0, "left the queue", within=WITHIN)
        assert b.leases() == 1
        assert len(b.engine.requests) == 1


@on_both_loops
async def test_while_the_body_is_being_sent(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        client = await b.client()
        client.send(HEAD + b"Content-Length: 100000\r\n\r\n" + b" " * 50_000)
        await until(lambda: any(not c.idle for c in b.connections), "begun")
        await client.close()
        await until(lambda: not b.connections, "closed", within=WITHIN)
        assert not b.engine.requests
        assert not b.leases()
        assert not b.scheduler.queued


@on_both_loops
async def test_a_crowd_that_goes_all_at_once(tmp_path: Path) -> None:
    models = [ModelSpec("m", path="/m.gguf", parallel=8)]
    scheduling = SchedulerSettings(max_queue=100)
    async with bench(tmp_path, models=models, scheduling=scheduling, assembles=True) as b:
        b.engine.script = slowly
        clients = [await b.client() for _ in range(40)]
        for index, client in enumerate(clients):
            client.send(request(body=chat(stream=index % 2 == 0)))
        await until(lambda: len(b.engine.requests) == 8 and b.scheduler.queued == 32, "8 run, 32 wait")
        await asyncio.gather(*(client.vanish() for client in clients))
        await until(lambda: not b.leases() and not b.scheduler.queued, "all free", within=2 * WITHIN)
        await until(lambda: all(a.gone.is_set() for a in b.engine.requests), "the engine told of all", within=WITHIN)


@on_both_loops
async def test_the_end_of_the_answer_and_of_the_client_in_one_moment(tmp_path: Path) -> None:
    """Whatever wins, nobody else's exchange is harmed and the connection to the engine is good or gone."""
    async with bench(tmp_path) as b:

        async def bystander() -> None:
            async with await b.client() as client:
                for _ in range(60):
                    assert (await client.ask(body=chat())).status == 200

        async def hasty() -> None:
            for index in range(60):
                client = await b.client()
                client.send(request(body=chat()))
                for _ in range(index % 20):
                    await asyncio.sleep(0)
                await client.vanish()

        async with asyncio.timeout(20):
            await asyncio.gather(bystander(), bystander(), hasty(), hasty())
        await b.settled()


@on_both_loops
async def test_an_answer_too_large_to_put_together_is_given_up(tmp_path: Path) -> None:
    async with bench(tmp_path, assembles=True) as b, await b.client() as client:
        piece = b"data: " + b"x" * (1 << 20) + b"\n\n"

        async def flood(asked: Asked) -> None:
            asked.writer.write(SSE_HEAD)
            for _ in range(2 * MAX_COLLECTED >> 20):
                asked.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await asked.writer.drain()

        b.engine.script = flood
        client.send(request(body=chat()))
        async with asyncio.timeout(20):
            response: Any = await client.response()
        assert (response.status, response.code) == (502, "upstream_failed")
        assert "MiB" in response.json()["error"]["message"]
        await b.settled()


@on_both_loops
async def test_what_the_engine_sends_for_clients_that_are_gone_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may come between the end of a connection and the cancellation of its request."""
    async with bench(tmp_path, ServerSettings(max_connections=100)) as b:
        for _ in range(20):
            client = await b.client()
            b.engine.script = flood
            client.send(request(body=chat(stream=True)))
            await client.head()
            await client.vanish()
            await until(lambda: not b.leases(), "the lease released", within=WITHIN)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
