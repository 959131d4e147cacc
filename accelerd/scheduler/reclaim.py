"""When is the memory of an ended process back? The port through which the scheduler asks, and the answer for RAM.

A device's driver may hold memory for seconds after the process, or for ever; main memory comes back with the process.
Whoever reads devices implements Reclaim; the scheduler knows no device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

Changed = Callable[[int, str], None]  # (bytes not back yet, where: "VRAM of card0"); 0 bytes: all is back


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
