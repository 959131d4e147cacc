"""Decides when the performance level of a GPU is raised and restored: the rules of one device.

Input: users of the device, readings and results of orders. Output: the next order, the time of the next reading, and
messages for the journal. Pure except for the clock it is given. Only integrated GPUs are ever raised.
"""

from __future__ import annotations

import math
from collections import deque
from enum import StrEnum
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from accelerd.base.ports import Clock

HIGH: Final = "high"
ORDINARY: Final = ("auto", "low", HIGH)
TOO_HOT: Final = 95.0  # °C
COOL_AGAIN: Final = 85.0
FAST: Final = 2.0  # s between readings while raised and in use
SLOW: Final = 5.0  # … while in use and not raised
RARE: Final = 15.0  # … while raised and not in use
MOST_REPEATS: Final = 5  # raises within REPEAT_WINDOW, if another program sets another level
REPEAT_WINDOW: Final = 600.0
TRUCE: Final = 1800.0  # s that the level is left to another program
RETRY: Final = 60.0  # s after a failed raise
STUCK_BUSY: Final = 80.0  # %
STUCK_CLOCK: Final = 1000.0  # MHz
STUCK_POWER: Final = 50.0  # W
STUCK_FOR: Final = 5.0  # s

Policy = Literal["busy", "always", "never"]


class LevelRules(Struct, frozen=True):
    """The user's settings for a device. `hold_time`: seconds that it stays raised after the last request."""

    policy: Policy = "busy"
    hold_time: float = 10.0


class LevelReading(Struct, frozen=True):
    """The readings of a device; None if unknown. Clocks in MHz, busy in %, °C, W."""

    level: str | None = None
    clock: float | None = None
    lowest: float | None = None  # limits of the clock
    highest: float | None = None
    busy: float | None = None
    temperature: float | None = None
    power: float | None = None


class LevelOrder(StrEnum):
    RAISE = "raise"
    RESTORE = "restore"


class LevelNote(Struct, frozen=True):
    kind: Literal["level", "unable", "stuck"]
    text: str
    warning: bool = False


