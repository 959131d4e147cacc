"""Memory and what was learned of it: who holds what, what a model would need, forgetting what was measured.

Shows and forgets; decides nothing. Who has what is the scheduler's ledger, what is in use is the last look.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from accelerd.control.operations import ModelRequest, Request, operation
from accelerd.control.parts import ControlParts
from accelerd.memory.learned import LearnedRecord
from accelerd.memory.model import Claim
from accelerd.memory.report import HolderFacts, MemoryReport, report
from accelerd.policy.yielding import YieldReport
from accelerd.scheduler.record import Snapshot


class Waiting(msgspec.Struct):
    """Requests that wait for a model, and whether it could be loaded."""

    model: str
    requests: int
    state: str
    fits: bool
    reason: str
    wanted: dict[str, int]  # bytes by pool


class Memory(MemoryReport, kw_only=True):
    """The pools and who holds what of them, from a fresh look."""

    waiting: list[Waiting]
    yielded: YieldReport | None
    degraded: str | None  # why memory cannot be measured


class LearnedEntry(msgspec.Struct):
    """What a model was measured to need, in one way of placing it. Bytes by pool."""

    model: str
    file: str
    devices: list[str]
    estimate: dict[str, int]
    measured: dict[str, int]
    need: int | None  # what it is given since it ran out of memory
    lacked: int | None  # what it ran out of memory with
    shortages: int
    runs: int
    at: float | None  # seconds since 1970


class LearnedMemory(msgspec.Struct):
    """The newest first."""

    learned: list[LearnedEntry]


class ForgetRequest(Request, frozen=True):
    """One of the two."""

    model: str | None = None  # also one that is no longer configured
    all: bool = False


class Forgotten(msgspec.Struct):
    """How many entries there were."""

    forgotten: int


class BuildRequest(Request, frozen=True):
    model: str | None = None  # None: one without settings of its own


class Build(msgspec.Struct):
    """The program that runs models, as accelerd's own environment has it."""

    engine: str
    program: str  # its path
    version: str
    backend: str  # what computes: "cpu", "radv", "cuda", …; "": not known
    options: list[str]  # all names that it knows


class FitOption(msgspec.Struct):
    """One way to place a model. Bytes."""

    amounts: dict[str, int]  # by pool
    devices: Sequence[str]
    parts: dict[str, int]  # "weights", "kv cache", … of all pools together
    shares: dict[str, dict[str, int]]  # the same by pool; {}: not known
    source: str
    claims: Sequence[Claim]
    context: int | None = None  # of one request, where the setting leaves it open


class FitPlacement(msgspec.Struct):
    fits: bool
    reason: str


class Fit(msgspec.Struct):
    """The ways to place a model, the best first, and whether there is room now."""

    model: str
    state: str
    options: list[FitOption]
    placement: FitPlacement


@operation("look", "memory")
async def memory(parts: ControlParts) -> Memory:
    """The pools and who holds what of them, from a fresh look."""
    seen = await parts.memory.look()
    snapshots = {snapshot.spec.name: snapshot for snapshot in parts.scheduler.snapshots()}

    def facts(name: str) -> HolderFacts:
        """A model that is configured no more may still hold memory."""
        if (known := snapshots.get(name)) is None:
            return HolderFacts()
        return HolderFacts(known.leases, known.idle, known.unevictable, known.spec.priority)

    def waiting(snapshot: Snapshot) -> Waiting:
        name = snapshot.spec.name
        fits, why = parts.scheduler.placement(name)
        return Waiting(name, snapshot.queue, snapshot.state, fits, why, dict(snapshot.need.amounts))

    found = report(parts.scheduler.memory.ledger(), seen, facts)
    return Memory(
        found.pools,
        found.stall,
        waiting=[waiting(snapshot) for snapshot in snapshots.values() if snapshot.queue],
        yielded=parts.yielding.report(),
        degraded=parts.memory.degraded,
    )


@operation("look", "memory/learned")
async def learned(parts: ControlParts) -> LearnedMemory:
    """What models were measured to need."""
    return LearnedMemory([_entry(entry) for entry in parts.model_info.learned.entries()])


@operation("action", "memory/forget")
async def forget(parts: ControlParts, request: ForgetRequest) -> Forgotten:
    """Forget what a model, or all models, were measured to need: it is estimated again."""
    name, known = request.model, parts.model_info.learned
    if request.all == (name is not None):
        raise AccelError("bad_request", "give one of the arguments model and all", param="model")
    if name is None:
        count = known.forget()
    else:
        entries = known.entries()
        if all(entry.model != name for entry in entries):  # one that is no longer configured may be forgotten, too
            name = parts.find(name).spec.name
        keys = {entry.key for entry in entries if entry.model == name}
        count = sum(known.forget(key) for key in keys)
    for snapshot in parts.scheduler.snapshots():
        if count and name in (None, snapshot.spec.name):
            forecast = await parts.model_info.forecast(snapshot.spec, ask=True)
            parts.scheduler.memory.forecast(snapshot.spec.name, forecast)
    return Forgotten(count)


@operation("look", "fit")
async def fit(parts: ControlParts, request: ModelRequest) -> Fit:
    """What a model would need, and whether there is room for it now."""
    snapshot = parts.find(request.model)
    forecast = await parts.model_info.forecast(snapshot.spec, ask=True)
    options = [msgspec.convert(need, FitOption, from_attributes=True) for need in forecast.options]
    placement = FitPlacement(*parts.scheduler.placement(snapshot.spec.name))
    return Fit(snapshot.spec.name, snapshot.state, options, placement)


@operation("look", "build")
async def build(parts: ControlParts, request: BuildRequest) -> Build:
    """The engine's program that would run a model."""
    spec = parts.find(request.model).spec if request.model is not None else ModelSpec("a model")
    found = await parts.model_info.build(spec)
    return Build(found.engine, found.program, found.version, found.backend, sorted(found.options))


def _entry(entry: LearnedRecord) -> LearnedEntry:
    return LearnedEntry(
        model=entry.model,
        file=entry.file,
        devices=list(entry.devices),
        estimate=dict(entry.estimate),
        measured=dict(entry.peak),
        need=entry.need or None,
        lacked=entry.lacked or None,
        shortages=entry.shortages,
        runs=entry.runs,
        at=entry.at or None,
    )
