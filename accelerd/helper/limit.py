"""How often a user may ask: a bucket of tokens for each uid. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Limit:
    """`burst` calls at once, then `rate` a second, for each key apart."""

    def __init__(self, clock: Callable[[], float], burst: int = 8, rate: float = 1.0) -> None:
        self._clock = clock
        self._burst = burst
        self._rate = rate
        self._buckets: dict[int, tuple[float, float]] = {}  # uid → tokens, and when that was

    def take(self, uid: int) -> bool:
        """May this call be answered?"""
        now = self._clock()
        tokens, then = self._buckets.get(uid, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[uid] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > 256:  # of those that are full again nothing needs to be known
            full = self._burst / self._rate
            self._buckets = {who: seen for who, seen in self._buckets.items() if now - seen[1] < full}
        return allowed
