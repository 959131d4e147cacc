"""What every response says of itself, and requests in the forms that proxies and other APIs' clients use."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from accelerd.config.model import Route
from accelerd.gateway.responses import _date
from tests.gateway.bench import DONE, SSE_HEAD, bench, on_both_loops, token
from tests.gateway.client import CHAT, chat, request

MESSAGE = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


@on_both_loops
async def test_every_response_has_a_date_and_an_id(tmp_path: Path) -> None:
    """Those of the engine, plain and streamed, and accelerd's own, also where there was no whole request."""
    seen = set()
    async with bench(tmp_path) as b:
        for method, path, body in (
            ("GET", "/health", None),
            ("GET", "/nothing", None),
            ("POST", CHAT, chat()),
            ("POST", CHAT, chat("nobody")),
            ("POST", CHAT, {}),
            ("GET", CHAT, None),
            ("POST", "/v1/messages", MESSAGE),
            ("POST", "/v1/messages", {}),
        ):
            async with await b.client() as client:
                headers = (await client.ask(method, path, body)).headers
            now = datetime.now(UTC)
            assert now - timedelta(minutes=1) < parsedate_to_datetime(headers["date"]) <= now
            name = "request-id" if path == "/v1/messages" else "x-request-id"
            assert headers[name].startswith("req_")
            assert headers[name] not in seen
            seen.add(headers[name])
            assert "server" not in headers
        b.engine.says(SSE_HEAD, token("a"), DONE)
        async with await b.client() as client:
            headers = (await client.ask(body=chat(stream=True))).headers
            assert headers["date"]
            assert headers["x-request-id"].startswith("req_")
            client.send(b"nonsense\r\n\r\n")
            assert (await client.response()).headers["date"]


@pytest.mark.parametrize("second", [0, 951_782_399, 1_767_225_599, 4_102_444_800])
def test_dates_are_those_of_http(second: int) -> None:
    assert parsedate_to_datetime(_date(second)) == datetime.fromtimestamp(second, UTC)
    assert _date(784_111_777) == "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1", True), ("a" * 128, True), ("a" * 129, False), ("", False), ("a b", False), ("é", False)],
)
@on_both_loops
async def test_a_clients_own_id_is_kept(tmp_path: Path, given: str, kept: bool) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        answer = await client.ask(body=chat(), headers={"X-Request-Id": given})
        assert (answer.headers["x-request-id"] == given) is kept


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/3.0", "HTTP/1.2", "HTTP/0.9", "HTTP/9.9"])
@pytest.mark.parametrize("line", ["GET /health", "POST /v1/chat/completions"])
@on_both_loops
async def test_other_versions_of_http_are_refused_as_such(tmp_path: Path, line: str, version: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        method, _, path = line.partition(" ")
        client.send(request(method, path, chat() if method == "POST" else None, version=version))
        answer = await client.response()
        assert (answer.status, answer.code) == (505, "http_version_not_supported")
        assert "only HTTP/1.1 and HTTP/1.0 are supported" in answer.json()["error"]["message"]
        assert not b.engine.requests


@pytest.mark.parametrize(
    "first", ["PRI * HTTP/2.0\r\n\r\nSM", "GET /health HTTP/1", "GET /health HTTP/11.1", "GET /health"]
)
@on_both_loops
async def test_what_only_begins_like_another_version_is_refused_in_the_same_words(tmp_path: Path, first: str) -> None:
    """The preface of HTTP/2, versions that are none, and HTTP/0.9."""
    async with bench(tmp_path) as b, await b.client() as client:
        client.send(f"{first}\r\n\r\n".encode())
        answer = await client.response()
        assert (answer.status, answer.code) == (505, "http_version_not_supported")
        assert "only HTTP/1.1 and HTTP/1.0 are supported" in answer.json()["error"]["message"]


@pytest.mark.parametrize("target", ["http://localhost", "http://LOCALHOST:4000", "https://127.0.0.1:1", "HTTP://[::1]"])
@on_both_loops
async def test_a_target_may_be_a_whole_address(tmp_path: Path, target: str) -> None:
    """Then the Host header does not count, whatever it says."""
    async with bench(tmp_path) as b, await b.client() as client:
        for host in ("localhost", "evil.example"):
            assert (await client.ask(path=f"{target}{CHAT}?x=1", body=chat(), host=host)).status == 200
            assert (await client.ask("GET", target, host=host)).body.startswith(b"accelerd is running")
        foreign = await client.ask("GET", "http://evil.example/health", host="localhost")
        assert (foreign.status, foreign.code) == (403, "host_not_allowed")


@on_both_loops
async def test_anthropics_clients_get_anthropics_list_of_models(tmp_path: Path) -> None:
    version = {"anthropic-version": "2023-06-01"}
    async with bench(tmp_path, routes=[Route("either", ("m",))]) as b, await b.client() as client:
        found = (await client.ask("GET", "/v1/models", None, version)).json()
        assert {key: found[key] for key in ("has_more", "first_id", "last_id")} == {
            "has_more": False, "first_id": "m", "last_id": "either",
        }  # fmt: skip
        assert [one["id"] for one in found["data"]] == ["m", "either"]
        for one in found["data"]:
            assert (one["type"], one["display_name"]) == ("model", one["id"])
            assert datetime.fromisoformat(one["created_at"]).tzinfo is not None
            assert (await client.ask("GET", f"/v1/models/{one['id']}", None, version)).json() == one
        missing = await client.ask("GET", "/v1/models/nobody", None, version)
        assert (missing.status, missing.json()["error"]["type"]) == (404, "not_found_error")
        assert missing.json()["type"] == "error"
        assert (await client.ask("GET", "/v1/models")).json()["object"] == "list", "as before without the header"
