"""Request bodies that come compressed: the engine gets them unpacked, and none takes more than the limits say."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.config.variants import Variant
from accelerd.gateway.content_coding import INPUT, PIECE
from tests.gateway.bench import bench, on_both_loops, until
from tests.gateway.client import CHAT, chat, request
from tests.gateway.test_audio import HEADERS
from tests.gateway.test_audio import PATH as TRANSCRIPTIONS
from tests.gateway.test_audio import table as hearing
from tests.gateway.test_form_body import FILE, MODEL, form

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "GZIP": gzip.compress, " x-gzip ": gzip.compress, "deflate": zlib.compress,
}  # fmt: skip


def noise(size: int) -> str:
    """Text that does not become much smaller."""
    return random.Random(size).randbytes(size // 2).hex()


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("size", [0, 1, PIECE - 1000, 3 * PIECE, 2 * INPUT])
@on_both_loops
async def test_the_engine_gets_what_was_packed(tmp_path: Path, coding: str, size: int) -> None:
    """Byte for byte, be it much or little, in one piece or in chunks, and the connection is good for the next."""
    async with bench(tmp_path) as b, await b.client() as client:
        for text in (noise(size), "x" * size):
            body = json.dumps(chat(user=text)).encode()
            packed = PACKERS[coding](body)
            assert (await client.ask(body=packed, headers={"Content-Encoding": coding})).status == 200
            assert b.engine.requests[-1].body == body
            assert b"content-encoding" not in b.engine.requests[-1].head.lower()
            chunked = {"Content-Type": "application/json", "Transfer-Encoding": "chunked", "Content-Encoding": coding}
            client.send(request(headers=chunked))
            for start in range(0, len(packed), 10_000):
                piece = packed[start : start + 10_000]
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n" + request(body=chat(user="next")))
            assert [(await client.response()).status for _ in range(2)] == [200, 200]
            assert [one.json()["user"] for one in b.engine.requests[-2:]] == [text, "next"]


@pytest.mark.parametrize("multiple", [1, 2, 5])
@on_both_loops
async def test_a_body_may_end_with_a_piece(tmp_path: Path, multiple: int) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        body = json.dumps(chat(user="")).encode()
        whole = json.dumps(chat(user="x" * (multiple * PIECE - len(body)))).encode()
        assert len(whole) == multiple * PIECE
        for pack in (gzip.compress, zlib.compress):
            coding = "gzip" if pack is gzip.compress else "deflate"
            assert (await client.ask(body=pack(whole), headers={"Content-Encoding": coding})).status == 200
            assert b.engine.requests[-1].body == whole


@on_both_loops
async def test_what_is_read_in_a_body_is_read_in_a_packed_one(tmp_path: Path) -> None:
    """The model, its variants, that it is a stream, and what is wrong with it."""
    variant = Variant("warm", set=((("temperature",), b"1.5"),))
    models = [ModelSpec("m", path="/m.gguf", variants=(variant,)), ModelSpec("other", path="/o.gguf")]
    async with bench(tmp_path, models=models) as b, await b.client() as client:
        packed = {"Content-Encoding": "gzip"}

        async def ask(body: bytes, path: str = CHAT) -> tuple[int, str]:
            answer = await client.ask(path=path, body=gzip.compress(body), headers=packed)
            return answer.status, answer.headers.get("x-accelerd-model") or answer.json()["error"]["message"]

        assert await ask(json.dumps(chat("warm")).encode()) == (200, "m")
        assert b.engine.requests[0].json()["temperature"] == 1.5
        assert await ask(json.dumps(chat("other")).encode()) == (200, "other")
        assert await ask(json.dumps(chat("nobody")).encode()) == (404, "there is no model 'nobody'; see GET /v1/models")
        assert (await ask(b"{"))[0] == 400
        assert (await ask(b'{"model": "m"}')) == (
            400, "the request is not valid: Object missing required field `messages`",
        )  # fmt: skip


@on_both_loops
async def test_a_form_may_be_packed(tmp_path: Path) -> None:
    async with hearing(tmp_path) as b, await b.client() as client:
        body, headers = form(FILE, MODEL), {**HEADERS, "Content-Encoding": "gzip"}
        answer = await client.ask(path=TRANSCRIPTIONS, body=gzip.compress(body), headers=headers)
        assert (answer.status, answer.headers["x-accelerd-model"]) == (200, "whisper")
        assert b.engine.requests[0].body == body


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "identity, gzip", "gzip, gzip", "nonsense", ""])
@on_both_loops
async def test_other_codings_are_refused_unread_with_those_that_are_taken(tmp_path: Path, coding: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        client.send(request(body=b"", headers={"Content-Encoding": coding, "Content-Length": "1000"}))
        answer = await client.response()
        assert (answer.status, answer.code) == (415, "unsupported_media_type")
        assert answer.headers["accept-encoding"] == "gzip, deflate"
        assert "gzip or deflate" in answer.json()["error"]["message"]
        assert not b.engine.requests


@on_both_loops
async def test_a_body_that_is_not_packed_may_say_so(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        assert (await client.ask(body=chat(), headers={"Content-Encoding": "Identity"})).status == 200


GOOD = json.dumps(chat()).encode()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", GOOD),
        ("gzip", b""),
        ("gzip", gzip.compress(GOOD)[:-1]),
        ("gzip", gzip.compress(GOOD)[:-8] + bytes(8)),
        ("gzip", gzip.compress(GOOD) + b"x"),
        ("gzip", gzip.compress(GOOD) * 2),
        ("gzip", zlib.compress(GOOD)),
        ("deflate", gzip.compress(GOOD)),
        ("deflate", zlib.compress(GOOD)[2:-4]),
        ("deflate", zlib.compress(bytes(3 * PIECE)) + b"{}"),
    ],
    ids=itertools.count(),  # what gzip writes has the time in it
)
@on_both_loops
async def test_what_cannot_be_unpacked_is_a_bad_request(tmp_path: Path, coding: str, body: bytes) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        answer = await client.ask(body=body, headers={"Content-Encoding": coding})
        assert (answer.status, answer.code) == (400, "bad_request")
        assert f"the body is not valid {coding}: " in answer.json()["error"]["message"]
        assert (await client.ask(body=chat())).status == 200, "the connection is good for the next request"
        assert len(b.engine.requests) == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@on_both_loops
async def test_a_small_body_that_becomes_large_is_refused_at_the_limit(tmp_path: Path, coding: str) -> None:
    limit = 4 * PIECE
    bomb = PACKERS[coding](bytes(30 << 20))
    assert len(bomb) < limit
    async with bench(tmp_path, ServerSettings(max_body=limit)) as b, await b.client() as client:
        answer = await client.ask(body=bomb, headers={"Content-Encoding": coding})
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert str(limit) in answer.json()["error"]["message"]
        assert b.gateway.bodies.size == 0
        fits = json.dumps(chat(user="x" * (limit - 200))).encode()
        assert (await client.ask(body=PACKERS[coding](fits), headers={"Content-Encoding": coding})).status == 200
        too_long = PACKERS[coding](json.dumps(chat(user="x" * limit)).encode())
        assert (await client.ask(body=too_long, headers={"Content-Encoding": coding})).status == 413


@on_both_loops
async def test_unpacked_bodies_count_as_those_of_all_requests(tmp_path: Path) -> None:
    """As soon as they are unpacked, until they are answered."""
    large, small = chat(user="x" * 8 * PIECE), chat(user="y" * 2 * PIECE)
    packed = {"Content-Encoding": "gzip"}
    async with (
        bench(tmp_path, ServerSettings(max_bodies=9 * PIECE)) as b,
        await b.client() as first,
        await b.client() as second,
    ):
        b.instances.hold = True
        first.send(request(body=gzip.compress(json.dumps(large).encode()), headers=packed))
        await until(lambda: b.scheduler.queued, "the first request waits for its model")
        assert b.gateway.bodies.size > 8 * PIECE
        refused = await second.ask(body=gzip.compress(json.dumps(small).encode()), headers=packed)
        assert (refused.status, refused.code) == (503, "too_many_bodies")
        assert (await second.ask("GET", "/health")).status == 200
        b.instances.let_go()
        assert (await first.response()).status == 200
        assert (await second.ask(body=gzip.compress(json.dumps(small).encode()), headers=packed)).status == 200
        assert b.gateway.bodies.size == 0


@on_both_loops
async def test_others_are_answered_while_a_body_is_unpacked(tmp_path: Path) -> None:
    """A client that goes meanwhile leaves nothing behind."""
    async with bench(tmp_path, ServerSettings(max_body=64 << 20)) as b, await b.client() as other:
        packer = await b.client()
        packer.send(request(body=gzip.compress(bytes(60 << 20), 1), headers={"Content-Encoding": "gzip"}))
        await until(lambda: b.gateway.bodies.size > PIECE, "some of it is unpacked")
        assert (await other.ask("GET", "/health")).status == 200
        assert b.gateway.bodies.size < 60 << 20, "not all of it is unpacked yet"
        await packer.vanish()
        await until(lambda: b.gateway.bodies.size == 0, "it is let go")
        assert not b.engine.requests
