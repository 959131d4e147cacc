"""What keeping an idle model loaded is worth: how likely it is used again soon, and what loading it again costs.

Pure, one Usage for each model, fed with the times of its requests. Knows no memory and no other model: whoever makes
room compares likelihood by cost for each byte freed. The parameters were found with tests/sim, and little depends on
any of them alone; what matters is that several horizons and both views of the past are there (see Usage).
"""

from __future__ import annotations

import math
from typing import Final

HORIZONS: Final = (60.0, 600.0, 7200.0)  # s: what "soon" means, in a burst, in a piece of work, in a day
RATES: Final = (3600.0, 86400.0)  # s: time constants of the two rates, recent use and usual use
HABIT: Final = 0.3  # how much the rate counts: a burst of requests is not as many visits
LOSS: Final = 15.0  # s: what each reload costs beside its time: prompt caches are lost and a client waits
FORGET: Final = 0.99  # weight of a pause when the next one is known
DOUBT: Final = 0.5  # pauses' worth of belief in the prior: the longer unused, the longer it will stay so
TAIL: Final = 0.4  # exponent of the prior's power law
SHORT: Final = 30.0  # s: where the prior's power law begins
ONCE: Final = 86400.0  # s: a model that nobody has used yet counts like one that was used so long ago
_TOO_HEAVY: Final = 1e9


def reload_cost(seconds: float) -> float:
    """What it costs to load a model again that takes `seconds` to load; in seconds."""
    return seconds + LOSS


class Usage:
    """When a model was used, in a few numbers; times in monotonic seconds.

    Two views of the past: how long its pauses last (the chance that one that has lasted as long as the present one ends
    soon), which knows bursts and timers, and how often it is used, which knows favourites.
    """

    __slots__ = ("_last", "_pauses", "_rates", "_weight")

    def __init__(self) -> None:
        self._last: float | None = None
        self._rates = [1.0] * len(RATES)  # decayed counts of uses, as they were at `_last`
        self._pauses: list[float] = []  # by power of two of their length: weight of the pauses seen
        self._weight = 1.0  # of the next pause; it grows instead of the others shrinking

    @property
    def last(self) -> float | None:
        """The last use, None if there was none."""
        return self._last

    def note(self, now: float) -> None:
        """A request came."""
        if self._last is not None:
            pause = max(0.0, now - self._last)
            self._rates = [r * math.exp(-pause / t) + 1.0 for r, t in zip(self._rates, RATES, strict=True)]
            self._count(pause)
        self._last = now

    def likelihood(self, now: float) -> float:
        """Expected uses per hour in the near future, roughly: exact only in comparison with other models. Above 0."""
        age = max(0.0, now - self._last) if self._last is not None else ONCE
        rate = sum(r * math.exp(-age / t) / t for r, t in zip(self._rates, RATES, strict=True)) / len(RATES)
        soon = sum(self._ends(age, horizon) / horizon for horizon in HORIZONS) / len(HORIZONS)
        return max(3600.0 * soon * math.pow(3600.0 * rate, HABIT), 1e-12)

    def _count(self, pause: float) -> None:
        bucket = _bucket(pause)
        self._pauses += [0.0] * (bucket + 1 - len(self._pauses))
        self._pauses[bucket] += self._weight
        self._weight /= FORGET
        if self._weight > _TOO_HEAVY:
            self._pauses = [weight / self._weight for weight in self._pauses]
            self._weight = 1.0

    def _ends(self, age: float, horizon: float) -> float:
        """The chance that a pause that has lasted `age` ends within `horizon`."""
        until = age + horizon
        doubt = DOUBT * self._weight
        lasted = doubt  # weight of the pauses that last as long as `age`
        ended = doubt * (1.0 - math.pow((age + SHORT) / (until + SHORT), TAIL))
        for bucket in range(_bucket(age), len(self._pauses)):
            weight = self._pauses[bucket]
            begin, end = (1 << bucket) - 1.0, (2 << bucket) - 1.0
            lasted += weight * min(1.0, (end - age) / (end - begin))
            ended += weight * max(0.0, min(end, until) - max(begin, age)) / (end - begin)
        return ended / lasted


def _bucket(pause: float) -> int:
    """0 for pauses below 1 s, 1 below 3, 2 below 7, …"""
    return int(pause + 1.0).bit_length() - 1
