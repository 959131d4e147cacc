"""Did an engine end because it got no memory? Read from what it printed, in words that its plan brings along. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from accelerd.engines.base import LaunchPlan

LINES: Final = 300  # that are looked at: an abort prints a backtrace after the words that count
SAID: Final = 160  # characters


@dataclass(frozen=True)
class FailedAllocation:
    """What it says that it did not get."""

    said: str  # its own words
    wanted: int | None  # bytes, of this one piece


def shortage(plan: LaunchPlan, lines: Sequence[str]) -> FailedAllocation | None:
    """The last that the lines say of it: it may have tried with smaller pieces. None: not a word of that."""
    if any(re.search(pattern, line) for pattern in plan.too_large for line in lines):
        return None
    found: FailedAllocation | None = None
    for line in lines:
        for pattern in plan.out_of_memory:
            match = re.search(pattern, line)
            if match is not None:
                wanted = _wanted(match)
                if wanted is not None or found is None:
                    found = FailedAllocation(line[match.start() :].strip()[:SAID], wanted)
                break
    return found


def _wanted(match: re.Match[str]) -> int | None:
    groups = match.groupdict()
    if groups.get("bytes"):
        return int(groups["bytes"])
    return int(float(groups["mib"]) * (1 << 20)) if groups.get("mib") else None
