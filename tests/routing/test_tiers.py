"""Which tier's model answers: that of the request, one above it that is in memory, and the others where these fail."""

from __future__ import annotations

from typing import Any

import pytest

from accelerd.config.complexity import ComplexitySettings, KeywordRule, Tier, TierMembers
from accelerd.config.model import Route
from accelerd.config.routes import Deployment
from accelerd.routing.choice import Decision, Elsewhere
from accelerd.routing.judge import Judge
from accelerd.routing.verdict import Cause, Verdict
from tests.routing.test_plans import COLD, FAILED, chosen

BUSY = {"leases": 1}
HARD = "Implement a class in Rust with low latency, high throughput and parallel threading; analyze this step by step"
FOUR = Route("r", tiers=TierMembers(("a",), ("b",), ("c",), ("d",)), fallbacks=("e",))
GAPS = Route("r", tiers=TierMembers(simple=("a",), complex=("b", "c")))


def asked(tier: Tier, *routes: Route, **more: Any) -> Decision:
    return chosen([*routes], judge=lambda route: Verdict(tier, 0.5, Cause.SCORE), **more)


@pytest.mark.parametrize(("tier", "model"), list(zip(Tier, "abcd", strict=True)))
def test_each_tier_has_its_model(tier: Tier, model: str) -> None:
    found = asked(tier, FOUR)
    assert (found.model, found.stage) == (model, f"tier {tier}")
    assert found.reason == f"the request is {tier} (score 0.50); {model} is free"
    assert asked(tier, FOUR, states=dict.fromkeys("abcd", COLD)).model == model


def test_a_tier_that_is_not_configured_is_answered_by_the_next_above_else_by_the_highest() -> None:
    assert [asked(tier, GAPS).model for tier in Tier] == ["a", "b", "b", "b"]


def test_while_the_own_is_not_in_memory_a_higher_one_that_is_answers() -> None:
    assert asked(Tier.SIMPLE, FOUR, states={"a": COLD}).model == "b"
    assert asked(Tier.SIMPLE, FOUR, states={"a": COLD, "b": COLD, "c": BUSY}).model == "d", "c is not free"
    assert asked(Tier.COMPLEX, FOUR, states={"c": COLD, "d": COLD}).model == "c", "never a lower one"
    assert asked(Tier.SIMPLE, FOUR, states={"a": BUSY}).model == "a", "it is in memory"
    own = Route("r", tiers=FOUR.tiers, complexity=ComplexitySettings(prefer_loaded=False))
    assert asked(Tier.SIMPLE, own, states={"a": COLD}).model == "a"


def test_of_the_models_of_a_tier_what_is_in_memory_goes_first_then_their_order_counts() -> None:
    assert asked(Tier.COMPLEX, GAPS).model == "b"
    assert asked(Tier.COMPLEX, GAPS, states={"b": COLD}).model == "c"
    assert asked(Tier.COMPLEX, GAPS, states={"b": COLD, "c": COLD}).model == "b"
    assert asked(Tier.COMPLEX, GAPS, states={"b": BUSY}).model == "c"


def test_a_model_elsewhere_is_there_for_its_own_tier_but_saves_no_load_for_another() -> None:
    def far(name: str) -> Any:
        return lambda snapshot: Elsewhere() if snapshot.spec.name == name else None

    cold = dict.fromkeys("abcd", COLD)
    assert asked(Tier.SIMPLE, FOUR, states={**cold, "d": {}}, elsewhere=far("d")).model == "a"
    assert asked(Tier.SIMPLE, FOUR, states={**cold, "d": {}}).model == "d"
    assert asked(Tier.SIMPLE, FOUR, elsewhere=far("a")).model == "a"


def test_where_a_tier_cannot_answer_those_above_do_then_those_below_then_the_fallbacks() -> None:
    for failing, model in (("b", "c"), ("bc", "d"), ("bcd", "a"), ("abcd", "e")):
        assert asked(Tier.MEDIUM, FOUR, states=dict.fromkeys(failing, FAILED)).model == model


def test_a_tier_may_be_a_route_and_a_route_with_tiers_a_member_of_another() -> None:
    inner = Route("inner", deployments=(Deployment("b", 1), Deployment("c", 2)))
    outer = Route("r", tiers=TierMembers(simple=("a",), complex=("inner",)))
    assert asked(Tier.COMPLEX, outer, inner).routes == ("r", "inner")
    assert asked(Tier.COMPLEX, outer, inner, states={"b": FAILED}).model == "c"
    above = Route("above", ("r", "f"))
    assert asked(Tier.COMPLEX, outer, inner, above, of="above").model == "b"


def test_the_tier_of_a_conversation_rises_and_does_not_fall() -> None:
    judge = Judge()
    kept = []
    for text in ("hello", HARD, "continue", "", "thanks"):
        found = judge.verdict(FOUR, text, b"one")
        kept.append((found.tier, found.cause))
    assert kept[0] == (Tier.SIMPLE, Cause.SCORE)
    assert kept[1] == (Tier.REASONING, Cause.REASONING_MARKERS)
    assert kept[2:] == [(Tier.REASONING, Cause.CONVERSATION)] * 3
    assert judge.verdict(FOUR, "continue", b"two").tier is Tier.SIMPLE
    assert judge.verdict(FOUR, "continue", None).tier is Tier.SIMPLE, "it belongs to none"
    assert judge.verdict(Route("other", tiers=FOUR.tiers), "continue", b"one").tier is Tier.SIMPLE
    loose = Route("r", tiers=FOUR.tiers, complexity=ComplexitySettings(keep_tier=False))
    assert judge.verdict(loose, "continue", b"one").tier is Tier.SIMPLE


def test_what_has_no_text_decides_nothing_for_later() -> None:
    judge = Judge()
    assert judge.verdict(FOUR, "", b"one") == Verdict(Tier.MEDIUM, 0.0, Cause.NO_TEXT)
    assert judge.verdict(FOUR, "hello", b"one").tier is Tier.SIMPLE


def test_another_configuration_judges_anew_and_remembers_the_conversations() -> None:
    judge = Judge()
    assert judge.verdict(FOUR, HARD, b"one").tier is Tier.REASONING
    assert judge.verdict(FOUR, "the invoice", b"two").tier is Tier.SIMPLE
    judge.configure()
    rules = ComplexitySettings(keyword_tier_rules=(KeywordRule(("invoice",), Tier.COMPLEX),))
    route = Route("r", tiers=FOUR.tiers, complexity=rules)
    assert judge.verdict(route, "the invoice", b"two").tier is Tier.COMPLEX
    assert judge.verdict(route, "the invoice", b"one").tier is Tier.REASONING
