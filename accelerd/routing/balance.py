"""Shares requests among equals by weight: smooth weighted round robin, as nginx has it. Deterministic, and bounded."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Draw(Struct, frozen=True):
    """A choice among equals, with their weights. `scope`: the route and the order that they are equals of."""

    scope: tuple[str, str]
    weights: tuple[tuple[str, int], ...]  # name, weight
    chosen: str


class Balance:
    """What each has in hand: whoever has most is next, and pays with the weights of all."""

    def __init__(self) -> None:
        self._in_hand: dict[tuple[str, str, str], int] = {}

    def next(self, scope: tuple[str, str], weights: Sequence[tuple[str, int]]) -> Draw:
        """Who is next. It stays that until it is `taken`."""
        chosen, _ = max(weights, key=lambda one: self._in_hand.get((*scope, one[0]), 0) + one[1])
        return Draw(scope, tuple(weights), chosen)

    def taken(self, draw: Draw) -> None:
        """A request goes to whom it was drawn."""
        total = sum(weight for _, weight in draw.weights)
        for name, weight in draw.weights:
            paid = total if name == draw.chosen else 0
            held = self._in_hand.get((*draw.scope, name), 0) + weight - paid
            self._in_hand[*draw.scope, name] = max(-total, min(total, held))

    def clear(self) -> None:
        """Other routes are configured."""
        self._in_hand.clear()
