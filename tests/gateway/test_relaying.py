"""What a client gets is what the engine sent, and the engine gets nothing of the client but its body."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from accelerd.config.model import ModelSpec
from tests.gateway.bench import (
    DONE,
    LAST_CHUNK,
    SECRET,
    SSE_HEAD,
    bench,
    chunk,
    fresh_and_reused,
    on_both_loops,
    plain,
    token,
    until,
)
from tests.gateway.client import CHAT, Client, chat, request

MODELS = [
    ModelSpec("m", path="/m.gguf", parallel=4, aliases=("gpt-4o", "org/alias"), description="a model", context=4096),
    ModelSpec("ggml-org/tiny:Q4_K", path="/t.gguf", parallel=4),
]


# --- headers ---------------------------------------------------------------------------------------------------------

PRIVATE = {
    "Authorization": "Bearer the-clients-own-key",
    "X-Api-Key": "the-clients-own-key",
    "Cookie": "session=secret",
    "Host": "localhost:4000",
    "Origin": "http://localhost:4000",
    "Referer": "http://localhost:4000/",
    "X-Forwarded-For": "10.0.0.1",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "for=10.0.0.1",
    "Via": "1.1 proxy",
    "Connection": "keep-alive, X-Hop",
    "X-Hop": "hop",
    "Keep-Alive": "timeout=5",
    "Proxy-Authorization": "Basic abc",
    "Proxy-Connection": "keep-alive",
    "TE": "trailers",
    "Trailer": "X-T",
    "Accept-Encoding": "gzip, br",
    "User-Agent": "curl",
    "X-Custom": "whatever",
}


@pytest.mark.parametrize("coding", ["length", "chunked"])
@fresh_and_reused
@on_both_loops
async def test_nothing_of_the_clients_head_reaches_the_engine(tmp_path: Path, coding: str, primed: bool) -> None:
    body = json.dumps(chat(user="ü")).encode()
    async with bench(tmp_path) as b, await b.client(primed=primed) as client:
        for _ in range(2):
            if coding == "length":
                client.send(request(body=body, headers=PRIVATE))
            else:
                headers = {**PRIVATE, "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
                client.send(request(headers=headers) + chunk(body[:7]) + chunk(body[7:]) + b"0\r\nX-T: t\r\n\r\n")
            assert (await client.response()).status == 200
        for asked in b.engine.requests:
            lines = asked.head.decode().split("\r\n")
            assert lines[0] == f"POST {CHAT} HTTP/1.1"
            assert sorted(lines[1:-2]) == [
                f"Authorization: Bearer {SECRET}",
                f"Content-Length: {len(body)}",
                "Content-Type: application/json",
                "Host: localhost",
            ]
            assert asked.body == body


@fresh_and_reused
@on_both_loops
async def test_nothing_of_the_engines_head_reaches_the_client_but_what_is_meant_for_it(
    tmp_path: Path, primed: bool
) -> None:
    extra = (
        "Server: llama.cpp\r\nAccess-Control-Allow-Origin: *\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n"
        "Set-Cookie: a=b\r\nTrailer: X-T\r\nUpgrade: h2c\r\nX-Accel-Redirect: /etc/passwd\r\nDate: x\r\n"
    )
    async with bench(tmp_path) as b, await b.client(primed=primed) as client:
        b.engine.says(plain(b"{}", extra=extra))
        response = await client.ask(body=chat())
        assert response.headers.pop("date") != "x"
        assert response.headers.pop("x-request-id")
        assert response.headers == {
            "content-type": "application/json",
            "x-accelerd-model": "m",
            "x-accelerd-attempts": "1",
            "content-length": "2",
        }
        b.engine.says(SSE_HEAD[:-2] + extra.encode() + b"\r\n" + token("a") + DONE)
        response = await client.ask(body=chat(stream=True))
        assert response.headers.pop("date") != "x"
        assert response.headers.pop("x-request-id")
        assert response.headers == {
            "content-type": "text/event-stream",
            "x-accelerd-model": "m",
            "x-accelerd-attempts": "1",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            "transfer-encoding": "chunked",
        }


@on_both_loops
async def test_a_query_is_not_passed_on(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        assert (await client.ask("POST", f"{CHAT}?api-version=1&x=%0d%0aX:y", chat())).status == 200
        assert b.engine.requests[0].head.startswith(f"POST {CHAT} HTTP/1.1\r\n".encode())


# --- bytes ----------------------------------------------------------------------------------------------------------

BODIES = [b"", b"{}", b'{"x": "\xc3\xbc"}\r\n', bytes(range(256)) * 17, b"x" * (3 << 20)]


@pytest.mark.parametrize("body", BODIES, ids=["empty", "small", "utf8", "binary", "large"])
@fresh_and_reused
@on_both_loops
async def test_bytes_come_through_untouched(tmp_path: Path, body: bytes, primed: bool) -> None:
    async with bench(tmp_path) as b, await b.client(primed=primed) as client:
        for answer in (plain(body), SSE_HEAD + b"".join(chunk(body[i : i + 9999]) for i in range(0, len(body), 9999))):
            b.engine.says(answer + (LAST_CHUNK if answer.startswith(SSE_HEAD) else b""))
            response = await client.ask(body=chat(stream=True))
            assert response.status == 200
            assert response.complete
            assert response.body == body
        await b.settled()


@fresh_and_reused
@on_both_loops
async def test_chunks_arrive_one_by_one_as_they_are_made(tmp_path: Path, primed: bool) -> None:
    """Nothing waits for anything: each token is with the client before the next is made."""
    async with bench(tmp_path) as b, await b.client(primed=primed) as client:
        steps = asyncio.Queue[bytes]()

        async def script(asked: object) -> None:
            writer = b.engine.requests[-1].writer
            while piece := await steps.get():
                writer.write(piece)

        b.engine.script = script
        client.send(request(body=chat(stream=True)))
        steps.put_nowait(SSE_HEAD)
        assert (await client.head()).status == 200
        for index in range(5):
            steps.put_nowait(token(str(index)))
            async with asyncio.timeout(5):
                assert f'"content":"{index}"' in (await client.reader.readuntil(b"\n\n\r\n")).decode()
        steps.put_nowait(DONE)
        assert (await client.reader.readuntil(LAST_CHUNK)).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# --- connections ----------------------------------------------------------------------------------------------------


@on_both_loops
async def test_one_connection_carries_many_requests(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        for index in range(20):
            assert (await client.ask(body=chat(user="x" * index))).status == 200
            assert (await client.ask("GET", "/health")).status == 200
        assert len(b.connections) == 1
        assert b.engine.connections == 1


@on_both_loops
async def test_a_streamed_connection_to_the_engine_is_not_used_again_but_the_clients_is(tmp_path: Path) -> None:
    """llama-server closes its own after every stream, without having said so."""
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, token("a"), DONE)
        for _ in range(3):
            assert (await client.ask(body=chat(stream=True))).complete
        assert b.engine.connections == 3
        assert len(b.connections) == 1


@fresh_and_reused
@on_both_loops
async def test_connection_close_is_kept_to(tmp_path: Path, primed: bool) -> None:
    async with bench(tmp_path) as b, await b.client(primed=primed) as client:
        response = await client.ask(body=chat(), headers={"Connection": "close"})
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await client.rest() == b""


@pytest.mark.parametrize("headers", [{}, {"Connection": "keep-alive"}])
@on_both_loops
async def test_clients_of_http_1_0_get_no_chunks(tmp_path: Path, headers: dict[str, str]) -> None:
    async with bench(tmp_path) as b:
        async with await b.client() as client:
            response = await client.ask(body=chat(), headers=headers, version="HTTP/1.0")
            assert (response.status, response.headers["connection"]) == (200, "close")
            assert await client.rest() == b""
        b.engine.says(SSE_HEAD, token("a"), DONE)
        async with await b.client() as client:
            response = await client.ask(body=chat(stream=True), headers=headers, version="HTTP/1.0")
            assert "transfer-encoding" not in response.headers
            assert [e if isinstance(e, str) else e["choices"][0]["delta"] for e in response.events()] == [
                {"content": "a"},
                "[DONE]",
            ]
        b.engine.says(SSE_HEAD + token("a"), 0.02, close=True)
        async with await b.client() as client:
            response = await client.ask(body=chat(stream=True), headers=headers, version="HTTP/1.0")
            assert response.events()[-1]["error"]["code"] == "upstream_failed"
        async with await b.client() as client:
            assert (await client.ask("GET", "/health", version="HTTP/1.0")).json() == {"status": "ok"}


@on_both_loops
async def test_expect_100_continue(tmp_path: Path) -> None:
    """curl waits a second for it with bodies over 1 MB."""
    body = json.dumps(chat(user="x" * 100_000)).encode()
    async with bench(tmp_path) as b, await b.client() as client:
        head, _, _ = request(body=body, headers={"Expect": "100-continue"}).partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert (await client.response()).status == 100
        client.send(body)
        assert (await client.response()).status == 200
        assert b.engine.requests[0].body == body
        client.send(head + b"\r\n\r\n" + body)  # does not wait: a 100 may come or not
        response = await client.response()
        assert (await client.response() if response.status == 100 else response).status == 200
        refused = head.replace(b"application/json", b"text/plain")
        client.send(refused + b"\r\n\r\n")
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (415, "close"), "asked for a body it does not take"


@pytest.mark.parametrize("expected", ["200-ok", "100-continue, x", "100-continue;q=1", ""])
@on_both_loops
async def test_other_expectations_are_refused(tmp_path: Path, expected: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        response = await client.ask(body=chat(), headers={"Expect": expected})
        assert (response.status, response.code) == (417, "expectation_failed")
        assert not b.engine.requests


@pytest.mark.parametrize("expected", ["100-continue", "200-ok"])
@on_both_loops
async def test_a_client_of_http_10_expects_nothing(tmp_path: Path, expected: str) -> None:
    """RFC 9110, 10.1.1: it would take a 100 for its answer."""
    async with bench(tmp_path) as b, await b.client() as client:
        whole = request(body=chat(), headers={"Expect": expected}, version="HTTP/1.0")
        head, _, body = whole.partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        await until(lambda: any(not one.fresh for one in b.connections), "its head is read")
        client.send(body)
        assert (await client.response()).status == 200


@fresh_and_reused
@on_both_loops
async def test_a_large_request(tmp_path: Path, primed: bool) -> None:
    body = json.dumps(chat(user="x" * (8 << 20))).encode()
    async with bench(tmp_path) as b, await b.client(primed=primed) as client:
        client.send(request(body=body))
        assert (await client.response()).status == 200
        assert b.engine.requests[0].body == body


@on_both_loops
async def test_the_unix_socket_serves_the_same_api(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await Client.open_unix(b.unix) as client:
        b.engine.says(SSE_HEAD, token("a"), DONE)
        for _ in range(2):
            assert (await client.ask(body=chat(stream=True))).events()[-1] == "[DONE]"
        assert (await client.ask("GET", "/v1/models")).json()["data"][0]["id"] == "m"


# --- what is answered from memory -----------------------------------------------------------------------------------


@on_both_loops
async def test_models_are_listed_without_touching_an_engine(tmp_path: Path) -> None:
    async with bench(tmp_path, models=MODELS) as b, await b.client() as client:
        listed = (await client.ask("GET", "/v1/models")).json()
        assert listed["object"] == "list"
        assert [m["id"] for m in listed["data"]] == ["m", "ggml-org/tiny:Q4_K"]
        first = listed["data"][0]
        assert first["object"] == "model"
        assert first["owned_by"] == "accelerd"
        assert first["aliases"] == ["gpt-4o", "org/alias", "local/m"]
        assert first["context_length"] == 4096
        assert isinstance(first["created"], int)
        assert (first["status"], first["state"]) == ({"value": "unloaded"}, "stopped")
        assert (await client.ask("GET", "/models")).json() == listed
        assert b.scheduler.snapshot("m").instance is None
        assert (await client.ask(body=chat())).status == 200
        assert (await client.ask("GET", "/v1/models/m")).json()["status"] == {"value": "loaded"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("m", "m"),
        ("gpt-4o", "m"),
        ("org/alias", "m"),
        ("org%2Falias", "m"),
        ("ggml-org/tiny:Q4_K", "ggml-org/tiny:Q4_K"),
        ("ggml-org%2ftiny%3AQ4_K", "ggml-org/tiny:Q4_K"),
        ("m?x=1", "m"),
    ],
)
@on_both_loops
async def test_a_model_is_found_by_name_and_alias_with_slashes(tmp_path: Path, path: str, name: str) -> None:
    async with bench(tmp_path, models=MODELS) as b, await b.client() as client:
        for prefix in ("/v1/models", "/models"):
            assert (await client.ask("GET", f"{prefix}/{path}")).json()["id"] == name


@on_both_loops
async def test_an_alias_is_answered_by_its_model(tmp_path: Path) -> None:
    async with bench(tmp_path, models=MODELS) as b, await b.client() as client:
        for _ in range(2):
            response = await client.ask(body=chat("org/alias"))
            assert (response.status, response.headers["x-accelerd-model"]) == (200, "m")
        other = await client.ask(body=chat("ggml-org/tiny:Q4_K"))
        assert other.headers["x-accelerd-model"] == "ggml-org/tiny:Q4_K"


@on_both_loops
async def test_health_and_head(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        for path in ("/health", "/v1/health", "/health?x=1"):
            assert (await client.ask("GET", path)).json() == {"status": "ok"}
        for path, status in (("/health", 200), ("/v1/models", 200), ("/nothing", 404)):
            response = await client.ask("HEAD", path)
            assert response.status == status
            assert int(response.headers["content-length"]) > 0
        assert (await client.ask("GET", "/health")).status == 200, "a body came after HEAD"


@on_both_loops
async def test_health_is_answered_while_the_engine_hangs_and_requests_wait(tmp_path: Path) -> None:
    models = [ModelSpec("m", path="/m.gguf", parallel=1)]
    async with bench(tmp_path, models=models) as b:
        b.engine.script = b.engine.never
        busy = [await b.client() for _ in range(5)]
        for client in busy:
            client.send(request(body=chat()))
        await until(lambda: b.scheduler.queued == 4, "4 wait")
        async with asyncio.timeout(1), await b.client() as client:
            for path in ("/health", "/v1/models"):
                assert (await client.ask("GET", path)).status == 200
        for client in busy:
            await client.close()
        await b.settled()
