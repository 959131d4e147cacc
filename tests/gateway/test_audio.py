"""Transcriptions: forms find their model and go through as bytes; pages of other sites send none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.engines.base import Traits
from tests.gateway.bench import DONE, SSE_HEAD, Speaker, bench, on_both_loops, plain, token
from tests.gateway.client import chat, request
from tests.gateway.test_form_body import FILE, MODEL, B, form, part

PATH = "/v1/audio/transcriptions"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={B}"}
WHISPER = ModelSpec("whisper", engine="flm", model="whisper-v3:turbo", transcription=True)


def table(tmp_path: Path, settings: ServerSettings | None = None, wire_name: str | None = None) -> Any:
    chats = Traits(frozenset(("chat",)), {"transcription": "it hears nothing"})
    of = {"whisper": Traits(frozenset(("transcription",)), wire_name=wire_name, device="npu")}
    models = [WHISPER, ModelSpec("m", path="/m.gguf")]
    return bench(tmp_path, settings, models=models, others={"flm": Speaker(of=of), "llama-server": Speaker(says=chats)})


@pytest.mark.parametrize("path", [PATH, "/v1/audio/translations"])
@on_both_loops
async def test_a_form_goes_through_as_it_came(tmp_path: Path, path: str) -> None:
    body = form(FILE, MODEL, part("language", b"de"))
    async with table(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(b'{"text":"hello"}'))
        for _ in range(2):
            response = await client.ask(path=path, body=body, headers=HEADERS)
            assert (response.status, response.json()) == (200, {"text": "hello"})
            assert response.headers["x-accelerd-model"] == "whisper"
        assert [r.body for r in b.engine.requests] == [body] * 2
        head = b.engine.requests[0].head
        assert head.startswith(f"POST {path} HTTP/1.1\r\n".encode())
        assert f'\r\nContent-Type: multipart/form-data; boundary="{B}"\r\n'.encode() in head


@on_both_loops
async def test_the_engine_hears_its_own_name(tmp_path: Path) -> None:
    async with table(tmp_path, wire_name="whisper-v3:turbo") as b, await b.client() as client:
        body = form(FILE, part("model", b"npu/whisper"), part("language", b"npu/whisper"))
        assert (await client.ask(path=PATH, body=body, headers=HEADERS)).status == 200
        expected = form(FILE, part("model", b"whisper-v3:turbo"), part("language", b"npu/whisper"))
        assert b.engine.requests[0].body == expected


@on_both_loops
async def test_a_stream_of_text_is_one(tmp_path: Path) -> None:
    async with table(tmp_path, ServerSettings(keepalive_after=0.02)) as b, await b.client() as client:
        b.instances.hold = True
        b.engine.says(SSE_HEAD, token("a"), DONE)
        client.send(request(path=PATH, body=form(FILE, MODEL, part("stream", b"true")), headers=HEADERS))
        assert (await client.head()).headers["content-type"] == "text/event-stream"
        await client.reader.readuntil(b": loading whisper")
        b.instances.let_go()
        assert b"[DONE]" in await client.reader.readuntil(b"[DONE]")


@on_both_loops
async def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        response = await client.ask(path=PATH, body=form(FILE, part("model", b"m")), headers=HEADERS)
        assert response.code == "not_supported_by_model"
        assert "it hears nothing; these models can: whisper" in response.json()["error"]["message"]
        assert (await client.ask(body=chat("whisper"))).code == "not_supported_by_model"
        assert (await client.ask(path="/v1/audio/speech", body={"model": "whisper", "input": "hi"})).status == 400
        assert not b.engine.requests


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"{}", {"Content-Type": "application/json"}, "unsupported_media_type"),
        (form(FILE, MODEL), {"Content-Type": "multipart/form-data"}, "bad_request"),
        (form(FILE, MODEL), {"Content-Type": "multipart/form-data; boundary=other"}, "bad_request"),
        (form(FILE, part("model", b"nobody")), HEADERS, "model_not_found"),
        (form(FILE, MODEL)[:-9], HEADERS, "bad_request"),
        (form(part("file", b"x" * 5000), MODEL), HEADERS, "body_too_large"),
    ],
)
@on_both_loops
async def test_wrong_forms_are_refused(tmp_path: Path, body: bytes, headers: dict[str, str], code: str) -> None:
    async with table(tmp_path, ServerSettings(max_body=4096)) as b, await b.client() as client:
        assert (await client.ask(path=PATH, body=body, headers=headers)).code == code
        assert not b.engine.requests


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
@on_both_loops
async def test_a_form_on_a_page_of_another_site_gets_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        response = await client.ask(path=PATH, body=form(FILE, MODEL), headers={**HEADERS, **headers})
        assert response.code == "origin_not_allowed"
        assert not b.engine.requests
