"""What the scheduler asks about models beside their processes: what they need and what they run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from accelerd.config.model import ModelSpec
from accelerd.memory.model import Forecast, MemoryRequirement

Changed = Callable[[int, str], None]  # (bytes not back yet, where: "VRAM of card0"); 0 bytes: all is back


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


class ReclaimWatch(Protocol):
    """Somebody who looks whether memory comes back."""

    def cancel(self) -> None:
        """Look no longer; `changed` is not called any more."""


class Reclaim(Protocol):
    """What knows the pools of memory."""

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: Changed) -> ReclaimWatch | None:
        """The processes of a model that held so much, by pool, are gone. None: its memory is back already.

        Else `changed` is called, later and on the loop's thread, whenever a reading differs, with 0 at last.
        """
        ...


class InstantReclaim:
    """The Reclaim of a machine whose models live in main memory: the kernel has it back when the process is gone."""

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: Changed) -> ReclaimWatch | None:
        return None
