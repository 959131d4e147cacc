"""Which bytes the fast path takes: never what aiohttp would read otherwise, never for somebody who was not let in.

A table of raw pieces, right and wrong, holds the paths against each other; the rest is about what is remembered.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from accelerd.config.model import ServerSettings
from accelerd.gateway.connection import ClientConnection
from accelerd.gateway.fast import Heads
from tests.gateway.bench import Asked, bench, chunk, on_both_loops, plain
from tests.gateway.client import CHAT, chat, request

EMBEDDINGS = "/v1/embeddings"


async def number(asked: Asked) -> None:
    """An engine that answers with what it was asked."""
    asked.writer.write(plain(asked.body))


# --- byte for byte what aiohttp makes of it ---------------------------------------------------------------------

ONE, TWO = request(body=chat(seed=1)), request(body=chat(seed=2))
GET = request("GET", "/v1/models/m")
HEAD, _, BODY = ONE.partition(b"\r\n\r\n")
CHUNKED = (
    f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
).encode() + chunk(BODY)
LONG = b'{"model": "m", "messages": [{"role": "user", "content": "%b"}], "seed": 7}'


def post(body: bytes, **headers: str) -> bytes:
    return request(body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def answered_or_waiting(connection: ClientConnection) -> None:
    """Until it is idle, or some moments if it waits for the rest of a request."""
    for _ in range(15):
        await asyncio.sleep(0.001)
        if connection.idle:
            return


@pytest.mark.parametrize(
    "pieces",
    [
        [ONE, ONE, ONE],
        [HEAD + b"\r\n\r\n", BODY, TWO],
        [ONE[:20], ONE[20:-5], ONE[-5:], TWO, ONE],
        [ONE + TWO, ONE, TWO],
        [ONE + TWO[:30], TWO[30:], ONE],
        [b"\r\n" + ONE, TWO],
        [b"GET /v1/models/m HTTP/1.1\r\nHost: localhost\r\nX-Pad: ", ONE, TWO],  # the head goes on in what looks whole
        [b"GET /v1/models/m HTTP/1.1\r\nHost: localhost\r\n", ONE.replace(b"POST", b"X-Post: POST"), TWO],
        [request(body=LONG % ONE)[:-200], request(body=LONG % ONE)[-200:], TWO],
        [post(LONG % (b"x" * 40), Content_Length=str(len(LONG) + 38 + len(TWO))), TWO, ONE],  # the body goes on in TWO
        [CHUNKED, b"0\r\n\r\n", TWO, ONE],
        [CHUNKED + b"0\r\n\r\n", TWO],
        [CHUNKED, TWO, b"\r\n0\r\n\r\n", ONE],
        [GET, ONE, GET, TWO, GET],
        [GET + ONE, TWO],
        [post(BODY, Connection="close"), ONE],
        [post(BODY, Connection="keep-alive"), post(BODY, Connection="keep-alive"), ONE],
        [post(BODY, Expect="100-continue"), ONE],
        [post(BODY, Upgrade="h2c", Connection="Upgrade"), ONE],
        [ONE.replace(b"HTTP/1.1", b"HTTP/1.0"), ONE],
        [ONE.replace(b"Content-Length", b"content-length"), ONE, ONE.replace(b"Content-Length", b"content-length")],
        [post(BODY, Content_Length=f"{len(BODY)}\r\nContent-Length: {len(BODY)}"), ONE],
        [post(BODY, Content_Length=f"{len(BODY)}\r\nContent-Length: 3"), ONE],
        [post(BODY, Content_Length=f"000{len(BODY)}"), ONE],
        [post(BODY, Content_Length=f"+{len(BODY)}"), ONE],
        [post(BODY, Content_Length=f"{len(BODY)} "), ONE],
        [post(BODY, Content_Length=f"{len(BODY)}, {len(BODY)}"), ONE],
        [post(BODY, Content_Length="9" * 30), ONE],
        [ONE.replace(b"\r\n", b"\n"), ONE],
        [ONE.replace(b"Host:", b"Host :"), ONE],
        [ONE.replace(b"Host: localhost", b"Host: localhost\r\n folded"), ONE],
        [ONE.replace(b"Host: localhost", b"Host: evil.example"), ONE],
        [ONE.replace(b"localhost", b"localhost\x00"), ONE],
        [ONE.replace(b"application/json", b"text/plain"), ONE],
        [post(BODY, Content_Encoding="gzip"), ONE],
        [post(b"{"), ONE],
        [post(b""), ONE],
        [post(b'{"model": "nobody", "messages": [{}]}'), ONE],
        [post(b'{"model": "m", "messages": [{}], "x": "\xff"}'), ONE],
        [ONE.replace(CHAT.encode(), CHAT.encode() + b"?x=1"), ONE, ONE.replace(CHAT.encode(), CHAT.encode() + b"?x=2")],
        [request(path=EMBEDDINGS, body={"model": "m", "input": "a"}), ONE],
    ],
)
@on_both_loops
async def test_whatever_the_pieces_the_answers_are_the_same(tmp_path: Path, pieces: list[bytes]) -> None:
    answers, asked = [], []
    for fast in (True, False):
        (directory := tmp_path / str(fast)).mkdir()
        async with bench(directory, ServerSettings(max_body=1 << 20, body_timeout=0.2), fast=fast) as b:
            b.engine.script = number
            client = await b.client()
            client.send(ONE)
            await client.response()
            connection = b.connections[0]
            for piece in pieces:  # as if each had come in a segment of its own
                if connection.transport is not None:
                    connection.data_received(piece)
                await answered_or_waiting(connection)
            await b.listeners.drain(2)
            # what tells the time may differ between the two
            answers.append(re.sub(rb'Date: [^\r]*|"created":[0-9]+', b"-", await client.rest()))
            asked.append([r.body for r in b.engine.requests])
            await client.close()
    assert answers[0] == answers[1]
    assert asked[0] == asked[1]


# --- what is remembered -----------------------------------------------------------------------------------------


def remembered(data: bytes, epoch: int = 1) -> Heads:
    heads = Heads()
    heads.follow(data, epoch, idle=True)
    heads.accepted()
    return heads


def test_a_head_is_recognised_with_any_length_and_nothing_else() -> None:
    heads = remembered(ONE)
    assert heads.recognise(request(body=b"12345"), 1) == (CHAT, b"12345")
    assert heads.recognise(request(body=b"x" * 12345), 1) == (CHAT, b"x" * 12345)
    for other in (
        ONE[:-1],
        ONE + b" ",
        ONE.replace(b"localhost", b"localhosT"),
        ONE.replace(b"Length: ", b"Length:"),
        GET,
        b"",
    ):
        assert heads.recognise(other, 1) is None
    assert heads.recognise(ONE, 1) == (CHAT, BODY)
    assert heads.recognise(ONE, 2) is None  # another configuration
    assert heads.recognise(ONE, 1) is None  # for ever


@pytest.mark.parametrize(
    "data",
    [
        GET,
        request(path="/v1/models", body=b"{}"),
        post(BODY, Origin="http://localhost"),
        post(BODY, Connection="close"),
        post(BODY, Expect="100-continue"),
        CHUNKED + b"0\r\n\r\n",
        ONE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ONE + TWO,
        b"\r\n" + ONE,
    ],
)
def test_what_is_not_plain_is_not_remembered(data: bytes) -> None:
    assert remembered(data).recognise(data, 1) is None


def test_only_who_was_let_in_is_remembered() -> None:
    heads = Heads()
    heads.follow(ONE, 1, idle=True)
    assert heads.recognise(ONE, 1) is None
    heads.follow(GET, 1, idle=True)  # the first was refused, this one is let in
    heads.accepted()
    assert heads.recognise(ONE, 1) is None


def test_what_came_behind_another_request_is_not_taken_for_it() -> None:
    heads = Heads()
    heads.follow(ONE, 1, idle=True)
    heads.follow(post(BODY, Authorization="Bearer guess"), 1, idle=False)
    heads.accepted()  # that was for the first
    assert heads.recognise(ONE, 1) is None
    assert heads.recognise(post(BODY, Authorization="Bearer guess"), 1) is None


def test_a_request_is_followed_to_its_end_through_pieces() -> None:
    heads = Heads()
    heads.follow(ONE[:-7], 1, idle=True)
    heads.accepted()
    assert heads.recognise(ONE, 1) is None  # its body is not there yet
    heads.follow(ONE[-7:-2], 1, idle=False)
    heads.follow(ONE[-2:], 1, idle=False)
    assert heads.recognise(ONE, 1) == (CHAT, BODY)
    heads.follow(GET[:10], 1, idle=True)  # a head in pieces: from here on nobody knows
    heads.follow(GET[10:], 1, idle=False)
    assert heads.recognise(ONE, 1) is None
