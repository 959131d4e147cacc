"""Engines that misbehave: garbage, endless heads, an early or silent end. The client never gets a clean
end for an answer that was not complete, and accelerd keeps neither lease nor memory.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from accelerd.config.model import ServerSettings
from tests.gateway.bench import (
    DONE,
    LAST_CHUNK,
    SSE_HEAD,
    Bench,
    bench,
    chunk,
    fresh_and_reused,
    on_both_loops,
    plain,
    token,
)
from tests.gateway.client import Response, chat

HASTE = ServerSettings(stall_timeout=0.3)


async def ask(b: Bench, *, primed: bool = False, stream: bool = True) -> Response:
    """One chat; afterwards nothing is left of it and the next one works."""
    async with await b.client(primed=primed) as client:
        response = await client.ask(body=chat(stream=stream))
        await b.settled()
        b.engine.script = b.engine.ok
        async with await b.client() as other:
            assert (await other.ask(body=chat())).status == 200
        return response


def failed(response: Response, word: str = "") -> None:
    """It is an honest 502 in OpenAI's shape."""
    assert (response.status, response.code) == (502, "upstream_failed"), response
    assert response.complete
    assert word in response.json()["error"]["message"]


# --- what is passed on -----------------------------------------------------------------------------------------------

GARBAGE = b"data: {not json\n\n\xff\xfe\x00no colon\n\ndata:\n\nevent: \x1b[31m\n\n"


