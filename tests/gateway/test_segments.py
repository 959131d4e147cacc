"""The same bytes have the same answers however they are cut into segments: whole, as clients cut them, by bytes."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from accelerd.config.model import ServerSettings
from accelerd.gateway.connection import ClientConnection
from tests.gateway.bench import Asked, bench, chunk, on_both_loops, plain
from tests.gateway.client import CHAT, chat, request

EMBEDDINGS = "/v1/embeddings"


async def echo(asked: Asked) -> None:
    """An engine that answers with what it was asked."""
    asked.writer.write(plain(asked.body))


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


async def conversation(directory: Path, pieces: list[bytes], *, patient: bool) -> tuple[bytes, list[bytes]]:
    """What the client gets, and what the engine was asked. `patient`: each piece waits for what came before it."""
    directory.mkdir()  # noqa: ASYNC240
    async with bench(directory, ServerSettings(max_body=1 << 20, body_timeout=0.2)) as b:
        b.engine.script = echo
        client = await b.client()
        client.send(ONE)
        await client.response()
        connection = b.connections[0]
        for piece in pieces:  # as if each had come in a segment of its own
            connection.data_received(piece)
            if patient:
                await answered_or_waiting(connection)
        await b.listeners.drain(2)
        answers = re.sub(rb'"created":[0-9]+|Date: [^\r]*|x-request-id: [^\r]*', b"-", await client.rest())
        await client.close()
        return answers, [r.body for r in b.engine.requests]


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
async def test_whatever_the_segments_the_answers_are_the_same(tmp_path: Path, pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    expected = await conversation(tmp_path / "pieces", pieces, patient=True)
    assert await conversation(tmp_path / "whole", [whole], patient=False) == expected
    assert expected[0].startswith(b"HTTP/1.1 ")
    answers, asked = await conversation(tmp_path / "bytes", [bytes([byte]) for byte in whole], patient=False)
    answers = answers.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    if (answers, asked) != expected:  # refused before the body was there, which ends the connection
        assert b"\r\nConnection: close\r\n" in answers
        assert expected[0].startswith(answers.replace(b"\r\nConnection: close\r\n", b"\r\n"))
        assert expected[1][: len(asked)] == asked
