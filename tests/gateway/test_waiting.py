"""While a model loads or is busy: comments for those who stream, plain errors with Retry-After for those who cannot
wait, and an error that OpenAI's clients understand when it comes too late for a status.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accelerd.config.model import ModelSpec, SchedulerSettings, ServerSettings
from accelerd.scheduler.placement import SharedLimits
from tests.gateway.bench import DONE, SSE_HEAD, Bench, bench, chunk, on_both_loops, plain, token, until
from tests.gateway.client import Client, Response, chat, request

SOON = ServerSettings(keepalive_after=0.05)


async def waiting(b: Bench, client: Client, **more: str) -> Response:
    """A streaming client that has heard its first comment; the model still loads."""
    b.instances.hold = True
    client.send(request(body=chat(stream=True), **more))  # type: ignore[arg-type]
    head = await client.head()
    assert head.status == 200
    assert head.headers["content-type"] == "text/event-stream"
    assert head.headers["x-accelerd-model"] == "m"
    head.body = await client.reader.readuntil(b"\n\n")
    assert b": loading m, " in head.body
    if "transfer-encoding" in head.headers:
        assert await client.reader.readexactly(2) == b"\r\n"
    return head


async def rest(client: Client, head: Response) -> Response:
    """What follows the comment."""
    response = Response(200, head.headers, head.head)
    try:
        async for piece in client.chunks():
            response.body += piece
    except (EOFError, ConnectionError):
        response.complete = False
    return response


@on_both_loops
async def test_a_stream_follows_its_comments(tmp_path: Path) -> None:
    async with bench(tmp_path, SOON) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, token("a"), DONE)
        head = await waiting(b, client)
        b.instances.let_go()
        response = await rest(client, head)
        assert response.complete
        assert response.events()[-1] == "[DONE]"
        assert (await client.ask("GET", "/health")).status == 200, "the connection is good for more"
        await b.settled()


@on_both_loops
async def test_a_stream_without_chunks_of_its_own_is_put_into_chunks(tmp_path: Path) -> None:
    async with bench(tmp_path, SOON) as b, await b.client() as client:
        content = b'data: {"choices":[]}\n\ndata: [DONE]\n\n'
        b.engine.says(plain(content[:9], kind="text/event-stream")[:-9].replace(b": 9", b": 36") + content)
        assert len(content) == 36
        head = await waiting(b, client)
        b.instances.let_go()
        response = await rest(client, head)
        assert (response.complete, response.body) == (True, content)


@on_both_loops
async def test_a_client_of_http_1_0_hears_comments_too(tmp_path: Path) -> None:
    async with bench(tmp_path, SOON) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, token("a"), DONE)
        head = await waiting(b, client, version="HTTP/1.0")
        assert "transfer-encoding" not in head.headers
        b.instances.let_go()
        assert (await client.rest()).endswith(b"data: [DONE]\n\n")


@on_both_loops
async def test_a_load_that_fails_after_the_head_is_an_error_event(tmp_path: Path) -> None:
    async with bench(tmp_path, SOON, scheduling=SchedulerSettings(max_failures=1)) as b, await b.client() as client:
        head = await waiting(b, client)
        b.instances.fail("llama-server exited with status 1")
        response = await rest(client, head)
        assert not response.complete, "a clean end: a client would take it for a whole answer"
        (event,) = response.events()
        assert event["error"]["code"] in ("model_failed", "model_backing_off")
        assert "llama-server exited" in event["error"]["message"]
        await b.settled()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            plain(b'{"error":{"code":400,\n"message":"too long","type":"exceed_context_size_error"}}', status=400),
            "too long",
        ),
        (plain(b'{"error":"text"}', status=500), "text"),
        (plain(b"<html>", status=500, kind="text/html"), "no reason given"),
        (plain(b'{"choices":[]}'), "the engine failed: its response is not a stream"),
        (plain(b"x" * 200_000, status=400), "x" * 400),
    ],
)
@on_both_loops
async def test_an_engine_that_refuses_after_the_head_says_why(tmp_path: Path, answer: bytes, expected: str) -> None:
    async with bench(tmp_path, SOON) as b, await b.client() as client:
        b.engine.says(answer)
        head = await waiting(b, client)
        b.instances.let_go()
        response = await rest(client, head)
        assert not response.complete
        (event,) = response.events()
        assert expected in event["error"]["message"]
        await b.settled()


@on_both_loops
async def test_an_engine_that_dies_after_the_comments_is_an_error_event(tmp_path: Path) -> None:
    async with bench(tmp_path, SOON) as b, await b.client() as client:
        b.engine.says(close=True)
        head = await waiting(b, client)
        b.instances.let_go()
        response = await rest(client, head)
        assert not response.complete
        assert response.events()[-1]["error"]["code"] == "upstream_failed"
        assert len(b.engine.requests) == 1
        await b.settled()


@on_both_loops
async def test_what_waited_may_find_that_its_connection_is_stale(tmp_path: Path) -> None:
    """Its client has got comments, and sees nothing of it."""
    models = [ModelSpec("m", path="/m.gguf", parallel=1)]
    async with bench(tmp_path, SOON, models=models) as b, await b.client() as first, await b.client() as second:
        b.engine.says(0.3, plain(b"{}"), close=True)
        first.send(request(body=chat()))
        await b.engine.asked()
        second.send(request(body=chat(stream=True)))
        await second.head()
        b.engine.says(SSE_HEAD, token("a"), DONE)
        await first.response()
        await second.reader.readuntil(b"[DONE]")
        assert [r.connection for r in b.engine.requests] == [1, 2]


@on_both_loops
async def test_who_does_not_stream_waits_in_silence(tmp_path: Path) -> None:
    async with bench(tmp_path, SOON) as b, await b.client() as client:
        b.instances.hold = True
        client.send(request(body=chat()))
        await until(lambda: b.scheduler.queued, "queued")
        b.instances.let_go()
        assert (await client.response()).status == 200


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_a_full_queue_is_a_429_with_retry_after(tmp_path: Path, stream: bool) -> None:
    async with bench(tmp_path, scheduling=SchedulerSettings(max_queue=1)) as b, await b.client() as first:
        b.instances.hold = True
        first.send(request(body=chat()))
        await until(lambda: b.scheduler.queued == 1, "queued")
        async with await b.client() as second:
            response = await second.ask(body=chat(stream=stream))
            assert (response.status, response.code) == (429, "queue_full")
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert "x-should-retry" not in response.headers


@on_both_loops
async def test_a_wait_that_is_too_long_is_a_503(tmp_path: Path) -> None:
    async with bench(tmp_path, scheduling=SchedulerSettings(queue_timeout=0.1)) as b, await b.client() as client:
        b.instances.hold = True
        response = await client.ask(body=chat())
        assert (response.status, response.code) == (503, "queue_timeout")
        await b.settled()


@on_both_loops
async def test_what_can_never_work_is_not_to_be_tried_again(tmp_path: Path) -> None:
    """OpenAI's clients repeat every 5xx twice unless they are told not to."""
    async with bench(tmp_path, limits=SharedLimits(0, "scheduler.memory", None)) as b, await b.client() as client:
        response = await client.ask(body=chat())
        assert (response.status, response.code) == (503, "does_not_fit")
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers


@on_both_loops
async def test_a_load_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.instances.hold = True
        client.send(request(body=chat()))
        await until(lambda: b.scheduler.queued, "queued")
        b.instances.fail("llama-server exited with status 1")
        response = await client.response()
        assert response.status == 503
        assert "llama-server exited" in json.dumps(response.json())
        assert "the last line" in json.dumps(response.json())


@on_both_loops
async def test_shutting_down_refuses_who_waits_and_ends_who_streams_in_peace(tmp_path: Path) -> None:
    models = [ModelSpec("m", path="/m.gguf", parallel=1)]
    async with bench(tmp_path, SOON, models=models) as b, await b.client() as streaming:
        b.engine.says(SSE_HEAD, token("a"), 0.2, token("b"), DONE)
        streaming.send(request(body=chat(stream=True)))
        await streaming.head()
        b.scheduler.shutdown()
        async with await b.client() as late:
            response = await late.ask(body=chat("m"))
            assert (response.status, response.code) == (503, "shutting_down")
        assert b"[DONE]" in await streaming.reader.readuntil(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
