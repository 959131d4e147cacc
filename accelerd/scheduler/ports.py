"""What the scheduler asks the rest of the program beside processes: what models need, what they run on, and when the
memory of an ended process is back. Protocols; the composition root passes the implementations in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from accelerd.config.model import ModelSpec
from accelerd.memory.model import Forecast, MemoryRequirement

Changed = Callable[[int, str], None]  # (bytes not back yet, where: "VRAM of card0"); 0 bytes: all is back


class ModelRequirements(Protocol):
    """What models need: estimated, measured, and raised when they ran out of memory."""

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None:
        """It ran out of memory: remember that it needs this much."""
        ...

    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        """Forget what was measured; the estimate alone."""
        ...

    def record_peak(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None:
        """The most, by pool, that a loaded model was measured to use; called after every snapshot."""
        ...

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """Smaller settings with which the model would fit into this much of each pool: one clause, or nothing."""
        ...

    def device(self, spec: ModelSpec) -> str:
        """What the model runs on, by name."""
        ...


class ReclaimWatch(Protocol):
    """Watches whether memory comes back."""

    def cancel(self) -> None:
        """Stop watching; `changed` is not called any more."""


class Reclaim(Protocol):
    """Knows the pools of memory. A driver may hold memory for seconds after the process, or for ever."""

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: Changed) -> ReclaimWatch | None:
        """The processes of a model have ended; `held` is what they had, by pool. None: all of it is back already.

        Else `changed` is called, later and on the loop's thread, whenever a reading differs, with 0 at last.
        """
        ...


class InstantReclaim:
    """For models in main memory alone: the kernel frees it with the process."""

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: Changed) -> ReclaimWatch | None:
        return None
