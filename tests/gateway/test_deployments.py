"""Deployments of a route: order, weight, fallbacks, cooling, long prompts, conversations, and what the headers say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from accelerd.config.model import ModelSpec, Route, ServerSettings
from accelerd.config.routes import Deployment
from accelerd.engines.base import Traits
from accelerd.gateway import going_on
from accelerd.gateway.request_facts import RequestFacts
from accelerd.gateway.request_router import UpstreamTarget
from accelerd.routing.health import HealthState
from accelerd.routing.plan import Plan
from tests.gateway.bench import (
    ALL,
    DONE,
    SSE_HEAD,
    Asked,
    Bench,
    Speaker,
    bench,
    chunk,
    on_both_loops,
    plain,
    token,
    until,
)
from tests.gateway.client import Client, Response, chat, request

NAMES = ("a", "b", "c", "d")
MODEL, ROUTE, ATTEMPTS = "x-accelerd-model", "x-accelerd-route", "x-accelerd-attempts"
GOOD = plain(b'{"object":"chat.completion","model":"theirs","choices":[]}')


def table(
    tmp_path: Path,
    *routes: Route,
    contexts: Mapping[str, int] | None = None,
    fallbacks: Sequence[str] = (),
    **more: Any,
) -> Any:
    """Models that have their own names at their engine."""
    of = {name: Traits(ALL, wire_name=f"wire-{name}", context=(contexts or {}).get(name)) for name in NAMES}
    models = [ModelSpec(name, path=f"/{name}.gguf", parallel=4) for name in NAMES]
    settings = ServerSettings(default_fallbacks=tuple(fallbacks))
    return bench(tmp_path, settings, models=models, routes=routes, others={"llama-server": Speaker(of=of)}, **more)


def answers(b: Bench, by: Mapping[str, bytes]) -> list[str]:
    """Each model answers with its bytes, and the others well. The list: who was asked."""
    asked: list[str] = []

    async def script(one: Asked) -> None:
        name = one.json()["model"].removeprefix("wire-")
        asked.append(name)
        one.writer.write(by.get(name, GOOD))
        if not by.get(name, GOOD):
            one.writer.close()

    b.engine.script = script
    return asked


def fault(status: int, extra: str = "", **error: Any) -> bytes:
    body = msgspec.json.encode({"error": {"message": f"status {status}"} | error})
    return plain(body, status, extra=extra)


def orders(*models: str) -> tuple[Deployment, ...]:
    return tuple(Deployment(name, order) for order, name in enumerate(models, 1))


async def who(client: Client, route: str = "r", **more: Any) -> str:
    response = await client.ask(body=chat(route, **more))
    assert response.status == 200, response.body
    assert response.json()["model"] == route, "what the client has asked for"
    return f"{response.headers[MODEL]} {response.headers[ATTEMPTS]}"


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 502, 503, 529])
@on_both_loops
async def test_the_next_order_answers_and_what_has_failed_is_passed_over(tmp_path: Path, status: int) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        asked = answers(b, {"a": fault(status)})
        response: Response = await client.ask(body=chat("r"))
        assert (response.headers[MODEL], response.headers[ROUTE], response.headers[ATTEMPTS]) == ("b", "r", "2")
        assert await who(client) == "b 1", "the other one cools down"
        assert asked == ["a", "b", "b"]


@on_both_loops
async def test_a_path_that_is_missing_cools_nothing(tmp_path: Path) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        asked = answers(b, {"a": fault(404)})
        assert [await who(client), await who(client)] == ["b 2", "b 2"]
        assert asked == ["a", "b", "a", "b"]


BODY = GOOD.partition(b"\r\n\r\n")[2]
EARLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "said",
    [
        plain(BODY[:-1]),
        plain(BODY[:20]),
        plain(b""),
        EARLY + b"Content-Length: 900\r\n\r\n" + BODY,
        EARLY + b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n" + BODY,
        EARLY + b"\r\n" + BODY[:-4],
    ],
    ids=range(6),
)
@on_both_loops
async def test_an_answer_that_is_cut_is_given_by_the_next(tmp_path: Path, said: bytes) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        asked: list[str] = []

        async def script(one: Asked) -> None:
            asked.append(one.json()["model"])
            one.writer.write(said if asked == ["wire-a"] else GOOD)
            if asked == ["wire-a"]:
                one.writer.close()

        b.engine.script = script
        assert await who(client) == "b 2"
        assert asked == ["wire-a", "wire-b"]
        assert b.gateway.router.health.of("a").state is HealthState.COOLING


@on_both_loops
async def test_an_answer_that_is_cut_is_an_error_where_nobody_else_can_answer(tmp_path: Path) -> None:
    async with table(tmp_path) as b, await b.client() as client:
        answers(b, {"a": plain(BODY[:-1]), "b": plain(b'{"model":"theirs","logprob":NaN}')})
        response = await client.ask(body=chat("a"))
        assert (response.status, response.code) == (502, "upstream_failed")
        assert "ends too early" in response.json()["error"]["message"]
        assert (await client.ask(body=chat("b"))).status == 200, "Python's engines write NaN"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"the provider is away","code":502},"user_id":"u"}',
        b'{"type":"error","error":{"type":"overloaded_error","message":"the provider is away"}}',
        b' {"error": "the provider is away"}',
    ],
    ids=range(3),
)
@on_both_loops
async def test_an_error_with_status_200_is_no_answer(tmp_path: Path, body: bytes, path: str) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        answers(b, {"a": plain(body), "b": plain(BODY.replace(b"[]", b'[{"message":{"content":"x"}}]'))})
        answer = await client.ask("POST", path, chat("r", max_tokens=1))
        assert (answer.status, answer.headers[MODEL], answer.headers[ATTEMPTS]) == (200, "b", "2")
        alone = await client.ask("POST", path, chat("a", max_tokens=1))
        assert alone.status == 502
        assert "the provider is away" in alone.json()["error"]["message"]


@pytest.mark.parametrize("more", [b'"error":null,', b'"error":{},', b'"error":{"message":"a part failed"},'])
@on_both_loops
async def test_an_answer_that_has_an_error_beside_it_stays_one(tmp_path: Path, more: bytes) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        answers(b, {"a": plain(BODY.replace(b"{", b"{" + more, 1))})
        assert await who(client) == "a 1"


@pytest.mark.parametrize("stream", [False, True])
@on_both_loops
async def test_a_server_without_the_model_is_passed_over_and_shown(tmp_path: Path, stream: bool) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        asked = answers(b, {"a": fault(404, message="model 'wire-a' not found")})
        for attempts in ("2", "1"):
            response = await client.ask(body=chat("r", stream=stream))
            assert (response.status, response.headers[MODEL], response.headers[ATTEMPTS]) == (200, "b", attempts)
        assert asked == ["a", "b", "b"]
        assert b.gateway.router.health.of("a").state is HealthState.NO_MODEL
        alone = await client.ask(body=chat("a"))
        assert alone.status == 404
        assert "model 'wire-a' not found" in alone.json()["error"]["message"], "the engine's own words"


@on_both_loops
async def test_what_the_client_has_caused_is_its_answer_and_cools_nothing(tmp_path: Path) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        asked = answers(b, {"a": fault(400)})
        for _ in range(2):
            response = await client.ask(body=chat("r"))
            assert (response.status, response.headers[MODEL]) == (400, "a")
        assert asked == ["a", "a"]


@on_both_loops
async def test_after_its_cooling_one_request_tries_it(tmp_path: Path) -> None:
    route = Route("r", deployments=orders("a", "b"), cooldown=0.05)
    async with table(tmp_path, route) as b, await b.client() as client:
        asked = answers(b, {"a": fault(500)})
        assert await who(client) == "b 2"
        answers(b, {})
        while await who(client) != "a 1":  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0.01)
        assert await who(client) == "a 1"
        assert asked[:2] == ["a", "b"]


@on_both_loops
async def test_a_request_that_breaks_every_engine_cools_none(tmp_path: Path) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        answers(b, {"a": fault(500), "b": fault(500)})
        assert (await client.ask(body=chat("r"))).status == 500
        answers(b, {})
        assert await who(client) == "a 1"


@on_both_loops
async def test_where_all_cool_down_they_are_asked_all_the_same(tmp_path: Path) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        answers(b, {"a": fault(401), "b": fault(503)})
        assert (await client.ask(body=chat("r"))).status == 503
        answers(b, {})
        assert await who(client) == "a 1"


@on_both_loops
async def test_requests_are_shared_by_weight(tmp_path: Path) -> None:
    route = Route("r", deployments=(Deployment("a", weight=3), Deployment("b"), Deployment("c", 2)))
    async with table(tmp_path, route) as b, await b.client() as client:
        answers(b, {})
        for name in ("a", "b"):
            await client.ask(body=chat(name))
        assert Counter([await who(client) for _ in range(20)]) == {"a 1": 15, "b 1": 5}
        assert b.gateway.router.answered == {("r", "a"): 15, ("r", "b"): 5}


@on_both_loops
async def test_the_usual_case_shares_as_all_others_do(tmp_path: Path) -> None:
    """Whether all that share are free, or somebody is at work elsewhere so that each is looked at."""
    route = Route("r", deployments=(Deployment("a", weight=3), Deployment("b", weight=2), Deployment("c")))
    orders = []
    for busy in (False, True):
        folder = tmp_path / str(busy)
        folder.mkdir()
        async with table(folder, route) as b, await b.client() as client:
            answers(b, {})
            for name in "abc":
                await client.ask(body=chat(name))
            b.gateway.router._scheduler.alone = lambda name, busy=busy, real=b.scheduler.alone: not busy and real(name)  # type: ignore[method-assign]
            orders.append([await who(client) for _ in range(12)])
    assert orders[0] == orders[1]
    assert Counter(orders[0]) == {"a 1": 6, "b 1": 4, "c 1": 2}


@on_both_loops
async def test_requests_that_come_at_once_are_shared(tmp_path: Path) -> None:
    """Each is counted where it goes before the next one is routed, also where it has to wait there."""
    models = [ModelSpec(name, path=f"/{name}.gguf", parallel=1) for name in "ab"]
    route = Route("r", deployments=(Deployment("a"), Deployment("b")))
    async with bench(tmp_path, models=models, routes=[route]) as b, await b.client() as first:
        for name in "ab":
            assert (await first.ask(body=chat(name))).status == 200
        b.engine.script = b.engine.never
        clients = [await b.client() for _ in range(12)]

        def there(name: str) -> int:
            now = b.scheduler.snapshot(name)
            return now.leases + now.queue

        for client in clients[:4]:
            client.send(request(body=chat("b")))
        await until(lambda: there("b") == 4, "they wait for b")
        for client in clients[4:]:
            client.send(request(body=chat("r")))
        await until(lambda: there("a") + there("b") == 12, "all have come")
        assert (there("a"), there("b")) == (6, 6)
        for client in clients:
            await client.vanish()


@on_both_loops
async def test_what_is_loaded_goes_before_what_is_not(tmp_path: Path) -> None:
    route = Route("r", deployments=(Deployment("a", weight=9), Deployment("b")))
    async with table(tmp_path, route) as b, await b.client() as client:
        answers(b, {})
        await client.ask(body=chat("b"))
        assert {await who(client) for _ in range(3)} == {"b 1"}


@on_both_loops
async def test_fallbacks_may_be_routes_and_those_of_all_come_last(tmp_path: Path) -> None:
    routes = Route("r", ("a",), fallbacks=("s",)), Route("s", ("b", "c"))
    async with table(tmp_path, *routes, fallbacks=["d"]) as b, await b.client() as client:
        bad = fault(500)
        for failing, expected in (({}, "a 1"), ({"a"}, "b 2"), ({"a", "b"}, "c 3"), ({"a", "b", "c"}, "d 4")):
            asked = answers(b, dict.fromkeys(failing, bad))
            b.gateway.router.health.keep(set())
            response = await client.ask(body=chat("r"))
            assert f"{response.headers[MODEL]} {response.headers[ATTEMPTS]}" == expected
            assert (response.headers[ROUTE], response.json()["model"]) == ("r", "r")
            assert sorted(asked[:-1]) == sorted(failing)


@on_both_loops
async def test_a_model_by_its_name_has_the_fallbacks_of_all(tmp_path: Path) -> None:
    async with table(tmp_path, fallbacks=["d"]) as b, await b.client() as client:
        asked = answers(b, {"a": fault(503)})
        response = await client.ask(body=chat("a"))
        assert (response.headers[MODEL], response.headers[ATTEMPTS], response.json()["model"]) == ("d", "2", "a")
        assert ROUTE not in response.headers
        assert await who(client, "a") == "d 1", "a cools down"
        assert asked == ["a", "d", "d"]


TOO_LONG = fault(400, code="context_length_exceeded")


@on_both_loops
async def test_what_is_too_long_goes_to_a_longer_context_by_the_engines_word(tmp_path: Path) -> None:
    route = Route("r", ("a", "b", "c"))
    async with table(tmp_path, route, contexts={"a": 100, "b": 100, "c": 200}) as b, await b.client() as client:
        asked = answers(b, {"a": TOO_LONG, "b": TOO_LONG})
        assert [await who(client), await who(client)] == ["c 2", "c 2"]
        assert asked == ["a", "c"] * 2


@pytest.mark.parametrize(("counted", "asked_then"), [(0, "abc"), (1900, "abc"), (4100, "ac"), (40_000, "a")])
@on_both_loops
async def test_what_an_engine_has_counted_spares_those_that_are_much_too_short(
    tmp_path: Path, counted: int, asked_then: str
) -> None:
    route = Route("r", deployments=orders("a", "b", "c"))
    async with table(tmp_path, route, contexts={"a": 1000, "b": 2000, "c": 9000}) as b, await b.client() as client:
        long = fault(400, code="context_length_exceeded", n_prompt_tokens=counted)
        asked = answers(b, dict.fromkeys("abc", long))
        assert (await client.ask(body=chat("r"))).status == 400
        assert "".join(asked) == asked_then


@on_both_loops
async def test_context_fallbacks_go_first_and_serve_nothing_else(tmp_path: Path) -> None:
    route = Route("r", ("a", "b"), context_fallbacks=("d",))
    async with table(tmp_path, route, contexts={"a": 100, "b": 900, "d": 900}) as b, await b.client() as client:
        answers(b, {"a": TOO_LONG})
        assert await who(client) == "d 2"
        answers(b, {"a": fault(500), "b": fault(500)})
        assert (await client.ask(body=chat("r"))).headers[MODEL] == "b", "the last that it has for such requests"


@on_both_loops
async def test_nobody_has_a_longer_one(tmp_path: Path) -> None:
    async with table(tmp_path, Route("r", ("a", "b")), contexts={"a": 100, "b": 90}) as b, await b.client() as client:
        asked = answers(b, {"a": TOO_LONG})
        response = await client.ask(body=chat("r"))
        assert (response.status, response.json()["error"]["code"], asked) == (400, "context_length_exceeded", ["a"])


@on_both_loops
async def test_what_is_too_long_beyond_doubt_is_asked_of_no_short_context(tmp_path: Path) -> None:
    route = Route("r", ("a", "b", "c"))
    async with table(tmp_path, route, contexts={"a": 100, "b": 299}) as b, await b.client() as client:
        asked = answers(b, {})
        long = [{"role": "user", "content": "a word " * 150}]
        assert await who(client, messages=long) == "c 1"
        assert await who(client, messages=[{"role": "user", "content": "word" * 1000}]) == "a 1", (
            "that may be one token"
        )
        assert asked == ["c", "a"]


@on_both_loops
async def test_a_conversation_stays_where_it_was(tmp_path: Path) -> None:
    route = Route("r", deployments=(Deployment("a"), Deployment("b")), session_affinity=True)
    async with table(tmp_path, route) as b, await b.client() as client:
        answers(b, {})
        for name in ("a", "b"):
            await client.ask(body=chat(name))
        places = {}
        for number in range(4):
            places[number] = await who(client, user=str(number))
        assert Counter(places.values()) == {"a 1": 2, "b 1": 2}
        for number in (3, 0, 0, 2, 1, 3):
            assert await who(client, user=str(number)) == places[number]
        for session in ("x", "y"):
            headers = {"X-Session-Id": session}
            first, second = [(await client.ask(body=chat("r"), headers=headers)).headers[MODEL] for _ in range(2)]
            assert first == second


@on_both_loops
async def test_all_are_asked_again_after_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(going_on, "FIRST_PAUSE", 0.01)
    async with table(tmp_path, Route("r", ("a", "b"), retries=2)) as b, await b.client() as client:
        asked: list[str] = []

        async def script(one: Asked) -> None:
            asked.append(one.json()["model"])
            one.writer.write(GOOD if len(asked) == 5 else fault(503))

        b.engine.script = script
        assert await who(client) == "a 5"
        asked.clear()
        answers(b, {"a": fault(404), "b": fault(403)})
        assert (await client.ask(body=chat("r"))).status == 403, "that does not pass"


@pytest.mark.parametrize("begun", [SSE_HEAD, SSE_HEAD + chunk(b'data: {"model":"the')])
@on_both_loops
async def test_a_stream_that_has_hardly_begun_is_given_by_the_next(tmp_path: Path, begun: bytes) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:

        async def script(one: Asked) -> None:
            mine = one.json()["model"] == "wire-a"
            one.writer.write(begun if mine else SSE_HEAD + token("x", model="theirs") + DONE)
            if mine:
                one.writer.close()

        b.engine.script = script
        answer = await client.ask(body=chat("r", stream=True))
        assert (answer.headers[MODEL], answer.headers[ATTEMPTS], answer.complete) == ("b", "2", True)
        assert answer.events()[0]["model"] == "r"
        alone = await client.ask(body=chat("a", stream=True))
        assert (alone.headers[MODEL], alone.complete) == ("a", False)


@on_both_loops
async def test_a_stream_that_has_begun_ends_with_an_error_and_cools(tmp_path: Path) -> None:
    async with table(tmp_path, Route("r", deployments=orders("a", "b"))) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, token("x"), close=True)
        answer = await client.ask(body=chat("r", stream=True))
        assert (answer.headers[MODEL], answer.complete) == ("a", False)
        assert answer.events()[-1]["error"]["code"] == "upstream_failed"
        b.engine.says(SSE_HEAD, token("x", model="theirs"), DONE)
        async with await b.client() as other:
            answer = await other.ask(body=chat("r", stream=True))
            assert (answer.headers[MODEL], answer.events()[0]["model"]) == ("b", "r")


@on_both_loops
async def test_an_image_goes_to_whoever_can_see(tmp_path: Path) -> None:
    async with table(tmp_path, Route("r", ("a", "b"))) as b, await b.client() as client:
        b.engines["llama-server"].of["a"] = Traits(ALL - {"vision"}, wire_name="wire-a")
        answers(b, {})
        picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
        assert [await who(client), await who(client, messages=picture)] == ["a 1", "b 1"]


@on_both_loops
async def test_the_usual_case_is_decided_as_all_others_are(tmp_path: Path) -> None:
    """Once the first model is loaded and nothing else is at work, nobody looks at the others."""
    async with table(tmp_path, Route("r", ("a", "b")), contexts={"a": 100, "b": 900}) as b, await b.client() as client:
        asked = answers(b, {})
        router, all_of_them = b.gateway.router, list[str]()
        decide = router._of_all

        def of_all(plan: Plan, facts: RequestFacts) -> UpstreamTarget:
            all_of_them.append(plan.name)
            return decide(plan, facts)

        router._of_all = of_all  # type: ignore[method-assign]
        assert [await who(client) for _ in range(3)] == ["a 1"] * 3
        assert len(all_of_them) == 1, "it was not loaded"
        assert await who(client, messages=[{"role": "user", "content": "a word " * 150}]) == "b 1"
        b.engine.script = b.engine.never
        async with await b.client() as other:
            other.send(request(body=chat("d")))
            await until(lambda: b.leases("d"), "another model works")
            answers(b, {})
            assert await who(client) == "a 1"
            assert len(all_of_them) == 3, "they share the processor"
        assert asked == ["a", "a", "a", "b"]
