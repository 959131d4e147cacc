"""amdgpu's pp_dpm_* files: the steps of a clock, with a star at those in use. Pure.

Real files have none, one or two stars, trailing blanks, NULs, empty lines, and on newer cards a line "S:" for a clock
that sleeps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LINE = re.compile(r"^(\d+|S):\s*(\d+)\s*[Mm][Hh][Zz]\s*(\*)?")
MOST_MHZ = 20_000


@dataclass(frozen=True)
class Steps:
    """MHz."""

    lowest: int
    highest: int
    now: int | None  # None: no star, or several that disagree


def parse(text: str) -> Steps | None:
    """None when there is no clock in it."""
    steps, stars = [], set()
    for line in text.replace("\0", "").splitlines():
        found = LINE.match(line.strip())
        if found is None or int(found[2]) > MOST_MHZ:
            continue
        if found[3]:
            stars.add(int(found[2]))
        if found[1] != "S":
            steps.append(int(found[2]))
    if not steps:
        return None
    return Steps(min(steps), max(steps), stars.pop() if len(stars) == 1 else None)
