"""Pages in a browser of this machine must not reach the models: Host, Origin, CORS and keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from accelerd.config.model import ServerSettings
from tests.gateway.bench import (
    DONE,
    SSE_HEAD,
    Bench,
    bench,
    chunk,
    fresh_and_reused,
    on_both_loops,
    token,
)
from tests.gateway.client import CHAT, Client, Response, chat, request

PAGE = "https://chat.example.org"
ALLOWED = ServerSettings(allowed_origins=(PAGE,), allowed_hosts=("Box.local", "[fd00::1]"), keepalive_after=0.05)
KEY = (hashlib.sha256(b"sesame").digest(),)
EVERY_PATH = ["/health", "/v1/models", "/v1/models/m", "/nothing", CHAT, "/accelerd/v1/status"]


def untouched(b: Bench) -> None:
    assert not b.engine.requests
    assert b.scheduler.snapshot("m").instance is None


def readable(response: Response, origin: str | None = PAGE) -> bool:
    """May a page of this origin read the response?"""
    allowed = response.headers.get("access-control-allow-origin")
    assert allowed != "*"
    if allowed is not None:
        assert "Origin" in response.headers["vary"]
    return allowed is not None and allowed == origin


# --- Host ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@on_both_loops
async def test_a_foreign_name_gets_nothing_on_any_path(tmp_path: Path, method: str, path: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        body = chat() if method == "POST" else None
        response = await client.ask(method, path, body, {"Origin": "http://evil.example"}, host="evil.example")
        assert (response.status, response.code) == (403, "host_not_allowed")
        assert not readable(response, "http://evil.example")
        untouched(b)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:4000",
        "LOCALHOST:1",
        "127.0.0.1",
        "127.0.0.1:4000",
        "[::1]",
        "[::1]:4000",
        "box.LOCAL:80",
        "[FD00::1]:4000",
    ],
)
@on_both_loops
async def test_our_own_names_are_known_with_any_port(tmp_path: Path, host: str) -> None:
    async with bench(tmp_path, ALLOWED) as b, await b.client() as client:
        for _ in range(2):
            assert (await client.ask("GET", "/health", host=host)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.localhost",
        "127.0.0.2",
        "0.0.0.0",
        "[::2]",
        "::1",
        "[::1",
        "2130706433",
        "localhost:4000.evil.example",
        "localhost:4000@evil.example",
        "localhost@evil.example",
        "127.1",
        "",
        "box.local.",
        "*",
        "[::1]evil.example",
        "[::ffff:127.0.0.1]",
        "192.168.1.10:4000",
        "box",
    ],
)
@on_both_loops
async def test_names_that_only_look_like_ours_are_foreign(tmp_path: Path, host: str) -> None:
    async with bench(tmp_path, ALLOWED) as b, await b.client() as client:
        response = await client.ask("GET", "/health", host=host)
        assert response.status in (400, 403)
        assert response.code in ("host_not_allowed", "bad_request")


@on_both_loops
async def test_the_unix_socket_asks_for_no_name(tmp_path: Path) -> None:
    async with bench(tmp_path, keys=KEY) as b, await Client.open_unix(b.unix) as client:
        for host in ("anything", "evil.example"):
            assert (await client.ask("GET", "/v1/models", host=host)).status == 200
        assert (await client.ask(body=chat(), headers={"Origin": "http://evil.example"})).status == 200


# --- content types and origins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        None,
        "application/jsonx",
    ],
)
@on_both_loops
async def test_what_a_form_can_send_is_not_taken(tmp_path: Path, kind: str | None) -> None:
    """A page may send these without asking first; JSON it may not."""
    async with bench(tmp_path) as b, await b.client() as client:
        headers = {"Content-Type": kind}
        response = await client.ask(body=chat(), headers=headers)  # type: ignore[arg-type]
        assert (response.status, response.code) == (415, "unsupported_media_type")
        untouched(b)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"]
)
@on_both_loops
async def test_json_is_taken_however_it_is_spelt(tmp_path: Path, kind: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        assert (await client.ask(body=chat(), headers={"Content-Type": kind})).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "https://chat.example.org.evil.example",
        "http://chat.example.org",
        f"{PAGE}:444",
        "http://localhost:3000",
        "http://[evil",
        "localhost",
        "//localhost",
        "http://localhost@evil.example",
        "http://localhost:4000.evil.example",
        "http://evil-localhost:4000",
        "ftp://localhost:4000",
        "file://",
    ],
)
@pytest.mark.parametrize("path", EVERY_PATH)
@on_both_loops
async def test_pages_of_strangers_get_nothing(tmp_path: Path, origin: str, path: str) -> None:
    async with bench(tmp_path, ALLOWED) as b, await b.client() as client:
        body = chat() if path == CHAT else None
        response = await client.ask("POST" if body else "GET", path, body, {"Origin": origin}, host="localhost:4000")
        assert (response.status, response.code) == (403, "origin_not_allowed")
        assert not readable(response, origin)
        untouched(b)


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
@on_both_loops
async def test_requests_that_a_browser_marks_as_foreign_are_refused(tmp_path: Path, site: str, status: int) -> None:
    """Images and navigations carry no Origin."""
    async with bench(tmp_path) as b, await b.client() as client:
        assert (await client.ask("GET", "/v1/models", headers={"Sec-Fetch-Site": site})).status == status


@pytest.mark.parametrize("origin", ["http://localhost:4000", "https://localhost:4000", PAGE, PAGE.upper()])
@on_both_loops
async def test_our_own_page_and_the_configured_one_may(tmp_path: Path, origin: str) -> None:
    async with bench(tmp_path, ALLOWED) as b, await b.client() as client:
        response = await client.ask("GET", "/health", headers={"Origin": origin}, host="localhost:4000")
        assert response.status == 200
        assert readable(response, origin)


@fresh_and_reused
@on_both_loops
async def test_an_allowed_page_can_read_every_kind_of_answer(tmp_path: Path, primed: bool) -> None:
    headers = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
    async with bench(tmp_path, ALLOWED, keys=()) as b, await b.client(primed=primed) as client:
        plain = await client.ask(body=chat(), headers=headers)
        assert (plain.status, readable(plain)) == (200, True)
        assert "X-Accelerd-Model" in plain.headers["access-control-expose-headers"]
        again = await client.ask(body=chat(), headers=headers)
        assert (again.status, readable(again)) == (200, True)
        b.engine.says(SSE_HEAD, token("a"), DONE)
        stream = await client.ask(body=chat(stream=True), headers=headers)
        assert (stream.status, readable(stream)) == (200, True)
        for body, status in ((chat("no-such"), 404), (b"{", 400)):
            refused = await client.ask(body=body, headers=headers)
            assert (refused.status, readable(refused)) == (status, True)
        b.engine.says(b"nonsense\r\n\r\n")
        broken = await client.ask(body=chat(), headers=headers)
        assert (broken.status, readable(broken)) == (502, True)
        models = await client.ask("GET", "/v1/models", headers=headers)
        assert (models.status, readable(models)) == (200, True)
        b.engine.script = b.engine.ok
        for origin in (None, "http://evil.example"):
            other = await client.ask(body=chat(), headers={"Origin": origin} if origin else {})
            assert "access-control-allow-origin" not in other.headers


@on_both_loops
async def test_an_allowed_page_can_read_what_waits(tmp_path: Path) -> None:
    async with bench(tmp_path, ALLOWED) as b, await b.client() as client:
        b.instances.hold = True
        b.engine.says(SSE_HEAD, token("a"), DONE)
        client.send(request(body=chat(stream=True), headers={"Origin": PAGE}))
        assert readable(await client.head())
        b.instances.let_go()
        assert b"data: [DONE]" in await client.reader.readuntil(b"0\r\n\r\n")


@on_both_loops
async def test_an_allowed_page_can_read_what_was_put_together(tmp_path: Path) -> None:
    async with bench(tmp_path, ALLOWED, assembles=True) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, token("a", object="chat.completion.chunk"), DONE)
        whole = await client.ask(body=chat(), headers={"Origin": PAGE})
        assert (whole.status, readable(whole)) == (200, True)
        assert whole.json()["object"] == "chat.completion"


@on_both_loops
async def test_an_allowed_page_can_read_why_its_body_was_not_taken(tmp_path: Path) -> None:
    settings = ServerSettings(allowed_origins=(PAGE,), max_body=100, body_timeout=0.1)
    async with bench(tmp_path, settings) as b:
        async with await b.client() as client:
            headers = {"Origin": PAGE, "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
            client.send(request(headers=headers) + chunk(b" " * 200))
            response = await client.response()
            assert (response.status, readable(response)) == (413, True)
        async with await b.client() as client:
            client.send(request(body=b"", headers={"Origin": PAGE, "Content-Length": "10"}))
            response = await client.response()
            assert (response.status, readable(response)) == (408, True)


# --- preflight requests ----------------------------------------------------------------------------------------------

PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.parametrize("keys", [(), KEY])
@on_both_loops
async def test_a_preflight_of_an_allowed_page(tmp_path: Path, keys: tuple[bytes, ...]) -> None:
    """Browsers never send a key with it."""
    async with bench(tmp_path, ALLOWED, keys=keys) as b, await b.client() as client:
        response = await client.ask("OPTIONS", CHAT, None, {"Origin": PAGE, **PREFLIGHT})
        assert response.status == 204
        assert readable(response)
        assert "POST" in response.headers["access-control-allow-methods"]
        allowed = response.headers["access-control-allow-headers"].lower().split(",")
        assert {"authorization", "content-type", "x-stainless-lang"} <= {name.strip() for name in allowed}
        assert "access-control-allow-private-network" not in response.headers
        local = {"Access-Control-Request-Private-Network": "true"}
        response = await client.ask("OPTIONS", CHAT, None, {"Origin": PAGE, **PREFLIGHT, **local})
        assert response.headers["access-control-allow-private-network"] == "true"


@on_both_loops
async def test_a_preflight_of_a_stranger(tmp_path: Path) -> None:
    async with bench(tmp_path, ALLOWED) as b, await b.client() as client:
        for extra in ({}, {"Access-Control-Request-Private-Network": "true"}):
            headers = {"Origin": "http://evil.example", **PREFLIGHT, **extra}
            response = await client.ask("OPTIONS", CHAT, None, headers)
            assert response.status == 403
            assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("wanted", ["x" * 2000, "a: b", 'a"b', "a;b"])
@on_both_loops
async def test_a_preflight_echoes_only_header_names(tmp_path: Path, wanted: str) -> None:
    async with bench(tmp_path, ALLOWED) as b, await b.client() as client:
        headers = {"Origin": PAGE, **PREFLIGHT, "Access-Control-Request-Headers": wanted}
        response = await client.ask("OPTIONS", CHAT, None, headers)
        assert response.headers["access-control-allow-headers"] == "Authorization, Content-Type"


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in EVERY_PATH if path != "/health"])
@on_both_loops
async def test_a_wrong_key_and_none_are_answered_alike(tmp_path: Path, path: str) -> None:
    async with bench(tmp_path, ALLOWED, keys=KEY) as b, await b.client() as client:
        answers = []
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer sesam"},
            {"Authorization": "Bearer sesamee"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic c2VzYW1l"},
            {"X-Api-Key": "wrong"},
            {"Authorization": "Bearer s\udce9same"},
            {"Origin": PAGE, "Authorization": "Bearer wrong"},
        ):
            body = chat() if path == CHAT else None
            response = await client.ask("POST" if body else "GET", path, body, headers)
            assert (response.status, response.code) == (401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
            assert readable(response) == ("Origin" in headers)
            answers.append(response.body)
        assert len(set(answers)) == 1
        untouched(b)


@on_both_loops
async def test_a_right_key_opens(tmp_path: Path) -> None:
    async with bench(tmp_path, keys=KEY) as b, await b.client() as client:
        for headers in ({"Authorization": "Bearer sesame"}, {"X-Api-Key": "sesame"}):
            assert (await client.ask("GET", "/v1/models", headers=headers)).status == 200
            assert (await client.ask(body=chat(), headers=headers)).status == 200


@on_both_loops
async def test_what_was_let_in_once_is_asked_again_when_the_keys_change(tmp_path: Path) -> None:
    """On the same connection, on either path."""
    async with bench(tmp_path, keys=KEY) as b, await b.client() as client:
        headers = {"Authorization": "Bearer sesame"}
        for _ in range(3):
            assert (await client.ask(body=chat(), headers=headers)).status == 200
        assert (await client.ask(body=chat(), headers={"Authorization": "Bearer sesamE"})).status == 401
        assert (await client.ask(body=chat())).status == 401
        assert (await client.ask(body=chat(), headers=headers)).status == 200
        b.configure(ServerSettings(), (hashlib.sha256(b"other").digest(),))
        assert (await client.ask(body=chat(), headers=headers)).status == 401
        assert (await client.ask(body=chat(), headers={"Authorization": "Bearer other"})).status == 200
        b.configure(ServerSettings(), ())
        assert (await client.ask(body=chat(), headers=headers)).status == 200
