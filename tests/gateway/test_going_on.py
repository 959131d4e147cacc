"""Until a byte of a response is sent, a request goes on: to the next model of its route, or into the queue again."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.exits import Cause, Exit
from accelerd.config.model import ModelSpec, Route, SchedulerSettings, ServerSettings
from accelerd.engines.base import Dialect, Traits
from tests.gateway.bench import (
    DONE,
    SSE_HEAD,
    Asked,
    Bench,
    Speaker,
    bench,
    fresh_and_reused,
    on_both_loops,
    plain,
    token,
    until,
)
from tests.gateway.client import Client, Response, chat

MODELS = [ModelSpec(name, path=f"/{name}.gguf") for name in ("first", "second", "third")]
ROUTE = Route("team", ("first", "second", "third"))
QUICK = ServerSettings(keepalive_after=0.01)
HEADER, ROUTE_HEADER, ATTEMPTS = "x-accelerd-model", "x-accelerd-route", "x-accelerd-attempts"


def table(tmp_path: Path, settings: ServerSettings | None = None) -> Any:
    return bench(tmp_path, settings, models=MODELS, routes=[ROUTE])


def failing(b: Bench, *models: str) -> None:
    """These exit as soon as they are started; the others are ready at once."""
    start, scheduler = b.instances.start, b.scheduler

    def begin(instance: int, spec: ModelSpec, devices: Any = ()) -> None:
        if spec.name in models:
            died = Exit(Cause.EXITED, f"{spec.name} exited with status 1", 1)
            asyncio.get_running_loop().call_soon(scheduler.instance_gone, instance, died)
        else:
            start(instance, spec, devices)

    b.instances.start = begin  # type: ignore[method-assign]


@pytest.mark.parametrize("stream", [False, True])
@on_both_loops
async def test_a_route_whose_first_model_cannot_start_is_answered_by_the_next(
    tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with table(tmp_path) as b, await b.client() as client:
        failing(b, "first", "second")
        if stream:
            b.engine.says(SSE_HEAD, token("a"), DONE)
        for _ in range(2):  # the second time they back off
            answer = await client.ask(body=chat("team", stream=stream))
            assert (answer.status, answer.complete, answer.headers[HEADER]) == (200, True, "third")
        assert len(b.engine.requests) == 2
    assert "team: first cannot answer (model_backing_off), second is asked" in caplog.text


@on_both_loops
async def test_comments_may_have_been_sent_before(tmp_path: Path) -> None:
    async with table(tmp_path, QUICK) as b, await b.client() as client:
        b.instances.hold = True
        b.engine.says(SSE_HEAD, token("a"), DONE)
        asking = asyncio.create_task(client.ask(body=chat("team", stream=True)))
        await until(lambda: b.connections and b.connections[0].relay and b.connections[0].relay.committed, "a comment")
        b.instances.fail("exited with status 1")
        b.instances.let_go()
        answer = await asking
        assert (answer.status, answer.complete) == (200, True)
        assert answer.body.startswith(b": loading first")
        assert answer.events()[-1] == "[DONE]"
        assert HEADER not in answer.headers, "when the head was sent nobody knew who would answer"


@pytest.mark.parametrize("stream", [False, True])
@fresh_and_reused
@on_both_loops
async def test_an_engine_that_ends_without_a_byte(tmp_path: Path, stream: bool, primed: bool) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        if primed:
            assert (await client.ask(body=chat("first"))).status == 200
        asked: list[bytes] = []

        async def script(one: Asked) -> None:
            asked.append(one.body)
            if len(asked) < 3:
                one.writer.close()
            else:
                one.writer.write(plain(b'{"choices":[]}'))

        b.engine.script = script
        answer = await client.ask(body=chat("team", stream=stream))
        assert answer.status == 200
        assert answer.headers[HEADER] != "first"


@on_both_loops
async def test_a_head_alone_is_no_answer(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        asked: list[bytes] = []

        async def script(one: Asked) -> None:
            asked.append(one.body)
            one.writer.write(SSE_HEAD if len(asked) < 3 else SSE_HEAD + token("a") + DONE)
            if len(asked) < 3:
                one.writer.close()

        b.engine.script = script
        answer = await client.ask(body=chat("team", stream=True))
        assert (answer.status, answer.complete, answer.headers[HEADER]) == (200, True, "third")
        assert answer.events()[0]["choices"][0]["delta"] == {"content": "a"}
        asked.clear()
        b.engine.says(SSE_HEAD, close=True)
        answer = await client.ask(body=chat("team", stream=True))
        assert (answer.status, answer.code) == (502, "upstream_failed"), "where nobody answers, the status says so"


@on_both_loops
async def test_after_the_first_byte_it_is_too_late(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, token("a"), close=True)
        answer = await client.ask(body=chat("team", stream=True))
        assert (answer.headers[HEADER], answer.complete) == ("first", False)
        assert answer.events()[-1]["error"]["code"] == "upstream_failed"
        assert len(b.engine.requests) == 1


def saying(first: bytes, *then: bytes) -> tuple[list[bytes], Any]:
    """An engine of which each request gets the next answer, and the last one from then on."""
    asked: list[bytes] = []

    async def script(one: Asked) -> None:
        answers = (first, *then)
        one.writer.write(answers[min(len(asked), len(then))])
        asked.append(one.body)

    return asked, script


def error(status: int, text: str = "no") -> bytes:
    return plain(b'{"error":{"code":%d,"message":"%b","type":"server_error"}}' % (status, text.encode()), status)


@pytest.mark.parametrize("status", [400, 409, 422])
@on_both_loops
async def test_what_an_engine_refuses_is_its_answer(tmp_path: Path, status: int) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        b.engine.says(error(status))
        answer = await client.ask(body=chat("team"))
        assert (answer.status, len(b.engine.requests)) == (status, 1)


@pytest.mark.parametrize("status", [404, 429, 500, 501, 503])
@pytest.mark.parametrize("stream", [False, True])
@fresh_and_reused
@on_both_loops
async def test_an_engine_that_fails_with_an_answer(tmp_path: Path, status: int, stream: bool, primed: bool) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        if primed:
            assert (await client.ask(body=chat("first"))).status == 200
        good = SSE_HEAD + token("a") + DONE if stream else plain(b'{"choices":[]}')
        asked, b.engine.script = saying(error(status), good)
        answer = await client.ask(body=chat("team", stream=stream))
        assert (answer.status, answer.complete, len(asked)) == (200, True, 2)
        assert answer.headers[HEADER] != "first"
        asked, b.engine.script = saying(error(status), good)
        answer = await client.ask(body=chat("first", stream=stream))
        assert (answer.status, len(asked)) == (status, 1), "who names a model gets its answer"
        await b.settled()


@on_both_loops
async def test_after_comments_too(tmp_path: Path) -> None:
    async with table(tmp_path, QUICK) as b, await b.client() as client:
        b.instances.hold = True
        asked, b.engine.script = saying(error(500), SSE_HEAD + token("a") + DONE)
        asking = asyncio.create_task(client.ask(body=chat("team", stream=True)))
        await until(lambda: b.connections and b.connections[0].relay and b.connections[0].relay.committed, "a comment")
        b.instances.hold = False
        b.instances.let_go()
        answer = await asking
        assert (answer.status, answer.complete, len(asked)) == (200, True, 2)
        assert answer.events()[-1] == "[DONE]"


@on_both_loops
async def test_where_all_fail_the_last_one_has_the_last_word(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        asked, b.engine.script = saying(error(500, "one"), error(503, "two"), error(401, "three"))
        answer = await client.ask(body=chat("team"))
        assert (answer.status, answer.json()["error"]["message"], len(asked)) == (401, "three", 3)
        assert answer.headers["x-accelerd-attempts"] == "3"


@on_both_loops
async def test_what_the_engine_said_is_told_where_no_other_can_be_loaded(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        failing(b, "second", "third")
        b.engine.says(error(500, "out of luck"))
        answer = await client.ask(body=chat("team"))
        assert (answer.status, len(b.engine.requests)) == (502, 1)
        text = answer.json()["error"]["message"]
        assert "the engine answered with status 500: out of luck" in text
        assert "cannot load second" in text


@on_both_loops
async def test_what_the_request_has_caused_goes_to_no_other_model(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        b.engines["llama-server"] = Speaker(dialect=Dialect(request_faults="^Jinja Exception"))
        b.engine.says(error(500, "Jinja Exception: no such role"))
        answer = await client.ask(body=chat("team"))
        assert (answer.status, len(b.engine.requests)) == (400, 1)


@on_both_loops
async def test_all_of_them_are_named_where_none_can(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        failing(b, "first", "second", "third")
        answer = await client.ask(body=chat("team"))
        assert (answer.status, answer.code) == (503, "model_backing_off")
        assert int(answer.headers["retry-after"]) > 0
        text = answer.json()["error"]["message"]
        assert text.startswith("no model of team could answer: cannot load first: first exited with status 1;")
        assert all(f"cannot load {name}" in text for name in ROUTE.models)
        assert (answer.headers[HEADER], answer.headers[ROUTE_HEADER]) == ("third", "team")
        assert answer.headers[ATTEMPTS] == "3"
        alone = await client.ask(body=chat("first"))
        assert (alone.status, alone.headers[HEADER], alone.headers[ATTEMPTS]) == (503, "first", "1")
        assert ROUTE_HEADER not in alone.headers
        assert HEADER not in (await client.ask(body=chat("nobody"))).headers


@on_both_loops
async def test_a_model_that_is_unloaded_while_a_request_waits_for_it(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        b.instances.hold = True
        asking = asyncio.create_task(client.ask(body=chat("team")))
        await until(lambda: b.scheduler.queued, "it waits")
        b.scheduler.begin_unload("first", force=False, done=lambda: None)
        b.instances.let_go()
        assert (await asking).headers[HEADER] == "second"


@on_both_loops
async def test_a_model_that_says_once_loaded_that_it_cannot(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        loading = b.instances.start

        def start(instance: int, spec: ModelSpec, devices: Any = ()) -> None:
            b.engines["llama-server"] = Speaker(of={"first": Traits(frozenset(("embeddings",)))})
            loading(instance, spec, devices)

        b.instances.start = start  # type: ignore[method-assign]
        assert (await client.ask(body=chat("team"))).headers[HEADER] == "second"


@on_both_loops
async def test_a_shutdown_asks_nobody_else(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        b.instances.hold = True
        asking = asyncio.create_task(client.ask(body=chat("team")))
        await until(lambda: b.scheduler.queued, "it waits")
        b.scheduler.shutdown()
        assert (await asking).code == "shutting_down"


# --- an engine that is gone before it has read the request --------------------------------------------------------


class Mortal:
    """Kills the bench's engine; the next instance is there again. Who asks whether it lives learns that it ended."""

    def __init__(self, b: Bench) -> None:
        self.b = b
        self.start, self.away = b.instances.start, b.engine.path.with_suffix(".away")
        b.instances.start = self.begin  # type: ignore[method-assign]
        b.instances.probe = self.probe  # type: ignore[method-assign]
        hang_up(b)
        b.engine.path.rename(self.away)

    def begin(self, instance: int, spec: ModelSpec, devices: Any = ()) -> None:
        if self.away.exists():
            self.away.rename(self.b.engine.path)
        self.start(instance, spec, devices)

    def probe(self, instance: int, *, thorough: bool = False) -> None:
        self.b.instances.probes += 1
        killed = Exit(Cause.EXITED, "was killed by signal 9")
        asyncio.get_running_loop().call_soon(self.b.scheduler.instance_gone, instance, killed)


