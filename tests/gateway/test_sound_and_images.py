"""Speech, transcripts and images: what engines answer goes through as it is, also after a wait for the model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.engines.base import Traits
from tests.gateway.bench import LAST_CHUNK, SSE_HEAD, Asked, Bench, Speaker, bench, chunk, on_both_loops, plain, until
from tests.gateway.client import Response, chat, request
from tests.gateway.test_audio import HEADERS, PATH
from tests.gateway.test_form_body import FILE, form, part

SPEECH = "/v1/audio/speech"
QUICK = ServerSettings(keepalive_after=0.02)
SOUND = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
PICTURE = b'{"created":1,"data":[{"b64_json":"aGVsbG8="}]}'
GENERATIONS, EDITS, VARIATIONS = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"


async def after_a_wait(b: Bench, raw: bytes) -> Response:
    """The response to a request that has waited for its model for longer than clients of streams wait for a comment."""
    async with await b.client() as client, await b.client() as streaming:
        b.instances.hold = True
        client.send(raw)
        await until(lambda: b.scheduler.queued == 1, "it waits")
        streaming.send(request(body=chat(stream=True)))
        await streaming.reader.readuntil(b": loading m")
        b.instances.let_go()
        return await client.response()


@pytest.mark.parametrize(
    "more", [{}, {"stream": True}, {"stream": False}, {"stream_format": "audio"}, {"stream": None}]
)
@on_both_loops
async def test_speech_comes_as_sound_whether_its_model_was_loaded_or_not(tmp_path: Path, more: dict[str, Any]) -> None:
    """`stream` of Kokoro and others means sound as it is made, and no events."""
    body = {"model": "m", "input": "hi", **more}
    async with bench(tmp_path, QUICK) as b, await b.client() as client:
        b.engine.says(SOUND, chunk(b"\xff\xfb1"), chunk(b"\xff\xfb2"), LAST_CHUNK)
        waited = await after_a_wait(b, request(path=SPEECH, body=body))
        for answer in (waited, await client.ask(path=SPEECH, body=body)):
            assert (answer.status, answer.headers["content-type"], answer.complete) == (200, "audio/mpeg", True)
            assert answer.body == b"\xff\xfb1\xff\xfb2"
        assert [one.json() for one in b.engine.requests if b"input" in one.body] == [body, body]


@on_both_loops
async def test_sound_is_passed_on_as_it_is_made(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        heard = asyncio.Event()

        async def script(asked: Asked) -> None:
            asked.writer.write(SOUND + chunk(b"one"))
            await heard.wait()
            asked.writer.write(chunk(b"two") + LAST_CHUNK)

        b.engine.script = script
        client.send(request(path=SPEECH, body={"model": "m", "input": "hi", "stream_format": "audio"}))
        await client.head()
        assert await client.reader.readexactly(8) == b"3\r\none\r\n"
        heard.set()
        assert await client.reader.readexactly(13) == b"3\r\ntwo\r\n0\r\n\r\n"


@on_both_loops
async def test_events_of_speech_are_a_stream(tmp_path: Path) -> None:
    """With comments while its model is loaded."""
    event = b'data: {"type":"speech.audio.delta","audio":"aGk="}\n\n'
    async with bench(tmp_path, QUICK) as b:
        b.engine.says(SSE_HEAD, chunk(event), LAST_CHUNK)
        answer = await after_a_wait(b, request(path=SPEECH, body={"input": "hi", "stream_format": "sse"}))
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.body.startswith(b": loading m")
        assert answer.body.endswith(event)


FORMATS = {
    "json": ("application/json", b'{"text":"hello"}'),
    "verbose_json": ("application/json; charset=utf-8", b'{"task":"transcribe","text":"hello","segments":[]}'),
    "text": ("text/plain; charset=utf-8", b"hello\n"),
    "srt": ("application/x-subrip", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n"),
    "vtt": ("text/vtt", b"WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n"),
}


def asked(response_format: str, **fields: str) -> bytes:
    given = {"response_format": response_format, "model": "m", **fields}
    body = form(FILE, *(part(name, value.encode()) for name, value in given.items()))
    return request(path=PATH, body=body, headers=HEADERS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("misnamed", [False, True])
@on_both_loops
async def test_a_transcript_keeps_its_format(tmp_path: Path, name: str, misnamed: bool) -> None:
    kind, body = FORMATS[name]
    says = Traits(frozenset(("transcription", "chat")), wire_name="ggml-tiny" if misnamed else None)
    async with bench(tmp_path, QUICK, others={"llama-server": Speaker(says=says)}) as b:
        b.engine.says(plain(body, kind=kind))
        answers = [await after_a_wait(b, asked(name))]
        for stream in ("false", "true"):
            async with await b.client() as client:
                client.send(asked(name, stream=stream))
                answers.append(await client.response())
        for answer in answers:
            assert (answer.status, answer.headers["content-type"], answer.body) == (200, kind, body)


@pytest.mark.parametrize("name", FORMATS)
@on_both_loops
async def test_a_whole_transcript_ends_a_stream_that_has_begun(tmp_path: Path, name: str) -> None:
    """The engine does not stream, and the client has comments already."""
    kind, body = FORMATS[name]
    async with bench(tmp_path, QUICK) as b:
        b.engine.says(plain(body, kind=kind))
        answer = await after_a_wait(b, asked(name, stream="true"))
        assert (answer.headers["content-type"], answer.complete) == ("text/event-stream", True)
        text = "hello" if "json" in name else body.decode()
        assert answer.events() == [
            {"type": "transcript.text.delta", "delta": text}, {"type": "transcript.text.done", "text": text},
        ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True, None])
@on_both_loops
async def test_images_come_whole_whatever_stream_says(tmp_path: Path, stream: bool | None) -> None:
    body = {"model": "m", "prompt": "a cat", "response_format": "b64_json", "stream": stream}
    async with bench(tmp_path, QUICK) as b:
        b.engine.says(plain(PICTURE))
        answer = await after_a_wait(b, request(path=GENERATIONS, body=body))
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", PICTURE)
        assert body in [one.json() for one in b.engine.requests]


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        (EDITS, ["image"], 200),
        (EDITS, ["image[]", "image[]", "mask"], 200),
        (EDITS, ["mask"], 400),
        (VARIATIONS, ["image"], 200),
        (VARIATIONS, ["image[]"], 400),
        (VARIATIONS, [], 400),
    ],
)
@on_both_loops
async def test_edits_and_variations_bring_an_image(tmp_path: Path, path: str, fields: list[str], status: int) -> None:
    images = [part(name, b"\x89PNG", '; filename="a.png"', "Content-Type: image/png\r\n") for name in fields]
    body = form(*images, part("model", b"m"), part("prompt", b"red"), part("stream", b"true"))
    async with bench(tmp_path, QUICK) as b:
        b.engine.says(plain(PICTURE))
        answer = await after_a_wait(b, request(path=path, body=body, headers=HEADERS)) if status == 200 else None
        if answer is None:
            async with await b.client() as client:
                answer = await client.ask(path=path, body=body, headers=HEADERS)
            assert answer.json()["error"]["param"] == "image"
        else:
            assert body in [one.body for one in b.engine.requests]
            assert answer.body == PICTURE
        assert answer.status == status


@pytest.mark.parametrize("path", [GENERATIONS, EDITS, VARIATIONS])
@on_both_loops
async def test_who_cannot_draw_says_who_can(tmp_path: Path, path: str) -> None:
    models = [ModelSpec("m", path="/m.gguf"), ModelSpec("draw", engine="command")]
    others = {
        "llama-server": Speaker(says=Traits(frozenset(("chat",)))),
        "command": Speaker(says=Traits(frozenset(("images",)))),
    }
    async with bench(tmp_path, models=models, others=others) as b, await b.client() as client:
        b.engine.says(plain(PICTURE))
        for model, status in (("m", 400), (None, 200)):
            if path == GENERATIONS:
                answer = await client.ask(path=path, body={"prompt": "a cat", "model": model})
            else:
                named = [] if model is None else [part("model", model.encode())]
                body = form(part("image", b"\x89PNG"), part("prompt", b"red"), *named)
                answer = await client.ask(path=path, body=body, headers=HEADERS)
            assert answer.status == status
            if status == 400:
                error = answer.json()["error"]
                assert (error["code"], error["capability"]) == ("not_supported_by_model", "images")
                assert error["message"].endswith("these models can: draw")
