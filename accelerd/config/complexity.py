"""How a route judges the complexity of requests, and what answers each tier: LiteLLM's keys. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final, Literal

from accelerd.config import values as toml
from accelerd.config.keys import array, described, each_once, key, table

MEMBERS: Final = toml.Name | each_once(toml.Name)
WORDS: Final = each_once(toml.Phrase)


class Tier(StrEnum):
    """What a request needs, the least demanding first."""

    SIMPLE = "simple"
    MEDIUM = "medium"
    COMPLEX = "complex"
    REASONING = "reasoning"


TIERS: Final = tuple(Tier)
TierName = Literal["simple", "medium", "complex", "reasoning"]


@dataclass(frozen=True)
class TierMembers:
    """What answers the requests of each tier."""

    simple: tuple[str, ...] = key(MEMBERS, (), "Models and routes for what is short and plain.")
    medium: tuple[str, ...] = key(MEMBERS, (), "For most requests, and those that no text tells anything about.")
    complex: tuple[str, ...] = key(MEMBERS, (), "For much code, or many technical terms.")
    reasoning: tuple[str, ...] = key(MEMBERS, (), "For requests that ask to think step by step, weigh or deduce.")

    def of(self, tier: Tier) -> tuple[str, ...]:
        """Empty: the tier above answers, or the highest there is."""
        members: tuple[str, ...] = getattr(self, tier.value)
        return members

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for tier in TIERS for name in self.of(tier)))


@dataclass(frozen=True)
class DimensionWeights:
    """How much each dimension counts in the score. Once one is set, those that are not count nothing."""

    tokenCount: float = key(float, 0.10, "Length.", ge=-10, le=10)
    codePresence: float = key(float, 0.30, "Words of `code_keywords`.", ge=-10, le=10)
    reasoningMarkers: float = key(float, 0.25, "Words of `reasoning_keywords`.", ge=-10, le=10)
    technicalTerms: float = key(float, 0.25, "Words of `technical_keywords`.", ge=-10, le=10)
    simpleIndicators: float = key(float, 0.05, "Words of `simple_keywords`.", ge=-10, le=10)
    multiStepPatterns: float = key(float, 0.03, "Numbered steps, or first … then.", ge=-10, le=10)
    questionComplexity: float = key(float, 0.02, "More than three question marks.", ge=-10, le=10)


@dataclass(frozen=True)
class TierBoundaries:
    """The scores at which the next tier begins."""

    simple_medium: float = key(float, 0.15, "From this score on, a request is medium.", ge=-100, le=100)
    medium_complex: float = key(float, 0.35, "From this score on, it is complex.", ge=-100, le=100)
    complex_reasoning: float = key(float, 0.60, "From this score on, it needs reasoning.", ge=-100, le=100)


@dataclass(frozen=True)
class TokenThresholds:
    """Which requests are short, and which are long, in tokens of four characters."""

    simple: int = key(int, 15, "A request with fewer tokens is short, which lowers its score.", ge=0, le=10_000_000)
    complex: int = key(int, 400, "One with more is long, which raises it.", ge=0, le=10_000_000)


@dataclass(frozen=True)
class KeywordRule:
    """Words that decide the tier."""

    keywords: tuple[str, ...] = key(WORDS, (), "Words or phrases.")
    tier: Tier = key(TierName, Tier.MEDIUM, "The tier of requests with one of them.")


def _rule(values: dict[str, Any]) -> KeywordRule:
    """ValueError with what completes "expected …"."""
    if not values.get("keywords") or "tier" not in values:
        raise ValueError('a table with keywords = ["…"] and tier = "…"')
    return KeywordRule(tuple(word.strip() for word in values["keywords"]), Tier(values["tier"]))


def rule_tables(rules: tuple[KeywordRule, ...]) -> list[dict[str, Any]]:
    return [{"keywords": list(rule.keywords), "tier": rule.tier.value} for rule in rules]


RULES: Final = array(
    described(
        table(KeywordRule),
        "",
        extra={"parse": _rule, "expects": 'a table such as {keywords = ["invoice"], tier = "medium"}'},
    )
)


@dataclass(frozen=True)
class ComplexitySettings:
    """How a route with tiers judges requests."""

    code_keywords: tuple[str, ...] = key(WORDS, (), "Instead of the built-in words of programming.")
    reasoning_keywords: tuple[str, ...] = key(
        WORDS, (), 'Instead of the built-in phrases that ask for reasoning, such as "step by step".'
    )
    technical_keywords: tuple[str, ...] = key(WORDS, (), "Instead of the built-in technical terms.")
    custom_technical_keywords: tuple[str, ...] = key(WORDS, (), "Technical terms beside these.")
    simple_keywords: tuple[str, ...] = key(
        WORDS, (), "Instead of the built-in words of plain questions and small talk."
    )
    keyword_tier_rules: tuple[KeywordRule, ...] = key(
        described(RULES, "", extra={"show": rule_tables}),
        (),
        "Words that decide the tier, whatever the score. Of several rules that apply the highest tier counts.",
    )
    reasoning_override_min_score: float | None = key(
        float,
        None,
        "Two phrases of `reasoning_keywords` mean the tier reasoning from this score on. Not set: from `simple_medium` "
        "on.",
        ge=-100,
        le=100,
    )
    prefer_loaded: bool = key(
        bool,
        True,
        "While no model of the tier is in memory, one of a higher tier that is in the memory of this machine, and is "
        "free, answers.",
    )
    keep_tier: bool = key(
        bool,
        True,
        'The tier of a conversation rises with its messages, but does not fall, so that "go on" is answered by the '
        "model that knows what it is about.",
    )
    dimension_weights: DimensionWeights = key(
        table(DimensionWeights), DimensionWeights(), "How much each dimension counts in the score."
    )
    tier_boundaries: TierBoundaries = key(
        table(TierBoundaries), TierBoundaries(), "The scores at which the next tier begins."
    )
    token_thresholds: TokenThresholds = key(
        table(TokenThresholds), TokenThresholds(), "Which requests are short, and which are long."
    )


def members_of(values: dict[str, Any]) -> TierMembers:
    return TierMembers(**{tier: (each,) if isinstance(each, str) else each for tier, each in values.items()})


def complexity_of(values: dict[str, Any]) -> ComplexitySettings:
    """Of what was written in the table, and the tables in it."""
    values = dict(values)
    if weights := values.pop("dimension_weights", None):
        nothing = {each.name: 0.0 for each in fields(DimensionWeights)}
        values["dimension_weights"] = DimensionWeights(**{**nothing, **weights})
    if boundaries := values.pop("tier_boundaries", None):
        values["tier_boundaries"] = TierBoundaries(**boundaries)
    if thresholds := values.pop("token_thresholds", None):
        values["token_thresholds"] = TokenThresholds(**thresholds)
    return ComplexitySettings(**values)
