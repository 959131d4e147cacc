"""/upstream/MODEL/PATH: whatever a model's engine has, with its own head, under a lease like any other request."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest

from accelerd.config.model import ModelSpec, Route, ServerSettings
from tests.gateway.bench import SECRET, SSE_HEAD, Asked, Speaker, bench, chunk, on_both_loops, plain, until
from tests.gateway.client import request

KEYS = {"Authorization": "Bearer mine", "X-Api-Key": "mine", "api-key": "mine", "Cookie": "session=mine"}
HEAD = 'ETag: "a1"\r\nSet-Cookie: a=b\r\nServer: engine\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n'
PAGE = b"<html><script src=./bundle.js></script></html>"


@on_both_loops
async def test_everything_of_a_request_but_what_is_accelerds_reaches_the_engine(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(b"made", 201, "text/plain", HEAD))
        sent = {**KEYS, "Connection": "keep-alive, X-Mine", "X-Mine": "1", "X-Other": "2", "Accept-Encoding": "br"}
        answer = await client.ask("PUT", "/upstream/m/slots/0%2F1?action=save&x=%20", b"\x00body", sent)
        assert (answer.status, answer.body, answer.complete) == (201, b"made", True)
        asked = b.engine.requests[0]
        first, *lines = asked.head.lower().split(b"\r\n")
        assert first == b"put /slots/0%2f1?action=save&x=%20 http/1.1"
        assert asked.body == b"\x00body"
        assert b"x-other: 2" in lines
        assert b"accept-encoding: br" in lines
        assert f"authorization: bearer {SECRET}".encode() in lines
        assert b"mine" not in asked.head.lower()
        assert (answer.headers["etag"], answer.headers["x-accelerd-model"]) == ('"a1"', "m")
        assert not {"set-cookie", "server", "x-hop", "keep-alive"} & set(answer.headers)
        await b.settled()


@on_both_loops
async def test_a_web_page_with_what_it_asks_for_arrives(tmp_path: Path) -> None:
    """Packed as the engine has it; what the page asks for is relative to it, so its address ends with a slash."""
    packed = gzip.compress(b"let x = 1")
    event = b'data: {"choices":[]}\n\n'

    async def site(asked: Asked) -> None:
        path = asked.head.split()[1]
        if path == b"/":
            asked.writer.write(plain(PAGE, 200, "text/html", "Cross-Origin-Opener-Policy: same-origin\r\n"))
        elif path == b"/bundle.js":
            asked.writer.write(plain(packed, 200, "text/javascript", 'Content-Encoding: gzip\r\nETag: "1"\r\n'))
        elif path == b"/moved":
            asked.writer.write(plain(b"", 302, "text/plain", "Location: /elsewhere?a=b\r\n"))
        elif path == b"/away":
            asked.writer.write(plain(b"", 302, "text/plain", "Location: https://example.org/\r\n"))
        else:
            asked.writer.write(SSE_HEAD + chunk(event) + b"0\r\n\r\n")

    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.script = site
        there = await client.ask("GET", "/upstream/m?theme=dark")
        assert (there.status, there.headers["location"]) == (307, "/upstream/m/?theme=dark")
        page = await client.ask("GET", "/upstream/m/")
        assert (page.status, page.headers["content-type"], page.body) == (200, "text/html", PAGE)
        assert page.headers["cross-origin-opener-policy"] == "same-origin"
        script = await client.ask("GET", "/upstream/m/bundle.js", headers={"Accept-Encoding": "gzip"})
        assert (script.headers["content-encoding"], script.body) == ("gzip", packed)
        stream = await client.ask("POST", "/upstream/m/v1/chat/completions", {"messages": [], "stream": True})
        assert (stream.headers["content-type"], stream.body, stream.complete) == ("text/event-stream", event, True)
        assert (await client.ask("GET", "/upstream/m/moved")).headers["location"] == "/upstream/m/elsewhere?a=b"
        assert (await client.ask("GET", "/upstream/m/away")).headers["location"] == "https://example.org/"
        await b.settled()


@pytest.mark.parametrize(
    ("path", "model", "there"),
    [
        ("org/coder:q4/props", "org/coder:q4", "/props"),
        ("org%2Fcoder%3Aq4/props", "org/coder:q4", "/props"),
        ("org/props", "org", "/props"),
        ("nick/v1/models", "org", "/v1/models"),
        ("gpt-9/a/b/c/d/e/f/g/h/i", "org", "/a/b/c/d/e/f/g/h/i"),
        ("org//", "org", "//"),
    ],
)
@on_both_loops
async def test_the_longest_name_counts(tmp_path: Path, path: str, model: str, there: str) -> None:
    models = [ModelSpec("org/coder:q4", path="/m.gguf"), ModelSpec("org", path="/o.gguf", aliases=("nick", "gpt-*"))]
    async with bench(tmp_path, models=models) as b, await b.client() as client:
        b.engine.says(plain(b"{}"))
        answer = await client.ask("GET", f"/upstream/{path}")
        assert (answer.status, answer.headers["x-accelerd-model"]) == (200, model)
        assert b.engine.requests[0].head.split()[1].decode() == there


@on_both_loops
async def test_what_cannot_be_passed_on_is_refused_before_a_load(tmp_path: Path) -> None:
    models = [
        ModelSpec("m", path="/m.gguf"),
        ModelSpec("far", engine="remote", remote="r", model="x"),
        ModelSpec("shared", engine="lemonade", model="x"),
    ]
    others = {"remote": Speaker(), "lemonade": Speaker()}
    wants = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "eA==",
        "Sec-WebSocket-Version": "13",
    }
    async with bench(tmp_path, models=models, others=others, routes=[Route("both", ("m",))]) as b:
        async with await b.client() as client:
            for method, path, headers, status, code in (
                ("GET", "m/ws", wants, 405, "not_supported"),
                ("TRACE", "m/", {}, 405, "method_not_allowed"),
                ("GET", "nobody/x", {}, 404, "model_not_found"),
                ("GET", "", {}, 404, "model_not_found"),
                ("GET", "both/x", {}, 400, "bad_request"),
                ("GET", "far/x", {}, 400, "not_supported_by_model"),
                ("GET", "shared/x", {}, 400, "not_supported_by_model"),
            ):
                answer = await client.ask(method, f"/upstream/{path}", None, headers)
                assert (answer.status, answer.code) == (status, code), path
        assert not b.engine.requests
        assert b.scheduler.snapshot("m").instance is None


@on_both_loops
async def test_who_may_not_ask_does_not_get_through(tmp_path: Path) -> None:
    async with bench(tmp_path, ServerSettings(), keys=(bytes(32),)) as b, await b.client() as client:
        assert (await client.ask("GET", "/upstream/m/props")).status == 401
        assert (await client.ask("GET", "/upstream/m/props", host="evil.example")).status == 403
        page = await client.ask("GET", "/upstream/m/props", headers={"Origin": "http://evil.example"})
        assert (page.status, page.code) == (403, "origin_not_allowed")
        assert not b.engine.requests


@on_both_loops
async def test_the_answer_to_head_has_no_body_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 500\r\n\r\n")
        answer = await client.ask("HEAD", "/upstream/m/")
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, "500", b"")
        b.engine.says(b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 304 X\r\nETag: "1"\r\n\r\n')
        answer = await client.ask("HEAD", "/upstream/m/")
        assert (answer.status, answer.headers["etag"]) == (304, '"1"')


@on_both_loops
async def test_a_lease_is_held_while_the_engine_answers_and_ends_with_the_client(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        client = await b.client()

        async def begin(asked: Asked) -> None:
            asked.writer.write(SSE_HEAD + chunk(b": x\n\n"))
            await asyncio.Event().wait()

        b.engine.script = begin
        client.send(request("POST", "/upstream/m/v1/chat/completions", {"stream": True}))
        await client.head()
        assert b.leases() == 1
        await client.close()
        await asyncio.wait_for((await b.engine.asked()).gone.wait(), 10)
        await until(lambda: b.leases() == 0, "released")


@pytest.mark.parametrize("begun", [False, True])
@on_both_loops
async def test_an_engine_that_breaks_off_is_not_taken_for_done(tmp_path: Path, begun: bool) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 50\r\n\r\n<html>"
        b.engine.says(*((head,) if begun else ()), close=True)
        answer = await client.ask("GET", "/upstream/m/")
        if begun:
            assert not answer.complete
        else:
            assert (answer.status, answer.code) == (502, "upstream_failed")
        await b.settled()


@on_both_loops
async def test_an_error_is_the_engines_own(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(b"File Not Found", 404, "text/plain"))
        for _ in range(5):
            answer = await client.ask("GET", "/upstream/m/nothing")
            assert (answer.status, answer.body) == (404, b"File Not Found")
        b.engine.says(plain(b"no", 501, "text/plain"))
        for _ in range(5):
            assert (await client.ask("GET", "/upstream/m/metrics")).status == 501
        assert b.instances.probes == 0, "what a client asks for says nothing about the engine"
