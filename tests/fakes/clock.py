"""A clock that stands still until a test moves it."""

from __future__ import annotations


class FakeClock:
    """Monotonic seconds under the test's control."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.pace = 0.0  # s that pass with every reading

    def monotonic(self) -> float:
        self.now += self.pace
        return self.now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "monotonic time does not go back"
        self.now += seconds
