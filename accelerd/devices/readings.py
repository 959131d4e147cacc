"""The readings of a device, and a cache for values that cannot be read for a moment.

The cache returns the last value of each name for a short time, marked stale; then the value is unknown, with the
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from msgspec import Struct, field

from accelerd.base.ports import Clock
from accelerd.devices.files import UnreadableValue
from accelerd.devices.model import MemoryPool

KEEP = 30.0  # s that a last value replaces an unreadable one

T = TypeVar("T")


class Frequency(Struct, frozen=True):
    """MHz; None: unknown."""

    now: float | None = None
    lowest: float | None = None
    highest: float | None = None


class Readings(Struct, frozen=True):
    """One look at one device. None, or a missing key: not known here, `reasons` may say why."""

    asleep: bool = False  # runtime-suspended; not read
    busy: float | None = None  # %
    clocks: Mapping[str, Frequency] = field(default_factory=dict)  # "sclk", "mclk", "fclk"
    power: float | None = None  # W
    temperature: float | None = None  # °C
    temperatures: Mapping[str, float] = field(default_factory=dict)  # by sensor
    pools: tuple[MemoryPool, ...] = ()
    level: str | None = None  # amdgpu's performance level
    throttling: tuple[str, ...] = ()  # what limits the clocks
    dram_read: float | None = None  # bytes/s, of main memory
    dram_write: float | None = None
    npu_busy: float | None = None  # %, of the NPU in the same processor
    npu_power: float | None = None  # W
    npu_clock: float | None = None  # MHz
    stale: Mapping[str, float] = field(default_factory=dict)  # value → its age in s
    reasons: Mapping[str, str] = field(default_factory=dict)  # value → why it could not be read


class ValueCache:
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
        """The result of the first way to read the value that works; else its last value; else None."""
        now = self._clock.monotonic()
        trouble: UnreadableValue | None = None
        for way in ways:
            try:
                value = way()
            except UnreadableValue as error:
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
