"""Requests that wait for their model when accelerd is restarted: the next daemon serves them on the same connection."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.gateway.handover import Parcel, unpack
from tests.gateway.bench import DONE, SSE_HEAD, Bench, bench, on_both_loops, plain, token, until
from tests.gateway.client import Client, chat, request

ENDING = AccelError("shutting_down", "accelerd is shutting down", retry_after=5)
QUICK = ServerSettings(keepalive_after=0.01)


@pytest.mark.parametrize(
    "data",
    [b"", b"GET / HTTP/1.1", b'{"local":true}\n', b'{"local":true,"begun":false,"x":' + b"[" * 100_000],
    ids=range(4),
)
def test_what_was_kept_otherwise_is_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        unpack(data)


class Keeper:
    """systemd, between two daemons."""

    def __init__(self, takes: bool = True) -> None:
        self.takes = takes
        self.kept: list[tuple[socket.socket, bytes]] = []

    async def __call__(self, parcels: Sequence[Parcel]) -> bool:
        for parcel in parcels if self.takes else ():
            file = parcel.memory_file()
            sock = socket.socket(fileno=os.dup(parcel.client))
            sock.setblocking(False)
            self.kept.append((sock, os.pread(file, 1 << 20, 0)))
            os.close(file)
        return self.takes


async def waiting(b: Bench, *clients: Client, local: Client | None = None, **more: object) -> None:
    """Their requests wait."""
    b.instances.hold = True
    for client in (*clients, *([local] if local else [])):
        client.send(request(body=chat(**more)))
    await until(lambda: b.scheduler.queued == len(clients) + bool(local), "they wait")


def first(path: Path) -> Path:
    (path / "first").mkdir()
    return path / "first"


def second(path: Path) -> Path:
    (path / "second").mkdir()
    return path / "second"


@on_both_loops
async def test_the_next_daemon_answers_on_the_same_connection(tmp_path: Path) -> None:
    keeper = Keeper()
    async with bench(first(tmp_path)) as b:
        one, two, local = await b.client(), await b.client(), await Client.open_unix(b.unix)
        await waiting(b, one, two, local=local, user="ü")
        assert await b.listeners.hand_over(keeper, ENDING) == 3
        await b.settled()
    async with bench(second(tmp_path), queued=keeper.kept) as after:
        after.engine.says(plain(b'{"from":"the next"}'))
        for client in (one, two, local):
            answer = await client.response()
            assert (answer.status, answer.json()) == (200, {"from": "the next"})
            assert (await client.ask(body=chat())).status == 200, "the connection goes on"
            client.writer.close()
        assert after.engine.requests[0].json()["user"] == "ü"
        assert len(after.engine.requests) == 6


@on_both_loops
async def test_a_stream_whose_head_was_sent_goes_on(tmp_path: Path) -> None:
    keeper = Keeper()
    async with bench(first(tmp_path), QUICK) as b:
        client = await b.client()
        await waiting(b, client, stream=True)
        head = await client.head()
        await asyncio.sleep(0.05)
        assert await b.listeners.hand_over(keeper, ENDING) == 1
        await b.settled()
    async with bench(second(tmp_path), QUICK, queued=keeper.kept) as after:
        after.engine.says(SSE_HEAD, token("a"), DONE)
        body = b""
        async with asyncio.timeout(10):
            async for piece in client.chunks():
                body += piece
        client.writer.close()
    assert head.headers["transfer-encoding"] == "chunked"
    assert body.startswith(b": loading m, 0 s\n\n")
    assert b"HTTP/1.1" not in body
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("begun", [False, True])
async def test_what_the_next_daemon_refuses_is_said_in_the_form_that_is_left(tmp_path: Path, begun: bool) -> None:
    keeper = Keeper()
    async with bench(first(tmp_path), QUICK) as b:
        client = await b.client()
        await waiting(b, client, stream=begun)
        if begun:
            await client.head()
        assert await b.listeners.hand_over(keeper, ENDING) == 1
        await b.settled()
    others = [ModelSpec("other", path="/o.gguf")]
    async with bench(second(tmp_path), models=others, queued=keeper.kept):
        if not begun:
            answer = await client.response()
            assert (answer.status, answer.code) == (404, "model_not_found")
        else:
            async with asyncio.timeout(10):
                rest = await client.reader.read()
            assert b'"code":"model_not_found"' in rest
            assert b"HTTP/1.1" not in rest
        client.writer.close()


async def test_a_key_that_is_demanded_now_is_demanded(tmp_path: Path) -> None:
    keeper = Keeper()
    async with bench(first(tmp_path)) as b:
        client = await b.client()
        await waiting(b, client)
        await b.listeners.hand_over(keeper, ENDING)
        await b.settled()
    async with bench(second(tmp_path), keys=(b"x" * 32,), queued=keeper.kept):
        answer = await client.response()
        assert (answer.status, answer.code) == (401, "unauthorized")
        client.writer.close()


@pytest.mark.parametrize("begun", [False, True])
async def test_nobody_who_keeps_them_means_an_error_not_a_disconnect(tmp_path: Path, begun: bool) -> None:
    async with bench(first(tmp_path), QUICK) as b, await b.client() as client:
        await waiting(b, client, stream=begun)
        if begun:
            await client.head()
        assert await b.listeners.hand_over(Keeper(takes=False), ENDING) == 0
        if begun:
            async with asyncio.timeout(10):
                rest = await client.reader.read()
            assert b'"code":"shutting_down"' in rest
        else:
            answer = await client.response()
            assert (answer.status, answer.code) == (503, "shutting_down")


async def test_who_is_being_answered_or_idles_is_not_handed_over(tmp_path: Path) -> None:
    keeper = Keeper()
    async with bench(first(tmp_path)) as b, await b.client() as busy, await b.client() as idle:
        assert (await idle.ask(body=chat())).status == 200
        b.engine.says(0.2, plain(b"{}"))
        asking = asyncio.create_task(busy.ask(body=chat()))
        await b.engine.asked(2)
        assert await b.listeners.hand_over(keeper, ENDING) == 0
        assert (await asking).status == 200
    assert keeper.kept == []


async def test_a_client_that_has_gone_meanwhile_troubles_nobody(tmp_path: Path) -> None:
    keeper = Keeper()
    async with bench(first(tmp_path)) as b:
        client = await b.client()
        await waiting(b, client)
        await b.listeners.hand_over(keeper, ENDING)
        client.writer.transport.abort()
        await b.settled()
    async with bench(second(tmp_path), queued=keeper.kept) as after, await after.client() as other:
        assert (await other.ask(body=chat())).status == 200
        await after.settled()


async def test_what_another_version_has_stored_is_let_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        async with bench(tmp_path, queued=[(ours, b"nonsense")]) as b, await b.client() as client:
            assert (await client.ask(body=chat())).status == 200
        assert theirs.recv(1) == b""
    assert "not understood" in caplog.text
