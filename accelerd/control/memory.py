"""Memory and what was learned of it: who holds what, what a model would need, forgetting what was measured.

Shows and forgets; decides nothing. Who has what is the scheduler's ledger, what is in use is the last look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from accelerd.control.model_info import ModelNames
from accelerd.control.operations import ModelRequest, Operation, Request, operation
from accelerd.memory.learned import LearnedRecord
from accelerd.memory.model import Claim, Forecast, MemoryRequirement, MemorySnapshot
from accelerd.memory.report import HolderFacts, MemoryReport, report
from accelerd.policy.yielding import YieldReport
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler


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


class FitOption(msgspec.Struct):
    """One way to place a model. Bytes."""

    amounts: dict[str, int]  # by pool
    devices: Sequence[str]
    parts: dict[str, int]  # "weights", "kv cache", …
    source: str
    claims: Sequence[Claim]


class FitPlacement(msgspec.Struct):
    fits: bool
    reason: str


class Fit(msgspec.Struct):
    """The ways to place a model, the best first, and whether there is room now."""

    model: str
    state: str
    options: list[FitOption]
    placement: FitPlacement


class LearnedNeeds(Protocol):
    """What models were measured to need."""

    def entries(self) -> tuple[LearnedRecord, ...]: ...
    def forget(self, key: str | None = None) -> int:
        """How many entries that was; None: all."""
        ...


class MemorySource(Protocol):
    """What measures memory."""

    degraded: str | None  # why it cannot be measured

    async def look(self) -> MemorySnapshot:
        """Measure now."""
        ...


class MemoryOperations:
    """Looks at memory, and forgets what was learned."""

    def __init__(
        self,
        scheduler: Scheduler,
        names: ModelNames,
        memory: MemorySource,
        learned: LearnedNeeds,
        forecast: Callable[[ModelSpec], Awaitable[Forecast]],
        yielded: Callable[[], YieldReport | None] = lambda: None,
    ) -> None:
        """`forecast`: what a model will need, with what was learned."""
        self._scheduler = scheduler
        self._names = names
        self._memory = memory
        self._learned = learned
        self._forecast = forecast
        self._yielded = yielded

    def operations(self) -> list[Operation]:
        return [
            operation("look", "memory", self.memory),
            operation("look", "memory/learned", self.learned),
            operation("action", "memory/forget", self.forget),
            operation("look", "fit", self.fit),
        ]

    async def memory(self) -> Memory:
        """The pools and who holds what of them, from a fresh look."""
        seen = await self._memory.look()
        snapshots = {snapshot.spec.name: snapshot for snapshot in self._scheduler.snapshots()}

        def facts(name: str) -> HolderFacts:
            """A model that is configured no more may still hold memory."""
            if (known := snapshots.get(name)) is None:
                return HolderFacts()
            return HolderFacts(known.leases, known.idle, known.unevictable, known.spec.priority)

        found = report(self._scheduler.memory.ledger(), seen, facts)
        return Memory(
            found.pools,
            found.stall,
            waiting=[self._waiting(snapshot) for snapshot in snapshots.values() if snapshot.queue],
            yielded=self._yielded(),
            degraded=self._memory.degraded,
        )

    def _waiting(self, snapshot: Snapshot) -> Waiting:
        name = snapshot.spec.name
        fits, why = self._scheduler.placement(name)
        return Waiting(name, snapshot.queue, snapshot.state, fits, why, dict(snapshot.need.amounts))

    async def learned(self) -> LearnedMemory:
        """What models were measured to need."""
        return LearnedMemory([_entry(entry) for entry in self._learned.entries()])

    async def forget(self, request: ForgetRequest) -> Forgotten:
        """Forget what a model, or all models, were measured to need: it is estimated again."""
        name = request.model
        if request.all == (name is not None):
            raise AccelError("bad_request", "give one of the arguments model and all", param="model")
        if name is None:
            count = self._learned.forget()
        else:
            entries = self._learned.entries()
            if all(entry.model != name for entry in entries):  # one that is no longer configured may be forgotten, too
                name = self._names.find(name).spec.name
            keys = {entry.key for entry in entries if entry.model == name}
            count = sum(self._learned.forget(key) for key in keys)
        for snapshot in self._scheduler.snapshots():
            if count and name in (None, snapshot.spec.name):
                forecast = await self._forecast(snapshot.spec)
                self._scheduler.memory.forecast(snapshot.spec.name, forecast)
        return Forgotten(count)

    async def fit(self, request: ModelRequest) -> Fit:
        """What a model would need, and whether there is room for it now."""
        snapshot = self._names.find(request.model)
        forecast = await self._forecast(snapshot.spec)
        fits, why = self._scheduler.placement(snapshot.spec.name)
        options = [_option(need) for need in forecast.options]
        return Fit(snapshot.spec.name, snapshot.state, options, FitPlacement(fits, why))


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


def _option(need: MemoryRequirement) -> FitOption:
    return FitOption(dict(need.amounts), need.devices, dict(need.parts), need.source, need.claims)
