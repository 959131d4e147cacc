"""Stages of routes, routes in routes, equals by state, efficiency and weight."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.config.complexity import TierMembers
from accelerd.config.model import ModelSpec, Price, Route
from accelerd.config.routes import Deployment
from accelerd.config.variants import Variant
from accelerd.routing.balance import Balance
from accelerd.routing.choice import Decision, Elsewhere, Now, decide, known
from accelerd.routing.directory import Directory
from accelerd.scheduler.lifecycle import State
from tests.routing.test_choice import GPU, NPU, fits, seen

COLD = {"state": State.STOPPED}
FAILED = {"state": State.FAILED}


def chosen(
    routes: list[Route],
    *,
    of: str = "r",
    long: bool = False,
    states: dict[str, dict[str, Any]] | None = None,
    **more: Any,
) -> Decision:
    """All models a, b, … are loaded on devices of their own, unless `states` says otherwise."""
    snapshots = [seen(name, **{"device": f"0000:0{name}:00.0", **(states or {}).get(name, {})}) for name in "abcdef"]
    directory = Directory([ModelSpec(name, path="/m") for name in "abcdef"], routes)
    return decide(directory.plan(directory.routes[of]), Now(known(snapshots), fits, **more), long=long)


def deployments(*of: tuple[str, int, int]) -> tuple[Deployment, ...]:
    return tuple(Deployment(*one) for one in of)


TWO_ORDERS = Route("r", deployments=deployments(("c", 2, 1), ("a", 1, 1), ("b", 1, 1)), fallbacks=("d",))


def test_a_higher_order_only_where_no_lower_one_can_answer() -> None:
    busy = {"leases": 1, "queue": 7}
    assert chosen([TWO_ORDERS], states={"a": busy, "b": busy}).model == "a", "however long that takes"
    assert chosen([TWO_ORDERS], states={"a": FAILED, "b": busy}).model == "b"
    decision = chosen([TWO_ORDERS], states={"a": FAILED, "b": FAILED})
    assert (decision.model, decision.stage) == ("c", "order 2")
    assert decision.reason.startswith("a has failed")
    decision = chosen([TWO_ORDERS], states=dict.fromkeys("abc", FAILED))
    assert (decision.model, decision.stage) == ("d", "fallback")


def test_equals_loaded_before_cold_and_short_queues_before_long() -> None:
    assert chosen([TWO_ORDERS], states={"a": COLD}).model == "b"
    assert chosen([TWO_ORDERS], states={"a": {"leases": 1, "queue": 2}, "b": {"leases": 1, "queue": 1}}).model == "b"
    assert chosen([TWO_ORDERS], states={"a": COLD, "b": {"leases": 1, "queue": 9}}).model == "b", "it is loaded"


def test_a_cooling_one_is_passed_over_unless_there_is_no_other() -> None:
    def cooling(*names: str) -> Any:
        return lambda name: "cools down" if name in names else ""

    assert chosen([TWO_ORDERS], cooling=cooling("a")).model == "b"
    assert chosen([TWO_ORDERS], cooling=cooling("a", "b")).model == "c"
    assert chosen([TWO_ORDERS], cooling=cooling(*"abcd")).model == "a"
    assert chosen([TWO_ORDERS], cooling=cooling(*"abcd"), states={"a": FAILED}).model == "b"


def test_a_route_among_the_models_of_another_is_one_of_them() -> None:
    inner = Route("inner", deployments=deployments(("b", 1, 1), ("c", 2, 1)), fallbacks=("e",))
    outer = Route("r", ("inner", "a"), fallbacks=("d",))
    assert chosen([outer, inner]).routes == ("r", "inner")
    assert chosen([outer, inner], states={"b": {"leases": 1}}).model == "a", "the next in order of preference is free"
    for failing, expected in (("", "b"), ("b", "c"), ("bc", "e"), ("bce", "a"), ("bcea", "d")):
        assert chosen([outer, inner], states=dict.fromkeys(failing, FAILED)).model == expected
    assert [look.model for look in chosen([outer, inner]).looks] == ["b", "c", "e", "a", "d"]


def test_for_long_requests_there_are_others() -> None:
    route = Route("r", ("a",), context_fallbacks=("b",))
    assert chosen([route]).model == "a"
    decision = chosen([route], long=True, lacking={"a": "takes 10 tokens"})
    assert (decision.model, decision.stage) == ("b", "context fallback")
    assert chosen([route], states={"a": FAILED}).model == "a", "they are for nothing else"
    outer = Route("r", ("inner",))
    inner = Route("inner", ("a",), context_fallbacks=("b",))
    assert chosen([outer, inner], long=True, lacking={"a": "takes 10 tokens"}).model == "b"
    assert [look.model for look in chosen([outer, inner]).looks] == ["a"]


@pytest.mark.parametrize(
    "form", [{"models": ("a", "b", "c")}, {"deployments": deployments(("a", 1, 1), ("b", 1, 1), ("c", 1, 1))}]
)
def test_efficiency(form: dict[str, Any]) -> None:
    ranks = {GPU: 2, NPU: 0, "card": 1}
    states = {"a": {"device": GPU}, "b": {"device": "card"}, "c": {"device": NPU}}
    more: dict[str, Any] = {"states": states, "rank": lambda snapshot: ranks.get(snapshot.device, 9)}
    assert chosen([Route("r", prefer="efficiency", **form)], **more).model == "c"
    assert chosen([Route("r", **form)], **more).model == "a"
    states["c"]["leases"] = 1
    assert chosen([Route("r", prefer="efficiency", **form)], **more).model == "b"


def test_the_cheaper_of_equals() -> None:
    def answers(prices: dict[str, Price], *, prefer: Any = "speed", **states: dict[str, Any]) -> Decision:
        route = Route("r", deployments=deployments(("a", 1, 9), ("b", 1, 1), ("c", 2, 1)), prefer=prefer)
        specs = {name: ModelSpec(name, path="/m", price=price) for name, price in prices.items()}
        states = {name: {**states.get(name, {}), "spec": spec} for name, spec in specs.items()}
        return chosen([route], states=states, rank=lambda snapshot: 0 if snapshot.spec.name == "a" else 1)

    prices = {"a": Price(0.5, 1.5), "b": Price(1.5, 0.25), "c": Price()}
    assert [answers(prices).model, answers(prices).reason] == ["b", "b is free, and costs less than a"]
    assert answers(prices, a={"leases": 1}, b={"leases": 1}).reason.endswith("costs less than a")
    assert answers(prices, b={"leases": 1}).model == "a", "a short queue before a long one"
    assert answers(prices, b=COLD).model == "a", "resident before cold"
    assert answers({"a": Price(output=1e-6), "b": Price(), "c": Price()}).model == "b", (
        "without a price it costs nothing"
    )
    assert answers({**prices, "b": Price(2.0)}).reason.endswith("by weight"), "the sum counts"
    assert answers(prices, prefer="efficiency").model == "b", "cheap before efficient"


def test_a_conversation_stays_while_it_could_begin_at_once_or_nobody_could() -> None:
    route = Route("r", deployments=deployments(("a", 1, 1), ("b", 1, 1)), session_affinity=True)
    more: dict[str, Any] = {"recall": {"r": "b"}.get}
    assert chosen([route], **more).model == "b"
    assert "has answered this conversation before" in chosen([route], **more).reason
    busy = {"leases": 1}
    assert chosen([route], states={"b": busy}, **more).model == "a"
    assert chosen([route], states={"a": busy, "b": {"leases": 1, "queue": 3}}, **more).model == "b"
    assert chosen([route], states={"b": COLD}, **more).model == "a", "its cache is gone"
    assert chosen([Route("r", ("a", "b"))], **more).model == "a", "only where it is asked for"


def test_a_model_elsewhere_is_there_at_all_times_and_has_requests_of_others() -> None:
    route = Route("r", deployments=deployments(("a", 1, 1), ("b", 1, 1)))
    far: dict[str, Elsewhere] = {"a": Elsewhere()}
    more: dict[str, Any] = {"elsewhere": lambda snapshot: far.get(snapshot.spec.name)}
    states = {"a": {**COLD, "device": "cpu"}, "b": COLD, "c": {"device": "cpu", "leases": 1}}
    assert chosen([route], states=states, **more).model == "a", "what runs here is not in its way"
    far["a"] = Elsewhere(loaded=False)
    assert chosen([route], states={"b": {}}, **more).model == "b"
    far["a"] = Elsewhere(loaded=True, queue=2)
    decision = chosen([route], states={"b": {"leases": 1, "queue": 2}}, **more)
    assert (decision.model, decision.looks[0].ahead) == ("a", 2)
    assert chosen([route], states={"b": {"leases": 1}}, **more).model == "b"


def test_the_favourite_is_who_would_be_chosen_while_it_is_free() -> None:
    inner = Route("inner", ("b", "a"))
    plain = [ModelSpec(name, path="/m") for name in "abcdef"]
    for route, name, way in (
        (Route("r", ("a", "b")), "a", ("r",)),
        (Route("r", ("inner", "a")), "b", ("r", "inner")),
        (Route("r", ("a",), session_affinity=True), "", ()),
        (Route("r", ("a", "b"), prefer="efficiency"), "", ()),
        (TWO_ORDERS, "", ("r",)),
        (Route("r", tiers=TierMembers(simple=("a",))), "", ()),
    ):
        plan = Directory(plain, [route, inner]).plan(route)
        assert (plan.favourite, plan.way) == (name, way)
        assert bool(plan.equals) is (route is TWO_ORDERS)
        decision = chosen([route, inner])
        assert not name or (decision.model, decision.routes) == (name, way)


@pytest.mark.parametrize(
    ("state", "displaces", "expected"),
    [
        ({"leases": 0, "queue": 1}, "", "b"),
        ({"leases": 0, "queue": 9}, "", "b"),
        ({"leases": 0, "queue": 9}, "b", "a"),
        ({"leases": 0, "queue": 0}, "", "a"),
        ({"leases": 1, "queue": 9, "state": State.READY}, "", "a"),
    ],
)
def test_while_requests_wait_for_one_that_starts_its_equal_is_loaded_beside_it(
    state: dict[str, Any], displaces: str, expected: str
) -> None:
    states = {"a": {"state": State.STARTING, **state}, "b": COLD}
    route = Route("r", deployments=deployments(("a", 1, 1), ("b", 1, 1)))
    assert chosen([route], states=states, displaces=lambda name: name == displaces).model == expected


@pytest.mark.parametrize(("queue", "expected"), [((5, 0), "b"), ((0, 5), "a"), ((2, 1), "b")])
def test_equals_on_one_device_are_told_apart_by_their_own_queues(queue: tuple[int, int], expected: str) -> None:
    states = {name: {"device": GPU, "leases": 1, "queue": number} for name, number in zip("ab", queue, strict=True)}
    route = Route("r", deployments=deployments(("a", 1, 1), ("b", 1, 1)))
    assert chosen([route], states=states).model == expected
    others = {"device": NPU, "leases": 1, "queue": 9}
    assert (
        chosen([route], states={**states, expected: {**states[expected], "device": NPU}, "c": others}).model != expected
    )


def test_one_model_by_two_of_its_variants_has_two_shares() -> None:
    short, long = Variant("short"), Variant("long")
    model = ModelSpec("a", path="/m", variants=(short, long))
    route = Route("r", deployments=deployments(("short", 1, 1), ("long", 1, 2)))
    plan, balance = Directory([model], [route]).plan(route), Balance()
    served = []
    for _ in range(6):
        decision = decide(plan, Now(known([seen("a")]), fits, balance=balance))
        served.append(decision.variants)
        balance.taken(*decision.draws)
    assert sorted(served, key=str) == [(long,)] * 4 + [(short,)] * 2


def test_between_models_of_different_prices_there_is_more_to_decide() -> None:
    models = [ModelSpec("a", path="/m", price=Price(1.0)), ModelSpec("b", path="/m"), ModelSpec("c", path="/m")]
    for names, alike in (("ab", False), ("bc", True)):
        route = Route("r", deployments=tuple(map(Deployment, names)))
        assert bool(Directory(models, [route]).plan(route).equals) is alike


def test_what_a_member_does_not_mean_any_more_is_passed_over() -> None:
    route = Route("r", ("gone", "a"))
    directory = Directory([ModelSpec("a", path="/m")], [route])
    assert decide(directory.plan(route), Now(known([seen("a")]), fits)).model == "a"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_shares_are_exact_after_each_round(weights: list[int]) -> None:
    balance, served = Balance(), Counter[str]()
    named = [(str(number), weight) for number, weight in enumerate(weights)]
    for _ in range(2):
        for _ in range(sum(weights)):
            draw = balance.next(("r", "1"), named)
            balance.taken(draw)
            served[draw.chosen] += 1
    assert served == {name: 2 * weight for name, weight in named}


@given(st.lists(st.sets(st.sampled_from("abc"), min_size=1), min_size=1, max_size=60))
def test_nobody_catches_up_for_long_after_an_outage(rounds: list[set[str]]) -> None:
    balance = Balance()
    for there in rounds:
        balance.taken(balance.next(("r", "1"), [(name, 2) for name in sorted(there)]))
    served = Counter[str]()
    for _ in range(9):
        draw = balance.next(("r", "1"), [(name, 2) for name in "abc"])
        balance.taken(draw)
        served[draw.chosen] += 1
    assert max(served.values()) <= 6
    assert len(served) == 3
