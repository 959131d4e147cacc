"""What an NPU is told of to people: its hardware contexts, its columns, which models are there, what memory they have.

Made of snapshots and the rules of NPUs; decides nothing, looks at nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from accelerd.devices.model import Device
from accelerd.memory import npu_rules
from accelerd.memory.model import MemoryRequirement, Pool
from accelerd.scheduler.lifecycle import OCCUPIED
from accelerd.scheduler.record import Snapshot


class Tenant(Struct, frozen=True):
    """One claim of a model. Bytes are the model's whole, wherever they lie: an NPU has no memory of its own."""

    model: str
    family: str
    kind: str
    contexts: int
    host: str
    memory: int  # that counts
    memory_used: int | None  # seen in use; None: not seen yet


class NpuUse(Struct, frozen=True):
    """One NPU. `contexts` None: nobody knows how many there are."""

    contexts: int | None
    contexts_used: int
    columns: int | None
    models: tuple[Tenant, ...]

    @property
    def memory(self) -> int:
        """Bytes that count as its models'; of a model with two claims once."""
        return sum({one.model: one.memory for one in self.models}.values())

    @property
    def memory_used(self) -> int:
        return sum({one.model: one.memory_used or 0 for one in self.models}.values())


def use_of(device: Device, snapshots: Iterable[Snapshot]) -> NpuUse | None:
    """Who is on an NPU now; None for any other device."""
    if device.kind != "npu":
        return None
    there = [s for s in snapshots if s.state in OCCUPIED and s.need.claims]
    return NpuUse(
        contexts=npu_rules.contexts(device),
        contexts_used=npu_rules.claimed((s.need for s in there), device.id),
        columns=device.columns,
        models=tuple(
            Tenant(s.spec.name, claim.family, claim.kind, claim.contexts, claim.host, sum(s.held.values()),
                   sum(s.used.values()) if s.used else None)
            for s in there for claim in s.need.claims if claim.device == device.id
        ),
    )  # fmt: skip


class ClaimStatus(msgspec.Struct, frozen=True):
    """A place that a model takes on an NPU."""

    device: str
    family: str
    kind: str
    contexts: int
    host: str  # the server that holds several models; "": its own process
    label: str  # of the device, for people
    of: int | None  # contexts that there are; None: not known


def claims_of(need: MemoryRequirement, pools: Mapping[str, Pool]) -> list[ClaimStatus]:
    """The places that a model placed like this takes."""
    found = []
    for claim in need.claims:
        pool = pools.get(claim.device)
        label, contexts = (pool.label, pool.contexts) if pool is not None else (claim.device, None)
        found.append(ClaimStatus(claim.device, claim.family, claim.kind, claim.contexts, claim.host, label, contexts))
    return found
