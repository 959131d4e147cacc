"""Bodies of many requests together: bounded, refused with a reason, let go with the answer."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path

import pytest

from accelerd.config.model import ServerSettings
from tests.gateway.bench import Asked, bench, on_both_loops, plain, until
from tests.gateway.client import CHAT, chat, request

MIB = 1 << 20
SETTINGS = ServerSettings(max_bodies=5 * MIB)


def large(size: int = 2 * MIB) -> bytes:
    return request(body=chat(pad="x" * size))


@on_both_loops
async def test_what_is_too_much_together_is_refused_until_others_are_answered(tmp_path: Path) -> None:
    async with bench(tmp_path, SETTINGS) as b:
        release = asyncio.Event()

        async def hold(asked: Asked) -> None:
            await release.wait()
            asked.writer.write(plain(b"{}"))

        b.engine.script = hold
        clients = [await b.client() for _ in range(3)]
        for number, client in enumerate(clients[:2], 1):
            client.send(large())
            await b.engine.asked(number)
        clients[2].send(large())
        response = await clients[2].response()
        assert (response.status, response.code) == (503, "too_many_bodies")
        assert response.headers["retry-after"] == "5"
        assert "server.max_bodies" in response.json()["error"]["message"]
        async with await b.client() as small:
            assert (await small.ask("GET", "/health")).status == 200
            small.send(request(body=chat()))
            await b.engine.asked(3)
            release.set()
            assert (await small.response()).status == 200, "small ones are not counted"
        for client in clients[:2]:
            assert (await client.response()).status == 200
            assert (await client.ask(body=chat(pad="y" * 2 * MIB))).status == 200
        await until(lambda: b.gateway.bodies.size == 0, "all of them are let go")
        for client in clients:
            await client.close()


@pytest.mark.parametrize("chunked", [False, True])
@on_both_loops
async def test_what_has_come_counts_and_not_what_was_announced(tmp_path: Path, chunked: bool) -> None:
    framing = {"Content-Length": None, "Transfer-Encoding": "chunked"} if chunked else {"Content-Length": "50000000"}
    async with bench(tmp_path, SETTINGS) as b, await b.client() as one, await b.client() as two:
        for client in (one, two):
            client.send(request(body=b"", headers=framing))  # type: ignore[arg-type]
        piece = bytes(MIB)
        for count in range(1, 6):
            one.send(b"%x\r\n%b\r\n" % (MIB, piece) if chunked else piece)
            await until(lambda count=count: b.gateway.bodies.size >= count * MIB, "it has come")  # type: ignore[misc]
        two.send(b"%x\r\n%b\r\n" % (MIB, piece) if chunked else piece)
        assert (await two.response()).code == "too_many_bodies"
        assert b.gateway.bodies.size == 5 * MIB


@on_both_loops
async def test_clients_that_leave_take_their_bodies_with_them(tmp_path: Path) -> None:
    async with bench(tmp_path, SETTINGS) as b:
        b.engine.script = b.engine.never
        for whole in (False, True):
            client = await b.client()
            client.send(large() if whole else large()[:-1])
            await until(lambda: b.gateway.bodies.size > 2 * MIB, "it has come")
            await client.close()
            await until(lambda: b.gateway.bodies.size == 0, "it is let go")


@pytest.mark.parametrize("refused", ["not json", "too large", "unknown model"])
@on_both_loops
async def test_refused_bodies_are_let_go(tmp_path: Path, refused: str) -> None:
    settings = ServerSettings(max_bodies=5 * MIB, max_body=3 * MIB)
    async with bench(tmp_path, settings) as b, await b.client() as client:
        if refused == "too large":
            client.send(request(body=b"", headers={"Content-Length": None, "Transfer-Encoding": "chunked"}))  # type: ignore[arg-type]
            client.send(b"%x\r\n" % (4 * MIB) + bytes(4 * MIB))
        else:
            body = b"x" * 2 * MIB if refused == "not json" else chat("nobody", pad="x" * 2 * MIB)
            client.send(request("POST", CHAT, body))
        assert (await client.response()).status in (400, 404, 413)
        await until(lambda: b.gateway.bodies.size == 0, "it is let go")


@pytest.mark.parametrize("left", ["answered", "gone", "refused"])
@on_both_loops
async def test_nothing_keeps_a_body_that_is_let_go(tmp_path: Path, left: str) -> None:
    """Not even until garbage is collected."""

    async def forget(asked: Asked) -> None:
        asked.body = b""
        if left == "gone":
            await asyncio.Event().wait()
        asked.writer.write(plain(b"{}"))

    async with bench(tmp_path, ServerSettings(max_body=9 * MIB)) as b, await b.client(primed=True) as client:
        b.engine.script = forget
        text = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 8 * MIB + b'"}]}'
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            if left == "refused":
                client.send(request(body=b"", headers={"Content-Length": str(len(text))}))
                client.send(text[:-1].replace(b"{", b"", 1) + b"x" * 2)
                assert (await client.response()).code == "bad_request"
            else:
                client.send(request(body=text))
                await b.engine.asked()
            if left == "gone":
                await client.close()
            elif left == "answered":
                assert (await client.response()).status == 200
            del text
            await until(lambda: tracemalloc.get_traced_memory()[0] < 4 * MIB, "it is let go")
        finally:
            tracemalloc.stop()
            gc.enable()