def hang_up(b: Bench) -> None:
    for writer in list(b.engine.open):
        writer.transport.abort()


@pytest.mark.parametrize("keep", [False, True], ids=["plain", "preload"])
@pytest.mark.parametrize("stream", [False, True])
@on_both_loops
async def test_a_request_that_finds_its_engine_dead_waits_for_the_next_one(
    tmp_path: Path, stream: bool, keep: bool
) -> None:
    models = [ModelSpec("m", path="/m.gguf", preload=keep)]
    async with bench(tmp_path, models=models) as b, await b.client(primed=True) as client:
        if stream:
            b.engine.says(SSE_HEAD, token("a"), DONE)
        Mortal(b)
        answer = await client.ask(body=chat(stream=stream))
        assert (answer.status, answer.complete, b.instances.probes) == (200, True, 1)


@on_both_loops
async def test_it_is_the_first_in_the_queue_again(tmp_path: Path) -> None:
    async with bench(tmp_path, models=[ModelSpec("m", path="/m.gguf")]) as b, await b.client(primed=True) as client:

        async def ask(number: int) -> Response:
            async with await b.client() as other:
                return await other.ask(body=chat(number=number))

        mortal = Mortal(b)
        probes: list[int] = []
        b.instances.probe = probes.append  # type: ignore[method-assign]
        others = []
        asking = asyncio.create_task(client.ask(body=chat(number=0)))
        await until(lambda: probes, "it has met the dead one")
        for number in (1, 2):
            others.append(asyncio.create_task(ask(number)))
            await until(lambda number=number: b.scheduler.queued == number + 1, "it waits")
        mortal.probe(probes[0])
        assert [one.status for one in await asyncio.gather(asking, *others)] == [200, 200, 200]
        assert [one.json()["number"] for one in b.engine.requests] == [0, 1, 2]


