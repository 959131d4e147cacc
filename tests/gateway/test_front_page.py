"""What tells a person, or a program that watches, that accelerd listens, and what it is doing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.gateway.health import DeviceHealth, FullHealth
from tests.gateway.bench import bench, on_both_loops, until
from tests.gateway.client import Client, chat, request

KEYS = (hashlib.sha256(b"a-key").digest(),)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "application/json"])
@on_both_loops
async def test_who_asks_for_no_page_gets_text_with_the_addresses(tmp_path: Path, accept: str | None) -> None:
    async with bench(tmp_path, keys=KEYS) as b, await b.client() as client:
        answer = await client.ask("GET", "/", None, {"Accept": accept} if accept else None, host=f"localhost:{b.port}")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        text = answer.body.decode()
        assert text.startswith("accelerd is running")
        for path in ("/v1\n", "\n", "/v1/models\n", "/openapi.json\n", "/health\n", "/health?full\n"):
            assert f"http://localhost:{b.port}{path}" in text
        assert "man accelerd" in text


@on_both_loops
async def test_a_browser_gets_a_page(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        for target in ("/", "/?", "/?x=1"):
            answer = await client.ask("GET", target, None, {"Accept": BROWSER})
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert answer.headers["vary"] == "Accept"
            assert b'<a href="/openapi.json">' in answer.body
        head = await client.ask("HEAD", "/", None, {"Accept": BROWSER})
        assert (head.status, head.headers["content-length"]) == (200, str(len(answer.body)))
        assert (await client.ask("POST", "/", {})).status == 405


@on_both_loops
async def test_a_page_shows_a_host_as_text(tmp_path: Path) -> None:
    """On the control socket a client may name any."""
    async with bench(tmp_path) as b, await Client.open_unix(b.unix) as client:
        answer = await client.ask("GET", "/", None, {"Accept": BROWSER}, host="<script>alert(1)</script>")
        assert b"<script" not in answer.body
        assert b"&lt;script&gt;" in answer.body


async def full(client: Client, target: str = "/health?full", **headers: str) -> Any:
    answer = await client.ask("GET", target, None, headers)
    assert answer.status == 200
    return msgspec.json.decode(answer.body, type=FullHealth)


@pytest.mark.parametrize("target", ["/health?full", "/v1/health?full", "/health?x&full=1"])
@on_both_loops
async def test_full_health_says_what_runs_and_waits(tmp_path: Path, target: str) -> None:
    models = [ModelSpec("m", path="/m.gguf", parallel=1), ModelSpec("other", path="/o.gguf")]
    async with bench(tmp_path, models=models) as b, await b.client() as client, await b.client() as asking:
        b.gateway.devices = lambda: (DeviceHealth("0000:c1:00.0", "gpu", "A card", "no driver"),)
        b.instances.hold = True
        asking.send(request(body=chat()))
        await until(lambda: b.scheduler.queued, "it waits")
        found = await full(client, target)
        assert (found.status, found.queue.waiting, found.queue.most) == ("ok", 1, 256)
        assert [(one.name, one.state, one.running, one.waiting) for one in found.models] == [
            ("m", "starting", 0, 1), ("other", "stopped", 0, 0),
        ]  # fmt: skip
        assert [(one.id, one.kind, one.name, one.problem) for one in found.devices] == [
            ("0000:c1:00.0", "gpu", "A card", "no driver"),
        ]  # fmt: skip
        b.engine.script = b.engine.never
        b.instances.let_go()
        await b.engine.asked()
        found = await full(client, target)
        assert (found.queue.waiting, found.models[0].running, found.models[0].state) == (0, 1, "ready")
        await asking.vanish()
        await b.settled()


@on_both_loops
async def test_full_health_is_for_those_who_have_a_key(tmp_path: Path) -> None:
    async with bench(tmp_path, ServerSettings(), keys=KEYS) as b:
        async with await b.client() as client:
            for target in ("/health?full", "/v1/health?full=1", "/health?a=1&full"):
                for headers in ({}, {"Authorization": "Bearer wrong"}):
                    refused = await client.ask("GET", target, None, headers)
                    assert (refused.status, refused.code) == (401, "unauthorized")
                assert (await full(client, target, Authorization="Bearer a-key")).queue.waiting == 0
            assert (await client.ask("GET", "/health?fuller")).json() == {"status": "ok"}
        async with await Client.open_unix(b.unix) as local:
            assert (await full(local)).models[0].name == "m"
