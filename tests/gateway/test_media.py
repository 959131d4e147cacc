"""Images and audio that a model cannot take in are refused before anything is loaded for them, in every dialect."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, Route
from accelerd.engines.base import Traits
from accelerd.gateway.request_media import media
from accelerd.gateway.responses import PHRASES
from tests.gateway.bench import ALL, Speaker, bench, on_both_loops
from tests.gateway.client import CHAT, chat

DATA = base64.b64encode(b"\x89PNG" + bytes(60)).decode()
URL = f"data:image/png;base64,{DATA}"
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
AUDIO = {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}
FILE = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{DATA}"}}
BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
TEXT = {"type": "text", "text": "what is this?"}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [TEXT, BLOCK]}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image", "image_url": URL}]}
PROMPT = {"prompt_string": "<__media__> what is this?", "multimodal_data": [DATA]}
ODD = ({"type": None}, {"type": ["image"]}, {"type": 5}, "image", 7, None, [IMAGE], {"content": 3, "output": None}, {})

TEXTUAL = ALL - {"vision", "audio", "files"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


BRING = {
    "chat-image": (CHAT, {"messages": [user(TEXT, IMAGE)]}, {"vision"}),
    "chat-image-earlier": (CHAT, {"messages": [user(IMAGE), {"role": "user", "content": "and now?"}]}, {"vision"}),
    "chat-audio": (CHAT, {"messages": [user(TEXT, AUDIO)]}, {"audio"}),
    "chat-both": (CHAT, {"messages": [user(AUDIO), user(IMAGE)]}, {"audio", "vision"}),
    "chat-video": (CHAT, {"messages": [user({"type": "video_url", "video_url": {"url": "x"}})]}, {"vision"}),
    "chat-tool": (CHAT, {"messages": [{"role": "tool", "tool_call_id": "1", "content": [IMAGE]}]}, {"vision"}),
    "messages": ("/v1/messages", {"max_tokens": 5, "messages": [user(TEXT, BLOCK)]}, {"vision"}),
    "messages-tool": ("/v1/messages", {"max_tokens": 5, "messages": [user(RESULT)]}, {"vision"}),
    "count_tokens": ("/v1/messages/count_tokens", {"messages": [user(BLOCK)]}, {"vision"}),
    "responses": ("/v1/responses", {"input": [user({"type": "input_image", "image_url": URL})]}, {"vision"}),
    "chat-audio-url": (CHAT, {"messages": [user({"type": "audio_url", "audio_url": {"url": "x"}})]}, {"audio"}),
    "completions": ("/v1/completions", {"prompt": PROMPT}, {"vision"}),
    "completions-several": ("/v1/completions", {"prompt": ["hi", PROMPT]}, {"vision"}),
    "embeddings": ("/v1/embeddings", {"input": [[1, 2], PROMPT]}, {"vision"}),
    "embeddings-own": ("/v1/embeddings", {"content": PROMPT}, {"vision"}),
    "chat-file": (CHAT, {"messages": [user(TEXT, FILE)]}, {"files"}),
    "chat-file-and-image": (CHAT, {"messages": [user(FILE, IMAGE)]}, {"files", "vision"}),
    "responses-file": ("/v1/responses", {"input": [user({"type": "input_file", "file_id": "f"})]}, {"files"}),
    "responses-tool-file": ("/v1/responses", {"input": [{**OUTPUT, "output": [{"type": "input_file"}]}]}, {"files"}),
    "responses-tool": ("/v1/responses", {"input": [OUTPUT]}, {"vision"}),
}
BRINGS = pytest.mark.parametrize("name", BRING)


@BRINGS
@on_both_loops
async def test_a_text_model_is_not_loaded_for_it(tmp_path: Path, name: str) -> None:
    path, body, needed = BRING[name]
    async with bench(tmp_path) as b, await b.client() as client:
        b.instances.hold = True
        b.engines["llama-server"] = Speaker(says=Traits(TEXTUAL, {"vision": "it has no projector"}))
        answer = await client.ask(path=path, body={"model": "m", **body})
        assert answer.status == 400, "SDKs try again after a 5xx"
        text = answer.json()["error"]["message"]
        first = min(needed)
        assert text.startswith(f"m cannot {PHRASES[first]}{': it has no projector' if first == 'vision' else ''}")
        assert b.scheduler.snapshot("m").state == "stopped"
        assert b.engine.requests == []


@BRINGS
async def test_a_model_that_can_gets_it_as_it_is(tmp_path: Path, name: str) -> None:
    path, body, needed = BRING[name]
    async with bench(tmp_path) as b, await b.client() as client:
        b.engines["llama-server"] = Speaker(says=Traits(TEXTUAL | frozenset(needed)))  # type: ignore[arg-type]
        sent = {"model": "m", **body}
        assert (await client.ask(path=path, body=sent)).status == 200
        assert b.engine.requests[-1].json() == sent


@on_both_loops
async def test_a_loaded_text_model_keeps_its_place_and_answers_text(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engines["llama-server"] = Speaker(says=Traits(ALL - {"vision", "audio"}))
        assert (await client.ask(body=chat())).status == 200
        for _ in range(10):
            assert (await client.ask(body=chat(messages=[user(IMAGE)]))).code == "not_supported_by_model"
        assert (await client.ask(body=chat())).status == 200
        assert len(b.engine.requests) == 2
        assert b.instances.probes == 0


@on_both_loops
async def test_a_route_takes_the_model_that_sees(tmp_path: Path) -> None:
    models = [ModelSpec("blind", path="/a.gguf"), ModelSpec("sees", path="/b.gguf")]
    async with (
        bench(tmp_path, models=models, routes=[Route("any", ("blind", "sees"))]) as b,
        await b.client() as client,
    ):
        b.engines["llama-server"] = Speaker(says=Traits(ALL), of={"blind": Traits(ALL - {"vision", "audio"})})
        assert (await client.ask(body=chat("any"))).headers["x-accelerd-model"] == "blind"
        assert (await client.ask(body=chat("any", messages=[user(IMAGE)]))).headers["x-accelerd-model"] == "sees"
        assert (await client.ask(body=chat("any"))).headers["x-accelerd-model"] == "blind"
        b.engines["llama-server"] = Speaker(says=Traits(ALL - {"vision"}))
        answer = await client.ask(body=chat("any", messages=[user(IMAGE)]))
        assert answer.code == "not_supported_by_model"
        assert "blind cannot process images; sees cannot process images" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": 'is {"type": "image_url"} an image?'}]},
        {"messages": [{"role": "user", "content": "image_url"}]},
        {"messages": [user({"type": "text", "text": "image_url"})]},
        {"messages": [user(TEXT)], "tools": [{"type": "function", "function": {"name": "image_url"}}]},
        {"messages": [user(TEXT)], "metadata": [IMAGE]},
        {"input": "image"},
        {"input": "file", "x": "input_file"},
        {"messages": [user({"type": "text", "text": "file"})], "tools": [{"type": "file"}]},
        {"input": ["image", "input_audio"]},
        {"input": [[1, 2]], "kind": "image"},
        {"messages": [user({"kind": "image_url"}, "image_url", 5)]},
        {"messages": "image_url"},
        {"prompt": {"prompt_string": "hi", "multimodal_data": []}},
        {"prompt": {"prompt_string": "hi", "multimodal_data": "/"}},
        {"prompt": "multimodal_data", "multimodal_data": [DATA]},
        {"messages": [], "input": None, "x": "image"},
        {"messages": [{"content": None}], "x": "image"},
    ],
)
def test_what_only_talks_of_media_brings_none(body: dict[str, Any]) -> None:
    assert media(json.dumps({"model": "m", **body}).encode()) == frozenset()


@BRINGS
def test_what_a_body_brings(name: str) -> None:
    _, body, needed = BRING[name]
    assert media(json.dumps({"model": "m", **body}).encode()) == needed
    assert media(json.dumps({"model": "m", **body}, indent=2).encode()) == needed


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_what_is_odd_hides_no_image_beside_it(odd: Any) -> None:
    for messages in ([user(odd, TEXT, IMAGE)], [odd, user(IMAGE)], [user(IMAGE, odd)], [{"type": odd, **user(IMAGE)}]):
        assert media(json.dumps({"messages": messages}).encode()) == {"vision"}
    prompt = {"multimodal_data": [odd, DATA, base64.b64encode(b"ID3" + bytes(9)).decode()]}
    assert media(json.dumps({"prompt": [odd, prompt]}).encode()) == {"vision", "audio"}


def test_deep_content_is_not_followed_for_ever() -> None:
    part: dict[str, Any] = IMAGE
    for _ in range(200):
        part = {"type": "tool_result", "content": [part]}
    assert media(json.dumps({"messages": [user(part)]}).encode()) == frozenset()
