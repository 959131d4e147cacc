"""How much a request asks for: a score of its last message from a person, and a tier by the score. Pure.

The method is LiteLLM's (its complexity router's "heuristic" classifier), so that the same configuration gives the same
tiers; the code is not. A word counts as a whole word, a phrase or one of Chinese, Japanese or Korean wherever it
stands. What is sought takes one pass over the text's words however many keywords there are. Of a long message only the
begin and the end are read, as the event loop waits for it; LiteLLM reads all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from accelerd.config.complexity import TIERS, ComplexitySettings, KeywordRule, Tier
from accelerd.routing import complexity_words as built_in
from accelerd.routing.verdict import NO_TEXT, Cause, DimensionScore, Verdict

CHARACTERS_A_TOKEN: Final = 4
MANY_QUESTIONS: Final = 3
REASONING_MARKERS: Final = 2  # make it a request for reasoning
MOST_READ: Final = 1 << 16  # characters of a message: half of them at its begin, half at its end
WORD: Final = re.compile(r"\w+")
# As LiteLLM has it: of these, none is separated from its neighbours.
UNSPACED: Final = re.compile(
    "[\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)
STEPS: Final = (("step", re.compile(r"step\s*\d")), (".", re.compile(r"\d\.\s")), (")", re.compile(r"[a-z]\)\s")))
FIRST: Final = "first"
THEN: Final = "then"
AS_ASCII: Final = str.maketrans({"\u017f": "s", "\u0131": "i"})  # which match these letters where case is ignored


class Keywords:
    """A list of words and phrases that are sought together."""

    def __init__(self, keywords: Iterable[str]) -> None:
        self.listed = [(keyword, keyword.lower()) for keyword in keywords]
        self._words = frozenset(word for _, word in self.listed if WORD.fullmatch(word) and not UNSPACED.search(word))
        self._phrases = [word for _, word in self.listed if " " in word or UNSPACED.search(word)]
        others = {word for _, word in self.listed} - self._words - set(self._phrases)
        self._bounded = {word: re.compile(rf"\b{re.escape(word)}\b") for word in others}  # "c++", "what's"

    def found(self, text: str, words: set[str]) -> tuple[str, ...]:
        """Those that occur, in the order of the list. `words`: all of the text, which is in lower case."""
        hits = self._words & words
        for phrase in self._phrases:
            if phrase in text:
                hits |= {phrase}
        for word, pattern in self._bounded.items():
            if word in text and pattern.search(text):
                hits |= {word}
        return tuple(keyword for keyword, word in self.listed if word in hits) if hits else ()


class Classifier:
    """By one route's settings."""

    def __init__(self, settings: ComplexitySettings) -> None:
        technical = settings.technical_keywords or built_in.TECHNICAL
        known = {word.lower() for word in technical}
        more = {word.lower(): word for word in settings.custom_technical_keywords if word.lower() not in known}
        self._code = Keywords(settings.code_keywords or built_in.CODE)
        self._reasoning = Keywords(settings.reasoning_keywords or built_in.REASONING)
        self._technical = Keywords([*technical, *more.values()])
        self._simple = Keywords(settings.simple_keywords or built_in.SIMPLE)
        self._rules: list[tuple[KeywordRule, Keywords]] = [
            (rule, Keywords(rule.keywords)) for rule in settings.keyword_tier_rules
        ]
        self._weights = settings.dimension_weights
        self._boundaries = settings.tier_boundaries
        self._thresholds = settings.token_thresholds
        least = settings.reasoning_override_min_score
        self._least_for_markers = self._boundaries.simple_medium if least is None else least

    def classify(self, message: str) -> Verdict:
        """The tier of a message; that of a text without anything in it is not for this to say."""
        if not message:
            return NO_TEXT
        read = message
        if len(message) > MOST_READ:
            read = f"{message[: MOST_READ // 2]}\n{message[-MOST_READ // 2 :]}"
        text = read.lower()
        words = set(WORD.findall(text))
        code, reasoning = self._code.found(text, words), self._reasoning.found(text, words)
        technical, simple = self._technical.found(text, words), self._simple.found(text, words)
        tokens = len(message) // CHARACTERS_A_TOKEN
        length = -1.0 if tokens < self._thresholds.simple else 1.0 if tokens > self._thresholds.complex else 0.0
        weights = self._weights
        dimensions = (
            DimensionScore("tokenCount", length, weights.tokenCount),
            DimensionScore("codePresence", min(len(code), 2) / 2, weights.codePresence, code),
            DimensionScore(
                "reasoningMarkers", (0.0, 0.7, 1.0)[min(len(reasoning), 2)], weights.reasoningMarkers, reasoning
            ),
            DimensionScore("technicalTerms", min(len(technical) // 2, 2) / 2, weights.technicalTerms, technical),
            DimensionScore("simpleIndicators", -1.0 if simple else 0.0, weights.simpleIndicators, simple),
            DimensionScore("multiStepPatterns", 0.5 if has_steps(text) else 0.0, weights.multiStepPatterns),
            DimensionScore(
                "questionComplexity", 0.5 if read.count("?") > MANY_QUESTIONS else 0.0, weights.questionComplexity
            ),
        )
        score = sum([each.score * each.weight for each in dimensions])
        tier, cause, keyword = self._tier(score), Cause.SCORE, None
        if len(reasoning) >= REASONING_MARKERS and score >= self._least_for_markers:
            tier, cause = Tier.REASONING, Cause.REASONING_MARKERS
        matching = [(rule.tier, found[0]) for rule, sought in self._rules if (found := sought.found(text, words))]
        if matching:
            tier, keyword = max(matching, key=lambda match: TIERS.index(match[0]))  # of equals the first
            cause = Cause.KEYWORD_RULE
        return Verdict(tier, score, cause, dimensions, keyword)

    def _tier(self, score: float) -> Tier:
        if score < self._boundaries.simple_medium:
            return Tier.SIMPLE
        if score < self._boundaries.medium_complex:
            return Tier.MEDIUM
        return Tier.COMPLEX if score < self._boundaries.complex_reasoning else Tier.REASONING


def has_steps(text: str) -> bool:
    """Does a text in lower case count its steps: "first … then" on a line, "step 1", "1. ", "a) "?"""
    if not text.isascii():
        text = text.translate(AS_ASCII)
    return any(sign in text and pattern.search(text) for sign, pattern in STEPS) or _first_then(text)


def _first_then(text: str) -> bool:
    first, then = text.find(FIRST), -1
    while first >= 0:
        first += len(FIRST)
        if then < first:
            then = text.find(THEN, first)
        if then < 0:
            return False
        line_end = text.find("\n", first, then)
        if line_end < 0:
            return True
        first = text.find(FIRST, line_end)
    return False
