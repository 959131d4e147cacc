"""What is found of a request's complexity: its tier, and why it has it. Pure data."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

from accelerd.config.complexity import Tier


class Cause(StrEnum):
    """What has decided a tier."""

    SCORE = "score"
    REASONING_MARKERS = "reasoning markers"
    KEYWORD_RULE = "keyword rule"
    NO_TEXT = "no text"
    CONVERSATION = "conversation"  # an earlier message of it


class DimensionScore(Struct, frozen=True):
    """One part of a score. `found`: the keywords."""

    name: str
    score: float
    weight: float
    found: tuple[str, ...] = ()


class Verdict(Struct, frozen=True):
    """`keyword`: of the rule that has decided."""

    tier: Tier
    score: float
    cause: Cause
    dimensions: tuple[DimensionScore, ...] = ()
    keyword: str | None = None

    @property
    def reason(self) -> str:
        """What has decided, in words. Shows nothing of the request but keywords, which are the configuration's."""
        match self.cause:
            case Cause.SCORE:
                return f"score {self.score:.2f}"
            case Cause.REASONING_MARKERS:
                return f"score {self.score:.2f}, and several phrases ask for reasoning"
            case Cause.KEYWORD_RULE:
                return f"keyword {self.keyword!r}"
            case Cause.CONVERSATION:
                return "as the conversation has been before"
            case Cause.NO_TEXT:
                return "no text tells more"


NO_TEXT: Final = Verdict(Tier.MEDIUM, 0.0, Cause.NO_TEXT)
