"""What the scheduler asks about models beside their processes: what they need and what they run on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from accelerd.config.model import ModelSpec
from accelerd.memory.model import Forecast, MemoryRequirement


class ModelRequirements(Protocol):
    """What is known of models beside their lives: the memory that they turned out to need, what they run on."""

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None:
        """It ran out of memory: from now on it needs so much."""
        ...

    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        """What is estimated, whatever was measured."""
        ...

    def record_peak(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None:
        """The most, by pool, that a loaded model was seen to use; told after every look."""
        ...

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """What of this model would fit into so much of each pool: one clause, or nothing."""
        ...

    def device(self, spec: ModelSpec) -> str:
        """What the model runs on, by name."""
        ...