@fresh_and_reused
@on_both_loops
async def test_garbage_in_a_stream_is_passed_on_byte_for_byte(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(SSE_HEAD, chunk(GARBAGE), DONE)
        response = await ask(b, primed=primed)
        assert response.complete
        assert response.body == GARBAGE + b"data: [DONE]\n\n"


@fresh_and_reused
@on_both_loops
async def test_an_endless_line_is_passed_on_and_kept_nowhere(tmp_path: Path, primed: bool) -> None:
    line = b"data: " + b"x" * (4 << 20)
    async with bench(tmp_path) as b:
        b.engine.says(SSE_HEAD, *[chunk(line[i : i + 65536]) for i in range(0, len(line), 65536)], LAST_CHUNK)
        assert (await ask(b, primed=primed)).body == line


@pytest.mark.parametrize("kind", ["text/html", "", "text/event-stream; charset=utf-8", "multipart/x; boundary=y"])
@on_both_loops
async def test_the_content_type_is_the_engines(tmp_path: Path, kind: str) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(plain(b"<p>", kind=kind))
        response = await ask(b)
        assert (response.status, response.headers["content-type"], response.body) == (200, kind, b"<p>")


@fresh_and_reused
@on_both_loops
async def test_interim_answers_are_dropped(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path) as b:
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        b.engine.says(interim, interim + SSE_HEAD, token("a") + DONE)
        response = await ask(b, primed=primed)
        assert response.status == 200
        assert b"Early" not in response.head
        assert response.events()[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_engine_errors_are_passed_on(tmp_path: Path, stream: bool) -> None:
    said = b'{"error":{"code":400,"message":"no such field","type":"invalid_request_error","more":8}}'
    async with bench(tmp_path) as b:
        b.engine.says(plain(said, status=400))
        response = await ask(b, stream=stream)
        assert (response.status, response.body) == (400, said)


@on_both_loops
async def test_a_stream_without_chunks_is_a_stream_too(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: [DONE]\n\n", close=True)
        response = await ask(b)
        assert response.body == b"data: [DONE]\n\n"
        assert response.headers["connection"] == "close"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nthis is no header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: nor this\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 999 What\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: a\nX-Injected: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Huge: " + b"h" * (65 << 10) + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"h" * (65 << 10),
    ],
)
@fresh_and_reused
@on_both_loops
async def test_a_bad_head_is_a_502(tmp_path: Path, raw: bytes, primed: bool) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(raw)
        failed(await ask(b, primed=primed), "malformed")


@pytest.mark.parametrize("bad", [b"zz\r\n", b"0x5\r\nhello\r\n", b"5\r\nhelloXX\r\n", b"\r\n", chunk(b"x") + b"-1\r\n"])
@fresh_and_reused
@on_both_loops
async def test_bad_chunks_never_look_like_an_end(tmp_path: Path, bad: bytes, primed: bool) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(SSE_HEAD + token("a"), 0.02, bad)
        response = await ask(b, primed=primed)
        assert response.status == 200
        assert not response.complete


@on_both_loops
async def test_more_than_it_promised_is_not_passed_on_to_the_next_client(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(plain(b"four")[:-4] + b"four" + plain(b"poison"))
        response = await ask(b)
        assert b"poison" not in response.body


# --- answers that end too early --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200", SSE_HEAD[:-2]])
@pytest.mark.parametrize("stream", [True, False])
@fresh_and_reused
@on_both_loops
async def test_an_end_before_the_head_is_a_502(tmp_path: Path, start: bytes, stream: bool, primed: bool) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(start, close=True)
        failed(await ask(b, primed=primed, stream=stream))


@fresh_and_reused
@on_both_loops
async def test_an_end_between_chunks_is_an_error_event_and_no_end(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(SSE_HEAD + token("a"), 0.02, close=True)
        response = await ask(b, primed=primed)
        assert response.status == 200
        assert not response.complete
        first, last = response.events()
        assert first["choices"][0]["delta"]["content"] == "a"
        assert last["error"]["code"] == "upstream_failed"
        assert b"[DONE]" not in response.body


@fresh_and_reused
@on_both_loops
async def test_an_end_in_the_middle_of_a_chunk_is_a_cut(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(SSE_HEAD + token("a") + token("b")[:-9], 0.02, close=True)
        response = await ask(b, primed=primed)
        assert response.status == 200
        assert not response.complete
        assert b"error" not in response.body, "an event in the middle of another"


@fresh_and_reused
@on_both_loops
async def test_a_plain_answer_that_breaks_off_is_a_cut(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path) as b:
        b.engine.says(plain(b'{"answer": 42}')[:-3], 0.02, close=True)
        async with await b.client(primed=primed) as client:
            response = await client.ask(path="/v1/completions", body={"model": "m", "prompt": "hi"})
            await b.settled()
        assert response.status == 200
        assert not response.complete
        assert response.body == b'{"answer": '


@fresh_and_reused
@on_both_loops
async def test_a_plain_chat_that_breaks_off_is_a_502(tmp_path: Path, primed: bool) -> None:
    """It is looked at before it is sent."""
    async with bench(tmp_path) as b:
        b.engine.says(plain(b'{"answer": 42}')[:-3], 0.02, close=True)
        failed(await ask(b, primed=primed, stream=False))


@pytest.mark.parametrize("pieces", [(SSE_HEAD + token("a"),), (SSE_HEAD + token("a") + chunk(b"data: {")[:-3],)])
@on_both_loops
async def test_an_assembled_answer_that_breaks_off_is_a_502(tmp_path: Path, pieces: tuple[bytes, ...]) -> None:
    async with bench(tmp_path, assembles=True) as b:
        b.engine.says(*pieces, 0.02, close=True)
        failed(await ask_plain(b))


@pytest.mark.parametrize(
    "content",
    [GARBAGE, b"", b"data: [DONE]\n\n", b'data: {"choices":[{"delta":{}}]}\n\ndata: [DONE]\n\n', b"data: 1\n\n"],
)
@on_both_loops
async def test_an_assembled_answer_of_garbage_is_a_502(tmp_path: Path, content: bytes) -> None:
    async with bench(tmp_path, assembles=True) as b:
        b.engine.says(SSE_HEAD + (chunk(content) if content else b"") + LAST_CHUNK)
        failed(await ask_plain(b))


async def ask_plain(b: Bench) -> Response:
    async with await b.client() as client:
        response = await client.ask(body=chat())
        await b.settled()
        return response


# --- silence ---------------------------------------------------------------------------------------------------------


@fresh_and_reused
@on_both_loops
async def test_silence_between_tokens_has_an_end(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path, HASTE) as b:
        b.engine.says(SSE_HEAD + token("a"), 60.0)
        began = time.monotonic()
        response = await ask(b, primed=primed)
        assert 0.2 < time.monotonic() - began < 50
        assert not response.complete
        assert response.events()[-1]["error"]["code"] == "upstream_timeout"
        assert "stall_timeout" in response.events()[-1]["error"]["message"]


@fresh_and_reused
@on_both_loops
async def test_silence_before_the_first_byte_is_a_504(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path, HASTE) as b:
        b.engine.says(60.0)
        response = await ask(b, primed=primed)
        assert (response.status, response.code) == (504, "upstream_timeout")
        assert len([r for r in b.engine.requests if b"true" in r.body]) == 1, "a stall is no reason to ask again"


@fresh_and_reused
@on_both_loops
async def test_a_stream_may_last_much_longer_than_the_timeout(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path, HASTE) as b:
        b.engine.says(SSE_HEAD, *[piece for i in range(8) for piece in (token(str(i)), 0.1)], DONE)
        response = await ask(b, primed=primed)
        assert response.complete
        assert len(response.events()) == 9


@on_both_loops
async def test_an_assembled_answer_is_watched_token_by_token(tmp_path: Path) -> None:
    async with bench(tmp_path, HASTE, assembles=True) as b:
        b.engine.says(SSE_HEAD + token("a"), 60.0)
        response = await ask_plain(b)
        assert (response.status, response.code) == (504, "upstream_timeout")


@on_both_loops
async def test_a_plain_answer_is_not_hurried(tmp_path: Path) -> None:
    """An engine that computes a whole answer says nothing meanwhile: that is no stall."""
    async with bench(tmp_path, HASTE) as b:
        b.engine.says(0.8, plain(b"{}"))
        assert (await ask(b, stream=False)).status == 200
        await asyncio.sleep(0)
