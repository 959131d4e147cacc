"""What the scheduler publishes: immutable facts about models, for whoever subscribes. Decides nothing."""

from __future__ import annotations

import msgspec

from accelerd.base.exits import Exit
from accelerd.config.model import ModelSpec
from accelerd.memory.model import MemoryRequirement
from accelerd.scheduler.record import Residue, Transition


class ModelTransition(msgspec.Struct, frozen=True):
    """A model changed its state."""

    spec: ModelSpec
    transition: Transition
    instance: int | None  # the instance that it has or, if it just ended, had
    error: Exit | None  # how its last instance failed
    retry: bool  # after a failure: a start may be tried again


class ModelsConfigured(msgspec.Struct, frozen=True):
    """The set of models, or what they are to be, is another."""


class ModelLoaded(msgspec.Struct, frozen=True):
    """A load has finished: the model is ready. Not published for adopted models and tuning trials."""

    spec: ModelSpec
    need: MemoryRequirement
    seconds: float


class FilesWanted(msgspec.Struct, frozen=True):
    """A model is asked for whose files are not on this machine. Once, until FileGate was told how that ended."""

    spec: ModelSpec


class ModelInUse(msgspec.Struct, frozen=True):
    """A model's first lease was granted, or its last has ended. On the request path: subscribers must be cheap."""

    spec: ModelSpec
    in_use: bool


class MemoryNotReturned(msgspec.Struct, frozen=True):
    """Memory of an ended model has not come back in time; it stays on the ledger."""

    residue: Residue


class HoldsDropped(msgspec.Struct, frozen=True):
    """Holds of a model ended although nobody released them."""

    model: str
    keys: tuple[str, ...]
    reason: str  # one clause


class SystemResumed(msgspec.Struct, frozen=True):
    """The machine was suspended for so many seconds."""

    seconds: float
