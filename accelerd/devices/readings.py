"""What one look at a device gives, and what stands in for a value that cannot be read at the moment.

Pure data, and `Values`: the last value of each name for a short while, marked stale; then unknown, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from accelerd.base.ports import Clock
from accelerd.devices.files import Unreadable
from accelerd.devices.model import MemoryPool

KEEP = 30.0  # s that a last value is shown for one that cannot be read now

T = TypeVar("T")


@dataclass(frozen=True)
class Frequency:
    """MHz; None: not known."""

    now: float | None = None
    lowest: float | None = None
    highest: float | None = None


@dataclass(frozen=True)
class Readings:
    """One look at one device. None, or a missing key: not known here, `reasons` may say why."""

    asleep: bool = False  # runtime-suspended: it was not touched
    busy: float | None = None  # %
    clocks: Mapping[str, Frequency] = field(default_factory=dict)  # "sclk", "mclk", "fclk"
    power: float | None = None  # W
    temperature: float | None = None  # °C
    temperatures: Mapping[str, float] = field(default_factory=dict)  # by sensor
    pools: tuple[MemoryPool, ...] = ()
    level: str | None = None  # amdgpu's performance level
    throttling: tuple[str, ...] = ()  # what holds the clocks down
    dram_read: float | None = None  # bytes/s, of the whole machine's memory
    dram_write: float | None = None
    npu_busy: float | None = None  # %, of the NPU beside this GPU
    npu_power: float | None = None  # W
    npu_clock: float | None = None  # MHz
    stale: Mapping[str, float] = field(default_factory=dict)  # value → its age in s
    reasons: Mapping[str, str] = field(default_factory=dict)  # value → why it could not be read


class Values:
    """Remembers the last value of each name, for as long as it may stand in for one that cannot be read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, Any]] = {}
        self.stale: dict[str, float] = {}
        self.reasons: dict[str, str] = {}

    def begin(self) -> None:
        self.stale, self.reasons = {}, {}

    def forget(self) -> None:
        self._last.clear()

    def get(self, name: str, *ways: Callable[[], T]) -> T | None:
        """The first of several ways to read a value that works; else its last value; else None."""
        now = self._clock.monotonic()
        trouble: Unreadable | None = None
        for way in ways:
            try:
                value = way()
            except Unreadable as error:
                if trouble is None or trouble.absent:
                    trouble = error
                continue
            self._last[name] = (now, value)
            return value
        if trouble is not None and trouble.absent:
            self._last.pop(name, None)
            return None
        if trouble is not None:
            self.reasons[name] = trouble.reason
        at, last = self._last.get(name, (0.0, None))
        if last is None or now - at > KEEP:
            self._last.pop(name, None)
            return None
        self.stale[name] = now - at
        found: T = last
        return found
