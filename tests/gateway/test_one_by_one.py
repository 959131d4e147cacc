"""A request for more answers than its model has slots: the engine is asked for one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, Sampling
from accelerd.gateway.one_by_one import JoinedStreams, bodies_of, joined
from tests.gateway.bench import DONE, LAST_CHUNK, SSE_HEAD, Asked, bench, chunk, on_both_loops, plain, until
from tests.gateway.client import chat, request

COMPLETIONS = "/v1/completions"
ONE_SLOT = [ModelSpec("m", path="/m.gguf")]


def sent(fields: dict[str, Any], count: int = 3, seed: int | None = None) -> list[dict[str, Any]]:
    return [json.loads(body) for body in bodies_of(json.dumps(fields).encode(), count, seed)]


@pytest.mark.parametrize(
    ("fields", "seed", "seeds"),
    [
        ({}, None, [None, None, None]),
        ({"seed": 7}, None, [7, 8, 9]),
        ({"seed": 7}, 40, [7, 8, 9]),
        ({}, 40, [None, 41, 42]),
        ({"seed": None}, 40, [None, 41, 42]),
        ({"seed": -1}, 40, [-1, -1, -1]),
        ({"seed": "x"}, None, ["x", "x", "x"]),
    ],
)
def test_each_answer_has_its_own_seed(fields: dict[str, Any], seed: int | None, seeds: list[Any]) -> None:
    bodies = sent({"n": 3, "prompt": "p", **fields}, seed=seed)
    assert [body.get("seed") for body in bodies] == seeds
    assert all("n" not in body and body["prompt"] == "p" for body in bodies)


def test_answers_to_several_prompts_are_numbered_by_prompt() -> None:
    def answer(*texts: str) -> bytes:
        choices = [{"text": text, "index": index} for index, text in enumerate(texts)]
        return json.dumps({"choices": choices, "id": texts[0], "usage": {"total_tokens": len(texts[0])}}).encode()

    whole = json.loads(joined([answer("a", "b"), answer("aa", "bb")]))
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == [
        (0, "a"), (1, "aa"), (2, "b"), (3, "bb"),
    ]  # fmt: skip
    assert (whole["id"], whole["usage"]) == ("a", {"total_tokens": 1})


def test_streams_are_one_however_they_are_cut() -> None:
    def stream(name: str) -> bytes:
        events = [{"choices": [{"index": 0, "text": name}], "id": name}, {"choices": [], "usage": {}, "id": name}]
        return b"data: null\n\n" + b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in events)

    end = b"data: [DONE]\n\n"
    for size in (1, 7, 1000):
        streams, got = JoinedStreams(2), b""
        for number, name in enumerate("ab"):
            if number:
                streams.next()
            data = stream(name) + end
            got += b"".join(streams.feed(data[at : at + size]) for at in range(0, len(data), size)) + streams.end()
        *events, last = [part.removeprefix(b"data: ") for part in got.split(b"\n\n")[:-1]]
        assert last == b"[DONE]"
        found = [json.loads(event) for event in events]
        assert [one["choices"][0]["index"] for one in found if one["choices"]] == [0, 1]
        assert {one["id"] for one in found} == {"a"}


ODD = [
    b"",
    b"{}",
    b"[1]",
    b'{"choices": null}',
    b'{"choices": [{}]}',
    b'{"choices": [5]}',
    b'{"choices": [{"index"',
    b'{"choices": ' + b"[" * 100_000,
    b'{"choices": "\xff"}',
]


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_answer_is_the_engines_failure_and_in_a_stream_goes_through(odd: bytes) -> None:
    good = b'{"choices": [{"index": 0}]}'
    for answers in ([odd, good], [good, odd]):
        with pytest.raises(AccelError, match="no choices"):
            joined(answers)
    assert JoinedStreams(2).feed(b"data: " + odd + b"\n\n") == b"data: " + odd + b"\n\n"


# --- through the gateway --------------------------------------------------------------------------------------------


def event(text: str, number: int) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return chunk(b"data: %b\n\n" % json.dumps({"choices": [choice], "id": f"id-{number}"}).encode())


def answering(requests: list[Any]) -> Any:
    """An engine whose answers have numbers."""

    async def script(asked: Asked) -> None:
        body = asked.json()
        requests.append(body)
        text = f"answer {len(requests)}"
        if body.get("stream"):
            asked.writer.write(SSE_HEAD + event(text, len(requests)) + DONE)
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            asked.writer.write(plain(json.dumps({"choices": [choice], "id": len(requests)}).encode()))

    return script


@pytest.mark.parametrize(("parallel", "field", "n"), [(1, "n", 2), (1, "n", 5), (2, "n", 3), (1, "n_cmpl", 2)])
@pytest.mark.parametrize("primed", [False, True])
@on_both_loops
async def test_answers_come_one_after_the_other(
    tmp_path: Path, parallel: int, field: str, n: int, primed: bool
) -> None:
    spec = ModelSpec("m", path="/m.gguf", parallel=parallel, sampling=Sampling(seed=3))
    async with bench(tmp_path, models=[spec]) as b, await b.client(primed=primed) as client:
        for stream in (False, True):
            requests: list[Any] = []
            b.engine.script = answering(requests)
            answer = await client.ask(body=chat(stream=stream, **{field: n}))
            assert (answer.status, answer.complete) == (200, True)
            found: dict[int, str] = {}
            if stream:
                *events, last = answer.events()
                assert last == "[DONE]"
                assert {one["id"] for one in events} == {"id-1"}
                for one in events:
                    (choice,) = one["choices"]
                    found[choice["index"]] = choice["delta"]["content"]
            else:
                found = {c["index"]: c["message"]["content"] for c in answer.json()["choices"]}
            assert found == {number: f"answer {number + 1}" for number in range(n)}
            assert [body.get("seed") for body in requests] == [None, *range(4, 3 + n)]
            assert not any(field in body for body in requests)
        assert (await client.ask(body=chat())).status == 200, "the connection goes on"
        await b.settled()


@pytest.mark.parametrize("n", [None, 1, 2])
@on_both_loops
async def test_as_many_as_there_are_slots_are_the_engines_matter(tmp_path: Path, n: int | None) -> None:
    async with bench(tmp_path, models=[ModelSpec("m", path="/m.gguf", parallel=2)]) as b, await b.client() as client:
        assert (await client.ask(body=chat(n=n))).status == 200
        (asked,) = b.engine.requests
        assert asked.json()["n"] == n


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
@on_both_loops
async def test_a_refusal_ends_it(tmp_path: Path, stream: bool, fails_at: int) -> None:
    async with bench(tmp_path, models=ONE_SLOT) as b, await b.client() as client:
        requests: list[Any] = []
        answers = answering(requests)

        async def script(asked: Asked) -> None:
            if len(requests) + 1 < fails_at:
                await answers(asked)
            else:
                requests.append(asked.json())
                asked.writer.write(plain(b'{"error":{"message":"no","type":"invalid_request_error"}}', 400))

        b.engine.script = script
        answer = await client.ask(body=chat(n=3, stream=stream))
        assert len(requests) == fails_at
        if stream and fails_at == 2:
            assert not answer.complete
            first, last = answer.events()
            assert first["choices"][0]["delta"]["content"] == "answer 1"
            assert last["error"]["message"] == "no"
        else:
            assert (answer.status, answer.complete, answer.json()["error"]["message"]) == (400, True, "no")
        await b.settled()


@on_both_loops
async def test_an_error_in_a_stream_is_the_last_word(tmp_path: Path) -> None:
    async with bench(tmp_path, models=ONE_SLOT) as b, await b.client() as client:
        b.engine.says(SSE_HEAD + event("a", 1) + chunk(b'data: {"error":{"message":"full"}}\n\n') + LAST_CHUNK)
        answer = await client.ask(body=chat(n=2, stream=True))
        assert [("error" in one) for one in answer.events()] == [False, True]
        assert len(b.engine.requests) == 1
        await b.settled()


@on_both_loops
async def test_an_engine_that_dies_before_the_second_answer(tmp_path: Path) -> None:
    async with bench(tmp_path, models=ONE_SLOT) as b, await b.client() as client:
        requests: list[Any] = []
        answers = answering(requests)

        async def script(asked: Asked) -> None:
            if requests:
                asked.writer.close()
            else:
                await answers(asked)

        b.engine.script = script
        streamed = await client.ask(body=chat(n=2, stream=True))
        assert not streamed.complete
        assert streamed.events()[-1]["error"]["code"] == "upstream_failed"
        async with await b.client() as another:
            requests.clear()
            failed = await another.ask(body=chat(n=2))
            assert (failed.status, failed.code) == (502, "upstream_failed")


@on_both_loops
async def test_a_client_who_leaves_gets_no_more_answers(tmp_path: Path) -> None:
    async with bench(tmp_path, models=ONE_SLOT) as b, await b.client() as client:
        b.engine.script = b.engine.never
        client.send(request(body=chat(n=3)))
        asked = await b.engine.asked(1)
        await client.vanish()
        await asked.gone.wait()
        await until(lambda: not b.leases(), "the lease is over")
        assert len(b.engine.requests) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", COMPLETIONS])
@on_both_loops
async def test_more_than_openai_has_are_refused_before_anything_moves(tmp_path: Path, path: str) -> None:
    async with bench(tmp_path, models=ONE_SLOT) as b, await b.client() as client:
        answer = await client.ask(path=path, body=chat(n=129, prompt="x"))
        assert (answer.status, answer.json()["error"]["param"]) == (400, "n")
        assert not b.engine.requests
