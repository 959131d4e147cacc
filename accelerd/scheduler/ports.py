"""What the scheduler asks of the rest of the program beside processes: somebody to tell, somebody who remembers.

Protocols only; the concrete ones are passed in by the composition root.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from accelerd.config.model import ModelSpec
from accelerd.memory.model import Forecast, MemoryRequirement
from accelerd.scheduler.record import Record, Residue, Transition


class Witness(Protocol):
    """Who hears what becomes of models."""

    def moved(self, record: Record, transition: Transition) -> None: ...
    def lost(self, residue: Residue) -> None:
        """Memory of an ended model does not come back; it stays on the ledger."""

    def woken(self, slept: float) -> None:
        """The machine was suspended for so many seconds."""

    def in_use(self, spec: ModelSpec, busy: bool) -> None:
        """The model's first lease was given, or its last has ended. On the path of requests: must be cheap."""


class ModelNeeds(Protocol):
    """What is known of models beside their lives: the memory that they turned out to need, what they run on."""

    def outgrown(self, spec: ModelSpec, need: MemoryRequirement) -> None:
        """It ran out of memory: from now on it needs so much."""
        ...

    def forget(self, spec: ModelSpec) -> Forecast:
        """What is estimated, whatever was measured."""
        ...

    def saw(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None:
        """The most, by pool, that a loaded model was seen to use; told after every look."""
        ...

    def offer(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """What of this model would fit into so much of each pool: one clause, or nothing."""
        ...

    def device(self, spec: ModelSpec) -> str:
        """What the model runs on, by name."""
        ...
