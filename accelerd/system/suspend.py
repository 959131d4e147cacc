"""How long this machine has been suspended. Reads two clocks of the kernel and nothing else."""

from __future__ import annotations

import time


def time_asleep() -> float:
    """Seconds spent in suspend since boot: what CLOCK_BOOTTIME counts and CLOCK_MONOTONIC does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
