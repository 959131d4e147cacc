"""Exchanges on a kept connection: what comes back, what is counted, how each of them ends."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

import accelerd.gateway.connection as connection_module
from accelerd.config.model import ModelSpec, SchedulerSettings, ServerSettings
from accelerd.gateway.connection import MAX_PENDING
from accelerd.scheduler.core import BAD_OUTCOMES_BEFORE_PROBE
from accelerd.scheduler.placement import SharedLimits
from tests.gateway.bench import (
    DONE,
    ONE_BYTE,
    SSE_HEAD,
    Asked,
    Bench,
    bench,
    chunk,
    on_both_loops,
    plain,
    token,
    until,
)
from tests.gateway.client import Client, chat, request

KEY, OTHER = "the-key", "the-other-key"


def digests(*keys: str) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def number(asked: Asked) -> None:
    """An engine that answers with what it was asked."""
    asked.writer.write(plain(asked.body))


# --- the same answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        plain(b'{"a": 1}'),
        plain(b""),
        plain(b"x" * 300_000),
        plain(b'{"error": {}}', 400),
        plain(b'{"error": {}}', 500),
        plain(b"<html>", 200, "text/html"),
        plain(b"{}", 200, "application/json", "X-Secret: of the engine\r\n"),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        SSE_HEAD + token("a") + token("b") + DONE,
        SSE_HEAD.replace(b"text/event-stream", b"application/json") + chunk(b'{"a":') + chunk(b"1}") + b"0\r\n\r\n",
    ],
)
@on_both_loops
async def test_an_answer_is_the_same_over_a_new_and_a_reused_connection(tmp_path: Path, answer: bytes) -> None:
    async with bench(tmp_path) as b, await b.client() as first, await b.client() as second:
        b.engine.says(answer)
        fresh = await first.ask(body=chat())
        b.engine.script = b.engine.ok
        async with await b.client() as third:  # leaves an idle connection to the engine behind
            assert (await third.ask(body=chat())).status == 200
        b.engine.says(answer)
        reused = await second.ask(body=chat())
        assert (reused.usual_head, reused.body, reused.complete) == (fresh.usual_head, fresh.body, fresh.complete)
        assert reused.complete


@on_both_loops
async def test_the_engine_is_asked_in_the_same_words(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        for n in range(3):
            assert (await client.ask(body=chat(seed=n % 2))).status == 200
        first, second, third = b.engine.requests
        assert first.head == second.head == third.head
        assert first.body != second.body
        assert first.body == third.body


@on_both_loops
async def test_streams_and_plain_answers_in_turns(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        for n in range(4):
            if n % 2:
                b.engine.says(SSE_HEAD, token("a"), 0.01, token("b"), DONE)
                response = await client.ask(body=chat(stream=True))
                assert [e["choices"][0]["delta"]["content"] for e in response.events()[:-1]] == ["a", "b"]
            else:
                b.engine.script = b.engine.ok
                response = await client.ask(body=chat())
            assert response.status == 200
            assert response.complete
        await b.settled()


@on_both_loops
async def test_a_request_in_hand_is_counted(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        b.engine.script = b.engine.never
        client.send(request(body=chat()))
        await b.engine.asked()
        assert b.leases() == 1
        assert not b.connections[0].idle


# --- errors ---------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_refusals_leave_the_connection_usable(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        assert (await client.ask(body=chat("nobody"))).code == "model_not_found"
        assert (await client.ask(body=b'{"model": "m"')).code == "bad_request"
        assert (await client.ask(body={"model": "m"})).json()["error"]["param"] == "messages"
        assert (await client.ask(body=chat())).status == 200
        assert len(b.engine.requests) == 1
        await b.settled()


@on_both_loops
async def test_an_engine_that_dies_before_it_answers_is_a_502_and_asked_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        b.engine.says(b"HTTP/1.1 200 O", close=True)
        response = await client.ask(body=chat())
        assert (response.status, response.code) == (502, "upstream_failed")
        assert len(b.engine.requests) == 1
        b.engine.script = b.engine.ok
        assert (await client.ask(body=chat())).status == 200  # what failed is told once
        await b.settled()


@on_both_loops
async def test_an_engine_that_dies_in_a_stream_is_an_error_event(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        b.engine.says(SSE_HEAD, token("a"), close=True)
        response = await client.ask(body=chat(stream=True))
        assert not response.complete
        assert response.events()[-1]["error"]["code"] == "upstream_failed"
        assert await client.rest() == b""
        await b.settled()


@on_both_loops
async def test_silence_is_a_504(tmp_path: Path) -> None:
    settings = ServerSettings(stall_timeout=0.1)
    async with bench(tmp_path, settings) as b, await b.client(primed=True) as client:
        b.engine.script = b.engine.never
        response = await client.ask(body=chat(stream=True))
        assert (response.status, response.code) == (504, "upstream_timeout")
        assert len(b.engine.requests) == 1
        await until(b.engine.requests[0].gone.is_set, "the engine told")
        await b.settled()


@on_both_loops
async def test_failures_are_counted_alike(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        b.engine.says(plain(b"{}", 500))
        for n in range(BAD_OUTCOMES_BEFORE_PROBE):
            assert b.instances.probes == 0, n
            assert (await client.ask(body=chat())).status == 500
        await until(lambda: b.instances.probes == 1, "the engine is looked at")
        b.engine.says(plain(b"{}", 400))
        for _ in range(BAD_OUTCOMES_BEFORE_PROBE):
            assert (await client.ask(body=chat())).status == 400
        assert b.instances.probes == 1
        await b.settled()


# --- ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_a_client_that_vanishes_frees_engine_and_lease_at_once(tmp_path: Path, stream: bool) -> None:
    async with bench(tmp_path) as b:
        client = await b.client(primed=True)
        if stream:
            b.engine.says(SSE_HEAD, token("a"), 60.0)
        else:
            b.engine.script = b.engine.never
        client.send(request(body=chat(stream=stream)))
        asked = await b.engine.asked()
        assert b.leases() == 1
        await client.vanish()
        await until(asked.gone.is_set, "the engine told", within=1.0)
        await until(lambda: not b.leases(), "the lease released", within=1.0)
        assert b.instances.probes == 0


@on_both_loops
async def test_the_end_waits_for_the_answer_and_closes_then(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        b.engine.says(SSE_HEAD, token("a"), 0.2, token("b"), DONE)
        client.send(request(body=chat(stream=True)))
        await b.engine.asked()
        drained = asyncio.ensure_future(b.listeners.drain(5))
        response = await client.response()
        assert response.events()[-1] == "[DONE]"
        await drained
        assert await client.rest() == b""
        assert not b.connections


@on_both_loops
async def test_the_end_of_patience_cuts(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        b.engine.says(SSE_HEAD, token("a"), 60.0)
        client.send(request(body=chat(stream=True)))
        asked = await b.engine.asked()
        await client.head()
        await b.listeners.close()
        await until(asked.gone.is_set, "the engine told")
        assert not (await client.rest()).endswith(b"0\r\n\r\n")
        await b.settled()


@on_both_loops
async def test_a_long_answer_outlives_the_keepalive_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "KEEPALIVE", 0.1)
    async with bench(tmp_path, ServerSettings(header_timeout=0.5)) as b, await b.client(primed=True) as client:
        b.engine.says(SSE_HEAD, token("a"), 0.7, token("b"), DONE)
        assert (await client.ask(body=chat(stream=True))).complete
        began = asyncio.get_running_loop().time()
        assert await client.rest(within=10) == b""  # it is closed when it has idled long enough after that
        assert asyncio.get_running_loop().time() - began > 0.05


@on_both_loops
async def test_a_second_head_has_a_deadline_too(tmp_path: Path) -> None:
    async with bench(tmp_path, ServerSettings(header_timeout=0.2)) as b, await b.client(primed=True) as client:
        rest = asyncio.ensure_future(client.rest(within=15))
        for byte in b"GET /health HTTP/1.1\r\n" * 100:
            if rest.done():
                break
            client.send(bytes([byte]))
            await asyncio.sleep(0.02)
        assert await rest == b""


@on_both_loops
async def test_an_idle_connection_whose_answer_is_not_read_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "KEEPALIVE", 0.1)
    async with (
        bench(tmp_path, ServerSettings(header_timeout=0.5)) as b,
        await b.client(receive_buffer=4096, primed=True) as client,
    ):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        b.connections[0].transport.write(bytes(16 << 20))
        await until(lambda: not b.connections, "gone")


# --- what comes while an answer is under way --------------------------------------------------------------------


@on_both_loops
async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        release = asyncio.Event()

        async def hold(asked: Asked) -> None:
            await release.wait()
            await number(asked)

        b.engine.script = hold
        client.send(request(body=chat(seed=0)))
        await b.engine.asked()
        rest = b"".join(request(body=chat(seed=n)) for n in range(1, 4)) + request("GET", "/v1/models/m")
        for piece in (rest[:50], rest[50:700], rest[700:]):
            client.send(piece)
            await asyncio.sleep(0.01)
        release.set()
        for n in range(4):
            assert (await client.response()).json()["seed"] == n
        assert (await client.response()).json()["id"] == "m"
        assert (await client.ask(body=chat(seed=9))).json()["seed"] == 9
        await b.settled()


@on_both_loops
async def test_a_flood_pending_an_answer_is_bounded_and_not_lost(tmp_path: Path) -> None:
    settings = ServerSettings(max_body=64 << 20)
    async with bench(tmp_path, settings) as b, await b.client(primed=True) as client:
        release = asyncio.Event()

        async def hold(asked: Asked) -> None:
            await release.wait()
            asked.writer.write(plain(str(len(asked.body)).encode()))

        b.engine.script = hold
        first, big = request(body=chat(seed=0)), request(body=chat(pad="x" * (8 << 20)))
        client.send(first)
        await b.engine.asked()
        client.send(big)
        connection = b.connections[0]
        await until(lambda: len(connection._pending) > MAX_PENDING, "it is held up")
        await asyncio.sleep(0.02)
        assert len(connection._pending) < 2 * MAX_PENDING + (1 << 18)
        release.set()
        assert (await client.response()).json() == len(first.partition(b"\r\n\r\n")[2])
        assert (await client.response()).json() == len(big.partition(b"\r\n\r\n")[2])
        await b.settled()


# --- what the verdict depends on --------------------------------------------------------------------------------


async def prime(b: Bench, client: Client, **headers: str) -> None:
    assert (await client.ask(body=chat(), headers={k.replace("_", "-"): v for k, v in headers.items()})).status == 200
    await b.settled()


@on_both_loops
async def test_a_new_key_file_counts_from_the_next_request(tmp_path: Path) -> None:
    settings = ServerSettings()
    async with bench(tmp_path, settings, keys=digests(KEY)) as b, await b.client() as client:
        await prime(b, client, **bearer(KEY))
        await prime(b, client, **bearer(KEY))
        assert (await client.ask(body=chat(), headers=bearer(OTHER))).code == "unauthorized"
        assert (await client.ask(body=chat())).code == "unauthorized"
        b.configure(settings, digests(OTHER))
        assert (await client.ask(body=chat(), headers=bearer(KEY))).code == "unauthorized"
        await prime(b, client, **bearer(OTHER))
        assert (await client.ask(body=chat(), headers=bearer(KEY))).code == "unauthorized"
        assert len(b.engine.requests) == 3


@on_both_loops
async def test_what_was_let_in_before_the_new_keys_vouches_for_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.instances.hold = True
        client.send(request(body=chat()))
        await until(lambda: b.scheduler.queued == 1, "it waits for the model")
        b.configure(ServerSettings(), digests(KEY))
        b.instances.let_go()
        assert (await client.response()).status == 200
        assert (await client.ask(body=chat())).code == "unauthorized"


@on_both_loops
async def test_new_limits_count_from_the_next_request(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        b.configure(ServerSettings(max_body=100), ())
        assert (await client.ask(body=chat(pad="x" * 100))).code == "body_too_large"


@on_both_loops
async def test_models_that_take_turns(tmp_path: Path) -> None:
    models = [ModelSpec(name, path=f"/{name}.gguf") for name in ("m", "n")]
    scheduling = SchedulerSettings(linger=0.0)
    limits = SharedLimits(None, "no limit", 1)
    async with bench(tmp_path, models=models, scheduling=scheduling, limits=limits) as b:
        b.engine.script = number
        async with await b.client() as client:
            for n, name in enumerate("mmnmnnm"):
                response = await client.ask(body=chat(name, seed=n))
                assert (response.status, response.headers["x-accelerd-model"]) == (200, name)
                assert response.json()["seed"] == n
        await b.settled()


@on_both_loops
async def test_a_model_that_is_no_longer_configured_is_not_found(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        other = replace(ModelSpec("n", path="/n.gguf"), idle_timeout=None)
        b.scheduler.configure([(other, ONE_BYTE)], b.scheduler.settings, b.scheduler.limits)
        assert (await client.ask(body=chat())).code == "model_not_found"


@on_both_loops
async def test_a_model_without_a_free_slot_is_waited_for(tmp_path: Path) -> None:
    async with bench(tmp_path, models=[ModelSpec("m", path="/m.gguf")]) as b:
        async with await b.client(primed=True) as client, await b.client(primed=True) as second:
            b.engine.says(0.1, plain(b"{}"))
            client.send(request(body=chat()))
            await b.engine.asked()
            second.send(request(body=chat()))
            await until(lambda: b.scheduler.queued == 1, "it waits its turn")
            assert [(await c.response()).status for c in (client, second)] == [200, 200]
        await b.settled()


# --- the log ----------------------------------------------------------------------------------------------------


@on_both_loops
async def test_malformed_requests_and_bugs_are_logged_once_in_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    async with bench(tmp_path) as b:

        async def bug(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(b.gateway._forwarder, "forward", bug)
        for _ in range(5):
            async with await b.client() as client:
                client.send(b"\x1b[2J secret\r\n\r\n")
                assert (await client.response()).code == "bad_request"
            async with await b.client() as client:
                response = await client.ask(body=chat())
                assert (response.status, response.code) == (500, "internal")
                assert b"ZeroDivision" not in response.body
                assert await client.rest() == b""
        monkeypatch.setattr(connection_module, "LOG_PERIOD", 0.0)
        async with await b.client() as client:
            client.send(b"nonsense\r\n\r\n")
            await client.response()
    malformed = [
        r.getMessage() for r in caplog.records if r.getMessage().startswith("malformed request from 127.0.0.1")
    ]
    assert len(malformed) == 2
    assert malformed[1].endswith("(4 more were not logged)")
    assert not any("secret" in text for text in malformed)
    assert sum(r.exc_info is not None for r in caplog.records) == 1
