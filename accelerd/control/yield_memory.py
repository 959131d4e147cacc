"""The control routes that give memory up and take it back, as docs/control.md describes them.

Asks the Yielding; tells from the scheduler's snapshots who leaves and who still works. A yield goes on when the client
that asked for it has gone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any, Protocol

from accelerd.base.errors import AccelError
from accelerd.control.http import Routes, look, streams
from accelerd.control.operations import PROGRESS_EVERY, Event, Events, Operation, Query, at_once, flag
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler

LONGEST = 366 * 86400.0  # s


class Yielding(Protocol):
    """Who wants the memory."""

    async def ask(self, seconds: float | None = None, *, everything: bool = False, now: bool = False) -> None: ...
    async def resume(self) -> bool: ...
    def concerns(self, pool: str) -> bool:
        """Is this pool given up?"""
        ...

    def report(self) -> dict[str, Any] | None:
        """None while nothing is given up."""
        ...


class MemoryRoutes:
    """`routes` are for Control."""

    def __init__(self, yielding: Yielding, scheduler: Scheduler) -> None:
        self._yielding = yielding
        self._scheduler = scheduler
        self.operations: dict[str, Operation] = {"yield": self._yield, "resume": self._resumed}
        self.routes: Routes = {**streams({"yield": self._yield}), ("POST", "/resume"): look(self._resume)}

    async def _resume(self, query: Query) -> dict[str, Any]:
        report = self._yielding.report() or {}
        back = [snapshot.spec.name for snapshot in self._scheduler.snapshots() if snapshot.displaced]
        resumed = await self._yielding.resume()
        return {"resumed": resumed, "what": report.get("what"), "why": report.get("why"), "back": back}

    async def _resumed(self, query: Query) -> Events:
        return at_once({"event": "resumed", **await self._resume(query)})

    async def _yield(self, query: Query) -> Events:
        """Who leaves, until nobody is there any more."""
        seconds = _seconds(query)
        before = {s.spec.name: _bytes(s) for s in self._scheduler.snapshots() if s.held}
        await self._yielding.ask(seconds, everything=flag(query, "all"), now=flag(query, "now"))
        return self._leaving({name: held for name, all in before.items() if (held := self._concerned(all))})

    async def _leaving(self, before: dict[str, dict[str, int]]) -> Events:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self._yielding.report() is not None:
            models = self._there(before)
            if all(_stuck(snapshot) for snapshot in models):
                break
            yield {"event": "progress", "elapsed": loop.time() - began, "models": [_model(s) for s in models]}
            await asyncio.sleep(PROGRESS_EVERY)
        yield {**self._outcome(before), "elapsed": loop.time() - began}

    def _outcome(self, before: dict[str, dict[str, int]]) -> Event:
        report = self._yielding.report()
        if report is None:
            return {"event": "resumed"}  # somebody wanted the models back meanwhile, or the time is over
        models = self._there(before)
        stays = {s.spec.name: self._concerned(_bytes(s)) for s in models}
        freed: dict[str, int] = {}
        for name, held in before.items():
            for pool, size in held.items():
                freed[pool] = freed.get(pool, 0) + max(0, size - stays.get(name, {}).get(pool, 0))
        pools = self._scheduler.ledger().pools
        return {
            "event": "yielded",
            **report,
            "freed": [
                {"pool": id, "label": pools[id].label if id in pools else id, "size": size}
                for id, size in freed.items()
            ],
            "models": [{"model": name, "size": sum(held.values())} for name, held in before.items()],
            "stuck": [s.spec.name for s in models],
        }

    def _there(self, names: Iterable[str]) -> list[Snapshot]:
        """Those of these models that still hold some of the memory."""
        wanted = set(names)
        return [s for s in self._scheduler.snapshots() if s.spec.name in wanted and self._concerned(_bytes(s))]

    def _concerned(self, held: dict[str, int]) -> dict[str, int]:
        """What lies in pools that are given up. A model only in main memory holds none of a GPU."""
        return {pool: size for pool, size in held.items() if size > 0 and self._yielding.concerns(pool)}


def _bytes(snapshot: Snapshot) -> dict[str, int]:
    """What it takes, by pool: as it was seen, else as it was reserved."""
    return {pool: snapshot.used.get(pool) or size for pool, size in snapshot.held.items()}


def _stuck(snapshot: Snapshot) -> bool:
    """Nobody counts on its end any more."""
    return snapshot.state is State.KILLING and snapshot.since > STUCK_AFTER


def _model(snapshot: Snapshot) -> dict[str, Any]:
    return {"model": snapshot.spec.name, "state": snapshot.state, "leases": snapshot.leases}


def _seconds(query: Query) -> float | None:
    text = query.get("for")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST:
        text = f"for must be a number of seconds, more than 0 and at most a year, not {text[:20]!r}"
        raise AccelError("bad_request", text, param="for")
    return seconds
