"""Trap of part B: a full queue of flm's own answers 503. No client is told so; it is asked again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, SchedulerSettings, ServerSettings
from accelerd.engines.base import Dialect, Traits
from accelerd.scheduler.core import BAD_OUTCOMES_BEFORE_PROBE
from tests.gateway.bench import ALL, DONE, SSE_HEAD, Asked, Bench, Speaker, bench, on_both_loops, plain, token, until
from tests.gateway.client import CHAT, Response, chat, request

FULL = plain(b'{"error":"NPU is in use and request queue is full (limit: 10)"}', 503)
SOON = ServerSettings(keepalive_after=0.02)


def table(
    tmp_path: Path, settings: ServerSettings | None = None, *, slots: int = 1, assembles: bool = False, **more: Any
) -> Any:
    speaker = Speaker(Dialect(streams_notice_disconnect=assembles, busy=frozenset({503})), Traits(ALL, wire_name="tag"))
    models = [ModelSpec("m", engine="flm", model="tag", parallel=slots)]
    return bench(tmp_path, settings, models=models, others={"flm": speaker}, **more)


def busy(b: Bench, times: int, then: bytes, head: bytes = FULL, *, close: bool = False) -> None:
    """The engine is busy so many times."""

    async def script(asked: Asked) -> None:
        asked.writer.write(head if len(b.engine.requests) <= times else then)
        if close and len(b.engine.requests) <= times:
            asked.writer.close()

    b.engine.script = script


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_B_the_503_of_a_full_queue_never_reaches_a_client(tmp_path: Path, stream: bool) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        busy(b, 3, SSE_HEAD + token("a") + DONE if stream else plain(b'{"ok":1}'))
        response = await client.ask(body=chat(stream=stream))
        assert response.status == 200
        assert response.complete
        assert b"NPU is in use" not in response.body
        assert [r.json()["model"] for r in b.engine.requests] == ["tag"] * 4
        assert len({r.body for r in b.engine.requests}) == 1
        await b.settled()


@on_both_loops
async def test_B_its_connection_may_close_after_it(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        busy(b, 2, plain(b"{}"), FULL.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), close=True)
        assert (await client.ask(body=chat())).status == 200


@on_both_loops
async def test_B_chunks_of_its_refusal_are_not_relayed_either(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        chunked = SSE_HEAD.replace(b"200 OK", b"503 X") + token("full") + DONE
        busy(b, 2, plain(b'{"ok":1}'), chunked)
        response = await client.ask(body=chat())
        assert (response.status, response.body) == (200, b'{"ok":1}')


@on_both_loops
async def test_B_a_streaming_client_hears_that_it_waits(tmp_path: Path) -> None:
    async with table(tmp_path, SOON) as b, await b.client() as client:
        busy(b, 3, SSE_HEAD + token("a") + DONE)
        response = await client.ask(body=chat(stream=True))
        assert response.complete
        assert response.body.startswith(b": waiting for m, ")
        assert response.events()[-1] == "[DONE]"
        assert (await client.ask("GET", "/health")).status == 200


@on_both_loops
async def test_B_an_answer_that_is_put_together_waits_too(tmp_path: Path) -> None:
    async with table(tmp_path, slots=2, assembles=True) as b, await b.client() as client:
        events = token("a", id="1", created=1, model="tag", object="chat.completion.chunk")
        busy(b, 2, SSE_HEAD + events + token("b") + DONE)
        response = await client.ask(body=chat())
        assert response.status == 200, response.body
        assert response.json()["choices"][0]["message"]["content"] == "ab"
        assert len(b.engine.requests) == 3


async def refused(b: Bench, client: Any, *, stream: bool) -> Response:
    busy(b, 1_000_000, b"")
    response: Response = await client.ask(body=chat(stream=stream))
    await b.settled()
    return response


@on_both_loops
async def test_B_it_ends_with_our_own_error(tmp_path: Path) -> None:
    async with table(tmp_path, scheduling=SchedulerSettings(queue_timeout=0.2)) as b, await b.client() as client:
        response = await refused(b, client, stream=False)
        assert (response.status, response.code) == (503, "queue_timeout")
        assert int(response.headers["retry-after"]) >= 1
        assert len(b.engine.requests) >= 2


@on_both_loops
async def test_B_it_ends_with_an_event_when_comments_have_gone_out(tmp_path: Path) -> None:
    scheduling = SchedulerSettings(queue_timeout=0.2)
    async with table(tmp_path, SOON, scheduling=scheduling) as b, await b.client() as client:
        response = await refused(b, client, stream=True)
        assert not response.complete
        assert response.events()[-1]["error"]["code"] == "queue_timeout"


@on_both_loops
async def test_B_it_is_no_failure_of_the_model(tmp_path: Path) -> None:
    async with table(tmp_path, scheduling=SchedulerSettings(queue_timeout=0.01)) as b, await b.client() as client:
        busy(b, 1_000_000, b"")
        for _ in range(BAD_OUTCOMES_BEFORE_PROBE + 2):
            assert (await client.ask(body=chat())).code == "queue_timeout"
        assert b.instances.probes == 0
        b.engine.says(plain(b'{"error":{}}', 500))
        for _ in range(BAD_OUTCOMES_BEFORE_PROBE):
            assert (await client.ask(body=chat())).status == 500
        await until(lambda: b.instances.probes == 1, "what is not busy counts as ever")


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_B_a_client_that_goes_is_not_waited_for(tmp_path: Path, stream: bool) -> None:
    async with table(tmp_path) as b:
        client = await b.client()
        busy(b, 1_000_000, b"")
        client.send(request(path=CHAT, body=chat(stream=stream)))
        await b.engine.asked(2)
        assert b.leases() == 1
        await client.close()
        await b.settled()
        asked = len(b.engine.requests)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(b.engine.requests) == asked


# --- errors with status 200 ---------------------------------------------------------------------------------------


def masking(tmp_path: Path) -> Any:
    dialect = Dialect(busy=frozenset({503}), masks_errors=True)
    models = [ModelSpec("m", engine="flm", model="tag")]
    return bench(tmp_path, models=models, others={"flm": Speaker(dialect, Traits(ALL, wire_name="tag"))})


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error":"Failed to load m model!"}', "Failed to load m model!"),
        (b'{"error":{"message":"key messages not found","code":500}}', "key messages not found"),
        (b"null", "it returned null"),
    ],
)
@on_both_loops
async def test_B_an_error_with_status_200_is_an_error_for_the_client(
    tmp_path: Path, body: bytes, says: str, stream: bool
) -> None:
    async with masking(tmp_path) as b, await b.client() as client:
        b.engine.script = answering(plain(body))
        response = await client.ask(body=chat(stream=stream))
        assert (response.status, response.json()["error"]["code"]) == (502, "upstream_failed")
        assert says in response.json()["error"]["message"]
        b.engine.script = answering(SSE_HEAD + token("a") + DONE if stream else plain(b'{"choices":[]}'))
        assert (await client.ask(body=chat(stream=stream))).status == 200


def answering(raw: bytes) -> Any:
    async def script(asked: Asked) -> None:
        asked.writer.write(raw)

    return script
