"""What it is worth to keep a model loaded: provisional."""

from __future__ import annotations

import math

HALF_LIFE = 600.0


class Usage:
    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def note(self, now: float) -> None:
        self._rate = self._rate * math.exp(-(now - self._at) / HALF_LIFE) + 1.0
        self._at = now

    def likelihood(self, now: float) -> float:
        return self._rate * math.exp(-(now - self._at) / HALF_LIFE)
