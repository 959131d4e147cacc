"""Control requests on the unix socket go to aiohttp one at a time; the connection stays the gateway's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import ClientConnectionResetError, web

from accelerd.base.errors import AccelError
from accelerd.config.model import ServerSettings
from accelerd.gateway import connection
from tests.gateway.bench import Bench, bench, on_both_loops, until
from tests.gateway.client import CHAT, Client, chat, request

PREFIX = "/accelerd/v1"


class Control:
    """Answers as the last part of the path says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.running = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, request: web.BaseRequest, path: str) -> web.StreamResponse | None:
        self.asked.append(f"{request.method} {request.raw_path}")
        match path.removeprefix(f"{PREFIX}/"):
            case "echo":
                return web.Response(body=await request.read(), content_type="application/json")
            case "wait":
                self.running.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "stream":
                response = web.StreamResponse()
                await response.prepare(request)
                for line in (b"one\n", b"two\n"):
                    await response.write(line)
                    await asyncio.sleep(0.01)
                return response
            case "flood":
                response = web.StreamResponse()
                await response.prepare(request)
                while True:
                    await response.write(bytes(1 << 16))
            case "refuse":
                raise AccelError("busy", "not now", retry_after=3)
            case "bug":
                raise ZeroDivisionError
            case "gone":
                raise ClientConnectionResetError("Cannot write to closing transport")
        return None


def attach(b: Bench) -> Control:
    control = Control()
    b.gateway.make_control = lambda: control
    return control


@on_both_loops
async def test_nobody_but_its_user_and_root_is_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the mode of the socket is: who comes here needs no key."""
    asked = (("GET", "/v1/models", None), ("POST", CHAT, chat()), ("POST", f"{PREFIX}/echo", {}))
    async with bench(tmp_path, keys=(bytes(32),)) as b:
        attach(b)
        for uid in (os.getuid(), 0):
            monkeypatch.setattr(connection, "peer_of", lambda sock, uid=uid: (1, uid))
            async with await Client.open_unix(b.unix) as client:
                assert [(await client.ask(*one)).status for one in asked] == [200] * 3
        monkeypatch.setattr(connection, "peer_of", lambda sock: (1, 4711))
        async with await Client.open_unix(b.unix) as client:
            refused = await client.response()
            assert (refused.status, refused.code) == (401, "unauthorized")


@on_both_loops
async def test_control_and_inference_take_turns_on_one_connection(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await Client.open_unix(b.unix) as client:
        control = attach(b)
        for n in range(3):
            response = await client.ask("POST", f"{PREFIX}/echo?n={n}", {"n": n})
            assert (response.status, response.json()) == (200, {"n": n})
            assert response.headers["server"] == "accelerd", "without versions of what it is made of"
            assert (await client.ask(body=chat())).status == 200
            assert (await client.ask("GET", "/health")).json() == {"status": "ok"}
            assert (await client.ask("POST", f"{PREFIX}/stream")).body == b"one\ntwo\n"
        assert control.asked[:2] == [f"POST {PREFIX}/echo?n=0", f"POST {PREFIX}/stream"]
        await until(lambda: all(c.idle for c in b.listeners._local.connections), "idle")


@on_both_loops
async def test_what_is_pipelined_is_answered_in_order(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await Client.open_unix(b.unix) as client:
        attach(b)
        stream, echo = request("POST", f"{PREFIX}/stream"), request("POST", f"{PREFIX}/echo", {"a": 1})
        client.send(stream + request(body=chat()) + echo + request("GET", "/nothing") + echo)
        answers = [await client.response() for _ in range(5)]
        assert [a.status for a in answers] == [200, 200, 200, 404, 200]
        assert answers[0].body == b"one\ntwo\n"
        assert answers[4].json() == {"a": 1}


@pytest.mark.parametrize("how", ["close", "vanish"])
@on_both_loops
async def test_a_client_that_goes_ends_what_it_asked_for(tmp_path: Path, how: str) -> None:
    async with bench(tmp_path) as b:
        control = attach(b)
        client = await Client.open_unix(b.unix)
        client.send(request("POST", f"{PREFIX}/wait"))
        await control.running.wait()
        await client.close()
        await until(control.cancelled.is_set, "cancelled", within=1)
        await until(lambda: not b.listeners._local.connections, "forgotten")


@on_both_loops
async def test_errors_have_their_code_and_bugs_tell_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with bench(tmp_path) as b, await Client.open_unix(b.unix) as client:
        attach(b)
        response = await client.ask("POST", f"{PREFIX}/refuse")
        assert (response.status, response.code, response.headers["retry-after"]) == (409, "busy", "3")
        response = await client.ask("POST", f"{PREFIX}/nothing")
        assert (response.status, response.code) == (404, "not_found")
        assert not [r for r in caplog.records if r.exc_info]
        response = await client.ask("POST", f"{PREFIX}/bug")
        assert (response.status, response.code) == (500, "internal")
        assert b"ZeroDivision" not in response.body
        assert await client.rest() == b""
        assert [r for r in caplog.records if r.exc_info]


@on_both_loops
async def test_a_client_that_is_gone_while_it_is_answered_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path) as b, await Client.open_unix(b.unix) as client:
        control = attach(b)
        client.send(request("POST", f"{PREFIX}/gone"))
        await until(lambda: bool(control.asked), "asked")
        await client.close()
        await until(lambda: not b.listeners._local.connections, "forgotten")
        assert not [r for r in caplog.records if r.exc_info]


@on_both_loops
async def test_limits_hold_for_control_too(tmp_path: Path) -> None:
    settings = ServerSettings(max_body=100, body_timeout=0.2, write_timeout=0.2)
    async with bench(tmp_path, settings) as b:
        control = attach(b)
        async with await Client.open_unix(b.unix) as client:
            assert (await client.ask("POST", f"{PREFIX}/echo", {"x": "x" * 100})).code == "body_too_large"
        async with await Client.open_unix(b.unix) as client:
            client.send(request("POST", f"{PREFIX}/echo", b"", {"Content-Length": "10"}))
            assert (await client.response()).code == "request_timeout"
        assert not control.asked
        async with await Client.open_unix(b.unix) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(request("POST", f"{PREFIX}/flood"))
            await until(lambda: control.asked, "asked")
            await until(lambda: not b.listeners._local.connections, "who does not read is cut off")


@on_both_loops
async def test_the_end_waits_for_control_and_closes_then(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await Client.open_unix(b.unix) as client, await Client.open_unix(b.unix) as other:
        control = attach(b)
        client.send(request("POST", f"{PREFIX}/stream"))
        other.send(request("POST", f"{PREFIX}/wait"))
        await control.running.wait()
        await b.listeners.drain(0.2)
        assert (await client.response()).body == b"one\ntwo\n"
        assert await client.rest() == b""
        await b.listeners.close()
        assert control.cancelled.is_set()
        assert await other.rest() == b""


@on_both_loops
async def test_old_clients_and_those_who_want_it_are_closed(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        attach(b)
        for version, headers in (("HTTP/1.0", {}), ("HTTP/1.1", {"Connection": "close"})):
            async with await Client.open_unix(b.unix) as client:
                client.send(request("POST", f"{PREFIX}/echo", {"a": 1}, headers, version=version))
                assert (await client.response()).json() == {"a": 1}
                assert await client.rest() == b""


def test_aiohttp_is_not_loaded_before_it_is_needed() -> None:
    """It takes 13 MB and a tenth of a second of every start."""
    program = "import sys, accelerd.daemon; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
