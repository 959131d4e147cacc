"""One line in the journal for each request, with fields and without its content."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from accelerd.base import names
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Traits
from tests.gateway.bench import DONE, SSE_HEAD, Speaker, bench, on_both_loops, plain, token, until
from tests.gateway.client import chat, request

PROMPT = "the secret of the prompt"
ANSWER = "the secret of the answer"


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """Message and fields of the lines about requests."""
    found = [r for r in caplog.records if getattr(r, "message_id", "") == names.MSG_REQUEST]
    assert all(r.levelno == logging.INFO for r in found)
    return [(r.getMessage(), {k.removeprefix("ACCELERD_").lower(): v for k, v in r.fields.items()}) for r in found]  # type: ignore[attr-defined]


async def test_an_answer_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(b'{"choices":[],"content":"%b"}' % ANSWER.encode()))
        body = chat(messages=[{"role": "user", "content": PROMPT}])
        assert (await client.ask(body=body)).status == 200
        await until(lambda: logged(caplog), "the line")
    ((text, fields),) = logged(caplog)
    assert text.startswith("m: /v1/chat/completions: 200 in ")
    assert (fields["model"], fields["path"], fields["status"]) == ("m", "/v1/chat/completions", 200)
    assert (fields["error"], fields["stream"], fields["peer"]) == (None, 0, "127.0.0.1")
    assert float(fields["seconds"]) >= float(fields["waited"]) >= 0
    whole = " ".join(f"{r.getMessage()} {vars(r)}" for r in caplog.records)
    assert PROMPT not in whole
    assert ANSWER not in whole


async def test_a_stream_tells_its_wait_and_its_first_byte(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.instances.hold = True
        b.engine.says(0.05, SSE_HEAD, token("a"), 0.05, DONE)
        asking = asyncio.create_task(client.ask(body=chat(stream=True)))
        await until(lambda: b.scheduler.queued, "it waits")
        await asyncio.sleep(0.05)
        b.instances.let_go()
        assert (await asking).complete
        await until(lambda: logged(caplog), "the line")
    ((text, fields),) = logged(caplog)
    assert "of which it waited" in text
    assert "first byte after" in text
    assert 0 < float(fields["waited"]) < float(fields["first_byte"]) < float(fields["seconds"])
    assert fields["stream"] == 1


async def test_what_fails_says_with_which_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        assert (await client.ask(body=chat("unknown"))).status == 404
        assert (await client.ask(body={"model": "m", "prompt": PROMPT})).status == 400
        b.engine.says(SSE_HEAD, token("a"), close=True)
        assert not (await client.ask(body=chat(stream=True))).complete
        await until(lambda: len(logged(caplog)) == 3, "the lines")
    outcomes = [(fields.get("model"), fields["status"], fields["error"]) for _, fields in logged(caplog)]
    assert outcomes == [
        ("unknown", 404, "model_not_found"),
        (None, 400, "bad_request"),
        ("m", 200, "upstream_failed"),
    ]
    assert logged(caplog)[0][0] == "unknown: /v1/chat/completions: 404 model_not_found"
    assert PROMPT not in caplog.text


@pytest.mark.parametrize(
    ("model", "path", "extra", "code"),
    [
        ("m", "/v1/embeddings", {"input": PROMPT}, "not_supported_by_model"),
        ("größer\n: forged", "/v1/chat/completions", {"messages": [{}]}, "model_not_found"),
        ("m:trial", "/v1/completions", {"prompt": PROMPT}, "model_not_found"),
    ],
)
async def test_a_refusal_names_the_model_that_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model: str, path: str, extra: dict[str, object], code: str
) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engines["llama-server"] = Speaker(says=Traits(frozenset(("chat", "completions"))))
        assert (await client.ask(path=path, body={"model": model, **extra})).code == code
    ((text, fields),) = logged(caplog)
    assert fields["model"] == model
    assert text.startswith(f"{model}: {path}: ")
    assert PROMPT not in caplog.text


async def test_a_client_that_goes_is_a_line_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with bench(tmp_path) as b:
        b.engine.script = b.engine.never
        async with await b.client() as client:
            asking = asyncio.create_task(client.ask(body=chat()))
            await b.engine.asked()
            asking.cancel()
        await until(lambda: logged(caplog), "the line")
    ((text, fields),) = logged(caplog)
    assert (fields["error"], fields["status"]) == ("client_disconnected", 0)
    assert "client_disconnected" in text


async def test_an_operator_who_wants_less_gets_less(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    models = [ModelSpec("m", path="/m.gguf")]
    async with bench(tmp_path, models=models) as b, await b.client() as client:
        assert (await client.ask(body=chat())).status == 200
        assert (await client.ask(body=chat("unknown"))).status == 404
        await b.settled()
    assert logged(caplog) == []


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_a_client_that_is_gone_has_its_address_in_the_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    """A closed transport of uvloop cannot be asked for it any more."""
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.script = b.engine.never
        client.send(request(body=chat(stream=stream)))
        await b.engine.asked()
        b.connections[0].transport.abort()
        await until(lambda: logged(caplog), "the line")
    ((_, fields),) = logged(caplog)
    assert fields["peer"] == "127.0.0.1"
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