async def loaded_again(b: Bench, client: Client) -> None:
    """The first model has ended once and is loaded again; when it ends once more, it backs off."""
    assert (await client.ask(body=chat("team"))).headers[HEADER] == "first"
    instance = b.scheduler.snapshot("first").instance
    assert instance is not None
    b.scheduler.instance_gone(instance, Exit(Cause.EXITED, "was killed by signal 9"))
    assert (await client.ask(body=chat("team"))).headers[HEADER] == "first"
    await b.settled()
    b.engine.requests.clear()


@pytest.mark.parametrize("stream", [False, True])
@on_both_loops
async def test_nobody_waits_out_a_back_off_where_another_model_can_answer(
    tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("accelerd.scheduler.exit_handling.SHORT_PAUSE", 600.0)
    slow = SchedulerSettings(backoff_initial=60.0)  # only a reset ends it
    async with (
        bench(tmp_path, models=MODELS, routes=[ROUTE], scheduling=slow) as b,
        await b.client() as one,
        await b.client() as other,
        await b.client() as alone,
    ):
        await loaded_again(b, one)
        if stream:
            b.engine.says(SSE_HEAD, token("a"), DONE)
        mortal = Mortal(b)
        probes: list[int] = []
        b.instances.probe = probes.append  # type: ignore[method-assign]
        asking = [asyncio.create_task(one.ask(body=chat("team", stream=stream)))]
        await until(lambda: b.scheduler.queued == 1, "it has met the dead engine")
        asking.append(asyncio.create_task(alone.ask(body=chat("first", stream=stream))))
        await until(lambda: b.scheduler.queued == 2, "one that only this model may answer")
        mortal.probe(probes[0])
        answer = await asking[0]
        assert (answer.status, answer.complete, answer.headers[HEADER]) == (200, True, "second")
        answer = await other.ask(body=chat("team", stream=stream))
        assert (answer.status, answer.headers[HEADER]) == (200, "second")
        assert b.scheduler.snapshot("first").queue == 1
        b.scheduler.reset("first")
        answer = await asking[1]
        assert (answer.status, answer.headers[HEADER]) == (200, "first")
    assert "team: first cannot answer (model_backing_off), second is asked" in caplog.text


@on_both_loops
async def test_where_no_other_can_a_request_waits_it_out(tmp_path: Path) -> None:
    quick = SchedulerSettings(backoff_initial=0.01)
    async with bench(tmp_path, models=MODELS, routes=[ROUTE], scheduling=quick) as b, await b.client() as client:
        await loaded_again(b, client)
        mortal = Mortal(b)
        started: list[str] = []

        def begin(instance: int, spec: ModelSpec, devices: Any = ()) -> None:
            started.append(spec.name)
            if spec.name == "first":
                mortal.begin(instance, spec, devices)
            else:
                lost = Exit(Cause.DEVICE_REMOVED, "its device is gone")
                asyncio.get_running_loop().call_soon(b.scheduler.instance_gone, instance, lost)

        b.instances.start = begin  # type: ignore[method-assign]
        for name in ("second", "third"):
            assert (await client.ask(body=chat(name))).code == "model_failed"
        answer = await client.ask(body=chat("team"))
        assert (answer.status, answer.headers[HEADER]) == (200, "first")
        assert started == ["second", "third", "first"], "it has waited for the model, and nobody else was tried"


@on_both_loops
async def test_it_does_not_go_on_for_ever(tmp_path: Path) -> None:
    """The engine lives, as far as the probe knows, and nobody can connect to it."""
    async with bench(tmp_path) as b, await b.client(primed=True) as client:
        hang_up(b)
        away = b.engine.path.rename(b.engine.path.with_suffix(".away"))
        answer = await client.ask(body=chat())
        assert (answer.status, answer.code) == (502, "upstream_failed")
        away.rename(b.engine.path)


@on_both_loops
async def test_what_an_engine_may_have_begun_is_not_asked_again(tmp_path: Path) -> None:
    """It may be that request which has ended it."""
    async with bench(tmp_path) as b, await b.client() as client:

        async def script(asked: Asked) -> None:
            asked.writer.close()

        b.engine.script = script
        answer = await client.ask(body=chat())
        assert (answer.status, answer.code, len(b.engine.requests)) == (502, "upstream_failed", 1)