class LevelGovernor:
    def __init__(self, clock: Clock, name: str, rules: LevelRules, unsuitable: str | None = None) -> None:
        """`unsuitable`: why the device is never raised."""
        self._clock = clock
        self.name = name
        self.rules = rules
        self.unsuitable = unsuitable
        self.users = 0
        self.reading = LevelReading()
        self.by: str | None = None  # who raised the level, while it is raised
        self._tail_until = -math.inf
        self._looked = -math.inf
        self._hot = False
        self._lost = False  # another program changed the level; it will be raised again
        self._repeats: deque[float] = deque(maxlen=MOST_REPEATS)
        self._truce_until = -math.inf
        self._truce = ""
        self._failure = ""
        self._told_failures: set[str] = set()
        self._retry_at = -math.inf
        self._low_since: float | None = None
        self._told_stuck = False
        self.stuck = False

    @property
    def held(self) -> bool:
        return self.by is not None

    # --- what happens -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.users += 1
        if self.users == 1 and not self.held and self._clock.monotonic() >= self._tail_until:
            self._retry_at = -math.inf  # what failed before may work now
            self._hot = False  # it is read again first

    def end(self) -> None:
        self.users -= 1
        if not self.users:
            self._tail_until = self._clock.monotonic() + self.rules.hold_time

    def configure(self, rules: LevelRules) -> None:
        """Sets other rules and retries what was given up."""
        self.rules = rules
        self._truce_until = self._retry_at = -math.inf
        self._repeats.clear()

    def raised(self, by: str) -> list[LevelNote]:
        again = self._lost
        self.by, self._lost, self._failure = by, False, ""
        self.reading = replace(self.reading, level=HIGH)
        return [] if again else [LevelNote("level", f"{self.name}: performance level set to {HIGH} (by {by})")]

    def failed(self, message: str) -> list[LevelNote]:
        """The level could not be raised. Reported once."""
        self.by, self._lost = None, False
        self._failure = message
        self._retry_at = self._clock.monotonic() + RETRY
        if message in self._told_failures:
            return []
        self._told_failures.add(message)
        return [LevelNote("unable", f"{self.name}: cannot raise the performance level: {message}")]

    def restored(self) -> list[LevelNote]:
        self.by, self._lost = None, False
        self.reading = replace(self.reading, level=None)
        return [LevelNote("level", f"{self.name}: performance level restored")]

    def dropped(self) -> list[LevelNote]:
        """The helper was restarted and has restored the level."""
        self.by, self._lost = None, False
        return [LevelNote("level", f"{self.name}: the helper was restarted; raising the performance level again")]

    def differs(self, reading: LevelReading) -> bool:
        """Is the level different from the one that was set?"""
        return self.held and reading.level not in (None, HIGH)

    def observe(self, reading: LevelReading, by: str = "") -> list[LevelNote]:
        """Processes a reading. `by`: who probably changed the level, if it `differs`."""
        now = self._clock.monotonic()
        self._looked = now
        self.reading = reading
        return [*self._heat(reading), *self._overwritten(reading, by, now), *self._low_clock(reading, now)]

    # --- what follows -----------------------------------------------------------------------------------------

    def order(self) -> LevelOrder | None:
        now = self._clock.monotonic()
        wanted = self._wanted(now) and not self._hot and now >= self._truce_until
        if wanted and (not self.held or self._lost):
            return LevelOrder.RAISE if now >= self._retry_at else None
        return LevelOrder.RESTORE if self.held and not wanted else None

    def look_due(self) -> bool:
        now = self._clock.monotonic()
        return now >= self._next_look(now)

    def deadline(self) -> float:
        """When to check again, unless something happens before; math.inf if there is nothing to do."""
        now = self._clock.monotonic()
        due = self._next_look(now)
        end = math.inf if self.users or self.rules.policy == "always" else self._tail_until
        if self._wanted(now):
            due = min([due, *(moment for moment in (self._truce_until, self._retry_at) if now < moment < end)])
        return min(due, end) if self.held else due

    def report(self) -> dict[str, Any]:
        """The state in one word and the reason, for users."""
        state, reason = self._state(self._clock.monotonic())
        return {
            "name": self.name,
            "policy": self.rules.policy,
            "state": state,
            "reason": reason,
            "level": self.reading.level,
            "by": self.by,
            "stuck": self.stuck,
        }

    # --- inside -----------------------------------------------------------------------------------------------

    def _wanted(self, now: float) -> bool:
        if self.unsuitable or self.rules.policy == "never":
            return False
        return self.rules.policy == "always" or self.users > 0 or now < self._tail_until

    def _next_look(self, now: float) -> float:
        interval = self._interval(now)
        return math.inf if interval == math.inf else self._looked + interval

    def _interval(self, now: float) -> float:
        if self.unsuitable:
            return math.inf
        raised = self.held or (self._hot and self._wanted(now))
        if self.users:
            return FAST if raised else SLOW
        if not raised:
            return math.inf
        return FAST if now < self._tail_until else RARE

    def _heat(self, reading: LevelReading) -> list[LevelNote]:
        heat = reading.temperature
        if heat is None or not self._wanted(self._clock.monotonic()):
            return []
        if not self._hot and heat >= TOO_HOT:
            self._hot = True
            text = f"{self.name} is at {heat:.0f} °C: restoring the performance level until it is below"
            return [LevelNote("level", f"{text} {COOL_AGAIN:.0f} °C", warning=True)]
        if self._hot and heat < COOL_AGAIN:
            self._hot = False
            return [LevelNote("level", f"{self.name} is at {heat:.0f} °C, which is cool enough again")]
        return []

    def _overwritten(self, reading: LevelReading, by: str, now: float) -> list[LevelNote]:
        if not self.differs(reading) or self._hot:
            return []
        if reading.level not in ORDINARY:
            self._give_way(now, f"{by} set the performance level to {reading.level}")
            return self._warn(f"{self._truce}; accelerd does not change it")
        while self._repeats and now - self._repeats[0] >= REPEAT_WINDOW:
            self._repeats.popleft()
        if len(self._repeats) == MOST_REPEATS:
            self._give_way(now, f"{by} repeatedly sets the performance level to {reading.level}")
            return self._warn(f"{self._truce}; accelerd does not change it for {TRUCE / 60:.0f} min")
        self._repeats.append(now)
        self._lost = True
        return self._warn(f"{by} set the performance level to {reading.level}; raising it again")

    def _warn(self, text: str) -> list[LevelNote]:
        return [LevelNote("level", f"{self.name}: {text}", warning=True)]

    def _give_way(self, now: float, reason: str) -> None:
        self._truce_until, self._truce = now + TRUCE, reason
        self._repeats.clear()

    def _low_clock(self, reading: LevelReading, now: float) -> list[LevelNote]:
        """Detects a clock that is stuck low: busy, lowest clock, little power. A firmware bug, not throttling."""
        busy, clock, power = reading.busy, reading.clock, reading.power
        if busy is None or clock is None or power is None:
            low = False
        else:
            low = busy > STUCK_BUSY and clock <= lowest(reading) and power < STUCK_POWER
        if not low:
            self._low_since, self.stuck = None, False
            return []
        if self._low_since is None:
            self._low_since = now
        self.stuck = now - self._low_since >= STUCK_FOR
        if not self.stuck or self._told_stuck:
            return []
        self._told_stuck = True
        cure = "" if self.held else f"; the performance level {HIGH} fixes this, but is not set: {self._state(now)[1]}"
        text = f"{self.name} is {busy:.0f} % busy at {clock:.0f} MHz and {power:.0f} W: the clock is stuck low{cure}"
        return [LevelNote("stuck", text, warning=True)]

    def _state(self, now: float) -> tuple[str, str]:
        if self.unsuitable:
            return "unsuitable", self.unsuitable
        if self.held and self._wanted(now):
            if self.rules.policy == "always":
                return "raised", 'the policy is "always"'
            left = self._tail_until - now
            return "raised", "a model is in use" if self.users else f"for {max(0.0, left):.0f} s after the last request"
        if self._hot and self._wanted(now):
            return "hot", f"it reached {TOO_HOT:.0f} °C; the level is raised again below {COOL_AGAIN:.0f} °C"
        if now < self._truce_until:
            return "yielded", self._truce
        if self.rules.policy == "never":
            return "left", 'the policy is "never"'
        if self._failure:
            return "unable", self._failure
        return "left", "no model is in use"


def lowest(reading: LevelReading) -> float:
    """The clock that counts as low. At level high, the driver also reports the highest clock as the lowest."""
    if reading.lowest is None or reading.highest is None or reading.lowest * 2 > reading.highest:
        return STUCK_CLOCK
    return max(STUCK_CLOCK, reading.lowest * 1.2)
