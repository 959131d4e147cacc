"""When a GPU is raised to its highest clocks, and when it is let go: the rules of one device, without doing anything.

Told who uses the device, what was read and what became of orders; answers with the next order, the next moment to
look, and what a person should hear. Pure: a clock is all it is given. Only a GPU that is part of the processor is ever
raised.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Literal

from accelerd.base.ports import Clock

HIGH: Final = "high"
ORDINARY: Final = ("auto", "low", HIGH)
TOO_HOT: Final = 95.0  # °C
COOL_AGAIN: Final = 85.0
FAST: Final = 2.0  # s between looks while it is raised and used
SLOW: Final = 5.0  # … while it is used and not raised
RARE: Final = 15.0  # … while it is raised and not used
MOST_REPEATS: Final = 5  # within REPEAT_WINDOW, against somebody who sets another level
REPEAT_WINDOW: Final = 600.0
TRUCE: Final = 1800.0  # s that it is left to somebody else
RETRY: Final = 60.0  # s after a raise that failed
STUCK_BUSY: Final = 80.0  # %
STUCK_CLOCK: Final = 1000.0  # MHz
STUCK_POWER: Final = 50.0  # W
STUCK_FOR: Final = 5.0  # s

Policy = Literal["busy", "always", "never"]


@dataclass(frozen=True)
class Rules:
    """What the user wants of a device. `tail`: seconds that it stays raised after the last request."""

    policy: Policy = "busy"
    tail: float = 10.0


@dataclass(frozen=True)
class Reading:
    """What a device says of itself; None is not known. Clocks in MHz, busy in %, °C, W."""

    level: str | None = None
    clock: float | None = None
    lowest: float | None = None  # that it may be clocked to …
    highest: float | None = None  # … and the other end
    busy: float | None = None
    temperature: float | None = None
    power: float | None = None


class Order(StrEnum):
    RAISE = "raise"
    RESTORE = "restore"


@dataclass(frozen=True)
class Note:
    """Something for the journal."""

    kind: Literal["level", "unable", "stuck"]
    text: str
    warning: bool = False


class Governor:
    """One device. See the module's text."""

    def __init__(self, clock: Clock, name: str, rules: Rules, unsuitable: str | None = None) -> None:
        """`unsuitable`: why it is never raised, whatever the rules say."""
        self._clock = clock
        self.name = name
        self.rules = rules
        self.unsuitable = unsuitable
        self.users = 0
        self.reading = Reading()
        self.by: str | None = None  # who carries out our orders, while it is raised
        self._tail_until = -math.inf
        self._looked = -math.inf
        self._hot = False
        self._lost = False  # somebody has set another level, and we set ours again
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
        """One more model uses it."""
        self.users += 1
        if self.users == 1 and not self.held and self._clock.monotonic() >= self._tail_until:
            self._retry_at = -math.inf  # what failed the last time may work by now
            self._hot = False  # it is looked at before anything else

    def end(self) -> None:
        self.users -= 1
        if not self.users:
            self._tail_until = self._clock.monotonic() + self.rules.tail

    def configure(self, rules: Rules) -> None:
        """Other rules, and a new chance for what was given up."""
        self.rules = rules
        self._truce_until = self._retry_at = -math.inf
        self._repeats.clear()

    def raised(self, by: str) -> list[Note]:
        again = self._lost
        self.by, self._lost, self._failure = by, False, ""
        self.reading = replace(self.reading, level=HIGH)
        return [] if again else [Note("level", f"{self.name}: level {HIGH} (by {by})")]

    def failed(self, message: str) -> list[Note]:
        """It could not be raised. Told once."""
        self.by, self._lost = None, False
        self._failure = message
        self._retry_at = self._clock.monotonic() + RETRY
        if message in self._told_failures:
            return []
        self._told_failures.add(message)
        return [Note("unable", f"{self.name}: its level cannot be raised: {message}")]

    def restored(self) -> list[Note]:
        self.by, self._lost = None, False
        self.reading = replace(self.reading, level=None)
        return [Note("level", f"{self.name}: level as before")]

    def dropped(self) -> list[Note]:
        """Whoever carried out our orders has forgotten them and put the level back, as a helper that was restarted."""
        self.by, self._lost = None, False
        return [Note("level", f"{self.name}: whoever raised its level was restarted; raising it again")]

    def differs(self, reading: Reading) -> bool:
        """Is it at another level than the one that we have set?"""
        return self.held and reading.level not in (None, HIGH)

    def observe(self, reading: Reading, by: str = "") -> list[Note]:
        """What was read just now. `by`: who probably has set another level, where it `differs`."""
        now = self._clock.monotonic()
        self._looked = now
        self.reading = reading
        return [*self._heat(reading), *self._overwritten(reading, by, now), *self._low_clock(reading, now)]

    # --- what follows -----------------------------------------------------------------------------------------

    def order(self) -> Order | None:
        """What is to be done now."""
        now = self._clock.monotonic()
        request_load = self._wanted(now) and not self._hot and now >= self._truce_until
        if request_load and (not self.held or self._lost):
            return Order.RAISE if now >= self._retry_at else None
        return Order.RESTORE if self.held and not request_load else None

    def look_due(self) -> bool:
        now = self._clock.monotonic()
        return now >= self._next_look(now)

    def deadline(self) -> float:
        """When to ask again, unless something happens before; math.inf while there is nothing to do."""
        now = self._clock.monotonic()
        due = self._next_look(now)
        end = math.inf if self.users or self.rules.policy == "always" else self._tail_until
        if self._wanted(now):
            due = min([due, *(moment for moment in (self._truce_until, self._retry_at) if now < moment < end)])
        return min(due, end) if self.held else due

    def report(self) -> dict[str, Any]:
        """For people: the state in one word, and why."""
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

    def _heat(self, reading: Reading) -> list[Note]:
        heat = reading.temperature
        if heat is None or not self._wanted(self._clock.monotonic()):
            return []
        if not self._hot and heat >= TOO_HOT:
            self._hot = True
            text = f"{self.name} is at {heat:.0f} °C: its level goes back to what it was until it is below"
            return [Note("level", f"{text} {COOL_AGAIN:.0f} °C", warning=True)]
        if self._hot and heat < COOL_AGAIN:
            self._hot = False
            return [Note("level", f"{self.name} is at {heat:.0f} °C: cool enough again")]
        return []

    def _overwritten(self, reading: Reading, by: str, now: float) -> list[Note]:
        if not self.differs(reading) or self._hot:
            return []
        if reading.level not in ORDINARY:
            self._give_way(now, f"{by} has set it to {reading.level}")
            return [Note("level", f"{self.name}: {self._truce}: left alone", warning=True)]
        while self._repeats and now - self._repeats[0] >= REPEAT_WINDOW:
            self._repeats.popleft()
        if len(self._repeats) == MOST_REPEATS:
            self._give_way(now, f"{by} sets it to {reading.level} again and again")
            return [Note("level", f"{self.name}: {self._truce}: left alone for {TRUCE / 60:.0f} min", warning=True)]
        self._repeats.append(now)
        self._lost = True
        return [Note("level", f"{self.name}: {by} has set it to {reading.level}: raised again", warning=True)]

    def _give_way(self, now: float, reason: str) -> None:
        self._truce_until, self._truce = now + TRUCE, reason
        self._repeats.clear()

    def _low_clock(self, reading: Reading, now: float) -> list[Note]:
        """Busy, at its lowest clock and with little power: not throttled, but forgotten there by its firmware."""
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
        cure = "" if self.held else f"; the level {HIGH} cures that, and it is not set: {self._state(now)[1]}"
        text = f"{self.name} is {busy:.0f} % busy at {clock:.0f} MHz and {power:.0f} W: its clock is stuck low{cure}"
        return [Note("stuck", text, warning=True)]

    def _state(self, now: float) -> tuple[str, str]:
        if self.unsuitable:
            return "unsuitable", self.unsuitable
        if self.held and self._wanted(now):
            if self.rules.policy == "always":
                return "raised", 'the policy is "always"'
            left = self._tail_until - now
            return "raised", "a model is in use" if self.users else f"for {max(0.0, left):.0f} s after the last request"
        if self._hot and self._wanted(now):
            return "hot", f"it was at {TOO_HOT:.0f} °C or more, and is raised again below {COOL_AGAIN:.0f} °C"
        if now < self._truce_until:
            return "yielded", self._truce
        if self.rules.policy == "never":
            return "left", 'the policy is "never"'
        if self._failure:
            return "unable", self._failure
        return "left", "no model is in use"


def lowest(reading: Reading) -> float:
    """The clock that counts as low. Where the level is high the driver calls the highest clock the lowest, too."""
    if reading.lowest is None or reading.highest is None or reading.lowest * 2 > reading.highest:
        return STUCK_CLOCK
    return max(STUCK_CLOCK, reading.lowest * 1.2)
