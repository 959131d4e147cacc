"""Routes with tiers in accelerd.toml: what answers each, and how requests are judged."""

from __future__ import annotations

import pytest
from config_home import Home

from accelerd.config.complexity import DimensionWeights, KeywordRule, Tier, TierBoundaries, TokenThresholds
from accelerd.config.show import show

MODELS = '[models.a]\npath = "/a"\n[models.b]\npath = "/b"\n[routes.r]\nmodels = ["b", "a"]\n'
TIERS = MODELS + '[routes.smart.tiers]\nsimple = "a"\ncomplex = ["b", "r"]\n'


def mistakes(home: Home, text: str) -> list[tuple[str, str]]:
    return [(one.key, one.message) for one in home.check(text)[1] if one.severity == "error"]


def test_a_tier_has_one_model_or_several_and_routes(home: Home) -> None:
    route = home.load(TIERS).routes["smart"]
    assert [route.tiers.of(tier) for tier in Tier] == [("a",), (), ("b", "r"), ()]
    assert route.members == ("a", "b", "r")


def test_all_keys_of_the_complexity(home: Home) -> None:
    found = home.load(
        TIERS
        + """\
[routes.smart.complexity]
code_keywords = ["c++"]
custom_technical_keywords = ["heat pump"]
reasoning_override_min_score = 0
keep_tier = false
prefer_loaded = false
keyword_tier_rules = [{keywords = [" invoice ", "发票"], tier = "medium"}]
[routes.smart.complexity.dimension_weights]
tokenCount = 1
[routes.smart.complexity.tier_boundaries]
simple_medium = -0.5
[routes.smart.complexity.token_thresholds]
complex = 50
"""
    ).routes["smart"]
    settings = found.complexity
    assert settings.code_keywords == ("c++",)
    assert settings.custom_technical_keywords == ("heat pump",)
    assert settings.reasoning_override_min_score == 0
    assert (settings.keep_tier, settings.prefer_loaded) == (False, False)
    assert settings.keyword_tier_rules == (KeywordRule(("invoice", "发票"), Tier.MEDIUM),)
    assert settings.dimension_weights == DimensionWeights(1.0, 0, 0, 0, 0, 0, 0)  # as LiteLLM: the others count nothing
    assert settings.tier_boundaries == TierBoundaries(-0.5, 0.35, 0.60)
    assert settings.token_thresholds == TokenThresholds(15, 50)


def test_what_is_shown_is_loaded_as_the_same(home: Home) -> None:
    config = home.load(
        TIERS
        + "[routes.smart.complexity]\ndimension_weights = {tokenCount = 0.25}\nkeep_tier = false\n"
        + 'keyword_tier_rules = [{keywords = ["x y"], tier = "reasoning"}]\ntier_boundaries = {simple_medium = 0}\n'
    )
    text = show(config)
    assert 'tiers.complex = ["b", "r"]' in text
    assert home.load(text).routes == config.routes


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('[routes.x.tiers]\nsimple = "c"', "routes.x.tiers.simple", "there is no model or route 'c'"),
        ('[routes.x.tiers]\nsimple = ["a", "bb"]', "routes.x.tiers.simple[1]", "there is no model or route 'bb'; did"),
        ("[routes.x.tiers]\nsimple = []", "routes.x.tiers", "expected at least one model"),
        ("[routes.x.tiers]", "routes.x.tiers", "expected at least one model"),
        ('[routes.x.tiers]\nhard = "a"', "routes.x.tiers.hard", "unknown key"),
        ('[routes.x]\nmodels = ["a"]\n[routes.x.tiers]\nsimple = "a"', "routes.x.tiers",
         "set either models or tiers, not both; models is set, too"),
        ('[routes.x]\nmodels = ["a"]\n[routes.x.complexity]\nkeep_tier = true', "routes.x.complexity", "only a route"),
        ('[routes.x.tiers]\nsimple = "x"', "routes.x.tiers.simple", "the route leads back to itself: x → x"),
        ('[routes.x]\ntiers = {simple = "a"}\ncomplexity = {tier_boundaries = {medium_complex = 0.1}}',
         "routes.x.complexity.tier_boundaries", "each tier begins above the one before: simple_medium (0.15)"),
        ('[routes.x]\ntiers = {simple = "a"}\n[routes.x.complexity]\n'
         'keyword_tier_rules = [{keywords = [" "], tier = "medium"}]',
         "routes.x.complexity.keyword_tier_rules[0].keywords[0]", "expected a word or phrase of at least one letter"),
        ('[routes.x]\ntiers = {simple = "a"}\n[routes.x.complexity]\nkeyword_tier_rules = [{tier = "medium"}]',
         "routes.x.complexity.keyword_tier_rules[0]", 'expected a table with keywords = ["…"] and tier = "…"'),
        ('[routes.x]\ntiers = {simple = "a"}\n[routes.x.complexity]\n'
         'keyword_tier_rules = [{keywords = [""], tier = "SIMPLE"}]',
         "routes.x.complexity.keyword_tier_rules[0].keywords[0]", "expected a word or phrase"),
        ('[routes.x]\ntiers = {simple = "a"}\ncomplexity = {simple_keywords = ["hi", "\\t"]}',
         "routes.x.complexity.simple_keywords[1]", "expected a word or phrase"),
        ('[routes.x]\ntiers = {simple = "a"}\n[routes.x.complexity]\n'
         'keyword_tier_rules = [{keywords = ["k"], tier = "hard"}]',
         "routes.x.complexity.keyword_tier_rules[0].tier", 'expected one of "simple", "medium"'),
        ('[routes.x]\ntiers = {simple = "a"}\ncomplexity = {code_keywords = [""]}',
         "routes.x.complexity.code_keywords[0]", "expected a word or phrase of at least one letter"),
    ],
)  # fmt: skip
def test_mistakes(home: Home, text: str, key: str, message: str) -> None:
    assert (key, message) in [(at, said[: len(message)]) for at, said in mistakes(home, MODELS + text)]
