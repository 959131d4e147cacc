"""What is known to go wrong when certain models work on one machine together, or on a device with a known fault.

The knowledge is data, each row with its source. Told where people look: by `accelctl explain`, `doctor` and `status`,
and once in the journal. Forbids nothing: what the NPU's rules exclude is the scheduler's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from msgspec import Struct

from accelerd.base.events import EventStream
from accelerd.base.names import MSG_DEVICE
from accelerd.devices.model import Device
from accelerd.engines.base import LaunchPlan
from accelerd.instances import InstanceFacts
from accelerd.memory.model import MemoryRequirement
from accelerd.memory.npu_rules import clash
from accelerd.scheduler.events import ModelLoaded
from accelerd.scheduler.lifecycle import OCCUPIED
from accelerd.scheduler.record import Snapshot
from accelerd.system.records import event as journal

log = logging.getLogger(__name__)


class Rule(Struct, frozen=True):
    """A program on an NPU, and one elsewhere, that do not get along."""

    id: str
    family: str  # of a claim
    backend: str  # what the other model's program computes with, as LaunchPlan has it
    message: str  # one clause, with {npu} and {other} for the models
    fix: str
    source: str


RULES: Final = (
    Rule(
        id="rocm-beside-flm",
        family="flm",
        backend="rocm",
        message="{other} computes with ROCm beside {npu}: the NPU's firmware is known to hang then, which ends flm",
        fix="run {other} with a llama-server built for Vulkan",
        source="https://github.com/amd/xdna-driver/issues/1605, https://github.com/ROCm/FastFlowLM/issues/670",
    ),
)


class Seat(Struct, frozen=True):
    """A model, as far as it matters here."""

    model: str
    need: MemoryRequirement
    backend: str = ""  # "": not known


REMOTE_UNREACHABLE: Final = (
    "remote-unreachable"  # the id of one that is no conflict: a server elsewhere does not answer
)


class KnownConflict(Struct, frozen=True):
    """Something that a person should know."""

    id: str
    models: tuple[str, ...]
    message: str
    fix: str
    source: str

    @property
    def line(self) -> str:
        return f"{self.message}: {self.fix} ({self.source})"


def found(seats: Sequence[Seat]) -> Iterator[KnownConflict]:
    """What threatens models that work together, each pair once. Pure."""
    for rule in RULES:
        for one in seats:
            if all(claim.family != rule.family for claim in one.need.claims):
                continue
            for other in seats:
                if other.backend == rule.backend and other is not one:
                    words = {"npu": one.model, "other": other.model}
                    yield KnownConflict(rule.id, (one.model, other.model), rule.message.format(**words),
                                 rule.fix.format(**words), rule.source)  # fmt: skip


def taking_turns(model: str, need: MemoryRequirement, others: Iterable[Seat]) -> Iterator[KnownConflict]:
    """Configured models that can never be on the NPU beside this one. Pure."""
    for other in others:
        if other.model != model and (why := clash(need, other.need)):
            text = f"{other.model} leaves when {model} is loaded, and the other way round: {why}"
            yield KnownConflict(
                "npu-exclusive", (model, other.model), text, "ask for one of them only", "memory.md, NPUs"
            )


class KnownConflicts:
    """The same, of this machine's models and devices as they are now."""

    def __init__(
        self,
        snapshots: Callable[[], Sequence[Snapshot]],
        insight: InstanceFacts,
        devices: Callable[[], Sequence[Device]],
        events: EventStream,
    ) -> None:
        self._snapshots = snapshots
        self._insight = insight
        self._devices = devices
        self._told: set[tuple[str, tuple[str, ...]]] = set()
        events.subscribe(ModelLoaded, self.on_model_loaded)

    def now(self) -> list[KnownConflict]:
        """What threatens the models that are loaded."""
        return list(found([self._seat(s) for s in self._snapshots() if s.state in OCCUPIED]))

    def of(self, snapshot: Snapshot, plan: LaunchPlan) -> list[str]:
        """A line for everything that a person who asks about this model should know: loaded or not."""
        name, need = snapshot.spec.name, snapshot.need
        seats = [self._seat(s) for s in self._snapshots() if s.spec.name != name]
        together = found([*seats, Seat(name, need, plan.backend)])
        lines = [hazard.line for hazard in together if name in hazard.models]
        lines += [hazard.line for hazard in taking_turns(name, need, seats)]
        for device in self._devices():
            if device.id in need.devices:
                told = [t.message + (f": {t.fix}" if t.fix else "") for t in device.troubles]
                lines += [f"{device.name}: {text}" for text in told]
        return lines

    def on_model_loaded(self, event: ModelLoaded) -> None:
        """Write what is new to the journal, once in this daemon's life."""
        for hazard in self.now():
            key = hazard.id, hazard.models
            if event.spec.name in hazard.models and key not in self._told:
                self._told.add(key)
                journal(log, logging.WARNING, hazard.line, message_id=MSG_DEVICE, model=event.spec.name)

    def _seat(self, snapshot: Snapshot) -> Seat:
        facts = self._insight.facts(snapshot.instance) if snapshot.instance is not None else None
        plan = facts.plan if facts is not None else None
        return Seat(snapshot.spec.name, snapshot.need, plan.backend if plan is not None else "")
