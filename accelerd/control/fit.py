"""The control routes that show memory and what was learned of it, as docs/control.md describes them.

Shows and forgets, decides nothing: who has what is the scheduler's ledger, what is in use is the last look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from accelerd.control.http import Routes, doings, looks
from accelerd.control.operations import Answer, Query, model_of
from accelerd.memory.learned import Entry
from accelerd.memory.ledger import Ledger
from accelerd.memory.model import Forecast, MemoryRequirement, MemorySnapshot
from accelerd.memory.report import report
from accelerd.scheduler.record import Snapshot


class Models(Protocol):
    """The scheduler, as far as this room asks it."""

    def snapshot(self, name: str) -> Snapshot: ...
    def snapshots(self) -> list[Snapshot]: ...
    def placement(self, name: str) -> tuple[bool, str]: ...
    def forecast(self, name: str, forecast: Forecast) -> None:
        """This is known of the model now."""
        ...


class Learned(Protocol):
    """What models were measured to need."""

    def entries(self) -> tuple[Entry, ...]: ...
    def forget(self, key: str | None = None) -> int:
        """How many entries that was; None: all."""
        ...


class FitRoutes:
    """`routes` are for Control."""

    def __init__(
        self,
        models: Models,
        ledger: Callable[[], Ledger],
        seen: Callable[[], Awaitable[MemorySnapshot]],
        learned: Learned,
        forecast: Callable[[ModelSpec], Awaitable[Forecast]],
        yielded: Callable[[], dict[str, Any] | None] = lambda: None,
        degraded: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`seen`: a fresh look; `forecast`: with what was learned; `yielded`: what is given up, as `status` has it;
        `degraded`: why memory cannot be measured."""
        self._models = models
        self._ledger = ledger
        self._seen = seen
        self._learned = learned
        self._forecast = forecast
        self._yielded = yielded
        self._degraded = degraded
        self.answers: dict[str, Answer] = {
            "memory": self._memory,
            "memory/learned": self._list,
            "fit": self._fit,
        }
        self.actions: dict[str, Answer] = {"memory/forget": self._drop}
        self.routes: Routes = {**looks(self.answers), **doings(self.actions)}

    async def _memory(self, query: Query) -> dict[str, Any]:
        seen = await self._seen()
        snapshots = {snapshot.spec.name: snapshot for snapshot in self._models.snapshots()}

        def facts(name: str) -> dict[str, Any]:
            """What decides about who leaves; a model that is configured no more may still hold memory."""
            if (known := snapshots.get(name)) is None:
                return {"leases": 0, "idle": None, "pin": False, "priority": 0}
            return {
                "leases": known.leases,
                "idle": known.idle,
                "pin": known.unevictable,
                "priority": known.spec.priority,
            }

        return {
            **report(self._ledger(), seen, facts),
            "waiting": [self._waiting(snapshot) for snapshot in snapshots.values() if snapshot.queue],
            "yielded": self._yielded(),
            "degraded": self._degraded(),
        }

    def _waiting(self, snapshot: Snapshot) -> dict[str, Any]:
        name = snapshot.spec.name
        fits, why = self._models.placement(name)
        return {"model": name, "requests": snapshot.queue, "state": snapshot.state, "fits": fits, "reason": why,
                "wanted": dict(snapshot.need.amounts)}  # fmt: skip

    async def _list(self, query: Query) -> dict[str, Any]:
        return {"learned": [_entry(entry) for entry in self._learned.entries()]}

    async def _drop(self, query: Query) -> dict[str, Any]:
        everything, name = query.get("all", "0") not in ("0", ""), query.get("model")
        if everything == (name is not None):
            raise AccelError("bad_request", "the query needs one of model=NAME and all=1", param="model")
        if name is None:
            count = self._learned.forget()
        else:
            entries = self._learned.entries()
            if all(entry.model != name for entry in entries):  # one that is no longer configured may be forgotten, too
                name = self._models.snapshot(name).spec.name
            keys = {entry.key for entry in entries if entry.model == name}
            count = sum(self._learned.forget(key) for key in keys)
        for snapshot in self._models.snapshots():
            if count and name in (None, snapshot.spec.name):
                forecast = await self._forecast(snapshot.spec)
                self._models.forecast(snapshot.spec.name, forecast)
        return {"forgotten": count}

    async def _fit(self, query: Query) -> dict[str, Any]:
        snapshot = self._models.snapshot(model_of(query))
        forecast = await self._forecast(snapshot.spec)
        fits, why = self._models.placement(snapshot.spec.name)
        return {
            "model": snapshot.spec.name,
            "state": snapshot.state,
            "options": [_need(need) for need in forecast.options],
            "placement": {"fits": fits, "reason": why},
        }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "model": entry.model,
        "file": entry.file,
        "devices": list(entry.devices),
        "estimate": dict(entry.estimate),
        "measured": dict(entry.peak),
        "need": entry.need or None,
        "lacked": entry.lacked or None,
        "shortages": entry.shortages,
        "runs": entry.runs,
        "at": entry.at or None,
    }


def _need(need: MemoryRequirement) -> dict[str, Any]:
    return {
        "amounts": dict(need.amounts),
        "devices": list(need.devices),
        "parts": dict(need.parts),
        "source": need.source,
        "claims": [asdict(claim) for claim in need.claims],
    }
