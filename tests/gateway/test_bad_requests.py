"""Requests that are wrong, hostile or too large: each a plain refusal in OpenAI's shape, never a 500."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from pathlib import Path

import pytest

from accelerd.config.model import ServerSettings
from accelerd.system.activation import bind_unix
from tests.gateway.bench import DONE, SSE_HEAD, bench, on_both_loops, token, until
from tests.gateway.client import CHAT, Client, Response, chat, request
from tests.gateway.test_json_body import WRONG

SMALL = ServerSettings(max_body=10_000)


async def answer(directory: Path, raw: bytes, settings: ServerSettings | None = None) -> Response:
    """The answer to raw bytes. The engine never hears of them, and accelerd goes on."""
    async with bench(directory, settings) as b:
        async with await b.client() as client:
            client.send(raw)
            response = await client.response(head_only=raw.startswith(b"HEAD "))
        assert not b.engine.requests
        async with await b.client() as client:
            assert (await client.ask(body=chat())).status == 200
        return response


# --- bodies that are not read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [10_001, 5 << 30, 2**63])
@on_both_loops
async def test_a_body_that_says_it_is_too_large_is_refused_unread(tmp_path: Path, length: int) -> None:
    raw = request(body=b"", headers={"Content-Length": str(length)})
    response = await answer(tmp_path, raw, SMALL)
    assert (response.status, response.code) == (413, "body_too_large")
    assert response.headers["connection"] == "close"


@on_both_loops
async def test_an_endless_chunked_body_is_refused_at_the_limit(tmp_path: Path) -> None:
    async with bench(tmp_path, SMALL) as b, await b.client() as client:
        client.send(request(headers={"Content-Type": "application/json", "Transfer-Encoding": "chunked"}))
        for _ in range(11):
            client.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        response = await client.response()
        assert (response.status, response.code) == (413, "body_too_large")


@on_both_loops
async def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    async with bench(tmp_path, SMALL) as b, await b.client() as client:
        body = json.dumps(chat(user="")).encode()
        fits = json.dumps(chat(user="x" * (10_000 - len(body)))).encode()
        assert len(fits) == 10_000
        assert (await client.ask(body=fits)).status == 200
        assert (await client.ask(body=fits + b" ")).status == 413


@on_both_loops
async def test_who_still_sends_gets_to_read_the_refusal(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        client.send(request(body=b"", headers={"Content-Length": str(200 << 20)}))
        for _ in range(64):
            client.send(bytes(1 << 18))
        assert (await client.response()).status == 413


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "", 'a"b', "multipart/form-data; boundary=x"]
)
@on_both_loops
async def test_another_type_is_not_taken_and_it_says_how_curl_sends_the_right_one(tmp_path: Path, kind: str) -> None:
    response = await answer(tmp_path, request(body=b"{}", headers={"Content-Type": kind}))
    assert (response.status, response.code) == (415, "unsupported_media_type")
    message = response.json()["error"]["message"]
    assert message.endswith("; with curl: -H 'Content-Type: application/json'")
    assert (f", got '{kind}'" in message) == bool(kind)


# --- bodies that are not JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", WRONG)
@on_both_loops
async def test_no_body_is_more_than_a_bad_request(tmp_path: Path, case: str) -> None:
    body, param = WRONG[case]
    async with bench(tmp_path) as b, await b.client() as client:
        response = await client.ask(body=body)
        assert (response.status, response.code) == (400, "bad_request")
        assert response.json()["error"]["param"] == param
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert (await client.ask(body=chat())).status == 200, "the connection is good for the next request"
        assert len(b.engine.requests) == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", CHAT])
@on_both_loops
async def test_what_is_wrong_deep_inside_is_for_the_engine_to_say(tmp_path: Path, path: str) -> None:
    """accelerd reads what it needs; it never turns a request away that an engine might take."""
    async with bench(tmp_path) as b, await b.client() as client:
        body = {**chat(), "prompt": 3, "input": {"x": 1}, "temperature": "hot", "tools": 7, "messages": [1, None]}
        assert (await client.ask("POST", path, body)).status == 200
        assert b.engine.requests[0].json() == body


# --- request smuggling -----------------------------------------------------------------------------------------------

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
VECTORS = {
    "length-and-chunked": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two-lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 44\r\n\r\n{}" + SMUGGLED,
    "no-length-and-one": HEAD + b"Content-Length: 0\r\nContent-Length: 1\r\n\r\n" + SMUGGLED,
    "folded-header": HEAD + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED,
    "bare-newlines": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}" + SMUGGLED,
    "two-hosts": HEAD + b"Host: evil.example\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED,
    "no-host": b"GET /health HTTP/1.1\r\n\r\n" + SMUGGLED,
    "chunked-not-last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "negative-length": HEAD + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "signed-length": HEAD + b"Content-Length: +2\r\n\r\n{}" + SMUGGLED,
    "list-of-lengths": HEAD + b"Content-Length: 2, 2\r\n\r\n{}" + SMUGGLED,
    "endless-length": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + SMUGGLED,
    "hex-length": HEAD + b"Content-Length: 0x2\r\n\r\n{}" + SMUGGLED,
    "space-before-colon": HEAD + b"Content-Length : 2\r\n\r\n{}" + SMUGGLED,
    "control-character": HEAD + b"X: a\x1bb\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED,
    "nul-in-header": HEAD + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED,
    "long-header": HEAD + b"X: " + b"a" * 9000 + b"\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED,
    "many-headers": HEAD + b"X: a\r\n" * 130 + b"Content-Length: 2\r\n\r\n{}" + SMUGGLED,
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("vector", VECTORS)
@on_both_loops
async def test_smuggling_ends_the_connection(tmp_path: Path, vector: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        client.send(VECTORS[vector])
        response = await client.response()
        assert response.status in (400, 403, 505), response
        assert response.code in ("bad_request", "host_not_allowed", "http_version_not_supported")
        rest = await client.rest()
        assert b"smuggled" not in rest, "what was hidden in the first request was answered"
        assert not b.engine.requests


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"Deflate , Chunked", b"gzip;q=1,chunked"])
@on_both_loops
async def test_a_coded_body_is_not_taken_for_its_content(tmp_path: Path, coding: bytes) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        client.send(HEAD + b"Transfer-Encoding: %b\r\n\r\n2\r\n{}\r\n0\r\n\r\n" % coding + SMUGGLED)
        response = await client.response()
        assert (response.status, response.code) == (501, "transfer_encoding_not_supported")
        assert b"smuggled" not in await client.rest()
        assert not b.engine.requests


@pytest.mark.parametrize("bad", [b"zz\r\n", b"0x5\r\nhello\r\n", b"5\r\nhelloXX\r\n", b"-5\r\n", b"5;\n\r\nhello\r\n"])
@on_both_loops
async def test_a_body_in_bad_chunks_is_a_bad_request(tmp_path: Path, bad: bytes) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + bad + SMUGGLED)
        response = await client.response()
        assert (response.status, response.code) == (400, "bad_request")
        assert b"smuggled" not in await client.rest()
        assert not b.engine.requests


@pytest.mark.parametrize("start", [b"", b"1\r\n{\r\n", b"1\r\n{", b"1"])
@on_both_loops
async def test_bad_chunks_that_come_later_are_a_bad_request_at_once(
    tmp_path: Path, start: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + start)
        await until(lambda: any(not c.idle for c in b.connections), "begun")
        await asyncio.sleep(0.01)
        client.send(b"XX\r\n" + SMUGGLED)
        async with asyncio.timeout(2):
            response = await client.response()
            assert (response.status, response.code) == (400, "bad_request")
            assert response.headers["connection"] == "close"
            assert await client.rest() == b""
        assert not [r for r in caplog.records if r.exc_info]


@on_both_loops
async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        one, two = request(body=chat(user="1")), request(body=chat(user="2"))
        client.send(one + request("GET", "/health") + two + request("GET", "/nothing") + request("POST", body=b"{"))
        answers = [await client.response() for _ in range(5)]
        assert [a.status for a in answers] == [200, 200, 200, 404, 400]
        assert answers[1].json() == {"status": "ok"}
        assert [r.json()["user"] for r in b.engine.requests] == ["1", "2"]


@on_both_loops
async def test_a_pipelined_request_waits_for_the_stream_before_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, token("a"), 0.05, token("b"), DONE)
        client.send(request(body=chat(stream=True)) + request("GET", "/health"))
        stream = await client.response()
        assert stream.complete
        assert stream.events()[-1] == "[DONE]"
        assert (await client.response()).json() == {"status": "ok"}


# --- names -----------------------------------------------------------------------------------------------------------

NAMES = [
    "no-such",
    "m\r\nX-Injected: yes",
    "m\n",
    "m\0",
    "m\x1b[31m",
    "../../etc/passwd",
    "/etc/passwd",
    "m --host 0.0.0.0",
    "--help",
    "-m/etc/passwd",
    "$(id)",
    "{secret}",
    "%s%n",
    "модель",
    "m\u202e",
    "\ud83d\ude00",
    " m",
    "m ",
    "M",
    "x" * 5000,
]


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[:20] for name in NAMES])
@on_both_loops
async def test_a_name_that_is_not_configured_is_not_found_and_goes_nowhere(tmp_path: Path, name: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        response = await client.ask(body=chat(name))
        assert (response.status, response.code) in ((404, "model_not_found"), (400, "bad_request"))
        assert response.json()["error"]["param"] == "model"
        assert b"Injected" not in response.head
        assert b"\x1b" not in response.body
        assert len(response.body) < 2000, "echoed at length"
        assert not b.engine.requests
        assert b.scheduler.snapshot("m").instance is None, "something was started"


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fetc%2fpasswd",
        "../../etc/passwd",
        "%2Fetc%2Fpasswd",
        "m%00",
        "m%0d%0aX-Injected:%20yes",
        "%ff%fe",
        "%ed%a0%80",
        "%D0%BC",
        "%",
        "%zz",
        "m/",
        "m//",
        "m;x",
        "x" * 5000,
        "",
    ],
)
@on_both_loops
async def test_a_path_is_looked_up_and_never_followed(tmp_path: Path, path: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        response = await client.ask("GET", f"/v1/models/{path}")
        assert (response.status, response.code) == (404, "model_not_found")
        assert b"Injected" not in response.head
        assert len(response.body) < 2000, "echoed at length"
        assert (await client.ask("GET", "/v1/models/m")).status == 200


@pytest.mark.parametrize("path", ["\udcff", "м", "a b", "\x7f", "\x1b[31m", "\0"])
@on_both_loops
async def test_raw_bytes_in_a_path_are_no_http(tmp_path: Path, path: str) -> None:
    response = await answer(tmp_path, request("GET", f"/v1/models/{path}"))
    assert (response.status, response.code) == (400, "bad_request")
    assert len(response.json()["error"]["message"]) < 250
    assert "\n" not in response.json()["error"]["message"]


# --- odd targets and methods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET http://evil.example/health", 403),
        ("GET http://localhost@evil.example/health", 403),
        ("GET http://", 403),
        ("GET ftp://localhost/health", 400),
        ("CONNECT evil.example:80", 400),
        ("CONNECT localhost:22", 400),
        ("OPTIONS *", 400),
        ("TRACE /health", 405),
        (f"TRACE {CHAT}", 405),
        ("TRACE /nothing", 404),
        ("DELETE /v1/models/m", 405),
        ("PUT /v1/models", 405),
        ("OPTIONS /health", 405),
        (f"GET {CHAT}", 405),
        (f"HEAD {CHAT}", 405),
        (f"PUT {CHAT}", 405),
        ("BREW /health", 400),
        ("get /health", 400),
        ("GET health", 400),
        ("GET //health", 404),
        ("GET /health/", 404),
        ("GET /health%00", 404),
        ("GET /health/../v1/models", 404),
        ("GET /V1/MODELS", 404),
        (f"POST {CHAT}/", 404),
        ("POST /v1/chat%2fcompletions", 404),
        ("POST //v1/chat/completions", 404),
    ],
)
@on_both_loops
async def test_odd_targets_and_methods_are_refused(tmp_path: Path, line: str, status: int) -> None:
    method, _, target = line.partition(" ")
    raw = request(method, target, chat() if method in ("POST", "PUT") else None)
    response = await answer(tmp_path, raw)
    assert response.status == status, response
    if method != "HEAD":
        assert response.code in ("bad_request", "method_not_allowed", "not_found", "host_not_allowed")
    if status == 405:
        assert response.headers["allow"] in ("POST", "GET, HEAD")


@pytest.mark.parametrize("headers", [{"Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}, {"Upgrade": "websocket"}])
@on_both_loops
async def test_an_upgrade_that_is_not_taken_is_an_ordinary_request(tmp_path: Path, headers: dict[str, str]) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        response = await client.ask(body=chat(), headers={"Connection": "Upgrade", **headers})
        assert response.status == 200
        assert (await client.ask(body=chat())).status == 200


# --- the control socket ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["status", "load?model=m", "unload?model=m", "reset?model=m", "logs?model=m"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@on_both_loops
async def test_control_routes_do_not_exist_on_tcp(tmp_path: Path, method: str, route: str) -> None:
    asked: list[str] = []

    async def control(_: object, path: str) -> None:
        asked.append(path)

    async with bench(tmp_path) as b:
        b.gateway.make_control = lambda: control  # type: ignore[assignment,return-value]
        async with await b.client() as client:
            response = await client.ask(method, f"/accelerd/v1/{route}")
            assert (response.status, response.code) == (404, "not_found")
            assert not asked
        async with await Client.open_unix(b.unix) as client:
            await client.ask(method, f"/accelerd/v1/{route}")
            assert asked == [f"/accelerd/v1/{route.partition('?')[0]}"]


def test_the_unix_socket_is_private_from_its_first_moment(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    sock = bind_unix(directory / "accelerd.sock")
    try:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "accelerd.sock").stat().st_mode) == 0o600
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) in (0, 1)
    finally:
        sock.close()
