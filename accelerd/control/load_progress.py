"""How far a load is, from what can be measured of it: bytes taken in from files, bytes resident, the engine's figure.

Pure. Says a part of one and never a guess by the clock: what is not measured is not known.
"""

from __future__ import annotations

from typing import Final, Protocol

from accelerd.control.jobs import UNKNOWN
from accelerd.memory.model import RAM
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot

ALMOST: Final = 0.99  # everything is there, but it has not said that it is ready
DOTS: Final = 100  # that an older llama.cpp prints on one line while it reads a model; newer ones print nothing


class Progress(Protocol):
    """What a loading instance shows of itself."""

    @property
    def line(self) -> str: ...
    @property
    def resident(self) -> int | None: ...
    @property
    def taken_in(self) -> int | None: ...


def load_progress(snapshot: Snapshot, progress: Progress | None, before: float = UNKNOWN) -> float:
    """0 to 1, never less than `before`; UNKNOWN while nothing can be said.

    Expected are the bytes of `snapshot.need`. Weights count when they have been read or mapped: a driver may set aside
    all the memory at once, long before anything is in it. What is needed beside the weights counts when it is resident.
    """
    if snapshot.state is State.READY:
        return 1.0
    if snapshot.state is not State.STARTING or snapshot.memory <= 0:
        return before
    found = _part(snapshot, progress)
    return before if found is None else max(before, min(ALMOST, found))


def _part(snapshot: Snapshot, progress: Progress | None) -> float | None:
    total = snapshot.memory
    parts = snapshot.need.parts
    weights = min(total, parts.get("weights", 0) + parts.get("projector", 0)) or total
    resident = _resident(snapshot, progress)
    taken = progress.taken_in if progress is not None else None
    dots = _dots(progress.line) if progress is not None else 0
    if dots:
        taken = max(taken or 0, weights * dots // DOTS)
    if taken is None:
        return resident / total if resident is not None else None
    return (min(taken, weights) + max(0, (resident or 0) - weights)) / total


def _resident(snapshot: Snapshot, progress: Progress | None) -> int | None:
    """Bytes of what is needed that are there, in each pool no more than is needed of it. None: nobody has looked."""
    used = dict(snapshot.used)
    if progress is not None and progress.resident is not None:
        used[RAM] = max(used.get(RAM, 0), progress.resident)
    if not used:
        return None
    return sum(min(used.get(pool, 0), size) for pool, size in snapshot.need.amounts.items())


def _dots(line: str) -> int:
    """How many dots the line has, if it has nothing else: it prints one for each hundredth, at most."""
    return min(DOTS, len(line)) if line and not line.strip(".") else 0
